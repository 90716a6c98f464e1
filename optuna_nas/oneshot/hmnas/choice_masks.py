"""Weights and masks of the choices of a user's module (HM-NAS, sections 3.1 and 3.3, beyond cells).

Choices of several ops or inputs have a weight and a mask for each of them: the inputs are the edges into a node.
Choices of one (`choose_op`, `choose_depth`) have weights, and are decided by the largest once masks learn. Values are
the largest.

E choices of several, O names of the choice that has most; rows of fewer names are padded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from optuna_nas.modules.choosing import INPUTS, OPS, VALUE
from optuna_nas.oneshot.hmnas.masks import BaseMasks

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from optuna_nas.modules import ModuleSpace, ModuleSupernet
    from optuna_nas.oneshot.hmnas.recipe import HMNASRecipe


class ChoiceMasks(BaseMasks):
    """What HM-NAS learns of a user's module beside the weights of its supernet; see `Masks`.

    Attributes:
        op_logits_EO: Logits of the names of every choice of several.
        op_masks_EO: Real masks of them.
        single_logits: Logits of the names of every choice of one.

    Args:
        space: Space of the module.
        supernet: The supernet whose weights are masked.
        recipe: Where masks start, what the threshold is, and the seed.

    Raises:
        ValueError: There is no choice of several.
    """

    def __init__(self, space: ModuleSpace, supernet: ModuleSupernet, recipe: HMNASRecipe) -> None:
        several = [choice for choice in space.choices.values() if choice.kind in (OPS, INPUTS)]
        if not several:
            raise ValueError(
                "`space` must have a choice of several to mask, `choose_ops` or `choose_inputs`, but has none; use "
                "SNAS."
            )
        super().__init__(tuple(c.name for c in several), tuple(c.names for c in several), supernet, recipe)
        self._space = space
        self._largest = {name: c.largest for name, c in space.choices.items() if c.kind == VALUE}
        self._least = {choice.name: min(len(names) for _, names in choice.options) for choice in several}
        draw = torch.Generator().manual_seed(recipe.seed)
        self._valid_EO = torch.from_numpy(self.valid_EO)
        self.op_logits_EO = nn.Parameter(1e-3 * torch.randn(self.valid_EO.shape, generator=draw, dtype=torch.float32))
        self.op_masks_EO = nn.Parameter(torch.full(self.valid_EO.shape, recipe.mask_start, dtype=torch.float32))
        self.single_logits = {
            choice.name: nn.Parameter(1e-3 * torch.randn(len(choice.names), generator=draw, dtype=torch.float32))
            for choice in space.choices.values()
            if choice.kind not in (OPS, INPUTS, VALUE)
        }
        self._owners = supernet.owners()
        self.weight_masks = {
            name: nn.Parameter(torch.full_like(weight, recipe.mask_start, memory_format=torch.preserve_format))
            for name, weight in supernet.named_parameters()
            if weight.ndim > 1 and weight.requires_grad and name in self._owners
        }

    @property
    def logits(self) -> list[nn.Parameter]:
        return [self.op_logits_EO, *self.single_logits.values()]

    @property
    def choice_masks(self) -> list[nn.Parameter]:
        return [self.op_masks_EO]

    def tensors(self) -> dict[str, Tensor]:
        return {
            "op_logits": self.op_logits_EO.data,
            "op_masks": self.op_masks_EO.data,
            **{f"single_logits/{name}": logits.data for name, logits in self.single_logits.items()},
            **{f"weight_masks/{name}": mask.data for name, mask in self.weight_masks.items()},
        }

    def move(self, device: torch.device) -> None:
        super().move(device)
        self._valid_EO = self._valid_EO.to(device)

    def edge_weights(self) -> Tensor:
        """Return ones: choices are not weighed against each other; shape (E,)."""
        return torch.ones(len(self.paths), device=self.op_logits_EO.device)

    def op_weights(self) -> Tensor:
        """Return the softmax of every choice's names (eq. 1 of ops, eq. 2 of inputs), shape (E, O); 0 for padding."""
        return self.op_logits_EO.masked_fill(~self._valid_EO, -math.inf).softmax(-1)

    def mixing(self, masked: bool) -> dict[str, Tensor]:
        ops_EO = self.op_weights()
        if masked:
            ops_EO = ops_EO * self.binary(self.op_masks_EO)
        mixing = {path: row[: len(names)] for path, names, row in zip(self.paths, self.names, ops_EO, strict=True)}
        for name, logits in self.single_logits.items():
            weights = logits.softmax(0)
            mixing[name] = nn.functional.one_hot(weights.argmax(), len(weights)).float() if masked else weights
        largest = {name: self._chosen(name, names) for name, names in self._largest.items()}
        return {**mixing, **largest}

    def _chosen(self, path: str, chosen: Collection[str]) -> Tensor:
        """Return 1 for every chosen name of a choice, else 0."""
        names = self._space.choices[path].names
        return torch.tensor([float(name in chosen) for name in names], device=self.op_logits_EO.device)

    def kept_edges(self, threshold: float | None = None) -> NDArray[np.bool_]:
        return np.ones(len(self.paths), dtype=bool)

    def lowest(self) -> NDArray[np.float64]:
        return self.op_masks_EO.detach().cpu().double().numpy()

    def count_weights(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        kept, total = (np.zeros(self.valid_EO.shape, dtype=np.int64) for _ in range(2))
        rows = {path: number for number, path in enumerate(self.paths)}
        for name, mask in self.weight_masks.items():
            for choice, names in self._owners[name]:
                for op in names if choice in rows else ():
                    place = rows[choice], self.names[rows[choice]].index(op)
                    kept[place] += int((mask.detach() > self.threshold).sum())
                    total[place] += mask.numel()
        return kept, total

    def decided(self) -> dict[str, tuple[str, ...]]:
        """Return the choices of one and of values: the name of the largest weight, and the largest value."""
        decided = {
            name: (self._space.choices[name].names[int(logits.detach().argmax())],)
            for name, logits in self.single_logits.items()
        }
        return {**self._largest, **decided}

    def with_least(self, path: str, chosen: Sequence[str], stays: Sequence[str]) -> tuple[str, ...]:
        """Return what stays of the chosen names of a choice, and the heaviest others where it must have more."""
        missing = min(self._least[path], len(chosen)) - len(stays)
        if missing <= 0:
            return tuple(stays)
        number = self.paths.index(path)
        weights = dict(zip(self.names[number], self.op_weights()[number].tolist(), strict=False))
        others = sorted((name for name in chosen if name not in stays), key=lambda name: -weights[name])
        return (*stays, *others[:missing])

    def only(self, chosen: Mapping[str, tuple[str, ...]], mixing: dict[str, Tensor]) -> dict[str, Tensor]:
        weights, heavy_EO = {}, self.op_weights().detach()
        for path, vector in mixing.items():
            one_hot = self._chosen(path, chosen[path])
            if path not in self._least:
                weights[path] = one_hot if bool((vector == 1).any()) else vector.detach() * one_hot
                continue
            names = self._space.choices[path].names
            left_by_masks = (vector.detach() * one_hot).tolist()
            stays = [name for name, weight in zip(names, left_by_masks, strict=True) if weight]
            left = self._chosen(path, self.with_least(path, chosen[path], stays))
            weights[path] = heavy_EO[self.paths.index(path), : len(names)] * left
        return weights
