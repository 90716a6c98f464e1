"""Results that a space remembers of its own architectures."""

from __future__ import annotations

from functools import lru_cache, partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


def remembered(maxsize: int) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Return a decorator of functions of a space, whose last results each space remembers for itself.

    Equal spaces do not share them: modules of one name may have other code, and other examples.

    Args:
        maxsize: Results of a space.
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @wraps(function)
        def recall(space: Any, *arguments: Any) -> Result:
            results = space.results
            if function not in results:
                results[function] = lru_cache(maxsize)(partial(function, space))
            return results[function](*arguments)  # type: ignore[no-any-return]

        return recall

    return decorate
