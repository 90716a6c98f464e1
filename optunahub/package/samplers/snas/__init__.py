from optuna_nas import SNASSampler


__all__ = ["SNASSampler"]
