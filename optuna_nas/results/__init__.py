"""Results of finished searches: report, comparison of strategies, surrogate search, final training."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna_nas.results.surrogate_search import ProtocolResult, SurrogateResult, SurrogateSearch
else:
    from optuna_nas.lazy import lazy_names

    __getattr__ = lazy_names(__name__, {"surrogate_search": "ProtocolResult SurrogateResult SurrogateSearch"})

__all__ = ["ProtocolResult", "SurrogateResult", "SurrogateSearch"]
