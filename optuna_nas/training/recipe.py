"""How a network is trained: the recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The defaults are DARTS' (Liu et al. 2019, section 3.2), for fewer epochs.

    In a `TrainObjective` any field may instead be a suggestion, such as `suggest_float(0.01, 0.3, log=True)`.

    Args:
        epochs: Passes over the training splits.
        batch_size: Images a step.
        optimizer: `sgd` or `adamw`.
        learning_rate: Peak; falls to `final_learning_rate` along a cosine, step by step.
        final_learning_rate: Where the cosine ends.
        momentum: Of SGD.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW).
        warmup_fraction: Share of all steps over which the rate rises linearly from 0.
        clip_norm: Largest norm of the gradient; 0 for no clipping.
        precision: `auto` (bfloat16 where a GPU supports it), `float32` or `bfloat16`.
        compile: Compile the network with `torch.compile`.
        seed: Initial weights, order of images, augmentation, drop-path.

    Raises:
        ValueError: A field is out of range.
    """

    epochs: int = 10
    batch_size: int = 64
    optimizer: str = "sgd"
    learning_rate: float = 0.025
    final_learning_rate: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 3e-4
    warmup_fraction: float = 0.0
    clip_norm: float = 5.0
    precision: str = "auto"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high, ends in (
            ("epochs", 1, math.inf, "[)"),
            ("batch_size", 1, math.inf, "[)"),
            ("seed", 0, math.inf, "[)"),
            ("learning_rate", 0, math.inf, "()"),
            ("final_learning_rate", 0, math.inf, "[)"),
            ("weight_decay", 0, math.inf, "[)"),
            ("clip_norm", 0, math.inf, "[)"),
            ("momentum", 0, 1, "[)"),
            ("warmup_fraction", 0, 1, "[]"),
        ):
            value = getattr(self, name)
            if value is None or isinstance(value, str):
                raise ValueError(f"`{name}` must be a number but got {value!r}.")
            if not isinstance(value, int | float):
                continue  # a suggestion; checked once it is a number
            if name in ("epochs", "batch_size", "seed") and not isinstance(value, int):
                raise ValueError(f"`{name}` must be an integer but got {value}; use int({value}).")
            at_an_open_end = (value == low and ends[0] == "(") or (value == high and ends[1] == ")")
            if not low <= value <= high or at_an_open_end:
                raise ValueError(f"`{name}` must be in {ends[0]}{low}, {high}{ends[1]} but got {value}.")
        for name, known in (("optimizer", OPTIMIZERS), ("precision", PRECISIONS)):
            value = getattr(self, name)
            if isinstance(value, str) and value not in known:
                raise ValueError(f"`{name}` must be one of {known} but got {value!r}.")
