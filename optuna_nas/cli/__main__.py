"""Entry point of `python -m optuna_nas.cli`."""

from optuna_nas.cli import main

main()
