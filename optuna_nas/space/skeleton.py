"""How cells become a network: the fixed frame around what is searched."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna_nas.space.cost import Shape

FIXED_CELLS = ("residual_reduction", "factorized_reduction")
"""Fixed blocks that may stand between cells; each halves the image and doubles the channels."""

STEMS = ("conv", "imagenet")


@dataclass(frozen=True)
class Skeleton:
    """Number, kinds and width of the cells, and what stands before and after them.

    The same architecture goes into a small skeleton for the search and into a large one for the final training.

    Args:
        cells: Kinds of cells from first to last, named as in the space (`normal`, `reduction`), or a fixed block,
            `residual_reduction` (NAS-Bench-201) or `factorized_reduction`. Strided kinds double the channels.
        channels: Channels of a node in the first cell.
        input_shape: Channels, height, width of an image.
        classes: Number of classes, or of values that a regression predicts.
        stem: `conv` (3 x 3, stride 1) or `imagenet` (stride 4 for one cell input, 8 for the other; DARTS).
        stem_multiplier: The `conv` stem gives `stem_multiplier * channels` channels.
        norm_before_head: Batch norm and ReLU before the classifier (NAS-Bench-201).
        auxiliary: An auxiliary classifier after the last reduction, used while training (Szegedy et al. 2015).
        affine: Batch norms of ops and preprocessing learn scale and shift; off in one-shot search.
        pool_norm: Pools are followed by a batch norm (DARTS' search network).
        drop_path: Probability of dropping an op's output for an image, at the end of training; rises from 0.
        budget: For spaces with early exits: the most multiply-adds that the prediction for an image may take. The
            accuracy of such a network is the mean over budgets from 0 to this one, see `anytime_accuracy`.

    Raises:
        ValueError: A field is out of range, or the image is too small for so many reductions.
    """

    cells: tuple[str, ...]
    channels: int = 16
    input_shape: Shape = (3, 32, 32)
    classes: int = 10
    stem: str = "conv"
    stem_multiplier: int = 1
    norm_before_head: bool = False
    auxiliary: bool = False
    affine: bool = True
    pool_norm: bool = False
    drop_path: float = 0.0
    budget: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", tuple(self.cells))
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        if not self.cells:
            raise ValueError("`cells` must name at least one cell but is empty; try `('normal',)`.")
        for name, value in (
            ("channels", self.channels),
            ("stem_multiplier", self.stem_multiplier),
            *((f"input_shape[{i}]", size) for i, size in enumerate(self.input_shape)),
        ):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1 but got {value}; give a positive number.")
        if len(self.input_shape) != 3:
            raise ValueError(f"`input_shape` must be (channels, height, width) but got {self.input_shape}.")
        if self.classes < 1:
            raise ValueError(f"`classes` must be at least 1 but got {self.classes}; a regression has 1.")
        if self.stem not in STEMS:
            raise ValueError(f"`stem` must be one of {STEMS} but got {self.stem!r}.")
        if self.stem == "imagenet" and self.channels < 2:
            raise ValueError(f"`channels` must be at least 2 for stem='imagenet' but got {self.channels}.")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"`drop_path` must be in [0, 1) but got {self.drop_path}; DARTS uses 0.2.")
        if not 0 <= self.budget < inf:
            raise ValueError(f"`budget` must be a number of multiply-adds but got {self.budget}; 0 is for no exits.")

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    @staticmethod
    def from_dict(description: Mapping[str, Any]) -> Skeleton:
        """Make a skeleton from `to_dict`.

        Raises:
            ValueError: An unknown field.
        """
        known = {field.name for field in fields(Skeleton)}
        unknown = sorted(set(description) - known)
        if unknown:
            raise ValueError(f"`description` of a skeleton must use {sorted(known)} but got {unknown}; remove them.")
        return Skeleton(**description)


def cells_with_reductions(n_cells: int) -> tuple[str, ...]:
    """Return DARTS' layout: `reduction` at one and two thirds of the depth, `normal` elsewhere."""
    if n_cells < 1:
        raise ValueError(f"`n_cells` must be at least 1 but got {n_cells}; DARTS searches with 8.")
    reductions = {n_cells // 3, 2 * n_cells // 3}
    return tuple("reduction" if i in reductions else "normal" for i in range(n_cells))


def darts_search_skeleton(
    n_cells: int = 8, channels: int = 16, input_shape: Shape = (3, 32, 32), classes: int = 10
) -> Skeleton:
    """DARTS' search network: 8 cells, 16 channels, batch norms without scale and shift (Liu et al. 2019, 3.1)."""
    return Skeleton(
        cells_with_reductions(n_cells),
        channels,
        input_shape,
        classes,
        stem_multiplier=3,
        affine=False,
        pool_norm=True,
    )


def darts_cifar_skeleton(
    n_cells: int = 20, channels: int = 36, input_shape: Shape = (3, 32, 32), classes: int = 10
) -> Skeleton:
    """DARTS' CIFAR evaluation network: 20 cells, 36 channels, auxiliary head, drop-path 0.2 (Liu et al. 2019, 3.2)."""
    return Skeleton(
        cells_with_reductions(n_cells),
        channels,
        input_shape,
        classes,
        stem_multiplier=3,
        auxiliary=True,
        drop_path=0.2,
    )


def darts_imagenet_skeleton(
    n_cells: int = 14, channels: int = 48, input_shape: Shape = (3, 224, 224), classes: int = 1000
) -> Skeleton:
    """DARTS' ImageNet-mobile network: 14 cells, 48 channels, stem of stride 4, auxiliary head (2019, 3.3)."""
    return Skeleton(cells_with_reductions(n_cells), channels, input_shape, classes, stem="imagenet", auxiliary=True)


def nasbench201_skeleton(
    repeats: int = 5,
    channels: int = 16,
    input_shape: Shape = (3, 32, 32),
    classes: int = 10,
    affine: bool = True,
) -> Skeleton:
    """NAS-Bench-201's network: three stages of `repeats` cells with a residual block between (Dong and Yang 2020, 2.1).

    `affine=False` is the benchmark's one-shot search network.
    """
    stage = ("cell",) * repeats
    return Skeleton(
        (*stage, "residual_reduction", *stage, "residual_reduction", *stage),
        channels,
        input_shape,
        classes,
        norm_before_head=True,
        affine=affine,
    )


def ghn_skeleton(blocks: int = 18, channels: int = 32, input_shape: Shape = (3, 32, 32), classes: int = 10) -> Skeleton:
    """GHN's CIFAR network: 18 blocks, reductions after one and two thirds (Zhang et al. 2019, 5.1)."""
    if blocks < 3:
        raise ValueError(f"`blocks` must be at least 3 (one a stage) but got {blocks}; the paper uses 18.")
    first, second = blocks // 3, 2 * blocks // 3
    kinds = ("block",)
    return Skeleton(
        (
            *kinds * first,
            "factorized_reduction",
            *kinds * (second - first),
            "factorized_reduction",
            *kinds * (blocks - second),
        ),
        channels,
        input_shape,
        classes,
    )


def anytime_skeleton(
    cells: int = 3,
    channels: int = 32,
    input_shape: Shape = (3, 32, 32),
    classes: int = 10,
    *,
    budget: float,
) -> Skeleton:
    """A network that may be stopped at any time: the cells of `anytime_space`, reductions between (GHN, section 5.2).

    Args:
        cells: How many the space has.
        channels: Of the first cell; doubled by every reduction.
        input_shape: Channels, height, width of an image.
        classes: Number of classes.
        budget: Most multiply-adds of a prediction; see `Skeleton.budget`.
    """
    if cells < 1:
        raise ValueError(f"`cells` must be at least 1 but got {cells}; the paper uses 3.")
    kinds = [f"cell{number}" for number in range(1, cells + 1)]
    between = [part for kind in kinds for part in (kind, "factorized_reduction")]
    return Skeleton(tuple(between[:-1]), channels, input_shape, classes, budget=budget)
