"""A factorised distribution over the options of every edge, its relaxation and its expected cost.

SNAS (Xie et al. 2019, arXiv 1812.09926v2), sections 2.1 to 2.4; equation numbers are the paper's.

E edges (paths of the space), O options of an edge (ops, `none` included).
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from optuna_nas.space import Architecture, CellSpace
from optuna_nas.space.cell_space import cost_table
from optuna_nas.space.cost import COSTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from optuna_nas.space import Skeleton, Space

SMALLEST_EXPONENTIAL = 1e-20  # generators may return an exact 0, whose logarithm is infinite


def concrete_sample(logits_EO: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw relaxed one-hot rows, differentiable in the logits; shape (E, O), float32, rows sum to 1.

    `Z = softmax((log alpha + G) / temperature)`, G standard Gumbel (eq. 4). The largest entry of a row has the law
    softmax(logits) at every temperature. Computed in float32 under autocast too, so that it is never NaN.

    Raises:
        ValueError: `temperature` is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive but got {temperature}; anneal towards 0, never to it.")
    with torch.autocast(logits_EO.device.type, enabled=False):
        return ((logits_EO.float() + gumbel_noise(logits_EO, generator)) / temperature).softmax(dim=-1)


def one_path_sample(logits_EO: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draw hard one-hot rows that carry the gradient of SNAS' credit; shapes (E, O) and (E,), the chosen options.

    The value is one-hot; its derivative is that of log p(Z), so that a backward pass gives the logits of an edge
    `dL/dZ * grad log p(Z)`: the limit of the search gradient at temperature 0 (DSNAS, Hu et al. 2020).
    """
    with torch.autocast(logits_EO.device.type, enabled=False):
        logits_EO = logits_EO.float()
        chosen_E = (logits_EO + gumbel_noise(logits_EO, generator)).argmax(dim=-1)
        hard_EO = torch.nn.functional.one_hot(chosen_E, logits_EO.shape[-1]).float()
        log_p_E1 = logits_EO.log_softmax(dim=-1).gather(-1, chosen_E[:, None])
        return hard_EO * (1 + log_p_E1 - log_p_E1.detach()), chosen_E


def gumbel_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return standard Gumbel noise of a tensor's shape and device, finite, float32."""
    exponential = torch.empty(like.shape, dtype=torch.float32, device=like.device).exponential_(generator=generator)
    return -exponential.clamp_min(SMALLEST_EXPONENTIAL).log()


def softmax(logits_EO: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities of every row, shape (E, O)."""
    raised = np.exp(logits_EO - logits_EO.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


def draw(weights_EO: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Return one option an edge, shape (E,), with probabilities in proportion to a row's weights."""
    cumulated_EO = weights_EO.cumsum(axis=1)
    return (cumulated_EO < generator.random((len(weights_EO), 1)) * cumulated_EO[:, -1:]).sum(axis=1)  # type: ignore[no-any-return]


def entropies(probabilities_EO: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of every row in nats, shape (E,)."""
    safe = np.where(probabilities_EO > 0, probabilities_EO, 1.0)
    return np.asarray(-(probabilities_EO * np.log(safe)).sum(-1))


class DistributionRecord(NamedTuple):
    """How a distribution stood at one moment of its learning, for curves and heat maps.

    Args:
        step: Training step, or number of a trial, by which records are in order.
        metrics: `entropy` (mean of the edges, nats), and where they are known `params`, `multiply_adds` and
            `memory_access` (expected), `temperature`, `loss` (nats) and `accuracy` (a fraction) of the samples.
        probabilities: Shape (E, O).
        credit: Mean credit of the edges since the last record, shape (E,); None without a supernet.
    """

    step: int
    metrics: dict[str, float]
    probabilities: NDArray[np.float64]
    credit: NDArray[np.float64] | None = None


class EdgeCosts:
    """What every option of every edge costs; expectations follow in closed form, since costs add up (section 2.4).

    Args:
        space: Of cells with ops on edges.
        skeleton: Frame around the cells.
    """

    def __init__(self, space: CellSpace, skeleton: Skeleton) -> None:
        self._space = space
        table = cost_table(space, skeleton)
        self.fixed = np.array([getattr(table.fixed, name) for name in COSTS], dtype=np.float64)  # (3,)
        self.table = np.array(
            [
                [
                    [sum(getattr(table.ops[path, op], name) for op in kept) for name in COSTS]
                    for kept in options.values()
                ]
                for path, options in space.options().items()
            ],
            dtype=np.float64,
        )  # (E, O, 3)

    def expected(self, probabilities_EO: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return expected parameters, multiply-adds and memory access of the whole network, shape (3,)."""
        return self.fixed + np.einsum("eo,eoc->c", probabilities_EO, self.table)  # type: ignore[no-any-return]

    @property
    def uniform(self) -> NDArray[np.float64]:
        """Expected costs under the uniform distribution, without what is fixed; shape (3,)."""
        return self.table.mean(axis=1).sum(axis=0)  # type: ignore[no-any-return]

    def cheapest(self, name: str) -> float:
        """Return the least cost of an architecture that reaches its output in every kind of cell.

        Args:
            name: `params`, `multiply_adds` or `memory_access`.
        """
        column = COSTS.index(name)
        chosen_E = connected_argmax(self._space, -self.table[:, :, column])
        return float(self.fixed[column] + self.of(chosen_E)[column])

    def of(self, chosen_E: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what one option an edge costs, without what is fixed; shape (3,)."""
        return self.table[np.arange(len(chosen_E)), chosen_E].sum(axis=0)  # type: ignore[no-any-return]


def most_likely(
    space: CellSpace, log_p_EO: NDArray[np.float64], costs: EdgeCosts, bounds: Mapping[str, float]
) -> Architecture:
    """Return the most probable architecture, the argmax on every edge with `none` included (section 3.1).

    Where that leaves a cell without a way to its output, it is the most probable one that has one. With `bounds` on
    costs, probability is traded for cost at the lowest prices that keep them all: the best on the convex hull of
    probability against cost.

    Raises:
        ValueError: No architecture on that hull keeps all bounds.
    """
    limits = np.array([bounds.get(name, np.inf) for name in COSTS])

    def choose(prices: NDArray[np.float64]) -> NDArray[np.int64]:
        return connected_argmax(space, log_p_EO - costs.table @ prices)

    def keeps(chosen_E: NDArray[np.int64]) -> bool:
        return bool((costs.fixed + costs.of(chosen_E) <= limits).all())

    chosen_E = choose(np.zeros(len(COSTS)))
    if keeps(chosen_E):
        return architecture_of(space, chosen_E)
    rows, found = np.arange(len(chosen_E)), []
    for shares in _shares(len(bounds)):
        direction = np.zeros(len(COSTS))
        for name, share in zip(bounds, shares, strict=True):
            direction[COSTS.index(name)] = share / bounds[name]
        # Several bounds may hold at middle prices only, so all are tried and the lowest that does is refined.
        prices = np.concatenate([[0.0], np.geomspace(1e-3, 1e9, 241)])
        held = next((number for number, price in enumerate(prices) if keeps(choose(price * direction))), None)
        if held is None:
            continue
        low, high = (float(price) for price in prices[held - 1 : held + 1])
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if keeps(choose(middle * direction)) else (middle, high)
        chosen_E = choose(high * direction)
        found.append((float(log_p_EO[rows, chosen_E].sum()), tuple(chosen_E.tolist())))
    if not found:
        listed = ", ".join(f"{name} {bound:.6g}" for name, bound in bounds.items())
        raise ValueError(
            f"`resource` must be within reach but no architecture was found that keeps {listed} at once; raise a bound."
        )
    return architecture_of(space, np.array(max(found)[1]))


def _shares(n_bounds: int) -> list[tuple[float, ...]]:
    """Return ways to share a price among bounds, in quarters."""
    return [tuple(i / 4 for i in parts) for parts in product(range(5), repeat=n_bounds) if sum(parts) == 4]


def connected_argmax(space: CellSpace, score_EO: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return, for every edge, the option of the largest score, such that every kind of cell reaches its output.

    The sum of scores is the largest possible: if the argmax is not connected, the edges of the way that loses least
    take their best option that keeps something.
    """
    chosen_E = np.asarray(score_EO.argmax(axis=1))
    nothing_O = np.array([not kept for kept in edge_options(space).values()])
    if not nothing_O.any():
        return chosen_E
    something_E = np.where(nothing_O, -np.inf, score_EO).argmax(axis=1)
    rows = np.arange(len(chosen_E))
    regret_E = score_EO[rows, chosen_E] - score_EO[rows, something_E]
    position = {path: number for number, path in enumerate(space.paths)}
    nodes = range(space.inputs, space.inputs + space.nodes)
    for kind in space.kinds:
        ways: dict[int, tuple[float, tuple[int, ...]]] = dict.fromkeys(range(space.inputs), (0.0, ()))
        for node in nodes:  # shortest ways from an input, in topological order
            edges = [(source, position[f"{kind.name}/{node}<-{source}"]) for source in range(node)]
            ways[node] = min((ways[i][0] + float(regret_E[e]), (*ways[i][1], e)) for i, e in edges)
        _, way = min(ways[node] for node in kind.outputs or nodes)
        chosen_E[list(way)] = something_E[list(way)]
    return chosen_E


def edge_options(space: CellSpace) -> Mapping[str, tuple[str, ...]]:
    """Return the options of an edge, the same on all of them, and the ops that each keeps."""
    return next(iter(space.options().values()))


def architecture_of(space: Space, chosen_E: NDArray[np.int64]) -> Architecture:
    """Return the architecture of one option an edge."""
    return Architecture(
        space,
        tuple(
            (path, list(options.values())[int(option)])
            for (path, options), option in zip(space.options().items(), chosen_E, strict=True)
        ),
    )
