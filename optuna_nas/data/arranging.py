"""Raw inputs brought into the layout that a network takes. NumPy alone: this file travels with models in MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


def arranged(raw: ArrayLike, shape: Sequence[int], dtype: str) -> NDArray[Any]:
    """Return raw inputs as an array of shape (N, *shape).

    Images may come with channels last, grey ones without channels; every input may come as a flat row, as in a table.

    Args:
        raw: N inputs: an array, nested lists, or a table.
        shape: Shape of one input.
        dtype: NumPy's name of the type; whole numbers are taken for bytes and tokens, whatever their type.

    Raises:
        ValueError: Shape, type or values do not fit.

    Example:
        >>> import numpy as np
        >>> from optuna_nas.data.arranging import arranged
        >>> arranged(np.zeros((5, 8, 8, 3)), (3, 8, 8), "float32").shape
        (5, 3, 8, 8)
        >>> arranged([[0, 16, 255, 3]], (1, 2, 2), "uint8").shape
        (1, 1, 2, 2)
    """
    array, shape = np.asarray(raw), tuple(shape)
    if array.ndim == 0 or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise ValueError(f"`raw` must be an array of numbers, (N, {_text(shape)}), but has dtype {array.dtype}.")
    found = array.shape[1:]
    if len(shape) == 3 and found != shape and found == (*shape[1:], shape[0]):
        array = np.moveaxis(array, -1, 1)
    elif found == shape or found == (int(np.prod(shape)),) or (shape[:1] == (1,) and found == shape[1:]):
        array = array.reshape(len(array), *shape)
    else:
        raise ValueError(f"`raw` must have shape (N, {_text(shape)}) but has {array.shape}; resize or crop the inputs.")
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0])
        raise ValueError(f"`raw` must be finite but input {bad} holds NaN or infinity; remove or repair it.")
    converted = array.astype(dtype) if dtype == "float32" else array.astype(np.int64).astype(dtype)
    if dtype != "float32" and not np.array_equal(converted, array):
        limits = "from 0 to 255" if dtype == "uint8" else ""
        raise ValueError(f"`raw` must be whole numbers {limits}, as in the training, but holds others; scale them.")
    return converted


def _text(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
