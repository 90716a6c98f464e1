"""What a user's constructor asks for, found by calling it without weights (on PyTorch's meta device)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from optuna_nas.modules.choosing import VALUE, Choice, Chooser, Chosen, Context, Everything, Refusing, answering
from optuna_nas.modules.mixing import OWN_NAMES
from optuna_nas.networks.graph_network import seeded_building
from optuna_nas.training.described import code_digest, simple_attributes, value_digest
from optuna_nas.training.task import call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

logger = logging.getLogger(__name__)

META, CPU = "meta", "cpu"
Names = dict[str, tuple[str, ...]]
"""Chosen names by choice."""


@dataclass(frozen=True)
class Declared:
    """What a constructor declares.

    Args:
        choices: Choices by name, in the order in which they are asked for.
        contexts: Options within which each is asked for.
        device: Device on which the constructor can be called without weights: `meta`, or `cpu` where it reads numbers.
        fingerprint: Digest of the choices and of the names, shapes and types of all parts with their first values.
        parts: Digest of the settings of all parts with each value: shapes, what learns, numbers and texts such as a
            rate or a stride.
        code: Digest of the code of all parts that no package has installed.
        fixed: Names and shapes of the parameters that are the same in all architectures and learn, in the order of the
            constructor.
    """

    choices: dict[str, Choice]
    contexts: dict[str, tuple[Context, ...]]
    device: str
    fingerprint: str
    parts: str
    code: str
    fixed: dict[str, tuple[int, ...]]


def built(make: Callable[[], nn.Module], chooser: Chooser, device: str = META) -> nn.Module:
    """Return what a constructor makes for a chooser, without weights where the device is `meta`."""
    with seeded_building(0), answering(chooser), torch.device(device):
        module = make()
    return module.to(device) if device == META else module  # what was copied from elsewhere, too


def with_weights(make: Callable[[], nn.Module], chooser: Chooser, seed: int | None) -> nn.Module:
    """Return what a constructor makes for a chooser, with initial weights.

    Args:
        make: The constructor.
        chooser: What answers its choices.
        seed: Seed of the initial weights; None draws from torch's global generator.

    Raises:
        ValueError: It holds parts that were made by an earlier call, without weights.
    """
    with seeded_building(seed), answering(chooser):
        module = make()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"`make` must make all parts anew or take them from outside but {name!r} was kept from an earlier "
                "call, which was without weights; build what is shared before the space is made."
            )
    return module


def declare(make: Callable[[], nn.Module], name: str) -> Declared:
    """Find all choices of a constructor: with its first values, and with each other value alone.

    Raises:
        ValueError: There is no choice, what is made is no module, or another call makes another module.
    """
    device = META
    try:
        module = built(make, Everything({}), META)
    except Exception as error:  # the constructor is the user's
        module = built(make, Everything({}), CPU)
        device = CPU
        logger.warning(
            "%s is built on the CPU to find its choices, since its constructor reads numbers (%s).", name, error
        )
    if not isinstance(module, nn.Module):
        raise ValueError(f"`make` must return a module but returns a {type(module).__name__}.")
    for path, parameter in module.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise ValueError(
                f"`make` must make layers of known sizes but {path!r} is one that finds its size later; use the layer "
                "of that kind that is told."
            )
    choices: dict[str, Choice] = {}
    contexts: dict[str, dict[Context, None]] = {}
    shapes: dict[str, set[tuple[int, ...]]] = {}
    inside: set[str] = set()
    waiting: list[Names] = [{}]
    settings: list[Any] = []
    classes: set[type] = set()
    while waiting:
        values = waiting.pop(0)
        chooser = Everything(values)
        module = built(make, chooser, device)
        settings.append([values, _settings(module)])
        classes |= set(map(type, module.modules()))
        mixed = tuple(f"{path}." for path in mixed_paths(module))
        for path, parameter in module.named_parameters():
            shapes.setdefault(path, set()).add(tuple(parameter.shape))
            if path.startswith(mixed) or not parameter.requires_grad:
                inside.add(path)
        for path in shapes.keys() - dict(module.named_parameters()).keys():
            inside.add(path)  # not always there
        for found in chooser.asked.values():
            known = choices.get(found.name)
            if known is None:
                choices[found.name] = found
                if found.kind == VALUE:
                    waiting += [{**values, found.name: chosen} for _, chosen in found.options[1:]]
            elif known != found:
                raise ValueError(
                    f"`{found.name}` must have the same options in every build but had {known.names} and now has "
                    f"{found.names}; give the choices names of their own."
                )
            contexts.setdefault(found.name, {}).update(dict.fromkeys(chooser.contexts[found.name]))
    if not choices:
        raise ValueError(
            f"`make` must choose something in the constructors that it calls but {name} does not; use `choose_op` and "
            "the like, and build all modules inside of `make`."
        )
    _check_repeatable(make, device)
    first = built(make, Everything({}), device)
    seen = [
        [[c.name, c.kind, [str(option) for option, _ in c.options]] for c in choices.values()],
        [[path, list(parameter.shape)] for path, parameter in first.named_parameters()],
        [[path, type(part).__name__] for path, part in first.named_modules()],
    ]
    fixed = {path: next(iter(of)) for path, of in shapes.items() if path not in inside and len(of) == 1}
    asked_within = {name: tuple(of) for name, of in contexts.items()}
    again = dict(_settings(first))  # what differs from one build to the next says nothing about the module
    varying = {
        (path, name) for path, own in settings[0][1] for name in own if again.get(path, {}).get(name) != own[name]
    }
    parts = value_digest(
        [
            [values, [[path, {name: own[name] for name in own if (path, name) not in varying}] for path, own in found]]
            for values, found in settings
        ]
    )
    code = code_digest([make, *sorted(classes, key=lambda one: one.__qualname__)])
    return Declared(choices, asked_within, device, value_digest(seen), parts, code, fixed)


def _settings(module: nn.Module) -> list[tuple[str, dict[str, Any]]]:
    """Return what is set of every part of a module, by its path."""
    found = []
    for path, part in module.named_modules():
        own = {name: value for name, value in simple_attributes(part).items() if name not in OWN_NAMES}
        tensors = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        own |= {f"{name} of": [list(tensor.shape), tensor.requires_grad] for name, tensor in tensors}
        found.append((path, own))
    return found


def mixed_paths(module: nn.Module) -> Iterator[str]:
    """Yield the paths of the modules of a supernet's frame that stand for choices."""
    for path, part in module.named_modules():
        if hasattr(part, "mixer"):
            yield path


def _check_repeatable(make: Callable[[], nn.Module], device: str) -> None:
    first, second = (built(make, Chooser(), device) for _ in range(2))
    if first is second:
        raise ValueError(
            "`make` must return a new module at every call but returns one and the same; use `copy.deepcopy`."
        )
    one, other = ([(n, tuple(p.shape)) for n, p in module.named_parameters()] for module in (first, second))
    if one != other:
        changed = min(set(one) ^ set(other))[0]
        raise ValueError(
            f"`make` must make the same module at every call but {changed!r} differs; leave out what depends on "
            "anything but choices."
        )


def check_runs(make: Callable[[], nn.Module], declared: Declared, example: Any) -> None:
    """Check that a module runs on example inputs with its first options, and with each other option.

    Raises:
        ValueError: It does not; the option is named.
    """
    _check_run(make, declared, example, {}, "the first option of every choice")
    for choice in declared.choices.values():
        leading = {outer: sorted(names)[0] for outer, names in declared.contexts[choice.name][0]}
        for option, names in choice.options:
            if names != choice.options[0][1] or leading:
                chosen = {**_ordered(declared, leading), choice.name: names}
                _check_run(make, declared, example, chosen, f"{option!r} of {choice.name!r}")


def _ordered(declared: Declared, leading: Mapping[str, str]) -> Names:
    """Return names in the order of their choice, of sets the smallest option that holds them."""
    names = {}
    for name, wanted in leading.items():
        names[name] = next(chosen for _, chosen in declared.choices[name].options if wanted in chosen)
    return names


def _check_run(make: Callable[[], nn.Module], declared: Declared, example: Any, chosen: Names, what: str) -> None:
    try:
        run_without_weights(built(make, Chosen(chosen, first=True), declared.device), example, declared.device)
        return
    except ValueError as error:
        if "`forward`" in str(error):  # a choice asked for too late
            raise
    except Exception as error:  # the module is the user's, and what it does on the meta device is not what counts
        logger.debug("%s: %s", what, error)
    try:
        run_without_weights(built(make, Chosen(chosen, first=True), CPU), example, CPU)
    except Exception as error:
        raise ValueError(f"`example` must fit the module but {what} fails: {type(error).__name__}: {error}") from error


def run_without_weights(module: nn.Module, example: Any, device: str = META, gradients: bool = False) -> Any:
    """Return the outputs of a module for example inputs, in evaluation mode; with `gradients` they can be derived."""
    inputs = tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, example)
    with torch.set_grad_enabled(gradients), torch.device(device), answering(Refusing()):
        return call(module.eval(), inputs)


def asked_by(make: Callable[[], nn.Module], choices: Mapping[str, tuple[str, ...]], device: str) -> tuple[str, ...]:
    """Return the names of the choices that the module of an architecture asks for."""
    chooser = Chosen(choices)
    built(make, chooser, device)
    return tuple(chooser.asked)
