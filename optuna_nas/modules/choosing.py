"""Choices declared in the constructor of a user's module: values, ops, inputs, depths.

A constructor asks, a chooser answers. Outside of a search the answer is the first option, so that a module with choices
is an ordinary module. Within `answering(chooser)` it is what an architecture chose, or, for a supernet, all options at
once.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from torch import nn

from optuna_nas.modules.mixing import Mixed, MixedDepth, MixedInputs, Mixer, check_op_names
from optuna_nas.networks.sums import Pick, Sum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

VALUE, OP, OPS, INPUTS, DEPTH = "value", "op", "ops", "inputs", "depth"
NOTHING = "none"
"""Optuna choice of a `choose_ops` or `choose_inputs` that chooses nothing."""
MAX_SETS = 256
"""Largest number of sets of ops or inputs that one choice may have."""
Value = TypeVar("Value", None, bool, int, float, str)
Make: TypeAlias = "nn.Module | Callable[[], nn.Module]"
Context: TypeAlias = "tuple[tuple[str, frozenset[str]], ...]"
"""Options within which a choice is asked for, outermost first: (choice, its names of which one must be chosen)."""


@dataclass(frozen=True)
class Choice:
    """One choice of a module.

    Args:
        name: Name of the choice and of its Optuna parameter.
        kind: `value`, `op`, `ops`, `inputs` or `depth`.
        names: What can be chosen, as text: values, ops, numbers of inputs, numbers of blocks.
        options: (Optuna choice, names that it stands for).

    Example:
        >>> from optuna_nas.modules.choosing import Choice
        >>> Choice("width", "value", ("8", "16"), ((8, ("8",)), (16, ("16",)))).names
        ('8', '16')
    """

    name: str
    kind: str
    names: tuple[str, ...]
    options: tuple[tuple[Any, tuple[str, ...]], ...]

    @property
    def largest(self) -> tuple[str, ...]:
        """Names of the largest option: the largest number, all ops or inputs, else the first option."""
        if self.kind in (OPS, INPUTS):
            return max((names for _, names in self.options), key=len)
        sizes = [value for value, _ in self.options]
        if all(isinstance(size, int | float) and not isinstance(size, bool) for size in sizes):
            return self.options[sizes.index(max(sizes))][1]
        return self.options[0][1]


class Chooser:
    """Answers choices with their first options, and records what was asked within which options."""

    mixer: Mixer | None = None
    """What weighs the options of a supernet; None where a choice has one answer."""

    def __init__(self) -> None:
        self.asked: dict[str, Choice] = {}
        self.contexts: dict[str, set[Context]] = {}
        self._within: Context = ()

    def ask(self, choice: Choice) -> tuple[str, ...]:
        """Return the chosen names.

        Raises:
            ValueError: The name stands for another choice already.
        """
        known = self.asked.setdefault(choice.name, choice)
        if known != choice:
            raise ValueError(
                f"`name` must stand for one choice but {choice.name!r} is asked for as {_described(known)} and as "
                f"{_described(choice)}; rename one of them."
            )
        self.contexts.setdefault(choice.name, set()).add(self._within)
        return self.answer(choice)

    def answer(self, choice: Choice) -> tuple[str, ...]:
        """Return the names chosen for a choice."""
        return choice.options[0][1]

    @contextmanager
    def within(self, name: str, names: frozenset[str]) -> Iterator[None]:
        """Record that choices inside the block are asked for only where a choice has one of these names."""
        before = self._within
        self._within = (*before, (name, names))
        try:
            yield
        finally:
            self._within = before


class Chosen(Chooser):
    """Answers with the choices of an architecture.

    Args:
        choices: Names by choice.
        first: Whether unknown choices get their first option, instead of an error.
    """

    def __init__(self, choices: Mapping[str, tuple[str, ...]], first: bool = False) -> None:
        super().__init__()
        self._choices, self._first = choices, first

    def answer(self, choice: Choice) -> tuple[str, ...]:
        if choice.name in self._choices:
            return self._choices[choice.name]
        if self._first:
            return super().answer(choice)
        raise ValueError(
            f"`make` must ask for all choices that the space knows but now asks for {choice.name!r}, which no single "
            "change of another choice led to; ask for it before the `if` that hides it."
        )


class Everything(Chosen):
    """Answers for a supernet: one option of every value, all options of every other choice.

    Args:
        values: Name of the value by choice; others get their first.
        mixer: What weighs the options.
    """

    def __init__(self, values: Mapping[str, tuple[str, ...]], mixer: Mixer | None = None) -> None:
        super().__init__(values, first=True)
        self.mixer = mixer or Mixer()


class Refusing(Chooser):
    """Refuses all choices: what is asked for outside of a constructor is asked for too late."""

    def ask(self, choice: Choice) -> tuple[str, ...]:
        raise ValueError(
            f"`{choice.name}` must be chosen in the constructor of a module but is asked for in `forward`; keep what "
            "was chosen as an attribute."
        )


_answering: ContextVar[Chooser | None] = ContextVar("optuna_nas_chooser", default=None)


@contextmanager
def answering(chooser: Chooser) -> Iterator[Chooser]:
    """Let a chooser answer all choices that this thread asks for inside the block."""
    token = _answering.set(chooser)
    try:
        yield chooser
    finally:
        _answering.reset(token)


# -- what a user's constructor calls ----------------------------------------------------------------------------------


def choose(name: str, values: Sequence[Value]) -> Value:
    """Return one of several values, such as a width, a kernel size, a rate or the name of an activation.

    Outside of a search it is the first value. In a supernet a value is drawn: a smaller tensor of a parameter is the
    leading part of its largest tensor (the centre of a kernel).

    Args:
        name: Name of the choice, a Python identifier; the same name in two places is one choice.
        values: Values, all different: numbers, texts, booleans or None.

    Raises:
        ValueError: There are fewer than two values, two are the same as text, or one is of another type.

    Example:
        >>> from torch import nn
        >>> from optuna_nas import choose
        >>> nn.Linear(4, choose("width", [16, 32])).out_features
        16
    """
    values = tuple(values)
    for value in values:
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise ValueError(
                f"`values` must be numbers, texts, booleans or None but {name!r} has a {type(value).__name__}; choose "
                "a text, and look the object up by it."
            )
    names = tuple(map(str, values))
    (chosen,), _ = _asked(_choice(name, VALUE, names, tuple((v, (n,)) for v, n in zip(values, names, strict=True))))
    return values[names.index(chosen)]


def choose_op(name: str, ops: Mapping[str, Make]) -> nn.Module:
    """Return one of several modules, the first outside of a search.

    Args:
        name: Name of the choice, a Python identifier.
        ops: Modules by name, or functions without arguments that return one. A function is only called where its op is
            chosen; it may choose, too.

    Raises:
        ValueError: There are fewer than two ops, or an op is not a module.

    Example:
        >>> from torch import nn
        >>> from optuna_nas import choose_op
        >>> choose_op("activation", {"relu": nn.ReLU, "gelu": nn.GELU})
        ReLU()
    """
    check_op_names(name, ops)
    names, chooser = _asked(_choice(name, OP, tuple(ops), tuple((op, (op,)) for op in ops)))
    if chooser.mixer is None:
        return _made(chooser, name, names[0], ops[names[0]])
    return Mixed(name, {op: _made(chooser, name, op, make) for op, make in ops.items()}, chooser.mixer, single=True)


def choose_ops(name: str, ops: Mapping[str, Make], *, least: int = 1, most: int | None = None) -> nn.Module:
    """Return the sum of some of several modules, the first alone outside of a search.

    Args:
        name: Name of the choice, a Python identifier.
        ops: Modules by name, or functions without arguments that return one; outputs of equal shape.
        least: Smallest number of ops; a sum of none is zeros like the first argument.
        most: Largest number of ops; None for all.

    Raises:
        ValueError: There are fewer than two ops or more than 256 sets of them, or the numbers are out of range.

    Example:
        >>> from torch import nn
        >>> from optuna_nas import choose_ops
        >>> choose_ops("branches", {"tanh": nn.Tanh, "linear": lambda: nn.Linear(4, 4)})
        Sum(
          (tanh): Tanh()
        )
    """
    check_op_names(name, ops)
    names, chooser = _asked(_choice(name, OPS, tuple(ops), _sets(name, tuple(ops), least, most)))
    if chooser.mixer is None:
        return Sum(name, {op: _made(chooser, name, op, ops[op]) for op in ops if op in names})
    return Mixed(name, {op: _made(chooser, name, op, make) for op, make in ops.items()}, chooser.mixer)


def choose_optional(name: str, op: Make) -> nn.Module:
    """Return a module, or an identity in its place; the module outside of a search.

    Args:
        name: Name of the choice, a Python identifier; its options are `on` and `off`.
        op: Module, or function without arguments that returns one; keeps the shape of its input.

    Example:
        >>> from torch import nn
        >>> from optuna_nas import choose_optional
        >>> isinstance(choose_optional("norm", lambda: nn.LayerNorm(4)), nn.LayerNorm)
        True
    """
    return choose_op(name, {"on": op, "off": nn.Identity})


def choose_inputs(name: str, n_inputs: int, *, least: int = 1, most: int | None = 1) -> nn.Module:
    """Return a module that takes a list of tensors and adds up some of them, the first alone outside of a search.

    Args:
        name: Name of the choice, a Python identifier.
        n_inputs: Number of tensors, of equal shape.
        least: Smallest number to add up; a sum of none is zeros.
        most: Largest number; None for all.

    Raises:
        ValueError: There are fewer than two tensors or more than 256 sets of them, or the numbers are out of range.

    Example:
        >>> import torch
        >>> from optuna_nas import choose_inputs
        >>> reads = choose_inputs("head_reads", 3, most=2)
        >>> reads([torch.ones(2), torch.zeros(2), torch.zeros(2)])
        tensor([1., 1.])
    """
    names = tuple(map(str, range(n_inputs)))
    chosen, chooser = _asked(_choice(name, INPUTS, names, _sets(name, names, least, most)))
    if chooser.mixer is None:
        return Pick(name, tuple(int(number) for number in chosen))
    return MixedInputs(name, names, chooser.mixer)


def choose_depth(name: str, make: Callable[[int], nn.Module], least: int, most: int) -> nn.Sequential:
    """Return the first blocks of a chain, all of them outside of a search.

    Args:
        name: Name of the choice, a Python identifier.
        make: Function of a block's number, from 0, that returns it; blocks keep the shape of their input.
        least: Smallest number of blocks, at least 0.
        most: Largest number of blocks.

    Raises:
        ValueError: The numbers are out of range.

    Example:
        >>> from torch import nn
        >>> from optuna_nas import choose_depth
        >>> len(choose_depth("depth", lambda number: nn.Linear(4, 4), 1, 3))
        3
    """
    if not 0 <= least < most:
        raise ValueError(f"`least` must be from 0 and below `most` but they are {least} and {most}.")
    depths = tuple(range(most, least - 1, -1))
    names = tuple(map(str, depths))
    (chosen,), chooser = _asked(
        _choice(name, DEPTH, names, tuple((d, (n,)) for d, n in zip(depths, names, strict=True)))
    )
    n_blocks = int(chosen) if chooser.mixer is None else most
    blocks = []
    for number in range(n_blocks):
        deeper = frozenset(text for text, depth in zip(names, depths, strict=True) if depth > number)
        with chooser.within(name, deeper):
            block = make(number)
        if not isinstance(block, nn.Module):
            raise ValueError(f"`make` of {name!r} must return a module but returns a {type(block).__name__}.")
        blocks.append(block)
    return nn.Sequential(*blocks) if chooser.mixer is None else MixedDepth(name, blocks, depths, chooser.mixer)


# -- helpers ----------------------------------------------------------------------------------------------------------


def _choice(name: str, kind: str, names: tuple[str, ...], options: tuple[tuple[Any, tuple[str, ...]], ...]) -> Choice:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(
            f"`name` must be a Python identifier, since it names an Optuna parameter, but got {name!r}; use letters, "
            "digits and underscores."
        )
    twice = [text for text, number in Counter(names).items() if number > 1]
    if not twice and len({option for option, _ in options}) < len(options):
        twice = [str(option) for option, number in Counter(option for option, _ in options).items() if number > 1]
    if twice:
        raise ValueError(f"`{name}` must differ in all options but {twice[0]!r} stands twice; leave one out.")
    if len(options) < 2:
        raise ValueError(f"`{name}` must leave a choice but has {len(options)} option(s); add one.")
    return Choice(name, kind, names, options)


def _asked(choice: Choice) -> tuple[tuple[str, ...], Chooser]:
    chooser = _answering.get() or Chooser()
    return chooser.ask(choice), chooser


def _made(chooser: Chooser, choice: str, name: str, make: Make) -> nn.Module:
    """Return the module of an option."""
    if isinstance(make, nn.Module):
        return make
    with chooser.within(choice, frozenset({name})):
        module = make()
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"`ops` must be modules or functions that return one but {name!r} of {choice!r} returns a "
            f"{type(module).__name__}."
        )
    return module


def _sets(name: str, names: tuple[str, ...], least: int, most: int | None) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the sets of names from `least` to `most` of them, by their text; the empty one last."""
    most = len(names) if most is None else most
    if not 0 <= least <= most <= len(names) or most < 1:
        raise ValueError(
            f"`least` and `most` of {name!r} must be in order and at most {len(names)} but are {least} and {most}."
        )
    if least == 0 and NOTHING in names:
        raise ValueError(f"`ops` of {name!r} must not be named {NOTHING!r}, which stands for no op; rename it.")
    sets = [chosen for size in range(max(1, least), most + 1) for chosen in combinations(names, size)]
    if len(sets) > MAX_SETS:
        raise ValueError(
            f"`most` of {name!r} must leave at most {MAX_SETS} sets but {len(names)} names have {len(sets)}; lower it."
        )
    options = [("+".join(chosen), tuple(sorted(chosen))) for chosen in sets]
    return (*options, *([(NOTHING, ())] if least == 0 else []))


def _described(choice: Choice) -> str:
    return f"{choice.kind} of {[option for option, _ in choice.options]}"
