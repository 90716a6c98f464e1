"""What finished trials had, read once each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.trial import FrozenTrial


class Forgetful:
    """Pickles its settings only; what can't be pickled, or can be had again from a study, is made anew.

    Subclasses set their settings before they call this constructor, and all else in `_forget`.
    """

    def __init__(self) -> None:
        settings = set(vars(self))
        self._forget()
        self._forgotten = frozenset(vars(self)) - settings

    def _forget(self) -> None:
        """Make anew what is not pickled."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in sorted(vars(self).items()) if name not in self._forgotten}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


class FinishedTrials:
    """The trials of a study as they finish, each shown once."""

    def __init__(self) -> None:
        self.unfinished: list[int] = []  # places in the list of trials
        self._n_known = 0

    def take(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials that have finished since the last call, those that ran on first.

        Args:
            trials: All of the study, by number.
        """
        finished, unfinished = [], []
        for place in [*self.unfinished, *range(self._n_known, len(trials))]:
            # Another thread may have shown a longer list before.
            if place < len(trials) and trials[place].state.is_finished():
                finished.append(trials[place])
            else:
                unfinished.append(place)
        self.unfinished, self._n_known = unfinished, max(self._n_known, len(trials))
        return finished
