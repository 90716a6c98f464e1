"""The entry point of the program, which imports all else where Ctrl-C is heard already."""

import sys
from contextlib import suppress

UNREAD = 141
"""Exit code of a command whose output nobody read to its end but that did all else: 128 + SIGPIPE, as in a shell."""


def main() -> None:
    """Run the command line with the arguments of the process; Ctrl-C ends it without a traceback from the first moment.

    Example:
        >>> import sys
        >>> from optuna_nas.cli import main
        >>> sys.argv = ["optuna-nas", "run", "study.py", "--trials", "20"]  # doctest: +SKIP
        >>> main()  # doctest: +SKIP
    """
    try:
        from optuna_nas.search.streams import is_unread, keep_streams

        keep_streams()
        from optuna_nas.cli.commands import app
        from optuna_nas.storage.home import have_home

        have_home()
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        app()
    except SystemExit as end:
        with suppress(OSError):
            sys.stdout.flush()
        if not end.code and is_unread():
            sys.exit(UNREAD)
        raise
