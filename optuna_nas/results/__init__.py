"""Results of finished searches: report, comparison of strategies, final training."""

__all__ = []
