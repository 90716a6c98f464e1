"""Temporary signal handlers."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType


Handler: TypeAlias = "Callable[[int, FrameType | None], Any] | signal.Handlers"


@contextmanager
def handled(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Install signal handlers inside the block; does nothing in threads other than the main thread.

    Example:
        >>> import os, signal
        >>> from optuna_nas.search.signals import handled
        >>> with handled({signal.SIGUSR1: lambda number, frame: print("received")}):
        ...     os.kill(os.getpid(), signal.SIGUSR1)
        received
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
