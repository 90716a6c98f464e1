"""Options of all paths of a space as rows of one table, and the weights with which a supernet mixes their names.

E paths, O options of the path that has most of them, N names of a path.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from optuna_nas.space import Space


class OptionTable:
    """Options of every path; rows of fewer options end with padding.

    Args:
        space: Search space.

    Attributes:
        paths: Names of the paths.
        labels: Optuna choices of every path, as text.
        names: Names that every option of every path stands for.

    Raises:
        ValueError: No path leaves a choice.

    Example:
        >>> from optuna_nas import nasbench201_space
        >>> from optuna_nas.oneshot.snas.options import OptionTable
        >>> OptionTable(nasbench201_space()).shape
        (6, 5)
    """

    def __init__(self, space: Space) -> None:
        options, mixed = space.options(), space.mixed_names()
        self.paths = tuple(options)
        self.labels = tuple(tuple(map(str, of_path)) for of_path in options.values())
        self.names = tuple(tuple(of_path.values()) for of_path in options.values())
        sizes = [len(of_path) for of_path in self.names]
        self.shape = len(sizes), max(sizes)
        if self.shape[1] < 2:
            raise ValueError(f"`space` must leave a choice but every path has one option: {self.labels[0]}.")
        valid_EO = torch.arange(self.shape[1]) < torch.tensor(sizes)[:, None]
        self._valid_EO = None if bool(valid_EO.all()) else valid_EO
        members = [
            torch.tensor([[float(name in chosen) for name in mixed[path]] for chosen in of_path], dtype=torch.float32)
            for path, of_path in zip(self.paths, self.names, strict=True)
        ]
        for row, of_path, path in zip(members, self.names, self.paths, strict=True):
            for number, chosen in enumerate(of_path):
                if not chosen and "none" in mixed[path]:  # an empty choice is the op `none`, where there is one
                    row[number, mixed[path].index("none")] = 1.0
        self._is_one = [bool(row.shape[0] == row.shape[1] and (row == torch.eye(len(row))).all()) for row in members]
        self._alike = all(row.shape == members[0].shape and bool((row == members[0]).all()) for row in members)
        self._members = members

    def move(self, device: torch.device) -> None:
        """Move to another device."""
        self._members = [row.to(device) for row in self._members]
        self._valid_EO = None if self._valid_EO is None else self._valid_EO.to(device)

    def padded(self, logits_EO: Tensor) -> Tensor:
        """Return logits with minus infinity where a path has no option."""
        return logits_EO if self._valid_EO is None else logits_EO.masked_fill(~self._valid_EO, -math.inf)

    def weights(self, mixing_EO: Tensor) -> dict[str, Tensor]:
        """Return the weights of the names of every path, shape (N,) each, for the weights of its options."""
        if self._alike and self._valid_EO is None:
            rows = (mixing_EO if self._is_one[0] else mixing_EO @ self._members[0]).unbind()
        else:
            rows = tuple(
                row[: len(members)] if one else row[: len(members)] @ members
                for row, members, one in zip(mixing_EO.unbind(), self._members, self._is_one, strict=True)
            )
        return dict(zip(self.paths, rows, strict=True))

    def chosen(self, numbers_E: Sequence[int] | NDArray[np.int64]) -> dict[str, tuple[str, ...]]:
        """Return the names of one option a path."""
        return {
            path: of_path[int(number)] for path, of_path, number in zip(self.paths, self.names, numbers_E, strict=True)
        }

    def by_path(self, table_EO: NDArray[np.float64]) -> dict[str, dict[str, float]]:
        """Return a table's values by path and option."""
        return {
            path: dict(zip(labels, map(float, row), strict=False))
            for path, labels, row in zip(self.paths, self.labels, table_EO, strict=True)
        }


def best_of(space: Space, score_EO: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the options of the connected architecture with the largest sum of scores, shape (E,)."""
    sizes = [len(options) for options in space.options().values()]
    return space.best([row[:size] for row, size in zip(score_EO, sizes, strict=True)])
