"""Searches: configuration, studies, running, results, torchrun, study files."""

from optuna_nas.search.config import Search
from optuna_nas.search.results import SearchResult
from optuna_nas.search.run import run

__all__ = ["Search", "SearchResult", "run"]
