"""Frames: a user's module with all ops of its choices in it, which computes with tensors cut from a store."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from optuna_nas.modules.choosing import VALUE, Everything
from optuna_nas.modules.mixing import Mixed, MixedDepth, Mixer
from optuna_nas.modules.probing import built, with_weights
from optuna_nas.networks.statistics import is_pretrained
from optuna_nas.networks.sums import leave_inputs
from optuna_nas.training.task import Arguments, MethodCall, call

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from optuna_nas.modules.choosing import Context
    from optuna_nas.modules.module_space import ModuleSpace
    from optuna_nas.networks.sums import Factor

GATES: dict[type[nn.Module], int] = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}
"""Numbers of gates whose tensors lie on top of each other in the first dimension of a recurrent layer."""
MAX_FRAMES = 256
"""Frames that are kept."""
NORMS = (nn.modules.batchnorm._NormBase,)
"""Norms with statistics of a batch."""


def stacked_parts(module: nn.Module, parameter: str) -> int:
    """Return how many tensors lie on top of each other in a parameter, 1 for most.

    Example:
        >>> from torch import nn
        >>> from optuna_nas.modules.frames import stacked_parts
        >>> stacked_parts(nn.LSTM(4, 8), "weight_ih_l0"), stacked_parts(nn.Linear(4, 8), "weight")
        (4, 1)
    """
    if isinstance(module, nn.MultiheadAttention):
        return 3 if parameter.startswith("in_proj") else 1
    gates = next((number for kind, number in GATES.items() if isinstance(module, kind)), 1)
    return gates if parameter.startswith(("weight_ih", "weight_hh", "bias_ih", "bias_hh")) else 1


def cut(tensor: Tensor, shape: tuple[int, ...], stacked: int = 1, kernel: bool = False) -> Tensor:
    """Return the part of a tensor that a smaller one of this shape shares; itself where it is as large.

    The leading part of every dimension, as in slimmable networks (Yu et al. 2019); of kernels the centre, as in
    once-for-all networks (Cai et al. 2020).

    Args:
        tensor: The larger tensor.
        shape: Shape of the smaller one, with as many dimensions.
        stacked: Number of tensors on top of each other, each of which is cut.
        kernel: Whether the dimensions from the third on are those of a convolution kernel.

    Example:
        >>> import torch
        >>> from optuna_nas.modules.frames import cut
        >>> cut(torch.arange(4), (2,)), cut(torch.arange(4), (2,), stacked=2)
        (tensor([0, 1]), tensor([0, 2]))
    """
    if tuple(tensor.shape) == shape:
        return tensor
    if stacked > 1:
        return torch.cat([cut(part, (shape[0] // stacked, *shape[1:])) for part in tensor.chunk(stacked)])
    for dimension, (length, wanted) in enumerate(zip(tensor.shape, shape, strict=True)):
        start = (length - wanted) // 2 if kernel and dimension >= 2 else 0
        if wanted != length:
            tensor = tensor.narrow(dimension, start, wanted)
    return tensor


def is_channels_last(tensor: Tensor) -> bool:
    """Return whether a kernel lies in memory with its channels last, and not in both formats as those of 1 x 1 do."""
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


class Frame:
    """The module of some values with all ops of its choices in it, without weights of its own; buffers are its own.

    Args:
        space: Space of the module.
        values: Name of the value by choice.
        seed: Seed of the initial weights.
        device: Device to build on without weights; None builds with weights.

    Attributes:
        module: The module.
        weights: Initial weights by name; dropped by `empty`.
        shapes: Shape of every parameter.
        asked: Contexts in which each choice is asked for.
    """

    def __init__(
        self,
        space: ModuleSpace,
        values: Mapping[str, tuple[str, ...]],
        seed: int | None = None,
        device: str | None = None,
    ) -> None:
        self.mixer = Mixer()
        chooser = Everything(values, self.mixer)
        self.module = built(space.make, chooser, device) if device else with_weights(space.make, chooser, seed)
        leave_inputs(self.module)
        self.asked: dict[str, set[Context]] = chooser.contexts
        self.weights = dict(self.module.named_parameters())
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self.weights.items()}
        parts = dict(self.module.named_modules(remove_duplicate=False))
        aliases: dict[int, list[str]] = {}
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            aliases.setdefault(id(parameter), []).append(name)
        self._rules: dict[str, tuple[int, bool]] = {}
        self._users: dict[str, list[list[tuple[str, frozenset[str]]]]] = {}
        self.tied = {names[0]: names for names in aliases.values()}
        for name, names in self.tied.items():
            path, _, own = name.rpartition(".")
            part = parts[path]
            self._rules[name] = stacked_parts(part, own), isinstance(part, nn.modules.conv._ConvNd)
            self._users[name] = [list(_within(alias, parts)) for alias in names]
        self._groups: dict[tuple[tuple[tuple[str, frozenset[str]], ...], ...], list[str]] = {}
        for name, users in self._users.items():
            self._groups.setdefault(tuple(map(tuple, users)), []).append(name)
        self._as_stored: dict[str, torch.Size] = {}

    def empty(self) -> Frame:
        """Leave out the weights, which are then given at every call; norms take the statistics of the batch.

        A norm whose parameters are frozen keeps its statistics: it belongs to a pretrained part.
        """
        self.weights = {}
        blank: dict[int, nn.Parameter] = {}
        for part in self.module.modules():
            if isinstance(part, NORMS):
                part.track_running_stats = is_pretrained(part)
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    if id(parameter) not in blank:  # tied ones stay tied
                        blank[id(parameter)] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
                    part._parameters[name] = blank[id(parameter)]
        self._originals = blank  # ids stay in use only while their owners live
        self.set_mode(training=True)
        return self

    def set_mode(self, training: bool) -> None:
        """Set training or evaluation mode; norms of a batch compute with its statistics in both."""
        if self.module.training == training and getattr(self, "_set", False):
            return
        self._set = True
        for part in self.module.train(training).modules():
            if isinstance(part, NORMS):
                part.train(not part.track_running_stats)

    def used(self, weights: Mapping[str, Collection[str]]) -> Iterator[str]:
        """Yield the parameters that are used where only some names of every choice are computed."""
        for users, names in self._groups.items():
            if any(all(not wanted.isdisjoint(weights[choice]) for choice, wanted in user) for user in users):
                yield from names

    def users(self) -> Mapping[str, list[list[tuple[str, frozenset[str]]]]]:
        """Return, for every parameter and each of its places, the choices that it belongs to."""
        return self._users

    def n_parameters(self, chosen: Mapping[str, Collection[str]]) -> int:
        """Return the number of parameters where only some names of every choice are chosen."""
        return sum(math.prod(self.shapes[name]) for name in self.used(chosen))

    def asks(self, choice: str, chosen: Mapping[str, Collection[str]]) -> bool:
        """Return whether a choice is asked for where only some names of every choice are chosen."""
        contexts = self.asked.get(choice, ())
        return any(all(not names.isdisjoint(chosen[outer]) for outer, names in context) for context in contexts)

    def run(self, tensors: Mapping[str, Tensor], weights: Mapping[str, Mapping[str, Factor]], inputs: Any) -> Any:
        """Return what the module returns.

        Layers such as dropout act while gradients are recorded, if the module is in training mode.

        Args:
            tensors: Parameters by name, as large as here.
            weights: Weights of the names to compute, by choice.
            inputs: A value, or the `Arguments` of the module.
        """
        self.mixer.weights = weights
        with self.mixer.computing():
            return self._call(tensors, inputs)

    def _call(self, tensors: Mapping[str, Tensor], inputs: Any) -> Any:
        # All places of tied parameters are named, or PyTorch would look for them at every call.
        named = {alias: tensor for name, tensor in tensors.items() for alias in self.tied[name]}
        if isinstance(inputs, MethodCall):
            named = {f"module.{name}": tensor for name, tensor in named.items()}
            return functional_call(_Calls(self.module), named, (inputs,), tie_weights=False)
        given = inputs if isinstance(inputs, Arguments) else Arguments((inputs,), {})
        return functional_call(self.module, named, given.args, given.kwargs, tie_weights=False)

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """Return the part of a stored tensor that is a parameter of this frame.

        Raises:
            ValueError: The stored tensor is too small, or has another number of dimensions.
        """
        if tensor.shape == self._as_stored.get(name):
            return tensor
        shape = self.shapes[name]
        if tuple(tensor.shape) == shape:
            self._as_stored[name] = tensor.shape
            return tensor
        if len(shape) != tensor.ndim or any(want > have for want, have in zip(shape, tensor.shape, strict=True)):
            raise ValueError(
                f"`choose` must not make a parameter larger than any single choice does but {name!r} has shape {shape} "
                f"and {tuple(tensor.shape)} is stored; choose its size by one choice of all products."
            )
        return cut(tensor, shape, *self._rules[name])

    def own_buffers(self, chosen: Mapping[str, Collection[str]]) -> dict[str, Tensor]:
        """Return the buffers of an architecture's module by its own names, without statistics of norms."""
        parts = dict(self.module.named_modules(remove_duplicate=False))
        found = {}
        for name, buffer in _persistent(self.module):
            own = _own_name(name, parts, chosen)
            if own is not None:
                found[own] = buffer
        return found

    def own_names(self, chosen: Mapping[str, Collection[str]]) -> dict[str, str]:
        """Return the names of parameters in the module of an architecture, by their names here."""
        parts = dict(self.module.named_modules(remove_duplicate=False))
        found = {}
        for names in self.tied.values():
            for alias in names:
                own = _own_name(alias, parts, chosen)
                if own is not None:
                    found[own] = names[0]
        return found


class _Calls(nn.Module):
    """Calls a method of a module, so that `functional_call` can replace its parameters meanwhile."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, method: MethodCall) -> Any:
        return call(self.module, method)


class Frames:
    """Frames by their values; those that were used longest ago are made again when they are needed.

    Args:
        space: Space of the module.
        seed: Seed of the initial weights.
    """

    def __init__(self, space: ModuleSpace, seed: int | None) -> None:
        self._space, self._seed = space, seed
        self.drawn = tuple(name for name, choice in space.choices.items() if choice.kind == VALUE)
        """Names of the choices of a value."""
        self._frames: OrderedDict[tuple[str, ...], Frame] = OrderedDict()
        self._device = torch.device("cpu")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_frames": OrderedDict()}

    def of(self, chosen: Mapping[str, Collection[str]], device: torch.device) -> Frame:
        """Return the frame of the values of an architecture, with its buffers on a device.

        Args:
            chosen: Chosen names by choice.
            device: Where to compute.
        """
        if device != self._device:
            self._device = device
            self._frames.clear()
        key = tuple(next(iter(chosen[name])) for name in self.drawn)
        if key not in self._frames:
            values = {name: (value,) for name, value in zip(self.drawn, key, strict=True)}
            frame = Frame(self._space, values, self._seed).empty()
            for part in frame.module.modules():
                for name, buffer in part._buffers.items():
                    part._buffers[name] = None if buffer is None else buffer.to(device)
            self._frames[key] = frame
            if len(self._frames) > MAX_FRAMES:
                self._frames.popitem(last=False)
        self._frames.move_to_end(key)
        return self._frames[key]


def _persistent(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers of a module's state by name, without the statistics of norms that take those of a batch."""
    state = module.state_dict(keep_vars=True).keys()
    for path, part in module.named_modules():
        if not (isinstance(part, NORMS) and not is_pretrained(part)):
            for name, buffer in part.named_buffers(path, recurse=False):
                if name in state:
                    yield name, buffer


def _within(name: str, parts: Mapping[str, nn.Module]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the choices that a parameter belongs to, and the names of which one must be computed."""
    steps = name.split(".")
    for position, step in enumerate(steps):
        parent = parts[".".join(steps[:position])]
        if isinstance(parent, Mixed):
            yield parent.choice, frozenset({step})
        elif isinstance(parent, MixedDepth):
            yield parent.choice, frozenset(str(depth) for depth in parent.depths if depth > int(step))


def _own_name(name: str, parts: Mapping[str, nn.Module], chosen: Mapping[str, Collection[str]]) -> str | None:
    """Return the name of a parameter in the module of an architecture; None where it is not there."""
    own = []
    steps = name.split(".")
    for position, step in enumerate(steps):
        parent = parts[".".join(steps[:position])]
        if isinstance(parent, Mixed):
            if step not in chosen[parent.choice]:
                return None
            if parent.single:
                continue
        elif isinstance(parent, MixedDepth) and int(step) >= int(next(iter(chosen[parent.choice]))):
            return None
        own.append(step)
    return ".".join(own)
