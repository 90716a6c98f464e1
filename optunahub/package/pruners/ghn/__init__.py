from optuna_nas import GHNPruner


__all__ = ["GHNPruner"]
