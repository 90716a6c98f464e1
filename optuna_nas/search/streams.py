"""Standard streams of a process: closed from the start, as under cron, or left by their reader, as by `head`."""

from __future__ import annotations

import io
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Output(io.FileIO):
    """Descriptor of an output; once its reader has gone, all that is written to it is dropped."""

    is_unread = False
    said = ""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
            self.is_unread = True
            self.say(self.said)
            return super().write(data)

    def say(self, line: str) -> None:
        """Write a line to stderr once the reader has gone, perhaps now."""
        self.said = line
        if line and self.is_unread:
            print(line, file=sys.stderr)


def keep_streams() -> None:
    """Let the standard streams of this process take what is written to them, whether or not anybody reads it.

    A closed one is opened on nothing, since the next file that is opened would get its number. Terminals stay as they
    are, and streams that are not Python's own.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 # kept open
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
        elif mode == "w" and type(stream) is io.TextIOWrapper and not stream.isatty():
            stream.flush()
            output = io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
            how: dict[str, Any] = {key: getattr(stream, key) for key in ("encoding", "errors", "line_buffering")}
            setattr(sys, name, io.TextIOWrapper(output, write_through=stream.write_through, **how))


def is_unread() -> bool:
    """Return whether the reader of stdout has gone before the end of what was written."""
    output = _stdout()
    return output is not None and output.is_unread


@contextmanager
def said_when_unread(line: str) -> Iterator[None]:
    """Write a line to stderr if the reader of stdout has gone, or goes inside the block."""
    if (output := _stdout()) is None:
        yield
        return
    output.say(line)
    try:
        yield
    finally:
        output.say("")


def _stdout() -> _Output | None:
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Output) else None
