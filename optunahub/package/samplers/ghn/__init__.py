from optuna_nas import GHNSampler


__all__ = ["GHNSampler"]
