"""Mutations of files, tensors and JSON values, as damage and hostile hands leave them; for `attacks.py` and tests."""

from __future__ import annotations

import copy
import json
import pickle
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

HOSTILE_TEXTS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\x1b[31mred\x1b]0;title\x07",
    "\x9b31mred",
    "\u202eesrever",
    "a | b \\| c",
    "[bold]loud[/bold][/][link=x]",
    r"$\frac{1}{$ and $$",
    "`code` **bold** [a](javascript:alert(1))\n\n# heading",
    "'; DROP TABLE trials; --",
    "../../../../etc/passwd",
    "__import__('os').system('touch executed')",
    "nul\x00nul",
    "%s {0} {trial.number}",
    "line\r\nline",
)
"""Texts that mean something to a terminal, a page, a shell, a database or a formatter."""
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 4.5, 100, 10**6, 10**30, 10**400, 1e308),
    *(float("nan"), float("inf"), float("-inf"), "", "x", "none", "NaN", "1e999"),
    *([], {}, [1, 2], [[]], [None], {"a": 1}, {"": {}}, [1.0, "x"], [float("nan")] * 3),
    *("y" * 200_000, list(range(20_000)), {str(number): number for number in range(5000)}),
    *HOSTILE_TEXTS,
)
SECONDS = 2.0
"""CPU time that a mutation may take beyond three times that of what is whole."""
DEPTH = 3000
"""Levels of a nest that is deeper than Python may call itself."""


class Attempt(NamedTuple):
    """How one mutation ended.

    Args:
        outcomes: One of `COLUMNS` for each of the mutations that were tried together.
        note: What was said or raised.
    """

    outcomes: tuple[str, ...]
    note: str = ""


class Door(NamedTuple):
    """A way into the package for what somebody else has written.

    Args:
        attack: Function of a random source that tries one mutation, or some together, and says how they ended.
        seconds: CPU time that an attempt may take.
        marker: File that exists as soon as a payload was executed.
    """

    attack: Callable[[random.Random], Attempt]
    seconds: float
    marker: Path


def refusal(error: ValueError, names: str) -> Attempt:
    """Return how good a refusal is: one sentence that names the file."""
    said = str(error)
    is_clear = 10 < len(said) < 1500 and "\n" not in said.strip() and names in said
    return Attempt(("refused" if is_clear else "raw",), said[:2000])


class Hang(BaseException):
    """Raised in a mutation that takes too long; no `except Exception` hides it."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `Hang` after so many seconds of CPU time of this process."""

    def late(number: int, frame: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class Payload:
    """Object whose unpickling would write a file.

    Args:
        marker: File that would be written.
    """

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def foreign_files(marker: Path) -> list[bytes]:
    """Return files of other kinds; two of them write the marker if they are unpickled."""
    import io

    torch_file = io.BytesIO()
    torch.save({"weight": torch.ones(3), "payload": Payload(marker)}, torch_file)
    return [
        b"",
        b"\0" * 100,
        b"hello " * 50,
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        b'{"space": {"type": "CellSpace"}}',
        b"[" * 100_000,
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",  # a header that says that it has 2^63 bytes
        b"\xff\xff\xff\x00\x00\x00\x00\x00{}",
        pickle.dumps(Payload(marker)),
        torch_file.getvalue(),
    ]


def damaged(content: bytes, draw: random.Random, foreign: Sequence[bytes]) -> bytes:
    """Return a content with bits flipped, parts cut out, doubled or overwritten, or another content."""
    way = draw.random()
    place = draw.randrange(max(1, len(content)))
    length = draw.choice((1, 8, 64, 1024))
    if way < 0.45 and content:  # bits, more often in the header, which says what the rest is
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 1, 2, 8, 64))):
            end = len(changed) if draw.random() < 0.5 else min(len(changed), 4096)
            changed[draw.randrange(end)] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if way < 0.6:
        return content[:place]
    if way < 0.7:
        return content[:place] + content[place + length :]
    if way < 0.8:
        return content[:place] + content[place : place + length] + content[place:]
    if way < 0.9:
        return content[:place] + draw.randbytes(length) + content[place + length :]
    return draw.choice(foreign)


def changed_tensors(tensors: dict[str, Tensor], draw: random.Random) -> dict[str, Tensor]:
    """Return tensors of another structure: names, types, shapes or finiteness differ."""
    while True:
        changed = _changed(tensors, draw)
        if structure(changed) != structure(tensors):
            return changed


def structure(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return what a reader can tell of tensors without their numbers: names, types, shapes, whether all are finite."""
    return {name: (tensor.dtype, tensor.shape, bool(torch.isfinite(tensor).all())) for name, tensor in tensors.items()}


def _changed(tensors: dict[str, Tensor], draw: random.Random) -> dict[str, Tensor]:
    changed = dict(tensors)
    if not changed:
        return {"weight": torch.ones(3)}
    name, other = draw.choice(sorted(changed)), draw.choice(sorted(changed))
    tensor = changed[name]
    ways: list[Callable[[], Any]] = [
        # What an optimizer has not met yet has no momentum: only the checksum knows that it was there.
        lambda: name.endswith("momentum_buffer") or changed.pop(name),
        lambda: changed.update({f"{name}.copy": tensor.clone()}),
        lambda: changed.update({name[:-1] + "_": changed.pop(name)}),
        lambda: changed.update({name: torch.zeros(draw.choice(((), (0,), (1, 1, 1), (7, 3), (1 << 20,))))}),
        lambda: changed.update({name: tensor.to(torch.float64 if tensor.dtype != torch.float64 else torch.float16)}),
        lambda: changed.update({name: torch.zeros(tensor.shape, dtype=torch.bool)}),
        lambda: changed.update({name: tensor.reshape(1, *tensor.shape)}),
    ]
    floating = [key for key, value in changed.items() if value.is_floating_point() and value.numel()]
    if floating:
        spoilt = draw.choice(floating)
        number = draw.choice((torch.nan, torch.inf, -torch.inf))
        ways += [lambda: changed.update({spoilt: torch.full_like(changed[spoilt], number)})] * 3
    if changed[other].shape != tensor.shape:
        ways += [lambda: changed.update({name: changed[other].clone(), other: tensor.clone()})] * 3
    draw.choice(ways)()
    return changed


def disturbed_tensors(tensors: dict[str, Tensor], draw: random.Random) -> dict[str, Tensor]:
    """Return tensors of the same structure with other numbers, as if two were swapped or one was overwritten."""
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    full = [name for name in sorted(changed) if changed[name].numel()]
    if not full:
        return changed
    name = draw.choice(full)
    alike = [key for key in full if changed[key].shape == changed[name].shape and key != name]
    if alike and draw.random() < 0.5:
        other = draw.choice(alike)
        changed[name], changed[other] = changed[other], changed[name]
    else:
        changed[name].view(-1)[draw.randrange(changed[name].numel())] += 1
    return changed


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Iterate over the ways to all values inside of JSON values."""
    waiting = [(at, value)]
    while waiting:
        at, one = waiting.pop()
        items = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        below = [((*at, key), item) for key, item in items]
        yield from (way for way, _ in below)
        if len(at) < 20:
            waiting += below


def changed_values(value: Any, draw: random.Random) -> Any:
    """Return JSON values in which one value or key is another, missing or doubled."""
    ways = list(places(value))
    if not ways or draw.random() < 0.1:
        return draw.choice((*VALUES, deep_list()))
    try:
        changed = copy.deepcopy(value)
    except RecursionError:
        return value
    *way, last = draw.choice(ways)
    holder = changed
    for step in way:
        holder = holder[step]
    kind = draw.random()
    if kind < 0.15:
        del holder[last]
    elif kind < 0.25 and isinstance(holder, list):
        holder.insert(last, copy.deepcopy(holder[last]))
    elif kind < 0.3 and isinstance(holder, dict):
        holder[str(draw.choice(HOSTILE_TEXTS))] = holder.pop(last)
    elif kind < 0.4 and isinstance(holder[last], int | float) and not isinstance(holder[last], bool):
        holder[last] = draw.choice((-holder[last], holder[last] * 1000, holder[last] + 0.5, str(holder[last])))
    elif kind < 0.45:
        holder[last] = deep_list()
    else:
        holder[last] = copy.deepcopy(draw.choice(VALUES))
    return changed


def deep_list(depth: int = DEPTH) -> list[Any]:
    """Return a list in a list in a list, by default deeper than Python may call itself."""
    nest: list[Any] = []
    for _ in range(depth):
        nest = [nest]
    return nest


def as_json(value: Any) -> str:
    """Return JSON, also of values that are too deep for `json.dumps`."""
    try:
        return json.dumps(value)
    except RecursionError:
        return "[" * DEPTH + "]" * DEPTH
