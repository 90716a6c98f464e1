from optuna_nas import HMNASPruner


__all__ = ["HMNASPruner"]
