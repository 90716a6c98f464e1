"""Incremental reading of the finished trials of a study, and state per study."""

from __future__ import annotations

import threading
from bisect import insort
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

State = TypeVar("State")
Key = TypeVar("Key", bound="Hashable")


class PicklesSettings:
    """Base class of objects of which only the settings are pickled; all other state is initialised anew.

    Subclasses set their settings before they call this constructor, and all other attributes in `_init_state`.

    Example:
        >>> from optuna_nas.storage.finished import PicklesSettings
        >>> class Counter(PicklesSettings):
        ...     def __init__(self, step):
        ...         self.step = step
        ...         super().__init__()
        ...
        ...     def _init_state(self):
        ...         super()._init_state()
        ...         self.count = 0
        >>> state = Counter(step=2).__getstate__()
        >>> state["step"], "count" in state
        (2, False)
    """

    def __init__(self) -> None:
        settings = set(vars(self))
        self._init_state()
        self._state_names = frozenset(vars(self)) - settings

    def _init_state(self) -> None:
        """Initialise the attributes that are not pickled."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in sorted(vars(self).items()) if name not in self._state_names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._init_state()


class FinishedTrials:
    """Stream of the trials of a study in which every finished trial appears once.

    Attributes:
        unfinished: Numbers of the trials that had not finished at the last call of `take`.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.finished import FinishedTrials
        >>> study, finished = optuna.create_study(), FinishedTrials()
        >>> study.add_trial(optuna.create_trial(value=1.0))
        >>> running = study.ask()
        >>> [trial.number for trial in finished.take(study.get_trials(deepcopy=False))], finished.unfinished
        ([0], [1])
        >>> study.tell(running, 2.0).number
        1
        >>> [trial.number for trial in finished.take(study.get_trials(deepcopy=False))]
        [1]
    """

    def __init__(self) -> None:
        self.unfinished: list[int] = []
        self._n_read = 0

    def take(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials that have finished since the last call, those that were running then first.

        Args:
            trials: All trials of the study, by number.
        """
        finished, unfinished = [], []
        for place in [*self.unfinished, *range(self._n_read, len(trials))]:
            # Another thread may have passed a longer list before.
            if place < len(trials) and trials[place].state.is_finished():
                finished.append(trials[place])
            else:
                unfinished.append(place)
        self.unfinished, self._n_read = unfinished, max(self._n_read, len(trials))
        return finished


class FinishedIndex(Generic[Key]):
    """Index of the finished trials of a study by a key; thread-safe.

    Each finished trial is read once, so that the cost per trial does not grow with the study.

    Args:
        key: Function of a finished trial that returns its key, or None to leave it out; called once per trial.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.finished import FinishedIndex
        >>> study = optuna.create_study()
        >>> for value in (1.0, 2.0, 1.0):
        ...     study.add_trial(optuna.create_trial(value=value))
        >>> index = FinishedIndex(lambda trial: trial.value)
        >>> unfinished = index.update(study.get_trials(deepcopy=False))
        >>> [trial.number for trial in index.of(1.0)]
        [0, 2]
    """

    def __init__(self, key: Callable[[FrozenTrial], Key | None]) -> None:
        self._key = key
        self._lock = threading.Lock()
        self._finished = FinishedTrials()
        self._by_key: dict[Key, list[FrozenTrial]] = {}

    def update(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Add the trials that have finished since the last call; return the unfinished trials.

        Args:
            trials: All trials of the study, by number.
        """
        with self._lock:
            for trial in self._finished.take(trials):
                if (key := self._key(trial)) is not None:
                    insort(self._by_key.setdefault(key, []), trial, key=attrgetter("number"))
            return [trials[place] for place in self._finished.unfinished if place < len(trials)]

    def of(self, key: Key) -> Sequence[FrozenTrial]:
        """Return the finished trials with a key, by number."""
        with self._lock:
            return tuple(self._by_key.get(key, ()))

    def groups(self) -> dict[Key, list[FrozenTrial]]:
        """Return the finished trials of every key, by number."""
        with self._lock:
            return {key: list(trials) for key, trials in self._by_key.items()}


class PerStudy(Generic[State]):
    """State per study, made on first access; thread-safe, not pickled.

    Studies are identified by their storage object and id. The state is dropped together with the storage object.

    Args:
        make: Function that returns the initial state of a study.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.finished import PerStudy
        >>> states, study = PerStudy(list), optuna.create_study()
        >>> states.of(study).append(1)
        >>> states.of(study), states.of(optuna.create_study())
        ([1], [])
    """

    def __init__(self, make: Callable[[], State]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._states: WeakKeyDictionary[BaseStorage, dict[int, State]] = WeakKeyDictionary()

    def of(self, study: Study) -> State:
        """Return the state of a study."""
        with self._lock:
            states = self._states.setdefault(study._storage, {})
            if study._study_id not in states:
                states[study._study_id] = self._make()
            return states[study._study_id]

    def __reduce__(self) -> tuple[Any, ...]:
        return PerStudy, (self._make,)
