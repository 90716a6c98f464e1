"""Recipes: hyperparameters of a training."""

from __future__ import annotations

from dataclasses import dataclass

from optuna_nas.training.rules import Rule, added, between, check_fields, flag, one_of, settings_of

OPTIMIZERS = ("sgd", "adamw")
COSINE, EXPONENTIAL = SCHEDULES = ("cosine", "exponential")
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
    "schedule": one_of(SCHEDULES),
    "decay_per_epoch": between(0, 1, "(]"),
}


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a training. The defaults are those of DARTS (Liu et al. 2019, section 3.2), with fewer epochs.

    In a `TrainObjective` any field may be a suggestion, such as `suggest_float(0.01, 0.3, log=True)`.

    Args:
        epochs: Number of passes over the training splits, at least 1.
        batch_size: Number of examples per step, at least 1.
        optimizer: `sgd` or `adamw`.
        learning_rate: Maximum learning rate, positive; `schedule` says how it decays.
        final_learning_rate: Learning rate at the end of the cosine, or the lowest of the exponential decay, at least 0.
        momentum: SGD momentum, in [0, 1).
        weight_decay: L2 penalty (SGD) or decoupled weight decay (AdamW), at least 0.
        warmup_fraction: Fraction of all steps with a linear warm-up from 0, in [0, 1].
        clip_norm: Maximum norm of the gradient; 0 for no clipping.
        precision: `auto` (bfloat16 on GPUs that support it), `float32` or `bfloat16`.
        compile: Whether to compile the network with `torch.compile`.
        seed: Seed of initial weights, order of examples, augmentation and drop-path, at least 0.
        schedule: `cosine`: after the warm-up, the learning rate decays to `final_learning_rate` along a cosine, step by
            step (Loshchilov and Hutter 2017). `exponential`: it is constant within an epoch, and multiplied by
            `decay_per_epoch` after each, as by PyTorch's `ExponentialLR`; first after the epoch in which the warm-up
            ends.
        decay_per_epoch: Factor of the exponential decay, in (0, 1]; the default is that of SNAS on ImageNet (Xie et al.
            2019).

    Raises:
        ValueError: A field is out of range.

    Example:
        >>> from optuna_nas import Recipe
        >>> Recipe(epochs=600, batch_size=96, warmup_fraction=0.01).momentum
        0.9
        >>> Recipe(momentum=1.5)
        Traceback (most recent call last):
            ...
        ValueError: `momentum` must be in [0, 1) but got 1.5.
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
    schedule: str = added(COSINE)
    decay_per_epoch: float = added(0.97)

    def __post_init__(self) -> None:
        check_fields(self, RULES, suggestions=True)

    def __repr__(self) -> str:
        """Return what hashes of trainings in studies are made of: the text of before, see `settings_of`."""
        return f"Recipe({', '.join(f'{name}={value!r}' for name, value in settings_of(self).items())})"
