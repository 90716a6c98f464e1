"""What was learned about choices on one data set, as a score for a study on another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optuna_nas.oneshot.free.prior import effects_of, main_effects
from optuna_nas.storage.directions import oriented
from optuna_nas.storage.leaderboard import can_win

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from optuna import Study

    from optuna_nas.oneshot.base import OneShotModel, Score
    from optuna_nas.space import Architecture, Space


class TransferredScore:
    """Score of architectures by what each option was worth elsewhere: on another data set, in a finished study.

    What is carried over are main effects: a number for every option of every choice, fitted to scores or to the values
    of trials, or the logits of an SNAS. It needs neither the data nor the weights of before. Use it as the `prior` of
    an `SNAS` or `SNASSampler`, as the `score` or `prefilter` of a `GHNSampler`, or with others in a `RankScore`.

    The space may have more options than the one it was learned on: what is new is worth the mean of the others. More or
    fewer choices are another space.

    Args:
        effects: What every option of every choice is worth, by the name of the parameter and the text of the option;
            the larger, the better.

    Raises:
        ValueError: There are no effects.

    Example:
        >>> import optuna
        >>> from optuna_nas import SNASSampler, TransferredScore, nasbench201_space
        >>> space = nasbench201_space()
        >>> before = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
        >>> before.optimize(lambda trial: str(space.suggest(trial)).count("conv"), n_trials=50)
        >>> learned = TransferredScore.of_study(before, space)
        >>> study = optuna.create_study(direction="maximize", sampler=SNASSampler(space, prior=learned, seed=0))
        >>> study.optimize(lambda trial: str(space.suggest(trial)).count("conv"), n_trials=5)
        >>> study.best_value > 4
        True
    """

    def __init__(self, effects: Mapping[str, Mapping[str, float]]) -> None:
        if not effects:
            raise ValueError("`effects` must name the options of at least one choice but is empty.")
        self.effects = {name: dict(options) for name, options in effects.items()}

    @classmethod
    def of_score(cls, space: Space, score: Score, *, architectures: int = 100, seed: int = 0) -> TransferredScore:
        """Return the effects on any score of random architectures, such as that of a fitted `GHN` or supernet.

        Args:
            space: Space that the score is of.
            score: Function that scores architectures; larger is better.
            architectures: Number of random architectures to score, at least 2.
            seed: Seed of the architectures.
        """
        return cls._named(space, main_effects(space, score, architectures=architectures, seed=seed))

    @classmethod
    def of_model(cls, model: OneShotModel[Any]) -> TransferredScore:
        """Return the logits of a fitted model that has some, such as an `SNAS`, or else the effects on its scores.

        Args:
            model: Fitted model.

        Raises:
            ValueError: The model has not seen data, so that it can't score.
        """
        if not hasattr(model, "logits"):
            return cls.of_score(model.space, model.score)
        logits_PO = np.asarray(model.logits, dtype=np.float64)
        return cls._named(model.space, logits_PO)

    @classmethod
    def of_study(cls, study: Study, space: Space) -> TransferredScore:
        """Return the effects on the values of completed, feasible trials of a study.

        Args:
            study: Finished study.
            space: Space of its architectures.

        Raises:
            ValueError: The study has several objectives, or fewer than two such trials.
        """
        if len(study.directions) > 1:
            raise ValueError(
                f"`study` must have one objective but has {len(study.directions)}; score architectures yourself, and "
                "use `TransferredScore.of_score`."
            )
        trials = [trial for trial in study.get_trials(deepcopy=False) if can_win(trial)]
        if len(trials) < 2:
            raise ValueError(
                f"`study` must have at least 2 completed trials but {study.study_name!r} has {len(trials)}; run it "
                "first."
            )
        values = np.array([oriented(trial.values[0], study.direction) for trial in trials])
        return cls._named(space, effects_of(space, [space.decode(trial.params) for trial in trials], values))

    @classmethod
    def _named(cls, space: Space, effects_PO: NDArray[np.float64]) -> TransferredScore:
        named = zip(space.distributions().items(), effects_PO, strict=True)
        return cls(
            {
                name: dict(zip(map(str, distribution.choices), map(float, row), strict=False))
                for (name, distribution), row in named
            }
        )

    def __call__(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return the sum of what the options of each architecture are worth, shape (N,).

        Raises:
            ValueError: An architecture is of a space with other choices, or without an option that was learned about.
        """
        tables: dict[int, dict[str, dict[str, float]]] = {}
        scores = []
        for architecture in architectures:
            space = architecture.space
            if id(space) not in tables:
                tables[id(space)] = self._for(space)
            table = tables[id(space)]
            scores.append(sum(table[name][str(option)] for name, option in space.encode(architecture).items()))
        return np.array(scores, dtype=np.float64)

    def _for(self, space: Space) -> dict[str, dict[str, float]]:
        """Return the effects of a space's options: of new ones, the mean of the others."""
        distributions = space.distributions()
        if differing := sorted(distributions.keys() ^ self.effects.keys()):
            raise ValueError(
                f"`architectures` must have the choices that were learned about but {differing[0]!r} is in one of the "
                "two spaces alone; learn on the same choices."
            )
        table = {}
        for name, distribution in distributions.items():
            known, options = self.effects[name], list(map(str, distribution.choices))
            if missing := sorted(known.keys() - set(options)):
                raise ValueError(
                    f"`architectures` must have all options that were learned about but {name!r} has no "
                    f"{missing[0]!r}; options may be added, not left out."
                )
            mean = float(np.mean(list(known.values())))
            table[name] = {option: known.get(option, mean) for option in options}
        return table
