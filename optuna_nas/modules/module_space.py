"""The space of the choices that a user's own module declares."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from optuna_nas.modules.choosing import INPUTS, NOTHING, OPS, VALUE, Choice, Chosen, Everything
from optuna_nas.modules.costs import cost_of, n_parameters
from optuna_nas.modules.frames import Frame
from optuna_nas.modules.probing import Declared, asked_by, built, check_runs, declare, run_without_weights, with_weights
from optuna_nas.modules.remembering import remembered
from optuna_nas.modules.unread import learning, reading_all
from optuna_nas.space import Architecture, Cost, ModelSpace
from optuna_nas.space.canonical import CanonicalChoices
from optuna_nas.training.task import Arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from optuna_nas.modules.supernet import ModuleSupernet
    from optuna_nas.space.canonical import Canonical
    from optuna_nas.space.graph import ComputationGraph

Result = TypeVar("Result")

MAX_STRUCTURES = 256
"""Largest number of combinations of values whose structure is kept."""
MAX_COMPUTED_PARAMS = 1_000_000
"""Largest number of parameters of a module whose costs are counted while it computes."""
_made: dict[str, dict[tuple[str, str | None], ModuleSpace]] = {}
"""Spaces made in this process, by name and fingerprint: what files and studies name."""


@dataclass(frozen=True, eq=False)
class ModuleSpace(ModelSpace):
    """Space of the choices that constructors declare inside a module of your own.

    `choose`, `choose_op`, `choose_ops`, `choose_optional`, `choose_inputs` and `choose_depth` declare them in ordinary
    `torch.nn` code. They are found once, when the space is made, by building the module without weights. Each is one
    Optuna parameter. `build` returns your module with the chosen options in place, under your names; nothing of this
    package is in it but modules without parameters where several ops or inputs are added up.

    An architecture's canonical form is what its module asks for: choices inside of an op that is not chosen do not
    count.

    Two spaces are equal if their names and what they declare are. Files and studies name a space; to read them, make
    the space first (import the module that makes it).

    Args:
        make: Class or function without arguments that returns a new module. It must not depend on anything but choices,
            and have no side effects; it is called often.
        example: Inputs of one example (a tensor, or a tuple of arguments), for multiply-adds, exports, traced graphs
            and checks; None does without.
        name: Name of the space; that of `make` by default.

    Raises:
        ValueError: There is no choice, the options do not fit the example, or `make` has no name.

    Example:
        >>> import optuna
        >>> import torch
        >>> from torch import nn
        >>> from optuna_nas import ModuleSpace, choose, choose_op
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         width = choose("width", [8, 16])
        ...         self.stem = nn.Linear(4, width)
        ...         deep = lambda: nn.Sequential(nn.Linear(width, width), nn.ReLU())
        ...         self.act = choose_op("act", {"relu": nn.ReLU, "deep": deep})
        ...         self.head = nn.Linear(width, 1)
        ...
        ...     def forward(self, x):
        ...         return self.head(self.act(self.stem(x)))
        >>> space = ModuleSpace(Net, example=torch.zeros(1, 4))
        >>> space.size
        4
        >>> model = space.suggest(optuna.trial.FixedTrial({"width": 16, "act": "relu"})).build()
        >>> [name for name, _ in model.named_parameters()]
        ['stem.weight', 'stem.bias', 'head.weight', 'head.bias']
        >>> space.architecture({"width": 16, "act": "relu"}).cost()
        Cost(params=97, multiply_adds=80, memory_access=166)
    """

    type_name: ClassVar[str] = "ModuleSpace"
    empty_names: ClassVar[frozenset[str]] = frozenset()

    make: Callable[[], nn.Module]
    example: Any = None
    name: str = ""
    declared: Declared = field(init=False, repr=False)
    """Choices, and what was found beside them."""
    results: dict[Any, Any] = field(init=False, repr=False, default_factory=dict)
    """What is remembered of architectures, see `remembered`."""

    def __post_init__(self) -> None:
        if not callable(self.make) or isinstance(self.make, nn.Module):
            raise ValueError(
                f"`make` must be a class or a function that returns a module but is a {type(self.make).__name__}; "
                "pass the class, not a module."
            )
        if needed := _required(self.make):
            raise ValueError(
                f"`make` must be called without arguments but needs {needed!r}; pass `functools.partial(..., "
                f"{needed}=...)`, and a `name`."
            )
        name = self.name or getattr(self.make, "__qualname__", "")
        if not name or "<lambda>" in name:
            raise ValueError(f"`name` must be given where `make` has no name of its own; {self.make!r} has none.")
        example = Arguments(self.example, {}) if type(self.example) is tuple else self.example
        object.__setattr__(self, "name", name.rpartition("<locals>.")[2])
        object.__setattr__(self, "example", example)
        object.__setattr__(self, "declared", declare(self.make, self.name))
        if example is not None:
            check_runs(self.make, self.declared, example)
        made = _made.setdefault(self.name, {})
        made[self.declared.fingerprint, self.declared.parts] = made[self.declared.fingerprint, None] = self

    @property
    def _identity(self) -> tuple[str, str, str]:
        return self.name, self.declared.fingerprint, self.declared.parts

    def __eq__(self, other: object) -> bool:
        return self._identity == other._identity if isinstance(other, ModuleSpace) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> Any:
        return _restored, (self.to_dict(), _importable(self.make), self.example)

    # -- choices ----------------------------------------------------------------------------------------------------

    @property
    def choices(self) -> dict[str, Choice]:
        """Declared choices by name."""
        return self.declared.choices

    def options(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        return _options(self)

    def drawn_paths(self) -> frozenset[str]:
        return frozenset(name for name, choice in self.choices.items() if choice.kind == VALUE)

    def mixed_names(self) -> dict[str, tuple[str, ...]]:
        return {name: choice.names for name, choice in self.choices.items()}

    def check_choice(self, path: str, chosen: tuple[str, ...]) -> None:
        choice = self.choices[path]
        unknown = sorted(set(chosen) - set(choice.names))
        if unknown:
            raise ValueError(f"`choices[{path!r}]` must be one of {choice.names} but got {unknown[0]!r}.")
        if choice.kind not in (OPS, INPUTS) and len(chosen) != 1:
            raise ValueError(f"`choices[{path!r}]` must be one of {choice.names} but got {len(chosen)} of them.")

    def architecture(self, choices: Mapping[str, Any]) -> Architecture:
        """Return the architecture of these choices.

        Args:
            choices: What is chosen by name: a value, the name of an op, or several names of `choose_ops` or
                `choose_inputs`. A choice left out takes its first option.

        Raises:
            ValueError: A name is unknown.
        """
        texts: dict[str, Iterable[str]] = {}
        for name, chosen in choices.items():
            several = isinstance(chosen, list | tuple | set | frozenset)
            texts[name] = tuple(map(str, chosen)) if several else (str(chosen),)
        first = {name: choice.options[0][1] for name, choice in self.choices.items()}
        return super().architecture({**first, **texts})

    def full_architecture(self) -> Architecture:
        """Return the architecture of the largest options: all ops where several may be chosen, else the largest."""
        return self.architecture({name: choice.largest for name, choice in self.choices.items()})

    def asked(self, architecture: Architecture) -> tuple[str, ...]:
        """Return the names of the choices that the module of an architecture asks for, in that order."""
        return _asked(self, self.adopt(architecture).choices)

    def canonical(self, architecture: Architecture) -> Canonical:
        asked = self.asked(architecture)
        return CanonicalChoices(tuple((name, architecture[name]) for name in sorted(asked)))

    def outline(self, architecture: Architecture) -> list[tuple[int, str, str]]:
        """Return the choices that the module asks for as rows of a table; those inside of an option are indented."""
        rows = []
        for name in self.asked(architecture):
            chosen = " + ".join(architecture[name]) or NOTHING
            rows.append((min(len(context) for context in self.declared.contexts[name]), name, chosen))
        return rows

    def summary(self, architecture: Architecture) -> str:
        return " ".join(f"{name}={'+'.join(architecture[name]) or NOTHING}" for name in self.asked(architecture))

    # -- modules ------------------------------------------------------------------------------------------------------

    def build(
        self, architecture: Architecture, weights: Mapping[str, Tensor] | None = None, seed: int | None = None
    ) -> nn.Module:
        """Return your module with what the architecture chose.

        Parameters that only tensors left out by a choice depend on do not learn (`requires_grad` is False), so that
        the module trains under `DistributedDataParallel`; spaces without an example don't find them.

        Args:
            architecture: Architecture of this space.
            weights: Tensors by the names of the module's parameters and buffers, such as those of a supernet, a
                hypernetwork or a pretrained module. What the module lacks is left out; what is not among them keeps its
                initial value.
            seed: Seed of the initial weights; None draws from torch's global generator.

        Raises:
            ValueError: A tensor has another shape, or none has a name that the module knows.
        """
        module = with_weights(self.make, Chosen(dict(self.adopt(architecture).choices)), seed)
        if weights is not None:
            self._load(module, weights)
        unread = set(_unread(self, self.adopt(architecture).choices))
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if name in unread:
                parameter.requires_grad_(False)
        return module

    def _load(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        own = module.state_dict()
        fitting = {name: tensor for name, tensor in weights.items() if name in own}
        if weights and not fitting:
            raise ValueError(
                f"`weights` must have names of the module but none of {len(weights)} is, such as "
                f"{next(iter(weights))!r}; the module has {next(iter(own), 'none')!r}."
            )
        for name, tensor in fitting.items():
            if tensor.shape != own[name].shape:
                raise ValueError(
                    f"`weights[{name!r}]` must have shape {tuple(own[name].shape)} but has {tuple(tensor.shape)}."
                )
        module.load_state_dict(fitting, strict=False)

    def blank(self, architecture: Architecture) -> nn.Module:
        """Return the module of an architecture without weights: on the meta device, unless its constructor can't."""
        return built(self.make, Chosen(dict(self.adopt(architecture).choices)), self.declared.device)

    def supernet(self, seed: int | None = None) -> ModuleSupernet:
        from optuna_nas.modules.supernet import ModuleSupernet  # which needs this class

        return ModuleSupernet(self, seed)

    def fixed_kernels(self) -> frozenset[str]:
        """Return the kernels of the supernet that no choice touches, without those of the layer computed last."""
        kernels = [name for name, shape in self.declared.fixed.items() if len(shape) > 1]
        last = _last_kernel(self)
        return frozenset(name.replace(".", "/") for name in kernels if name != last)

    # -- costs, graphs, inputs ----------------------------------------------------------------------------------------

    def cost(self, architecture: Architecture) -> Cost:
        """Return parameters exactly; multiply-adds and memory access, counted by PyTorch, for one example.

        The parameters alone, `params(architecture)`, take a fraction of the time.
        """
        return _cost(self, self.adopt(architecture).choices)

    def params(self, architecture: Architecture) -> int:
        return _params(self, self.adopt(architecture).choices)

    def graph(self, architecture: Architecture) -> ComputationGraph:
        """Return the graph of the layers and functions of the module, traced; see `traced`."""
        from optuna_nas.modules.tracing import traced

        return traced(self, self.adopt(architecture)).graph

    def example_inputs(self, batch_size: int = 1) -> Any:
        """Return the example, repeated along the first dimension of its tensors.

        Raises:
            ValueError: The space has no example.
        """
        if self.example is None:
            raise ValueError(
                f"`example` must be given for exports and measures but {self.name} has none; use "
                "`ModuleSpace(make, example=inputs_of_one)`."
            )

        def repeated(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            repeats = math.ceil(batch_size / max(1, len(value)))
            return torch.cat([value] * repeats)[:batch_size]

        return tree_map(repeated, self.example)

    def check_data(self, data: Any) -> None:
        shape = getattr(data, "input_shape", None)
        if isinstance(self.example, Tensor) and shape is not None and tuple(shape) != tuple(self.example.shape[1:]):
            raise ValueError(
                f"`data` must fit the module, whose example has shape {tuple(self.example.shape[1:])} without the "
                f"batch, but has inputs of {tuple(shape)}."
            )
        outputs, given = getattr(data, "outputs", None), _n_outputs(self)
        if outputs is not None and given is not None and outputs > given:
            raise ValueError(
                f"`data` must fit the module, which returns {given} numbers for an example, but has {outputs} classes "
                "or targets."
            )

    def code(self) -> str:
        return self.declared.code

    # -- JSON ---------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return name, choices and a fingerprint as JSON values; the module itself is code and stays in yours."""
        return {
            "type": self.type_name,
            "name": self.name,
            "source": f"{getattr(self.make, '__module__', '?')}:{getattr(self.make, '__qualname__', '?')}",
            "choices": {name: [option for option, _ in choice.options] for name, choice in self.choices.items()},
            "fingerprint": self.declared.fingerprint,
            "parts": self.declared.parts,
        }

    @classmethod
    def _from_dict(cls, description: Mapping[str, Any]) -> Self:
        name, known = description["name"], _made.get(description["name"], {})
        if (newest := known.get(_key(description))) is not None:
            return cast("Self", newest)
        if known:
            raise ValueError(
                f"`name` must be that of the same module but {name!r} declares other choices or parts now than when "
                "this was written; give the changed module another name, or go back to the code of then."
            )
        raise ValueError(
            f"`name` must be that of a ModuleSpace made before but {name!r} is none of {sorted(_made)}; import the "
            f"module that makes it first (made of {description.get('source', 'what was not recorded')})."
        )


def _key(description: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return by what a description finds its space; those of before have no digest of the settings of parts."""
    return description["fingerprint"], description.get("parts")


def _restored(description: dict[str, Any], make: Callable[[], nn.Module] | None, example: Any) -> ModuleSpace:
    """Return the space of a description: the one made in this process, or else a new one."""
    known = _made.get(description["name"], {}).get(_key(description))
    if known is None and make is not None:
        known = ModuleSpace(make, example, description["name"])
    return known if known is not None and known.to_dict() == description else ModuleSpace._from_dict(description)


def _importable(make: Any) -> Any:
    """Return a constructor that another process can import, None for others."""
    if isinstance(make, partial):
        return None if _importable(make.func) is None else make
    qualified = getattr(make, "__qualname__", "<none>")
    return None if "<" in qualified or getattr(make, "__module__", None) in (None, "__main__") else make


@remembered(maxsize=64)
def _options(space: ModuleSpace) -> dict[str, dict[Any, tuple[str, ...]]]:
    return {name: dict(choice.options) for name, choice in space.choices.items()}


Choices = tuple[tuple[str, tuple[str, ...]], ...]


@remembered(maxsize=16384)
def _asked(space: ModuleSpace, choices: Choices) -> tuple[str, ...]:
    chosen = dict(choices)
    if (frame := _structure(space, chosen)) is not None:
        return tuple(name for name in chosen if frame.asks(name, chosen))
    asked = asked_by(space.make, chosen, space.declared.device)
    return tuple(name for name in chosen if name in asked)


@remembered(maxsize=16384)
def _params(space: ModuleSpace, choices: Choices) -> int:
    chosen = dict(choices)
    if (frame := _structure(space, chosen)) is not None:
        return frame.n_parameters(chosen)
    return n_parameters(built(space.make, Chosen(chosen), space.declared.device))


def _structure(space: ModuleSpace, chosen: Mapping[str, tuple[str, ...]]) -> Frame | None:
    """Return the module of an architecture's values with all ops in it; None where there are many of them.

    One serves all architectures of its values, but takes as long as several modules of one architecture each.
    """
    drawn = [name for name in chosen if space.choices[name].kind == VALUE]
    if math.prod(len(space.choices[name].options) for name in drawn) > MAX_STRUCTURES:
        return None
    return _structure_of(space, tuple((name, chosen[name]) for name in drawn))


@remembered(maxsize=2 * MAX_STRUCTURES)
def _structure_of(space: ModuleSpace, values: Choices) -> Frame:
    return Frame(space, dict(values), device=space.declared.device)


@remembered(maxsize=16384)
def _unread(space: ModuleSpace, choices: Choices) -> tuple[str, ...]:
    """Return the names of the parameters that learn nothing, since a choice leaves out what depends on them.

    What would learn nothing either if nothing were left out is not among them: it is as its author wants it.
    """
    everything = reading_all(space.choices, dict(choices))
    if space.example is None or everything == dict(choices):
        return ()

    def reached(chosen: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
        return _measured(learning, space, lambda: Chosen(chosen), space.declared.device)

    return tuple(sorted(reached(everything) - reached(dict(choices))))


@remembered(maxsize=16384)
def _cost(space: ModuleSpace, choices: Choices) -> Cost:
    return _measured(cost_of, space, lambda: Chosen(dict(choices)), _counting_device(space))


def _measured(
    measure: Callable[[nn.Module, Any, str], Result], space: ModuleSpace, chooser: Callable[[], Chosen], device: str
) -> Result:
    """Return what `measure` says of a module and its example on `device`, or on the CPU where it fails there."""
    try:
        return measure(built(space.make, chooser(), device), space.example, device)
    except (NotImplementedError, RuntimeError):  # an operation without a meta version, or a look at a number
        return measure(built(space.make, chooser(), "cpu"), space.example, "cpu")


@remembered(maxsize=64)
def _counting_device(space: ModuleSpace) -> str:
    """Return the device on which costs are counted, the same for all architectures of a space.

    Small modules are counted several times faster by computing one example than without weights, since operations
    without data are taken apart in Python; recurrent ones would then run in one kernel that PyTorch can't count.
    """
    everything = built(space.make, Everything({}), space.declared.device)
    recurrent = any(isinstance(part, nn.RNNBase) for part in everything.modules())
    small = space.params(space.full_architecture()) <= MAX_COMPUTED_PARAMS
    return "cpu" if small and not recurrent else space.declared.device


@remembered(maxsize=64)
def _last_kernel(space: ModuleSpace) -> str | None:
    """Return the last kernel that a module with its first options computes with; by order where there is no example."""
    kernels = [name for name, shape in space.declared.fixed.items() if len(shape) > 1]
    if space.example is None:
        return kernels[-1] if kernels else None
    module = built(space.make, Chosen({}, first=True), "cpu")
    called: list[str] = []
    for path, part in module.named_modules():
        if any(parameter.ndim > 1 for parameter in part.parameters(recurse=False)):
            part.register_forward_hook(lambda *_, path=path: called.append(path))
    run_without_weights(module, space.example, "cpu")
    last = called[-1] if called else ""
    return next((name for name in kernels if name.rpartition(".")[0] == last), None)


@remembered(maxsize=64)
def _n_outputs(space: ModuleSpace) -> int | None:
    """Return the number of outputs of an example where the module returns one vector of them, else None."""
    if space.example is None:
        return None
    result = _measured(run_without_weights, space, lambda: Chosen({}, first=True), space.declared.device)
    outputs = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
    alone = len(outputs) == 1 and outputs[0].ndim == 2
    return outputs[0].shape[1] if alone else None


def _required(make: Callable[..., Any]) -> str | None:
    """Return the name of the first argument that a function or class can't be called without."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # it tells none
        return None
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return next((one.name for one in parameters if one.default is one.empty and one.kind not in variable), None)
