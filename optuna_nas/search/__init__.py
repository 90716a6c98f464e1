"""Searches: configuration, studies, running, results, torchrun, study files."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna_nas.search.config import Search
    from optuna_nas.search.results import SearchResult
    from optuna_nas.search.runner import run
else:
    from optuna_nas.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "config": "Search",
            "results": "SearchResult",
            "runner": "run",
        },
    )

__all__ = ["Search", "SearchResult", "run"]
