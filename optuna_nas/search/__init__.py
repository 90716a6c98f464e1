"""Searches: configuration, studies, running, results, torchrun, study files in Python and YAML."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna_nas.search.config import Search
    from optuna_nas.search.results import SearchResult
    from optuna_nas.search.runner import run
    from optuna_nas.search.study_types import register_type, unregister_type
else:
    from optuna_nas.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "config": "Search",
            "results": "SearchResult",
            "runner": "run",
            "study_types": "register_type unregister_type",
        },
    )

__all__ = ["Search", "SearchResult", "register_type", "run", "unregister_type"]
