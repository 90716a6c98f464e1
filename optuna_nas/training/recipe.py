"""How a network is trained: the recipe."""

from __future__ import annotations

from dataclasses import dataclass

from optuna_nas.training.rules import Rule, between, check_fields, flag, one_of

OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("auto", "float32", "bfloat16")
RULES: dict[str, Rule] = {
    "epochs": between(1, kind=int),
    "batch_size": between(1, kind=int),
    "optimizer": one_of(OPTIMIZERS),
    "learning_rate": between(0, ends="()"),
    "final_learning_rate": between(0),
    "momentum": between(0, 1),
    "weight_decay": between(0),
    "warmup_fraction": between(0, 1, "[]"),
    "clip_norm": between(0),
    "precision": one_of(PRECISIONS),
    "compile": flag(),
    "seed": between(0, kind=int),
}


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
        momentum: SGD momentum.
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
        check_fields(self, RULES, suggestions=True)
