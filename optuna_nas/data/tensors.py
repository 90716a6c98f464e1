"""Data sets of tensors of any shape that fit the memory of the training device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from optuna_nas.data.batches import Batch
from optuna_nas.data.preprocessing import Preprocessing
from optuna_nas.data.splits import (
    CHOICES,
    SPLITS,
    WEIGHTS,
    check_every_label,
    checked_names,
    checked_seed,
    checked_text,
    digest_of,
    draw_splits,
    index_chunks,
    positions_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike

    from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class TensorData:
    """Inputs and targets of any shape that fit the memory of the training device: tables, sequences, signals.

    Make one with `TensorData.from_arrays(x, y)`.

    Args:
        name: Name in records and tables.
        inputs: Shape (N, ...).
        targets: Shape (N, ...); int64 labels of a classification, otherwise float32.
        splits: Positions of the examples of every split (`weights`, `choices`, `report`, `test`), disjoint.
        outputs: Size of a prediction: number of classes, or of values that a regression predicts.
        seed: Seed of the splits.
        preprocessing: How raw inputs become `inputs`; None if that is not known.
        class_names: Name of every class; empty for their numbers.

    Example:
        >>> import numpy as np
        >>> from optuna_nas import TensorData
        >>> data = TensorData.from_arrays(np.random.rand(100, 10), np.random.rand(100))
        >>> data.input_shape, data.outputs
        ((10,), 1)
        >>> inputs, targets = next(data.batches(["weights"], 8, epoch=0))
        >>> inputs.shape, targets.shape
        (torch.Size([8, 10]), torch.Size([8]))
    """

    name: str
    inputs: Tensor
    targets: Tensor
    splits: Mapping[str, Tensor]
    outputs: int
    seed: int = 0
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()

    @staticmethod
    def from_arrays(
        x: ArrayLike,
        y: ArrayLike,
        x_test: ArrayLike | None = None,
        y_test: ArrayLike | None = None,
        *,
        name: str | PathLike[str] = "tensors",
        normalize: bool = True,
        fractions: Mapping[str, float] | None = None,
        seed: int = 0,
        class_names: Sequence[str] = (),
    ) -> TensorData:
        """Return a data set of your own arrays. Splits are stratified by label if targets are integers.

        Args:
            x: Inputs, shape (N, ...); integers, such as tokens, stay integers.
            y: Targets, shape (N,) or (N, ...): integers from 0 are labels, other numbers are values to predict.
            x_test: Inputs of the test split; None draws a test split from `x`.
            y_test: Targets of the test split.
            name: Name in records and tables.
            normalize: Whether to scale every column of floating-point inputs to mean 0 and standard deviation 1 on the
                training splits.
            fractions: Fractions of the splits, in [0, 1): `test` of all examples (0.2 by default, without `x_test`),
                then `choices` and `report` (validation) of the others (0.25 each by default). The rest is `weights`.
            seed: Seed of the splits, at least 0.
            class_names: Name of every class, for predictions; by default their numbers.

        Raises:
            ValueError: Lengths or shapes differ, a number is not finite, integers would be tested on fractions, or a
                class has too few examples for all splits.
        """
        if (x_test is None) != (y_test is None):
            raise ValueError("`x_test` and `y_test` must be given together but one is None.")
        inputs, targets = _as_tensor(x, "x"), _as_tensor(y, "y")
        n_train = len(inputs)
        _check_lengths(inputs, targets, "y")
        if x_test is not None and y_test is not None:
            test_inputs, test_targets = _as_tensor(x_test, "x_test"), _as_tensor(y_test, "y_test")
            _check_lengths(test_inputs, test_targets, "y_test")
            if test_inputs.shape[1:] != inputs.shape[1:]:
                raise ValueError(
                    f"`x_test` must have examples like `x`, {tuple(inputs.shape[1:])}, but has "
                    f"{tuple(test_inputs.shape[1:])}."
                )
            inputs = torch.cat([inputs, _as_type_of(inputs, test_inputs, "x")])
            targets = torch.cat([targets, _as_type_of(targets, test_targets, "y")])
        is_labels = not targets.is_floating_point() and targets.ndim == 1
        if is_labels and int(targets.min()) < 0:
            raise ValueError(f"`y` must hold labels from 0 but got {int(targets.min())}; renumber the labels.")
        strata = targets.numpy() if is_labels else np.zeros(len(targets), dtype=np.int64)
        seed = checked_seed(seed)
        if is_labels:
            check_every_label(targets.numpy(), "give floating-point values to predict")
        splits = draw_splits(strata, n_train, dict(fractions or {}), seed)
        shape, mean, scale = tuple(inputs.shape[1:]), None, None
        if normalize and inputs.is_floating_point():
            seen = inputs[torch.cat([splits[WEIGHTS], splits[CHOICES]])].double()
            deviation = seen.std(0, keepdim=True)
            scale = torch.where(deviation > 0, deviation, 1)
            mean = seen.mean(0, keepdim=True)
            inputs = ((inputs - mean) / scale).float()
            mean, scale = mean[0].float(), scale[0].float()
        outputs = int(targets.max()) + 1 if is_labels else int(np.prod(targets.shape[1:], dtype=np.int64))
        preprocessing = Preprocessing(shape, "float32" if inputs.is_floating_point() else "int64", 1, mean, scale)
        names = checked_names(class_names, outputs if is_labels else 0)
        return TensorData(checked_text(name), inputs, targets, splits, outputs, seed, preprocessing, names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.inputs.shape[1:])

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.inputs.device

    def to(self, device: torch.device | str) -> TensorData:
        """Return the same data on a device; itself if it is there already."""
        if torch.device(device) == self.device:
            return self
        return replace(
            self,
            inputs=self.inputs.to(device),
            targets=self.targets.to(device),
            splits={split: positions.to(device) for split, positions in self.splits.items()},
        )

    def size(self, splits: Sequence[str]) -> int:
        """Return the number of examples in these splits."""
        return len(positions_of(self.splits, splits))

    def batches(
        self, splits: Sequence[str], batch_size: int, *, seed: int = 0, epoch: int | None = None, start: int = 0
    ) -> Iterator[Batch]:
        """Yield batches of the examples in some splits; see `ImageData.batches`."""
        for chosen in index_chunks(positions_of(self.splits, splits), batch_size, seed, epoch)[start:]:
            yield Batch(self.inputs[chosen], self.targets[chosen])

    def describe(self) -> dict[str, Any]:
        """Return name, shapes, seed and classes, and sizes and hashes of data and splits, as JSON values."""
        return {**self._description, "name": self.name}

    @cached_property
    def _description(self) -> dict[str, Any]:
        return {
            "input_shape": list(self.input_shape),
            "outputs": self.outputs,
            "class_names": list(self.class_names),
            "seed": self.seed,
            "digest": digest_of(self.inputs, self.targets),
            "sizes": {split: len(self.splits[split]) for split in SPLITS},
            "split_digests": {split: digest_of(self.splits[split]) for split in SPLITS},
        }


def _check_lengths(inputs: Tensor, targets: Tensor, name: str) -> None:
    if len(targets) != len(inputs):
        raise ValueError(f"`{name}` must have one target for each of {len(inputs)} inputs but has {len(targets)}.")


def _as_type_of(train: Tensor, test: Tensor, name: str) -> Tensor:
    """Return numbers of the test split in the type of the others, which must not cut off fractions."""
    converted = test.to(train.dtype)
    if not train.is_floating_point() and (cut := test[converted != test]).numel():
        raise ValueError(
            f"`{name}_test` must hold integers like `{name}` but has {cut[0]:g}; give both as integers, or both as "
            "floating-point numbers."
        )
    return converted


def _as_tensor(values: ArrayLike, name: str) -> Tensor:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    if array.ndim == 0 or len(array) == 0:
        raise ValueError(f"`{name}` must hold at least one example but has shape {array.shape}.")
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or np.iscomplexobj(array):
        raise ValueError(f"`{name}` must be real numbers but has dtype {array.dtype}; encode texts as integers.")
    if np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        if len(bad):
            raise ValueError(
                f"`{name}` must be finite but example {bad[0]} (and {len(bad) - 1} more) holds NaN or infinity; "
                "remove or repair them."
            )
    else:
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, order="C"))  # a copy, since the caller may change the array
