"""How an SNAS learns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna_nas.space.cost import COSTS
from optuna_nas.space.reading import plain
from optuna_nas.training.recipe import PRECISIONS
from optuna_nas.training.rules import (
    Rule,
    at_least,
    check_fields,
    flag,
    fraction,
    not_negative,
    one_of,
    optional,
    positive,
    share,
)

PAPER_LOGIT_RATE, PAPER_STEPS = 3e-4, 117_150  # 150 epochs of 781 batches
MAX_LOGIT_RATE = 0.05
ONE_PATH = "one_path"
RELAXATIONS = ("concrete", ONE_PATH, "softmax")
FIRST_ORDER, LOSS = "first_order", "loss"
PATH_CREDITS = (FIRST_ORDER, LOSS)
SCHEDULES = ("linear", "exponential")
RESOURCE_WEIGHTS = {"mild": 0.1, "moderate": 0.3, "aggressive": 1.0}
"""Nats of loss that the cost of the uniform distribution is worth; see `SNASRecipe.resource`."""
LATENCY = "latency_"
"""How the name of a latency begins."""


def _resource(name: str, value: Any) -> float | str | dict[str, float]:
    """Return what costs are worth: a level, upper bounds, or a number from 0."""
    value = plain(value)
    if isinstance(value, str):
        if value not in RESOURCE_WEIGHTS:
            raise ValueError(
                f"`{name}` must be one of {tuple(RESOURCE_WEIGHTS)}, a number or upper bounds but got {value!r}."
            )
        return value
    if isinstance(value, Mapping):
        bounds = {cost: plain(bound) for cost, bound in value.items()}
        for cost, bound in bounds.items():
            is_cost = cost in COSTS or str(cost).startswith(LATENCY)
            if not is_cost or not isinstance(bound, int | float) or not 0 < bound < math.inf:
                raise ValueError(
                    f"`{name}` must give positive upper bounds of {COSTS} or of a latency (`latency_cpu_1`) but got "
                    f"{cost!r}: {bound}."
                )
        return bounds
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"`{name}` must be a level, upper bounds or a number from 0 but got {value!r}.")
    return value


RULES: dict[str, Rule] = {
    "batch_size": at_least(1),
    "scoring_images": at_least(2),
    "learning_rate": positive(),
    "final_learning_rate": not_negative(),
    "momentum": fraction(),
    "weight_decay": not_negative(),
    "clip_norm": not_negative(),
    "logit_learning_rate": optional(positive(hint="None scales the paper's")),
    "logit_weight_decay": not_negative(),
    "relaxation": one_of(RELAXATIONS),
    "path_credit": one_of(PATH_CREDITS),
    "first_temperature": positive(),
    "last_temperature": positive(),
    "schedule": one_of(SCHEDULES),
    "warmup_fraction": fraction(),
    "freeze_fraction": share(),
    "warmup_relaxation": optional(one_of(RELAXATIONS)),
    "resource": _resource,
    "precision": one_of(PRECISIONS),
    "compile": flag(),
    "seed": at_least(0),
}


@dataclass(frozen=True)
class SNASRecipe:
    """How an SNAS learns.

    The defaults are the paper's (section 3.1, appendix G) where it gives them, but for `freeze_fraction`: in the paper
    all kernels learn, which is 0.

    Args:
        batch_size: Images a step.
        scoring_images: Images of the report split that an architecture is scored on, all at once.
        learning_rate: Learning rate of the weights' SGD; falls to `final_learning_rate` along a cosine.
        final_learning_rate: Where the cosine ends.
        momentum: SGD momentum.
        weight_decay: L2 penalty on the weights.
        clip_norm: Largest norm of the weights' gradient; 0 for no clipping.
        logit_learning_rate: Learning rate of the logits' Adam, betas (0.5, 0.999). None takes the paper's 3e-4, raised
            for budgets shorter than the paper's 117,150 steps so that logits can travel as far, to 0.05 at most.
        logit_weight_decay: L2 penalty on the logits.
        relaxation: How a step mixes ops. `concrete`: a relaxed sample (eq. 4). `one_path`: only the sampled ops are
            computed (DSNAS, Hu et al. 2020), several times cheaper; see `path_credit`. `softmax`: the probabilities
            themselves, nothing sampled, as in DARTS; for comparison.
        path_credit: What logits learn from in a step of one path. `loss`: the loss of the whole path less a moving mean
            of it (REINFORCE, Williams 1992), whose expectation is the exact gradient. `first_order`: each op by how
            much its output lowers the loss (DSNAS); the loss is convex in an op's output, so that this underrates what
            an op is worth, and `none` is favoured. By `loss`, too, half of the edges may end as
            `none` (BENCHMARKS.md).
        first_temperature: Temperature of the relaxed samples when the logits begin to learn.
        last_temperature: Temperature when the budget is spent.
        schedule: `linear` or `exponential` between the two, by fraction of the budget.
        warmup_fraction: Share of the budget that trains weights only, under the uniform distribution. Without, logits
            lean early to ops that need no weights.
        warmup_relaxation: How those steps mix ops; None as `relaxation`. `one_path` trains one op an edge, fully and at
            a fraction of the cost (uniform single paths, Guo et al. 2020), where a mixture trains all, each by its
            share.
        freeze_fraction: Share of the budget in which the kernels of fixed parts, such as stem and reductions, keep
            their random initial values: parts that learn solve the task without what is chosen. 1 freezes them
            throughout, 0 lets them learn from the start. Norms and output layers always learn.
        resource: What costs are worth. A number: how many nats of loss the cost of the uniform distribution is worth
            (0: costs do not count); the penalty is this number times the expected cost relative to it, a mean of
            parameters, multiply-adds and memory access (section 2.4), and of the latencies of the tables that the SNAS
            is given. `mild`, `moderate`, `aggressive`: 0.1, 0.3, 1.0. A mapping such as `{"params": 2e6}` or
            `{"latency_cpu_1": 0.004}` (seconds, of a table): upper bounds of the whole network's costs, reached by
            Lagrange multipliers.
        precision: `auto` (bfloat16 where a GPU supports it), `float32` or `bfloat16`.
        compile: Compile the supernet with `torch.compile` for steps that compute all ops: once, since a sample changes
            numbers only; steps of one path are never compiled. That takes minutes, and on a CPU it gained nothing where
            it was measured (BENCHMARKS.md): meant for long budgets on a GPU, where a step is many small kernels.
        seed: Initial weights, order of images, augmentation, samples.

    Raises:
        ValueError: A field is out of range.

    Example:
        >>> from optuna_nas import SNASRecipe
        >>> SNASRecipe(warmup_fraction=0.3, resource={"params": 2e6}).temperature(0.1)
        1.0
    """

    batch_size: int = 64
    scoring_images: int = 512
    learning_rate: float = 0.025
    final_learning_rate: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip_norm: float = 5.0
    logit_learning_rate: float | None = None
    logit_weight_decay: float = 1e-3
    relaxation: str = "concrete"
    path_credit: str = "loss"
    first_temperature: float = 1.0
    last_temperature: float = 0.03
    schedule: str = "linear"
    warmup_fraction: float = 0.0
    warmup_relaxation: str | None = None
    freeze_fraction: float = 1.0
    resource: float | str | Mapping[str, float] = 0.0
    precision: str = "auto"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, RULES)

    def temperature(self, fraction: float) -> float:
        """Return the temperature of the relaxed samples when a share of the budget is done.

        Example:
            >>> SNASRecipe(warmup_fraction=0.5).temperature(0.5)  # it falls once the warm-up has ended
            1.0
        """
        progress = max(0.0, fraction - self.warmup_fraction) / (1 - self.warmup_fraction)
        first, last = self.first_temperature, self.last_temperature
        if self.schedule == "exponential":
            return float(first * (last / first) ** progress)
        return first + (last - first) * progress

    def logit_rate(self, total_steps: int) -> float:
        """Return the learning rate of the logits in a fit of so many steps; see `logit_learning_rate`."""
        if self.logit_learning_rate is not None:
            return self.logit_learning_rate
        learning_steps = max(1.0, (1 - self.warmup_fraction) * total_steps)
        return min(MAX_LOGIT_RATE, PAPER_LOGIT_RATE * max(1.0, PAPER_STEPS / learning_steps))
