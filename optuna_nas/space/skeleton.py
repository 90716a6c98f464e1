"""Skeletons: number, kinds and width of a network's cells, and the fixed parts around them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from math import inf
from typing import TYPE_CHECKING, Any

from optuna_nas.space.reading import MAX_SIZE, plain, reading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna_nas.space.architecture import Architecture
    from optuna_nas.space.cost import Shape

FIXED_CELLS = ("residual_reduction", "factorized_reduction")
"""Fixed blocks that may be placed between cells; each halves height and width and doubles the channels."""

STRIDED_STEMS = {"stride2": 2, "stride4": 4}
STEMS = ("conv", "imagenet", *STRIDED_STEMS)
TWO_STEP_STEMS = ("imagenet", "stride4")
"""Stems whose first convolution has half of the channels, so that there must be two."""


MAX_CELLS = 1000
"""Largest number of cells of a network."""


@dataclass(frozen=True)
class Skeleton:
    """Skeleton of a network: number, kinds and width of the cells, and the fixed parts around them.

    A search usually uses a small skeleton, the final training a large one around the same cells.

    Args:
        cells: Kinds of cells from first to last, named as in the space (`normal`, `reduction`), or a fixed block:
            `residual_reduction` (NAS-Bench-201) or `factorized_reduction`. Strided kinds double the channels.
        channels: Channels of a node in the first cell, at least 1.
        input_shape: Shape (channels, height, width) of an image.
        classes: Size of a prediction: number of classes, or of values that a regression predicts.
        stem: `conv` (3 x 3, stride 1), `imagenet` (stride 4 for one cell input, 8 for the other; DARTS), `stride2` (one
            3 x 3 of stride 2) or `stride4` (two of them).
        stem_multiplier: The `conv` stem has `stem_multiplier * channels` output channels.
        norm_before_head: Whether batch norm and ReLU precede the classifier (NAS-Bench-201).
        auxiliary: Whether an auxiliary classifier follows the last reduction in training (Szegedy et al. 2015).
        affine: Whether batch norms of ops and preprocessing learn scale and shift; False in one-shot search.
        pool_norm: Whether pools are followed by a batch norm (DARTS' search network).
        drop_path: Probability of dropping an op's output for an image at the end of training, in [0, 1). It rises
            linearly from 0 over the epochs.
        budget: Maximum number of multiply-adds of a prediction for an image, for spaces with early exits. The accuracy
            of such a network is the mean over budgets from 0 to this one, see `anytime_accuracy`.

    Raises:
        ValueError: A field is out of range.

    Example:
        >>> from optuna_nas import NetworkSpace, Skeleton, darts_space
        >>> skeleton = Skeleton(("normal", "reduction", "normal"), channels=8, classes=100)
        >>> network = NetworkSpace(darts_space(), skeleton)
        >>> network.with_skeleton(channels=16).skeleton.channels
        16
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
        object.__setattr__(self, "input_shape", tuple(map(plain, self.input_shape)))
        for name in ("channels", "classes", "stem_multiplier", "drop_path", "budget"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        for name, value in [("channels", self.channels), ("classes", self.classes), *_sizes(self.input_shape)]:
            if isinstance(value, bool) or not isinstance(value, int) or value > MAX_SIZE:
                raise ValueError(f"`{name}` must be an integer of at most {MAX_SIZE} but got {value!r}.")
        if len(self.cells) > MAX_CELLS:
            raise ValueError(f"`cells` must be at most {MAX_CELLS} but are {len(self.cells)}.")
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
        if self.stem in TWO_STEP_STEMS and self.channels < 2:
            raise ValueError(f"`channels` must be at least 2 for stem={self.stem!r} but got {self.channels}.")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"`drop_path` must be in [0, 1) but got {self.drop_path}; DARTS uses 0.2.")
        if not 0 <= self.budget < inf:
            raise ValueError(f"`budget` must be a number of multiply-adds but got {self.budget}; 0 is for no exits.")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(description: Mapping[str, Any]) -> Skeleton:
        """Return the skeleton of `to_dict`'s result.

        Raises:
            ValueError: A field is unknown or out of range.
        """
        with reading("description", description):
            names = {field.name for field in fields(Skeleton)}
            unknown = sorted(set(description) - names)
            if unknown:
                raise ValueError(
                    f"`description` of a skeleton must use {sorted(names)} but got {unknown}; remove them."
                )
            return Skeleton(**description)


def cells_with_reductions(n_cells: int) -> tuple[str, ...]:
    """Return DARTS' layout of cells: `reduction` at one and two thirds of the depth, `normal` elsewhere.

    Args:
        n_cells: Number of cells, at least 1.

    Raises:
        ValueError: `n_cells` is below 1.

    Example:
        >>> from optuna_nas.space import cells_with_reductions
        >>> cells_with_reductions(5)
        ('normal', 'reduction', 'normal', 'reduction', 'normal')
    """
    _check_count("n_cells", n_cells)
    if n_cells < 1:
        raise ValueError(f"`n_cells` must be at least 1 but got {n_cells}; DARTS searches with 8.")
    reductions = {n_cells // 3, 2 * n_cells // 3}
    return tuple("reduction" if i in reductions else "normal" for i in range(n_cells))


def darts_search_skeleton(
    n_cells: int = 8, channels: int = 16, input_shape: Shape = (3, 32, 32), classes: int = 10
) -> Skeleton:
    """Return the skeleton of DARTS' search network (Liu, Simonyan and Yang 2019, section 3.1).

    Batch norms learn no scale and shift, and pools are followed by a batch norm.

    Args:
        n_cells: Number of cells, at least 1.
        channels: Channels of a node in the first cell.
        input_shape: Shape (channels, height, width) of an image.
        classes: Size of a prediction.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> from optuna_nas import darts_search_skeleton
        >>> darts_search_skeleton(n_cells=3).cells
        ('normal', 'reduction', 'reduction')
    """
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
    """Return the skeleton of DARTS' CIFAR evaluation network (Liu, Simonyan and Yang 2019, section 3.2).

    It has an auxiliary head and a drop-path of 0.2.

    Args:
        n_cells: Number of cells, at least 1.
        channels: Channels of a node in the first cell.
        input_shape: Shape (channels, height, width) of an image.
        classes: Size of a prediction.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> from optuna_nas import NetworkSpace, darts_cifar_skeleton, published_cell
        >>> cell = published_cell("DARTS_V2")
        >>> round(NetworkSpace(cell.space, darts_cifar_skeleton()).adopt(cell).cost().params / 1e6, 2)
        3.35
    """
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
    """Return the skeleton of DARTS' ImageNet network for mobile devices (Liu, Simonyan and Yang 2019, section 3.3).

    It has a stem of stride 4 and an auxiliary head.

    Args:
        n_cells: Number of cells, at least 1.
        channels: Channels of a node in the first cell, at least 2.
        input_shape: Shape (channels, height, width) of an image.
        classes: Size of a prediction.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> from optuna_nas import NetworkSpace, darts_imagenet_skeleton, published_cell
        >>> cell = published_cell("DARTS_V2")
        >>> round(NetworkSpace(cell.space, darts_imagenet_skeleton()).adopt(cell).cost().params / 1e6, 1)
        4.7
    """
    return Skeleton(cells_with_reductions(n_cells), channels, input_shape, classes, stem="imagenet", auxiliary=True)


def nasbench201_skeleton(
    repeats: int = 5,
    channels: int = 16,
    input_shape: Shape = (3, 32, 32),
    classes: int = 10,
    affine: bool = True,
) -> Skeleton:
    """Return the skeleton of NAS-Bench-201: three stages of cells, with residual blocks between (Dong and Yang 2020).

    Args:
        repeats: Number of cells of a stage.
        channels: Channels of a node in the first stage.
        input_shape: Shape (channels, height, width) of an image.
        classes: Size of a prediction.
        affine: Whether batch norms of ops learn scale and shift; False in the benchmark's one-shot search network.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> from optuna_nas import nasbench201_skeleton
        >>> nasbench201_skeleton(repeats=1).cells
        ('cell', 'residual_reduction', 'cell', 'residual_reduction', 'cell')
    """
    _check_count("repeats", repeats)
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
    """Return the skeleton of GHN's CIFAR network, with reductions at one and two thirds (Zhang et al. 2019, 5.1).

    Args:
        blocks: Number of blocks, at least 3.
        channels: Channels of a node in the first block.
        input_shape: Shape (channels, height, width) of an image.
        classes: Size of a prediction.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> from optuna_nas import ghn_skeleton
        >>> ghn_skeleton(blocks=3).cells
        ('block', 'factorized_reduction', 'block', 'factorized_reduction', 'block')
    """
    _check_count("blocks", blocks)
    if blocks < 3:
        raise ValueError(f"`blocks` must be at least 3 (one per stage) but got {blocks}; the paper uses 18.")
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


MOBILE_REDUCTIONS = (1, 2, 6, 10)
"""Blocks, counted from 1, after which GHN's ImageNet network halves height and width (section 5.2)."""
MOBILE_MULTIPLY_ADDS = 600e6
"""Bound of the mobile setting on ImageNet."""


def ghn_mobile_skeleton(
    channels: int = 16,
    input_shape: Shape = (3, 224, 224),
    classes: int = 1000,
    *,
    blocks: int = 14,
    stem_stride: int = 2,
) -> Skeleton:
    """Return the skeleton of GHN's ImageNet network for mobile devices (Zhang et al. 2019, section 5.2).

    A stem of stride 2, 14 blocks, and reductions after blocks 1, 2, 6 and 10, which leave 7 x 7 of 224 x 224 pixels.
    Channels are chosen for less than 600 M multiply-adds, see `widest_skeleton`. How many the paper had is not
    known: its network has 6.1 M parameters; 20 random blocks have 1.7 to 3.0 M here, and 7.4 to 13.1 M with a stem
    of stride 4.

    Args:
        channels: Channels of a node in the first block; doubled by every reduction.
        input_shape: Shape (channels, height, width) of an image.
        classes: Size of a prediction.
        blocks: Number of blocks, at least 11, so that the last reduction has one behind it.
        stem_stride: Stride of the stem, 2 or 4.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> from optuna_nas import ghn_mobile_skeleton
        >>> skeleton = ghn_mobile_skeleton()
        >>> skeleton.cells[:5], skeleton.cells.count("block")
        (('block', 'factorized_reduction', 'block', 'factorized_reduction', 'block'), 14)
    """
    _check_count("blocks", blocks)
    if blocks <= MOBILE_REDUCTIONS[-1]:
        raise ValueError(f"`blocks` must be at least {MOBILE_REDUCTIONS[-1] + 1} but got {blocks}; the paper uses 14.")
    stems = {stride: stem for stem, stride in STRIDED_STEMS.items()}
    if stem_stride not in stems:
        raise ValueError(f"`stem_stride` must be 2 or 4 but got {stem_stride!r}; the paper has 2.")
    cells: list[str] = []
    for number in range(1, blocks + 1):
        cells += ["block", "factorized_reduction"] if number in MOBILE_REDUCTIONS else ["block"]
    return Skeleton(tuple(cells), channels, input_shape, classes, stem=stems[stem_stride])


def widest_skeleton(
    architecture: Architecture, skeleton: Skeleton, multiply_adds: float = MOBILE_MULTIPLY_ADDS
) -> Skeleton:
    """Return a skeleton with the most channels for which an architecture needs fewer multiply-adds than a bound.

    Costs are exact, and nothing is built. The skeleton's own channels do not matter.

    Args:
        architecture: Architecture of cells.
        skeleton: Skeleton to widen or to narrow.
        multiply_adds: Bound of a prediction for an image, which is not reached; 600 M in the mobile setting.

    Raises:
        ValueError: The architecture has no cells, or even the fewest channels need too many multiply-adds.

    Example:
        >>> from optuna_nas import darts_imagenet_skeleton, published_cell, widest_skeleton
        >>> widest_skeleton(published_cell("DARTS_V2"), darts_imagenet_skeleton()).channels  # the paper has 48
        51
    """
    network_cost = getattr(architecture.space.core, "network_cost", None)
    if network_cost is None:
        raise ValueError("`architecture` must be of cells, which a skeleton can hold; a module has widths of its own.")

    def fits(channels: int) -> bool:
        return bool(network_cost(architecture, replace(skeleton, channels=channels)).multiply_adds < multiply_adds)

    fewest = 2 if skeleton.stem in TWO_STEP_STEMS else 1
    if not fits(fewest):
        raise ValueError(
            f"`multiply_adds` must allow for {fewest} channels but {multiply_adds:g} do not; raise it, or use fewer "
            "cells."
        )
    widest, too_wide = fewest, 2 * fewest
    while too_wide <= MAX_SIZE and fits(too_wide):
        widest, too_wide = too_wide, 2 * too_wide
    while too_wide - widest > 1:
        middle = (widest + too_wide) // 2
        widest, too_wide = (middle, too_wide) if fits(middle) else (widest, middle)
    return replace(skeleton, channels=widest)


def anytime_skeleton(
    cells: int = 3,
    channels: int = 32,
    input_shape: Shape = (3, 32, 32),
    classes: int = 10,
    *,
    budget: float,
) -> Skeleton:
    """Return the skeleton of anytime prediction: the cells of `anytime_space`, with reductions between (GHN, 5.2).

    Args:
        cells: Number of cells of the space, at least 1.
        channels: Channels of a node in the first cell; doubled by every reduction.
        input_shape: Shape (channels, height, width) of an image.
        classes: Number of classes.
        budget: Maximum number of multiply-adds of a prediction; see `Skeleton`.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> from optuna_nas import anytime_skeleton
        >>> anytime_skeleton(cells=2, budget=1e6).cells
        ('cell1', 'factorized_reduction', 'cell2')
    """
    _check_count("cells", cells)
    if cells < 1:
        raise ValueError(f"`cells` must be at least 1 but got {cells}; the paper uses 3.")
    kinds = [f"cell{number}" for number in range(1, cells + 1)]
    between = [part for kind in kinds for part in (kind, "factorized_reduction")]
    return Skeleton(tuple(between[:-1]), channels, input_shape, classes, budget=budget)


def _check_count(name: str, count: Any) -> None:
    """Check a number of cells before as many names are made of it."""
    if isinstance(count, bool) or not isinstance(plain(count), int) or count > MAX_CELLS:
        raise ValueError(f"`{name}` must be an integer of at most {MAX_CELLS} but got {count!r}.")


def _sizes(shape: tuple[Any, ...]) -> list[tuple[str, Any]]:
    return [(f"input_shape[{i}]", size) for i, size in enumerate(shape)]
