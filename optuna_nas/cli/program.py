"""The entry point of the program, which imports all else where Ctrl-C is heard already."""

import sys


def main() -> None:
    """Run the command line with the arguments of the process; Ctrl-C ends it without a traceback from the first moment.

    Example:
        >>> import sys
        >>> from optuna_nas.cli import main
        >>> sys.argv = ["optuna-nas", "run", "study.py", "--trials", "20"]  # doctest: +SKIP
        >>> main()  # doctest: +SKIP
    """
    try:
        from optuna_nas.cli.commands import app
        from optuna_nas.storage.home import have_home

        have_home()
    except KeyboardInterrupt:
        sys.exit(130)
    app()
