"""How near is the gradient of single paths to the exact one, and which share of the child's edges ends as `none`?

Command:   python studies/benchmarks/one_path.py
           python studies/benchmarks/one_path.py --parts gradient --steps 200 --cells 2000      # a cheap run
           python studies/benchmarks/one_path.py --parts children --warmups 0 0.3 --seeds 2
Cost:      five CPU minutes on one thread; nothing to download
Expected:  the mean of 2,000 steps has a cosine of 0.94 with the exact gradient to first order, 0.99 by the loss;
           children of two seeds of three have edges that are `none`, whatever the credit and the warm-up

NAS-Bench-201's cells in a network of 3 cells and 4 channels, on scikit-learn's handwritten digits. The exact gradient
of the mean loss by the logits is a sum over all 15,625 cells, on one batch, with the weights that uniform single paths
have learned in half of the epochs; edges from which nothing comes or goes are left out, so that fewer losses are
computed.
"""

import argparse
import itertools
import time
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from optuna_nas import (
    SNAS,
    ImageData,
    NetworkSpace,
    Recipe,
    SNASRecipe,
    digits,
    nasbench201_skeleton,
    nasbench201_space,
    train,
)
from optuna_nas.data import Batch
from optuna_nas.oneshot.snas.distribution import architecture_of
from optuna_nas.space.ways import live_positions
from optuna_nas.training.task import Calling

EPOCHS, CHILD_EPOCHS = 30, 8
EDGES = tuple((source, node) for node in range(1, 4) for source in range(node))  # as the space orders them
NONE = nasbench201_space().ops.index("none")
LEARNERS = {
    "one path, first order": {"relaxation": "one_path", "path_credit": "first_order"},
    "one path, loss": {"relaxation": "one_path", "path_credit": "loss"},
    "concrete": {},
}


def make_snas(data: ImageData, seed: int, warmup: float, learner: str) -> SNAS:
    """Return a supernet of 3 cells and 4 channels."""
    frame = nasbench201_skeleton(1, 4, data.input_shape, data.classes, affine=False)
    recipe = SNASRecipe(warmup_fraction=warmup, seed=seed, **LEARNERS[learner])  # type: ignore[arg-type]
    return SNAS(NetworkSpace(nasbench201_space(), frame), recipe)


# -- the gradient -------------------------------------------------------------------------------------------------


def without_dead_edges(chosen: tuple[int, ...]) -> tuple[int, ...]:
    """Return the options of a cell, `none` where an edge gets nothing or where nothing reads what it gives."""
    reads: list[list[int]] = [[] for _ in range(4)]
    for (source, node), option in zip(EDGES, chosen, strict=True):
        if option != NONE:
            reads[node].append(source)
    live = live_positions(reads, inputs=[0], outputs=[3])
    return tuple(option if {*edge} <= live else NONE for edge, option in zip(EDGES, chosen, strict=True))


@torch.no_grad()
def losses_of(snas: SNAS, batch: Batch, chosen_NE: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the loss of every cell on a batch, with inherited weights; cells that compute the same share one."""
    losses: dict[tuple[int, ...], float] = {}
    live_N = [without_dead_edges(tuple(chosen.tolist())) for chosen in chosen_NE]
    for live in set(live_N):
        path = Calling(partial(snas.predict, architecture_of(snas.space, np.array(live))))
        losses[live] = float(snas.task.loss(path, batch))
    print(f"{len(live_N)} cells, {len(losses)} of which differ", flush=True)
    return np.array([losses[live] for live in live_N])


def step_gradients(snas: SNAS, batch: Batch, steps: int) -> NDArray[np.float64]:
    """Return the gradients of the logits that so many steps on one batch follow, shape (S, E, O)."""
    gradients = []
    for _ in range(steps):
        snas.logits_EO.grad = None
        snas.step_loss(batch).backward()
        found = snas.logits_EO.grad
        gradients.append(np.zeros(snas.table.shape) if found is None else found.double().numpy())
        snas.step += 1  # what is drawn depends on it
    return np.array(gradients)


def in_pairs(loss_N: NDArray[np.float64], score_NEO: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """Return gradients of steps of two paths, each less the loss of the other (leave-one-out)."""
    first, second = np.random.default_rng(0).integers(len(loss_N), size=(2, steps))
    advantage_S = (loss_N[first] - loss_N[second]) / 2
    gradients: NDArray[np.float64] = advantage_S[:, None, None] * (score_NEO[first] - score_NEO[second])
    return gradients


def compare_gradients(n_cells: int | None, steps: int, seed: int) -> None:
    """Print how far the mean gradient of each credit is from the exact one, and how noisy a step is."""
    data = digits(seed)
    batch = next(iter(data.batches(["weights"], 64)))
    exact_EO, loss_N, score_NEO = None, np.empty(0), np.empty((0, 0, 0))
    for learner in ("one path, first order", "one path, loss"):
        snas = make_snas(data, seed, 0.5, learner)
        snas.fit(data, EPOCHS, until=0.5, show_progress=False)  # the logits have not learned: all cells equally likely
        if exact_EO is None:
            all_NE = np.array(list(itertools.product(range(snas.table.shape[1]), repeat=len(EDGES))))
            chosen_NE = all_NE if n_cells is None else np.random.default_rng(seed).permutation(all_NE)[:n_cells]
            loss_N = losses_of(snas, batch, chosen_NE)
            score_NEO = np.eye(snas.table.shape[1])[chosen_NE] - snas.probabilities_EO
            tell_losses(loss_N, chosen_NE)
            exact_EO = np.einsum("n,neo->eo", loss_N - loss_N.mean(), score_NEO) / len(loss_N)
        tell_gradient(learner, step_gradients(snas, batch, steps), exact_EO)
    assert exact_EO is not None
    tell_gradient("two paths, leave-one-out", in_pairs(loss_N, score_NEO, steps), exact_EO)


def tell_losses(loss_N: NDArray[np.float64], chosen_NE: NDArray[np.int64]) -> None:
    """Print the mean loss with inherited weights of cells that have so many edges `none`."""
    n_none_N = (chosen_NE == NONE).sum(1)
    means = {int(n): loss_N[n_none_N == n].mean() for n in np.unique(n_none_N)}
    print("mean loss by edges that are none: " + ", ".join(f"{n}: {mean:.2f}" for n, mean in means.items()), flush=True)


def tell_gradient(name: str, gradients_SEO: NDArray[np.float64], exact_EO: NDArray[np.float64]) -> None:
    """Print cosine and length of the mean, the noise of a step, and what is wrong with the sums for `none`."""
    mean_EO = gradients_SEO.mean(0)
    length, exact_length = np.linalg.norm(mean_EO), np.linalg.norm(exact_EO)
    noise = np.sqrt(((gradients_SEO - mean_EO) ** 2).sum((1, 2)).mean()) / exact_length
    print(
        f"{name:26}cosine {(mean_EO * exact_EO).sum() / (length * exact_length):.3f}, length "
        f"{length / exact_length:.2f}, noise of a step {noise:.1f}; of `none`, summed over edges, "
        f"{mean_EO[:, NONE].sum():+.3f} (exactly {exact_EO[:, NONE].sum():+.3f})",
        flush=True,
    )


# -- the children -------------------------------------------------------------------------------------------------


def tell_child(learner: str, warmup: float, epochs: float, seed: int) -> None:
    """Print what share of a child is `none`, and how well it does with inherited weights and from scratch."""
    data, started = digits(seed), time.process_time()
    snas = make_snas(data, seed, warmup, learner)
    snas.fit(data, epochs, show_progress=False)
    seconds, child = time.process_time() - started, snas.most_likely()
    n_none = sum(not child[path] for path in snas.paths)
    network = snas.space.build(child, seed=seed)
    scratch = train(network, data, Recipe(epochs=CHILD_EPOCHS, batch_size=32, seed=seed)).last
    print(
        f"{learner:22}warm-up {warmup:g}, seed {seed}: P(none) {snas.probabilities_EO[:, NONE].mean():.2f}, child "
        f"{n_none} of {len(EDGES)} edges none, loss inherited {-snas.score([child])[0]:.3f}, from scratch "
        f"{scratch.validation_loss:.3f} ({scratch.validation_metric:.4f}); {seconds:.0f} CPU s",
        flush=True,
    )


def main() -> None:
    """Print the gradients, then the children."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["gradient", "children"], choices=["gradient", "children"])
    parser.add_argument("--cells", type=int, help="random cells that the exact gradient is estimated from, not all")
    parser.add_argument("--steps", type=int, default=2000, help="of which the mean gradient is taken")
    parser.add_argument("--learners", nargs="+", default=list(LEARNERS), choices=list(LEARNERS))
    parser.add_argument("--warmups", type=float, nargs="+", default=[0.0, 0.3, 0.5], help="shares of the budget")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="of single paths; all ops take a third of them")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "gradient" in options.parts:
        compare_gradients(options.cells, options.steps, seed=0)
    if "children" in options.parts:
        for warmup, learner, seed in itertools.product(options.warmups, options.learners, range(options.seeds)):
            tell_child(learner, warmup, options.epochs * (0.35 if learner == "concrete" else 1), seed)


if __name__ == "__main__":
    main()
