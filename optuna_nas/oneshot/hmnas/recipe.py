"""How HM-NAS learns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from optuna_nas.space.reading import plain, shown
from optuna_nas.training.optimizers import cosine
from optuna_nas.training.recipe import PRECISIONS
from optuna_nas.training.rules import (
    Rule,
    added,
    at_least,
    check_fields,
    fraction,
    not_negative,
    one_of,
    optional,
    positive,
    share,
)

PAPER_LOGIT_RATE, PAPER_LOGIT_STEPS, MAX_LOGIT_RATE = 3e-4, 28_000, 0.05
PAPER_MASK_RATE, WEIGHT_MASKS_FASTER, PAPER_DISTANCE, PAPER_MASK_STEPS = 1e-5, 10.0, 5e-3, 20 * 391
MASK_DECAY, MASK_DECAY_AT = 0.1, 0.5
EDGE_SOFTMAXES = ("node", "cell")
MOMENTUM = "momentum"


def _second_order(name: str, value: Any) -> bool | str:
    """Return a bool, or the name of the step with momentum."""
    value = plain(value)
    if not (isinstance(value, bool) or value == MOMENTUM):
        raise ValueError(f"`{name}` must be True, False or {MOMENTUM!r} but got {shown(value)}.")
    return value if isinstance(value, bool) else MOMENTUM


RULES: dict[str, Rule] = {
    "edge_softmax": one_of(EDGE_SOFTMAXES),
    "mask_fraction": fraction(),
    "warmup_fraction": fraction(),
    "freeze_fraction": share(),
    "second_order": _second_order,
    "batch_size": at_least(1),
    "scoring_images": at_least(2),
    "learning_rate": positive(),
    "momentum": fraction(),
    "weight_decay": not_negative(),
    "clip_norm": not_negative(),
    "logit_learning_rate": optional(positive()),
    "logit_weight_decay": not_negative(),
    "mask_learning_rate": optional(positive()),
    "mask_start": not_negative(),
    "threshold": not_negative(),
    "sparsity_weight": not_negative(),
    "precision": one_of(PRECISIONS),
    "seed": at_least(0),
}


@dataclass(frozen=True)
class HMNASRecipe:
    """How HM-NAS learns.

    The defaults are the paper's (section 4.2) where it gives them, but for `freeze_fraction`: in the paper all kernels
    learn, which is 0.

    Args:
        edge_softmax: `node`: the weights of the edges into a node sum to one (eq. 2); `cell`: those of all edges of a
            cell do, which is what the numbers printed in the paper's figures fit.
        mask_fraction: Share of the epochs for the masks, after the supernet; 20 of 120 in the paper.
        warmup_fraction: Share of the supernet's steps in which edges and ops do not learn yet.
        freeze_fraction: Share of the supernet's steps in which the kernels of fixed parts, such as stem and reductions,
            keep their random initial values: parts that learn solve the task without what is chosen. 1 freezes them
            throughout, 0 lets them learn from the start. Norms and output layers always learn.
        second_order: Let ops and edges look one step of the weights ahead (DARTS, Liu et al. 2019, eq. 7 and 8). True:
            the paper's step, without momentum; `momentum`: with the momentum that the optimizer has gathered, as in the
            code of its authors.
        batch_size: Images a step.
        scoring_images: Images of the report split that an architecture is scored on, all at once.
        learning_rate: Learning rate of the weights' SGD; falls to 0 along a cosine.
        momentum: SGD momentum.
        weight_decay: L2 penalty on the weights.
        clip_norm: Largest norm of the weights' gradient; 0 for no clipping.
        logit_learning_rate: Learning rate of Adam on ops and edges; None: 3e-4, or more for budgets of fewer steps than
            the paper's.
        logit_weight_decay: L2 penalty on the logits.
        mask_learning_rate: Learning rate of Adam on the masks of ops and edges, ten times that on weights, a tenth of
            either in the second half; None: 1e-5, or more for budgets of fewer steps than the paper's, so that as much
            can fall.
        mask_start: Value of every real mask at the beginning.
        threshold: A mask keeps what it stands for while it is above this.
        precision: `auto` (bfloat16 where a GPU supports it), `float32` or `bfloat16`.
        seed: Initial weights and logits, order of images, augmentation, when ops and edges learn.
        sparsity_weight: What masks pay for keeping all, in units of the loss: while they learn, the loss has a term
            `sparsity_weight * mean over edges and ops of mask_edge * mask_op`, of ones and zeros whose gradient goes
            straight through. An op falls where keeping it gains less than `sparsity_weight / (number of ops)`. 0 as in
            the paper, which has no penalty; masks of weights have none.

    Raises:
        ValueError: A field is out of range.

    Example:
        >>> from optuna_nas import HMNASRecipe
        >>> HMNASRecipe(edge_softmax="cell", mask_fraction=0.25).threshold
        0.005
    """

    edge_softmax: str = "node"
    mask_fraction: float = 1 / 6
    warmup_fraction: float = 0.1
    freeze_fraction: float = 1.0
    second_order: bool | str = False
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
    sparsity_weight: float = added(0.0)

    def __post_init__(self) -> None:
        check_fields(self, RULES)
        if not self.threshold < self.mask_start:
            raise ValueError(
                f"`threshold` must be from 0 and below `mask_start` but they are {self.threshold} and "
                f"{self.mask_start}; the paper's are 0.005 and 0.01."
            )

    def choices_learn(self, step: int, supernet_steps: int) -> bool:
        """Tell whether ops and edges learn in a step: with a probability that falls from 1 to 0 along half a cosine.

        It begins after the warm-up; the paper gives no form but that it falls from 1 and may end at 0 (section 3.2).

        Args:
            step: Steps done.
            supernet_steps: Steps that train the supernet.
        """
        progress = step / max(1, supernet_steps)
        if progress < self.warmup_fraction:
            return False
        since = (progress - self.warmup_fraction) / (1 - self.warmup_fraction)
        draw = np.random.default_rng([self.seed, step, 4]).random()
        return bool(draw < cosine(1.0, 0.0, since))

    def logit_rate(self, supernet_steps: int) -> float:
        """Return the learning rate of ops and edges for so many steps of the supernet; see `logit_learning_rate`."""
        if self.logit_learning_rate is not None:
            return self.logit_learning_rate
        steps = max(1.0, (1 - self.warmup_fraction) * supernet_steps)
        return min(MAX_LOGIT_RATE, PAPER_LOGIT_RATE * max(1.0, PAPER_LOGIT_STEPS / steps))

    def mask_rates(self, mask_steps: int) -> tuple[float, float]:
        """Return the rates of the masks of ops and edges, and of weights, in the first half of their steps.

        Fewer steps than the paper's are made up for: ops and edges, whose gradients have a direction, get as far (the
        rate goes with 1 / steps); weights, whose gradients are mostly noise, spread as wide (with 1 / sqrt(steps)).
        """
        if self.mask_learning_rate is not None:
            return self.mask_learning_rate, WEIGHT_MASKS_FASTER * self.mask_learning_rate
        rate = PAPER_MASK_RATE * (self.mask_start - self.threshold) / PAPER_DISTANCE
        shorter = max(1.0, PAPER_MASK_STEPS / max(1, mask_steps))
        return rate * shorter, WEIGHT_MASKS_FASTER * rate * math.sqrt(shorter)

    def check_masks_can_fall(self, mask_steps: int) -> None:
        """Raise ValueError if no mask can reach the threshold in so many steps."""
        if not mask_steps:
            return
        rate, _ = self.mask_rates(mask_steps)
        travel = rate * mask_steps * (MASK_DECAY_AT + MASK_DECAY * (1 - MASK_DECAY_AT))
        if travel < self.mask_start - self.threshold:
            raise ValueError(
                f"`mask_learning_rate` must let a mask fall within the budget but {rate:.3g} moves one by at most "
                f"{travel:.3g} in {mask_steps} steps; raise it or the budget, or leave it None."
            )
