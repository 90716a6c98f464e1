"""How fast does the GHN generate and learn, beside the slow way and beside plain training?

Command:   python studies/benchmarks/ghn_speed.py
Cost:      about three minutes on one thread; `--pool` about a quarter of an hour
Expected:  whole levels several times faster than node by node; a training step little dearer than one of plain SGD

The subjects of a question take turns in one process; CPU seconds, medians (and minima) of the repeats.
"""

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from supernet import Plain
from timing import race
from torch import Tensor
from training import random_images

from optuna_nas import (
    GHN,
    DiscreteNetwork,
    FreeScore,
    GHNRecipe,
    NetworkSpace,
    Space,
    darts_cifar_skeleton,
    darts_space,
    ghn_skeleton,
    ghn_space,
    nasbench201_skeleton,
    nasbench201_space,
)
from optuna_nas.oneshot.ghn.graph import ModuleBatch
from optuna_nas.oneshot.ghn.propagation import Propagation

DARTS_V2 = {  # Liu et al. 2019, figures 4 and 5
    "normal_0_2": "sep_conv_3x3",
    "normal_1_2": "sep_conv_3x3",
    "normal_0_3": "sep_conv_3x3",
    "normal_1_3": "sep_conv_3x3",
    "normal_0_4": "skip_connect",
    "normal_1_4": "sep_conv_3x3",
    "normal_0_5": "skip_connect",
    "normal_2_5": "dil_conv_3x3",
    "reduction_0_2": "max_pool_3x3",
    "reduction_1_2": "max_pool_3x3",
    "reduction_1_3": "max_pool_3x3",
    "reduction_2_3": "skip_connect",
    "reduction_0_4": "max_pool_3x3",
    "reduction_2_4": "skip_connect",
    "reduction_1_5": "max_pool_3x3",
    "reduction_2_5": "skip_connect",
}


class NodeByNode(Propagation):
    """The reference: one node after another, in topological order and back."""

    def forward(self, embeddings_NH: Tensor, module: ModuleBatch) -> Tensor:
        """Update every node of every level by itself."""
        h = list(embeddings_NH.unbind())
        for _ in range(self.phases):
            for level in (*module.forward, *module.backward):
                nodes, sources, targets = (part.tolist() for part in level[:3])
                for place, node in enumerate(nodes):
                    received = torch.zeros_like(h[node])
                    for source, target in zip(sources, targets, strict=True):
                        if target == place:
                            received = received + self.message(h[source])
                    h[node] = self.update(received[None], h[node][None])[0]
        return torch.stack(h)


def milliseconds(subjects: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Return the CPU time of each."""
    taken = race(subjects, repeats)
    return {name: {"median ms": 1000 * median(times), "least ms": 1000 * min(times)} for name, times in taken.items()}


def main() -> None:
    """Ask every question, print and write the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--embedding", action="store_true", help="ask only what sums of one term cost, of three blocks")
    only.add_argument("--pool", action="store_true", help="ask only what a pool of 300 costs, filtered or not")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, dict[str, float]]] = {}
    if options.pool:
        found["score 300 cells of NAS-Bench-201"] = milliseconds(pool(300, filtered=True), options.repeats)
    else:
        for seed in range(3 if options.embedding else 1):
            subjects, sizes = embedding(seed)
            question = f"embed the paper's network, block {seed}, T = 5, nodes {sizes}"
            found[question] = milliseconds(subjects, options.repeats)
        if not options.embedding:
            found |= other_questions(options.repeats)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread")
    for question, subjects in found.items():
        print(question)
        for name, times in subjects.items():
            print(f"    {name:34s}" + "".join(f"{key} {value:9.2f}   " for key, value in times.items()))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def other_questions(repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return the times of all but the embedding of the paper's network."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for n_cells in (3, 8):
        for phases in (1, 5):
            found[f"generate, DARTS, {n_cells} cells, T = {phases}"] = milliseconds(
                generation(n_cells, phases), repeats
            )
            found[f"training step, DARTS, {n_cells} cells, T = {phases}"] = milliseconds(
                training_step(n_cells, phases), max(3, repeats // 2)
            )
    found["score 16 cells of NAS-Bench-201"] = milliseconds(pool(), max(3, repeats // 2))
    found["propagate graphs of 17 nodes, T = 1"] = milliseconds(propagation(), repeats)
    return found


def ghn_of(space: Space, n_cells: int, phases: int) -> GHN:
    """Return an untrained GHN; speed does not depend on training."""
    if isinstance(space, type(darts_space())):
        frame = replace(darts_cifar_skeleton(n_cells, channels=16), auxiliary=False, drop_path=0.0)
    else:
        frame = ghn_skeleton(3, 16)
    return GHN(NetworkSpace(space, frame), GHNRecipe(phases=phases))


def generation(n_cells: int, phases: int) -> dict[str, Callable[[], object]]:
    """Return ways to generate all weights of a network."""
    ghn = ghn_of(darts_space(), n_cells, phases)
    slow = ghn_of(darts_space(), n_cells, phases)
    reference = NodeByNode(
        *(getattr(slow.recipe, name) for name in ("hidden", "phases", "propagation", "virtual_edges"))
    )
    reference.load_state_dict(slow.network.propagations[0].state_dict())
    slow.network.propagations = torch.nn.ModuleList([reference])
    cell = ghn.space.architecture(DARTS_V2)

    def generate(subject: GHN) -> None:
        with torch.no_grad():
            subject.generate([cell])

    return {"whole levels": lambda: generate(ghn), "node by node": lambda: generate(slow)}


def training_step(n_cells: int, phases: int) -> dict[str, Callable[[], object]]:
    """Return a step of the GHN and one of plain SGD, on the same network and 64 images of 32 x 32."""
    ghn = ghn_of(darts_space(), n_cells, phases)
    cell = ghn.space.architecture(DARTS_V2)
    network = DiscreteNetwork(cell)
    images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 10
    sgd = torch.optim.SGD(network.parameters(), 0.01, 0.9)
    adam = torch.optim.Adam(ghn.network.parameters(), 1e-3)

    def plain() -> None:
        sgd.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        sgd.step()

    def hyper() -> None:
        adam.zero_grad()
        (weights,) = ghn.generate([cell])
        F.cross_entropy(ghn.outputs(cell, weights, images)[-1], labels).backward()
        torch.nn.utils.clip_grad_norm_(ghn.network.parameters(), 5.0)
        adam.step()

    return {"plain SGD": plain, "GHN": hyper}


def embedding(seed: int) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """Return the embedding of the paper's network with and without nodes for sums of one term, and numbers of nodes."""
    space = NetworkSpace(ghn_space(17), ghn_skeleton(18, 32))
    ghn = GHN(space, GHNRecipe(phases=5))
    graph = space.sample(np.random.default_rng(seed)).graph()
    batches = {"contracted": ghn.batch([graph])}
    with patch("optuna_nas.oneshot.ghn.graph.STRUCTURAL", frozenset()):  # by which sums are known
        batches["every sum a node"] = ghn.batch([graph])

    def forward(name: str) -> None:
        with torch.no_grad():
            ghn.network(batches[name])

    def backward(name: str) -> None:
        ghn.network.zero_grad()
        ghn.network(batches[name])[0].sum().backward()

    subjects = {name: lambda n=name: forward(n) for name in batches}
    subjects |= {f"{name}, with gradients": lambda n=name: backward(n) for name in batches}  # type: ignore[misc]
    return subjects, {name: int(batch.sizes[0]) for name, batch in batches.items()}  # type: ignore[return-value]


def pool(
    n_cells: int = 16, device: str = "cpu", side: int = 16, filtered: bool = False
) -> dict[str, Callable[[], object]]:
    """Return ways to score cells of NAS-Bench-201 by 512 images; both give the same losses.

    Where `filtered`, there is a third one, which scores the tenth by `FreeScore` alone.
    """
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 16, (3, side, side)))
    ghn, random = GHN(space, GHNRecipe()), np.random.default_rng(0)
    cells = [cell for cell in (space.sample(random) for _ in range(2 * n_cells)) if cell.connected][:n_cells]
    data = random_images(64, side, device, report=512)
    ((images, labels),) = data.batches(["report"], 512)
    ghn.attach(data)

    @torch.no_grad()
    def plain() -> list[float]:
        found = []
        for cell in cells:
            network = Plain(cell.graph()).to(device)
            network.take(ghn.generate([cell])[0])
            found.append(-F.cross_entropy(network(images), labels).item())
        return found

    np.testing.assert_allclose(plain(), ghn.score(cells), rtol=1e-3)
    ways: dict[str, Callable[[], object]] = {"plain PyTorch": plain, "GHN.score": lambda: ghn.score(cells)}
    if filtered:
        from optuna_nas.search.strategy import FILTERED  # imports Optuna, which `gpu.py` does without

        def best_tenth() -> NDArray[np.float64]:  # as the strategy `ghn` does
            kept = np.argsort(FreeScore(space, data)(cells))[-n_cells // FILTERED :]
            return ghn.score([cells[place] for place in kept])

        ways["GHN.score, best tenth by FreeScore"] = best_tenth
    return ways


def propagation() -> dict[str, Callable[[], object]]:
    """Return the propagation of one block of 17 nodes and of 64 of them."""
    random = np.random.default_rng(0)
    ghn = ghn_of(ghn_space(17), 3, 1)
    blocks = [ghn.space.sample(random).graph() for _ in range(64)]
    deepest = max(blocks, key=lambda graph: len(ghn.batch([graph]).modules[1].forward))
    batches = {"1 graph, the deepest": ghn.batch([deepest]), "64 graphs": ghn.batch(blocks)}

    def run(name: str) -> None:
        module = batches[name].modules[1]
        with torch.no_grad():
            ghn.network.propagations[0](F.one_hot(module.properties[:, 0], ghn.recipe.hidden).float(), module)

    return {name: lambda n=name: run(n) for name in batches}  # type: ignore[misc]


if __name__ == "__main__":
    main()
