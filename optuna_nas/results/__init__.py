"""What finished searches are made into: report, comparison, final training."""

__all__ = []
