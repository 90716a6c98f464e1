"""Hydra: a search out of a configuration, and the task function of a script as the objective of a search.

To `hydra.utils.instantiate`, a configuration with `_target_: optuna_nas.Search` and the names of Python's arguments is
a search; `make_search` takes the shorter keys of a YAML study. Needs `pip install 'optuna_nas[hydra]'`.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import logging
import operator
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from optuna_nas.objective.suggestions import make_suggestion, suggest
from optuna_nas.search.study_yaml import read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from optuna import Trial
    from optuna.distributions import BaseDistribution

    from optuna_nas.search import Search
    from optuna_nas.space import Space

logger = logging.getLogger(__name__)

_NAME = "the configuration"
_OF_A_RUN = re.compile(r"\$\{\s*(?:now:|hydra:\s*(?:runtime\.output_dir|run\.|sweep|job\.(?:num|id)\b))[^{}]*\}")
"""Interpolations of Hydra whose values are others whenever a script starts."""


def make_search(config: DictConfig, **given: Any) -> Search:
    """Return the search that a configuration describes, with the keys of a YAML study.

    Args:
        config: Configuration; interpolations are resolved.
        **given: Arguments of `Search` that are no text, such as an objective.

    Raises:
        ValueError: The configuration describes no search, or a value is missing.

    Example:
        >>> from omegaconf import OmegaConf
        >>> from optuna_nas.pipelines.hydra import make_search
        >>> config = OmegaConf.create({"name": "digits", "data": "digits", "space": "nasbench201_space", "trials": 30})
        >>> config.skeleton = {"type": "nasbench201_skeleton", "repeats": 1, "channels": 4}
        >>> make_search(config).space.skeleton.input_shape
        (1, 8, 8)
    """
    text = json.dumps(_plain(config), default=str)
    try:
        return read_text(text, _NAME, given=given)
    except ValueError as error:  # it is all in one line
        raise ValueError(str(error).replace(f"{_NAME}, line 1: ", f"{_NAME}: ", 1)) from None


def searched(
    space: Space, *, key: str = "architecture", settings: str = "search"
) -> Callable[[Callable[..., Any]], Callable[[DictConfig], Any]]:
    """Make a script's task function the objective of a search; use it below `@hydra.main`.

    The script then runs a whole search: in every trial the task function gets the configuration with the parameters of
    an architecture under `key`, for `space.decode`, and returns the value, or the values. Any other part of the
    configuration that is written as a suggestion, such as `{type: suggest_float, low: 0.01, high: 0.2}`, becomes the
    trial's value. Every trial has an output folder of its own, `runs/NAME/outputs/trial-00000`, with its configuration;
    `HydraConfig.get().runtime.output_dir` names it. The same command resumes the search, and several may run at a time
    with a `storage` on a database server. A task function of two arguments gets the Optuna trial, too, to report to and
    be pruned by.

    A configuration that has an architecture already is run as it is, once; the trial is then None:
    `python train.py --config-path $PWD/runs/NAME/outputs/trial-00003/.hydra --config-name config`.

    Args:
        space: Search space.
        key: Where the parameters of an architecture are put.
        settings: Where the arguments of the search are: `name`, `trials`, `directions`, `sampler`, `storage` and so on,
            with the keys of a YAML study.

    Raises:
        ValueError: The configuration has no such settings, or they describe no search.

    Example:
        >>> from omegaconf import OmegaConf
        >>> from optuna_nas import nasbench201_space
        >>> from optuna_nas.pipelines.hydra import searched
        >>> space = nasbench201_space()
        >>> @searched(space)  # below @hydra.main(version_base=None, config_path=".", config_name="config")
        ... def train(config):
        ...     return config.scale * str(space.decode(config.architecture)).count("conv")
        >>> search = {"name": "convolutions", "trials": 3, "sampler": "RandomSampler", "tracking": None}
        >>> train(OmegaConf.create({"scale": 2, "search": search})) >= 0
        True
    """

    def decorate(task: Callable[..., Any]) -> Callable[[DictConfig], Any]:
        n_parameters = len(inspect.signature(task).parameters)

        def once(config: DictConfig, trial: Trial | None) -> Any:
            return task(config, trial) if n_parameters > 1 else task(config)

        @functools.wraps(task)
        def run(config: DictConfig) -> Any:
            if OmegaConf.select(config, key) is not None:
                return once(config, None)
            chosen = OmegaConf.select(config, settings)
            if not isinstance(chosen, DictConfig):
                raise ValueError(
                    f"`{settings}` of the configuration must hold the settings of the search but is {chosen!r}; add "
                    f"{settings}: {{name: ..., trials: ...}}, or the parameters of an architecture as `{key}`."
                )
            objective = _TaskObjective(once, config, space, key, settings)
            search = make_search(chosen, space=space, objective=objective)
            if search.n_jobs > 1:
                raise ValueError(
                    f"`{settings}.n_jobs` must be 1, since Hydra has one configuration a process, but is "
                    f"{search.n_jobs}; start the command several times with one `storage` instead."
                )
            if HydraConfig.initialized():  # whose job.chdir may have changed the working folder
                search = replace(search, folder=Path(to_absolute_path(str(search.resolved_folder()))))
            objective.folder = search.resolved_folder() / "outputs"
            return _result(search)

        return run

    return decorate


def _result(search: Search) -> float | None:
    """Run a search; return its best value, None with several values a trial."""
    result = search.run()
    if result.interrupted:
        logger.warning(
            "Interrupted with %d of %s trials to go; the same command resumes.", result.missing, search.total
        )
    if result.best is None:
        return None
    folder = search.resolved_folder() / "outputs" / f"trial-{result.best.number:05d}"
    logger.info("Best of %d trials: %s, %s", len(result.study.trials), result.best.values, folder)
    return cast("float", result.best.value) if len(search.resolved_directions) == 1 else None


class _TaskObjective:
    """Objective that calls a task function with the configuration of a trial."""

    def __init__(self, task: Callable[..., Any], config: DictConfig, space: Space, key: str, settings: str) -> None:
        self.folder = Path()
        self._task, self._space, self._key, self._settings = task, space, key, settings
        self._config = copy.deepcopy(config)
        self._suggestions: dict[str, BaseDistribution] = dict(_suggestions(self._described(), ""))
        taken = sorted({_parameter(path) for path in self._suggestions} & space.distributions().keys())
        if taken:
            raise ValueError(f"`{taken[0]}` of the configuration must not have the name of a choice; rename the key.")

    def __call__(self, trial: Trial) -> float | Sequence[float]:
        architecture = self._space.suggest(trial)
        config = copy.deepcopy(self._config)
        values = {path: suggest(trial, _parameter(path), d) for path, d in self._suggestions.items()}
        with read_write(config), open_dict(config):
            for path, value in {self._key: dict(self._space.encode(architecture)), **values}.items():
                OmegaConf.update(config, path, value, merge=False)
        with _output(self.folder / f"trial-{trial.number:05d}", config):
            return self._task(config, trial)  # type: ignore[no-any-return]

    def describe(self) -> dict[str, Any]:
        """Return the configuration without the settings of the search: another one is another study."""
        return {"config": self._described()}

    def _described(self) -> dict[str, Any]:
        described = _plain(_of_every_run(self._config))
        *parents, last = self._settings.split(".")
        functools.reduce(operator.getitem, parents, described)[last] = None
        return json.loads(json.dumps(described, default=str))  # type: ignore[no-any-return]


def _of_every_run(config: DictConfig) -> DictConfig:
    """Return a configuration with a fixed text for what is another in every run of a script, as its output folder."""
    text, n_found = _OF_A_RUN.subn("of_a_run", json.dumps(OmegaConf.to_container(config), default=str))
    return OmegaConf.create(json.loads(text)) if n_found else config


def _plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as dictionaries and lists, with interpolations resolved."""
    try:
        return cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        sentence = str(error).strip().splitlines()[0]
        raise ValueError(f"{_NAME} must have all values but one can't be read: {sentence}.") from None


def _suggestions(value: Any, path: str) -> Iterator[tuple[str, BaseDistribution]]:
    """Yield the places of a configuration that are written as suggestions."""
    if isinstance(value, dict) and re.fullmatch(r"suggest_\w+", str(value.get("type"))):
        yield path, make_suggestion(path, value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _suggestions(inner, f"{path}.{key}".lstrip("."))


def _parameter(path: str) -> str:
    """Return the name of an Optuna parameter, an identifier, for a place in a configuration."""
    return path.replace(".", "_")


@contextmanager
def _output(folder: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """Make a folder the output folder of Hydra for the time of a trial."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    if not HydraConfig.initialized():
        yield
        return
    instance: Any = HydraConfig.instance()
    before = instance.cfg
    instance.cfg = copy.deepcopy(before)
    with read_write(instance.cfg.hydra), open_dict(instance.cfg.hydra):
        instance.cfg.hydra.runtime.output_dir = str(folder)
    try:
        yield
    finally:
        instance.cfg = before
