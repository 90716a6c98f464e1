"""Neural architecture search as an ordinary Optuna study."""

__version__ = "0.1.0"
