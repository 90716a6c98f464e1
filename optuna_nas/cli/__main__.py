"""`python -m optuna_nas.cli`: the command line without its script."""

from optuna_nas.cli import main

main()
