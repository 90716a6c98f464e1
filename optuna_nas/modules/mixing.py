"""Modules that stand in a supernet where a choice is: they compute several options and weigh them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from optuna_nas.networks.graph_network import credited
from optuna_nas.networks.sums import added, outputs_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from optuna_nas.networks.sums import Factor

OWN_NAMES = frozenset({"training", "choice", "mixer", "single", "factors"})
"""Attributes of the modules below, which no op may be named like."""


class Mixer:
    """Weights of the options of all choices, in use while a supernet computes.

    Attributes:
        weights: Weights of the names to compute, by choice and name.
        ones: Whether all weights are 1, and only need gradients.
        computes: Whether a supernet computes now.
    """

    def __init__(self) -> None:
        self.weights: Mapping[str, Mapping[str, Factor]] = {}
        self.ones = self.computes = False

    def mixed(self, choice: str, outputs: Iterable[tuple[str, Any]]) -> Any:
        """Return the weighed sum of outputs, given with the names that they are of; None for no outputs."""
        weights = self.weights[choice]
        terms = [(value, weights[name]) for name, value in outputs]
        if self.ones:
            terms = [(_credited(value, weight), 1.0) for value, weight in terms]
        if not terms:
            return None
        try:
            return added(terms)
        except (RuntimeError, TypeError, ValueError) as error:
            if len(terms) == 1:
                raise
            raise ValueError(
                f"`choose` must have options whose outputs can be added up, to mix them, but those of {choice!r} can't "
                f"({str(error).splitlines()[0]}); use `SNASRecipe(relaxation='one_path')`, or give them equal outputs."
            ) from error

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Note that a supernet computes inside the block."""
        before, self.computes = self.computes, True
        try:
            yield
        finally:
            self.computes = before


def _credited(value: Any, weight: Factor) -> Any:
    """Return the value; its gradient reaches a weight of 1."""
    if not isinstance(weight, Tensor):
        return value
    return tree_map(lambda part: credited(part, weight) if isinstance(part, Tensor) else part, value)


class Mixed(nn.Module):
    """All ops of a choice, weighed.

    Args:
        choice: Name of the choice.
        ops: Ops by name.
        mixer: What weighs them.
        single: Whether an architecture chooses one of them, which then stands in place of this module.
    """

    def __init__(self, choice: str, ops: Mapping[str, nn.Module], mixer: Mixer, single: bool = False) -> None:
        super().__init__()
        for name, op in ops.items():
            self.add_module(name, op)
        self.choice, self.mixer, self.single = choice, mixer, single

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name.startswith("_") or "choice" not in self.__dict__:
                raise
            raise AttributeError(
                f"{self.choice!r} has no attribute {name!r} where all of its ops are computed; choose what they have "
                "in common, such as a width, before them."
            ) from error

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the weighed sum of the outputs; zeros like the first input if nothing is to be computed."""
        ops = ((name, self.get_submodule(name)) for name in self.mixer.weights[self.choice])
        mixed = self.mixer.mixed(self.choice, outputs_of(self.choice, ops, inputs, named))
        return torch.zeros_like(inputs[0]) if mixed is None else mixed


class MixedInputs(nn.Module):
    """All inputs of a choice, weighed.

    Args:
        choice: Name of the choice.
        names: Numbers of the inputs, as text.
        mixer: What weighs them.
    """

    def __init__(self, choice: str, names: tuple[str, ...], mixer: Mixer) -> None:
        super().__init__()
        self.choice, self.names, self.mixer = choice, names, mixer

    def forward(self, tensors: Sequence[Tensor]) -> Any:
        """Return the weighed sum of the tensors."""
        mixed = self.mixer.mixed(self.choice, ((name, tensors[int(name)]) for name in self.mixer.weights[self.choice]))
        return torch.zeros_like(tensors[0]) if mixed is None else mixed


class MixedDepth(nn.Sequential):
    """All depths of a chain, weighed: the sum of what some numbers of blocks have come to.

    Args:
        choice: Name of the choice.
        blocks: Blocks in order.
        depths: Numbers of blocks that can be chosen.
        mixer: What weighs them.
    """

    def __init__(self, choice: str, blocks: Sequence[nn.Module], depths: tuple[int, ...], mixer: Mixer) -> None:
        super().__init__(*blocks)
        self.choice, self.depths, self.mixer = choice, depths, mixer

    def __iter__(self) -> Iterator[nn.Module]:
        self._is_whole()
        return super().__iter__()

    def __len__(self) -> int:
        self._is_whole()
        return super().__len__()

    def _is_whole(self) -> None:
        """Raise ValueError where a supernet, of which all depths are computed, is asked for single blocks."""
        if self.mixer.computes:
            raise ValueError(
                f"`choose_depth` must be called as a whole in `forward` but that of {self.choice!r} is taken apart; "
                "call it, with what happens between its blocks inside of them."
            )

    def forward(self, value: Any) -> Any:
        """Return the weighed sum."""
        wanted = sorted(int(name) for name in self.mixer.weights[self.choice])
        reached = {}
        x = value
        for number in range(max(wanted, default=0) + 1):
            if number:
                x = self.get_submodule(str(number - 1))(x)
            if number in wanted:
                reached[str(number)] = x
        mixed = self.mixer.mixed(self.choice, reached.items())
        return torch.zeros_like(value) if mixed is None else mixed


def check_op_names(choice: str, ops: Mapping[str, object]) -> None:
    """Check that ops can be named so within a module.

    Raises:
        ValueError: A name is empty, has a dot, or is that of an attribute of modules.
    """
    for name in ops:
        if (
            not isinstance(name, str)
            or not name
            or {".", "+"} & set(name)
            or name in OWN_NAMES
            or hasattr(nn.Module, name)
        ):
            raise ValueError(
                f"`ops` of {choice!r} must have names that can name a part of a module but one is {name!r}; use "
                "letters, digits and underscores, and no name of an attribute of `nn.Module`."
            )
