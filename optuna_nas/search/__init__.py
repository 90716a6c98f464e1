"""A study put together and run."""

from optuna_nas.search.config import Search
from optuna_nas.search.results import SearchResult
from optuna_nas.search.run import run

__all__ = ["Search", "SearchResult", "run"]
