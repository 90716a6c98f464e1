"""A factorised distribution over the options of every edge, its relaxation and its expected cost.

SNAS (Xie et al. 2019, arXiv 1812.09926v2), sections 2.1 to 2.4; equation numbers are the paper's.

E edges (paths of the space), O options of an edge (ops, `none` included). Edges may have different numbers of options:
the logits of shorter rows end with minus infinity, which is never chosen and weighs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from optuna_nas.space import Architecture
from optuna_nas.training.checkpoints import check_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from optuna_nas.space import Space


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
    probabilities: NDArray[np.float64] = raised / raised.sum(axis=-1, keepdims=True)
    return probabilities


def draw(weights_EO: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Return one option an edge, shape (E,), with probabilities in proportion to a row's weights."""
    cumulated_EO = weights_EO.cumsum(axis=1)
    thresholds_E1 = generator.random((len(weights_EO), 1)) * cumulated_EO[:, -1:]
    drawn: NDArray[np.int64] = (cumulated_EO < thresholds_E1).sum(axis=1)
    return drawn


def entropies(probabilities_EO: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of every row in nats, shape (E,)."""
    safe = np.where(probabilities_EO > 0, probabilities_EO, 1.0)
    return np.asarray(-(probabilities_EO * np.log(safe)).sum(-1))


class DistributionRecord(NamedTuple):
    """How a distribution stood at one moment of its learning, for curves and heat maps.

    Args:
        step: Training step, or number of a trial, by which records are in order.
        metrics: `entropy` (mean of the edges, nats), and where they are known `params`, `multiply_adds` and
            `memory_access` (expected), `temperature`, `loss` and the task's metric, under its name, of the samples.
        probabilities: Shape (E, O).
        credit: Mean credit of the edges since the last record, shape (E,); None without a supernet.

    Example:
        >>> import numpy as np
        >>> DistributionRecord(0, {"entropy": 0.69}, np.full((3, 2), 0.5)).probabilities.shape
        (3, 2)
    """

    step: int
    metrics: dict[str, float]
    probabilities: NDArray[np.float64]
    credit: NDArray[np.float64] | None = None


def architecture_of(space: Space, chosen_E: NDArray[np.int64]) -> Architecture:
    """Return the architecture of one option an edge."""
    return Architecture(
        space,
        tuple(
            (path, list(options.values())[int(option)])
            for (path, options), option in zip(space.options().items(), chosen_E, strict=True)
        ),
    )


def record_tensors(records: Sequence[DistributionRecord]) -> dict[str, Tensor]:
    """Return the arrays of the records of a fit as tensors, for a checkpoint."""
    if not records:
        return {}
    return {
        "probabilities": torch.from_numpy(np.stack([record.probabilities for record in records])),
        "credit": torch.from_numpy(np.stack([cast("NDArray[np.float64]", record.credit) for record in records])),
    }


def records_from(
    described: Sequence[list[Any]], tensors: Mapping[str, Tensor], shape: tuple[int, int]
) -> list[DistributionRecord]:
    """Return the records of a checkpoint: (step, metrics) of each, and what `record_tensors` returned.

    Raises:
        ValueError: They are not of a distribution of this shape, (E, O).
    """
    like = {
        "probabilities": torch.zeros(len(described), *shape, dtype=torch.float64),
        "credit": torch.zeros(len(described), shape[0], dtype=torch.float64),
    }
    check_tensors(tensors, like if described else {}, "records/")
    if not described:
        return []
    arrays = zip(tensors["probabilities"].cpu().numpy(), tensors["credit"].cpu().numpy(), strict=True)
    return [
        DistributionRecord(step, metrics, probabilities, credit)
        for (step, metrics), (probabilities, credit) in zip(described, arrays, strict=True)
    ]
