"""How HM-NAS learns."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from optuna_nas.training.recipe import PRECISIONS

EDGE_SOFTMAXES = ("node", "cell")


@dataclass(frozen=True)
class HMNASRecipe:
    """How HM-NAS learns. The defaults are the paper's (section 4.2) where it gives them.

    Args:
        edge_softmax: `node`: the weights of the edges into a node sum to one (eq. 2); `cell`: those of all edges of a
            cell do, which is what the numbers printed in the paper's figures fit.
        mask_fraction: Share of the budget for the masks, after the supernet; 20 of 120 epochs in the paper.
        warmup_fraction: Share of the supernet's steps in which edges and ops do not learn yet.
        second_order: Let ops and edges look one step of the weights ahead (DARTS, Liu et al. 2019, eq. 7 and 8).
        batch_size: Images a step.
        scoring_images: Images of the report split that an architecture is scored on, all at once.
        learning_rate: Of the weights' SGD; falls to 0 along a cosine.
        momentum: Of SGD.
        weight_decay: L2 penalty on the weights.
        clip_norm: Largest norm of the weights' gradient; 0 for no clipping.
        logit_learning_rate: Of Adam on ops and edges; None: 3e-4, or more for budgets of fewer steps than the paper's.
        logit_weight_decay: L2 penalty on the logits.
        mask_learning_rate: Of Adam on the masks of ops and edges, ten times that on weights, a tenth of either in the
            second half; None: 1e-5, or more for budgets of fewer steps than the paper's, so that as much can fall.
        mask_start: Value of every real mask at the beginning.
        threshold: A mask keeps what it stands for while it is above this.
        precision: `auto` (bfloat16 where a GPU supports it), `float32` or `bfloat16`.
        seed: Initial weights and logits, order of images, augmentation, when ops and edges learn.

    Raises:
        ValueError: A field is out of range.
    """

    edge_softmax: str = "node"
    mask_fraction: float = 1 / 6
    warmup_fraction: float = 0.1
    second_order: bool = False
    batch_size: int = 128
    scoring_images: int = 512
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip_norm: float = 5.0
    logit_learning_rate: float | None = None
    logit_weight_decay: float = 1e-3
    mask_learning_rate: float | None = None
    mask_start: float = 1e-2
    threshold: float = 5e-3
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"`{field.name}` must be a number but got {value!r}.")
            if isinstance(field.default, int) and type(value) is not type(field.default):
                raise ValueError(f"`{field.name}` must be of type {type(field.default).__name__} but got {value!r}.")
        for name, known in (("edge_softmax", EDGE_SOFTMAXES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {known} but got {getattr(self, name)!r}.")
        for name, least in (("batch_size", 1), ("scoring_images", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least} but got {getattr(self, name)}.")
        for name in ("learning_rate", "logit_learning_rate", "mask_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be positive and finite but got {value}.")
        for name in ("weight_decay", "clip_norm", "logit_weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must not be negative but got {getattr(self, name)}.")
        for name in ("momentum", "warmup_fraction", "mask_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1) but got {getattr(self, name)}.")
        if not 0 <= self.threshold < self.mask_start < math.inf:
            raise ValueError(
                f"`threshold` must be from 0 and below `mask_start` but they are {self.threshold} and "
                f"{self.mask_start}; the paper's are 0.005 and 0.01."
            )
