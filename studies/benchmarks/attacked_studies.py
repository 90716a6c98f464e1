"""Studies whose attributes `attacks.py` mutates: the report, a search that goes on, samplers and pruners, MLflow.

Attributes of many trials are mutated together, since a report or a search takes seconds. Where it ends in an error,
every mutation is tried alone.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import logging
import re
import time
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import optuna
from mutations import SECONDS, VALUES, Attempt, Door, Hang, as_json, changed_values, deep_list, limited
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_nas import (
    GHNPruner,
    GHNSampler,
    ImageData,
    MLflowTracker,
    NetworkSpace,
    Search,
    SNASSampler,
    nasbench201_skeleton,
    nasbench201_space,
    run,
)
from optuna_nas.results.page import as_html, as_markdown
from optuna_nas.results.report import sections_of
from optuna_nas.samplers import PromotingSampler
from optuna_nas.search.opening import open_study, read_study
from optuna_nas.search.results import summarise
from optuna_nas.storage import attributes as keys

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

SPACE = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, (1, 8, 8), 3))
TOGETHER = 25
"""Mutations that are tried together."""
STORABLE_DEPTH = 300
"""Levels of a nest that a study in memory holds; the copy of one takes two calls a level."""
RAW = re.compile(r"<script|<img src=x|\x1b|\x9b|\x07|\x00|\u202e|[\ud800-\udfff]")
"""What must never stand in a text that is shown."""


class Change(NamedTuple):
    """Mutation of an attribute.

    Args:
        place: `user` or `system` attributes of a trial, or `study`.
        template: Number of the trial that is copied with it.
        key: Key of the attribute.
        values: Attributes that replace those of the trial: one, or the parts of a long JSON value.
    """

    place: str
    template: int
    key: str
    values: dict[str, Any]


def json_parts(key: str, text: str) -> dict[str, Any]:
    """Return the attributes that `write_json` makes of a text."""
    pieces = [text[start : start + keys.PIECE] for start in range(0, len(text), keys.PIECE)]
    header = {"pieces": len(pieces), "sha256": hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()}
    return {key: header} | {f"{key}:{number}": piece for number, piece in enumerate(pieces)}


def records() -> dict[str, Any]:
    """Return long JSON values as samplers, pruners and models write them, by key."""
    paths = list(SPACE.options())
    table = [[0.2] * 5] * len(paths)
    return {
        keys.MASKS: {
            "step": 5,
            "kept": {path: ["skip_connect"] for path in paths},
            "weights": dict.fromkeys(paths, 0.5),
        },
        keys.SNAS_RECORDS: [
            {
                "step": step,
                "metrics": {"entropy": 1.0, "loss": 0.5},
                "probabilities": table,
                "credit": [0.1] * len(paths),
            }
            for step in (0, 5)
        ],
        f"{keys.FIT}GHN": [[1, {"loss": 2.0}], [2, {"loss": 1.0}]],
        keys.snapshot_key("SNAS"): {
            "trial": 0,
            "step": 3,
            "done": False,
            "files": {"snas.safetensors": {"artifact": "a-b", "sha256": "0" * 64}},
            "previous": [],
            "shape": [len(paths), 5],
            "logits": "",
        },
        keys.random_scores_key("ghn"): {"step": 0, "piece": 0, "scores": [0.5] * 100},
    }


def user_attributes(number: int) -> dict[str, Any]:
    """Return what a trial has that all parts of the package wrote to."""
    curve = {"multiply_adds": [1000.0, 2000.0], "accuracy": [0.5, 0.6], "budget": 3000.0}
    reference = {"artifact": "trial-network", "sha256": "0" * 64}
    return {
        keys.DIGEST: f"{number:016x}",
        keys.TRAINING_DIGEST: "ab12",
        keys.DUPLICATE_OF: 0,
        keys.REASON: "it was interrupted",
        keys.FLAGGED: "its score is low",
        keys.SURROGATE_SCORE: 0.1 * number,
        keys.SCORED: "0" * 16,
        keys.SURVIVAL: 0.5,
        keys.PARAMS: 1000 + number,
        keys.MULTIPLY_ADDS: 5000 - number,
        keys.MEMORY_ACCESS: 200,
        keys.TRAIN_SECONDS: 1.5,
        keys.GPU_SECONDS: 0.5,
        keys.PEAK_MEMORY_BYTES: 10**6,
        keys.SKIPPED_STEPS: 0,
        keys.BATCH_HALVED: False,
        keys.START: "scratch",
        keys.NETWORK: "networks/trial-00000.safetensors",
        keys.ANYTIME_CURVE: curve,
        keys.MASKED: [{"epoch": 1, "params": 900}],
        keys.WORKER: "host:1:ab",
        keys.REQUEUED: True,
        keys.RETRY_OF: 0,
        keys.ATTEMPT: 1,
        keys.FURTHEST: [2, 0.5],
        keys.CHECKPOINTED: 0.5,
        keys.RESUMES: 0,
        keys.CHECKPOINT: reference,
        keys.SHARED_NETWORK: reference,
        keys.METRIC: 0.7,
        "note": "the user's own",
        "own_number": 3,
    }


SYSTEM: dict[str, Any] = {
    keys.FIXED_PARAMS: {"other": 1},
    keys.RETRY_HISTORY: [0],
    keys.FAILED_TRIAL: 0,
    keys.PROMOTES: 0,
    "constraints": [-1.0],
}
STUDY: dict[str, Any] = {
    keys.VERSION: "0.0",
    keys.TEST_RESULT: {"trial": 0, "metric": 0.7},
    keys.UID_ATTRIBUTE: "0123456789abcdef",
    keys.HOME: ["attacked", "InMemoryStorage"],
    keys.SETTING: {"space": {"type": "CellSpace"}, "data": {"name": "x"}},
    "study:metric_names": ["value"],
    "note": "the user's own",
}
STATES = (TrialState.COMPLETE,) * 4 + (TrialState.PRUNED, TrialState.FAIL)


def trial(number: int, state: TrialState, user: dict[str, Any], system: dict[str, Any]) -> FrozenTrial:
    """Return a finished trial of the space."""
    architecture = SPACE.sample(np.random.default_rng(number))
    return create_trial(
        state=state,
        value=0.5 + 0.01 * (number % 40) if state == TrialState.COMPLETE else None,
        params=SPACE.encode(architecture) | {"epochs": 1 + number % 2},
        distributions={**SPACE.distributions(), "epochs": optuna.distributions.CategoricalDistribution((1, 2))},
        user_attrs=user,
        system_attrs=system,
        intermediate_values={} if state == TrialState.FAIL else {1: 0.4, 2: 0.5},
    )


def change(draw: random.Random) -> Change:
    """Return a mutation of an attribute of a trial."""
    long, template, way = records(), draw.randrange(len(STATES)), draw.random()
    if way < 0.2:
        key = draw.choice(sorted(long))
        text = as_json(changed_values(long[key], draw))
        parts = json_parts(key, text)
        if draw.random() < 0.3:
            name = draw.choice(sorted(parts))
            parts[name] = storable(changed_values(parts[name], draw))
        return Change("system", template, key, parts)
    if way < 0.35:
        key = draw.choice(sorted(SYSTEM))
        return Change("system", template, key, {key: mutated(SYSTEM[key], draw)})
    own = user_attributes(template)
    key = draw.choice(sorted(own))
    name = draw.choice((key, keys.OLD_NAMES.get(key, key)))
    if draw.random() < 0.05:
        name = str(draw.choice(VALUES[-16:])) or "x"
    return Change("user", template, key, {name: mutated(own[key], draw)})


def mutated(value: Any, draw: random.Random) -> Any:
    """Return another value for an attribute."""
    return storable(changed_values(value, draw) if draw.random() < 0.5 else draw.choice((*VALUES, deep_list())))


def storable(value: Any) -> Any:
    """Return a value as a storage holds it; a nest too deep for JSON or for a copy in memory becomes a flatter one.

    Optuna itself raises where a trial with such a value is added; only a study in memory may have one as its attribute.
    """
    try:
        return copy.deepcopy(json.loads(json.dumps(value)))
    except RecursionError:
        return deep_list(STORABLE_DEPTH)


def filled(study: optuna.Study, changes: Sequence[Change], constrained: bool = True) -> optuna.Study:
    """Add whole trials, and one trial for every mutation.

    Args:
        study: Study to fill.
        changes: Mutations.
        constrained: Whether the constraints are mutated, too: they are Optuna's, and its TPE reads them unseen.
    """
    whole = {
        part: text for key, value in records().items() for part, text in json_parts(key, json.dumps(value)).items()
    }
    trials = []
    for number in range(8):
        trials.append(
            trial(number, STATES[number % len(STATES)], user_attributes(number), whole if number == 0 else {})
        )
    for number, one in enumerate(changes, len(trials)):
        user, system = user_attributes(number), dict(SYSTEM)
        if one.place == "user":
            user.pop(one.key, None)
            user |= one.values
        elif constrained or one.key != "constraints":
            system |= one.values
        trials.append(trial(number, STATES[one.template], user, system))
    study.add_trials(trials)
    return study


def objective(trial: optuna.Trial) -> float:
    """Train nothing."""
    architecture = SPACE.suggest(trial)
    epochs = trial.suggest_categorical("epochs", (1, 2))
    trial.report(0.5, 1)
    if trial.should_prune():
        raise optuna.TrialPruned
    return 0.5 + 0.01 * str(architecture).count("conv") + 0.01 * epochs


def convolutions(architectures: Sequence[Any]) -> Any:
    """Score without a model."""
    return np.array([float(str(architecture).count("conv")) for architecture in architectures])


class Attack:
    """Attacks on attributes of a study.

    Args:
        use: Function of the mutated attributes that uses a study with them, and returns the texts that it shows.
    """

    def __init__(self, use: Callable[[Sequence[Change], dict[str, Any]], list[str]]) -> None:
        self._use = use

    def once(self) -> None:
        """Use a study without mutations."""
        shown = "".join(self._use([], {}))
        assert not RAW.search(shown), RAW.search(shown)

    def __call__(self, draw: random.Random) -> Attempt:
        if draw.random() < 0.75:  # one of ten
            key = draw.choice(sorted(STUDY))
            return Attempt((self._outcome([], {key: mutated(STUDY[key], draw)}),), key)
        changes = [change(draw) for _ in range(TOGETHER)]
        together = self._outcome(changes, {})
        if together not in BAD:
            return Attempt(tuple("refused" if wrong(one) else "same" for one in changes))
        outcomes = [self._outcome([one], {}) for one in changes]
        alone = [
            f"{o}: {c.place} {c.key} {as_json(c.values)[:150]}"
            for o, c in zip(outcomes, changes, strict=True)
            if o in BAD
        ]
        return Attempt(tuple(outcomes), f"together {together}; {self.last}\n" + "\n".join(alone))

    def _outcome(self, changes: list[Change], of_study: dict[str, Any]) -> str:
        try:
            with limited(self.seconds):
                shown = "".join(self._use(changes, of_study))
        except Hang:
            self.last = traceback.format_exc(limit=-6)
            return "hangs"
        except ValueError as error:
            if (of_study.keys() & {keys.SETTING} and "setting" in str(error)) or "another" in str(error):
                return "refused"  # another setting: as documented
            self.last = f"ValueError: {error}"[:500]
            return "raw"
        except Exception as error:
            self.last = "".join(traceback.format_exception(error, limit=-5))[-1500:]
            return "raw"
        if found := RAW.search(shown):
            self.last = f"shown raw: {shown[max(0, found.start() - 80) : found.end() + 40]!r}"
            return "wrong"
        return "same"

    last = ""
    """What the last bad one said."""
    seconds = 600.0
    """CPU time that a study may take."""


BAD = ("raw", "wrong", "hangs")


def wrong(one: Change) -> bool:
    """Return whether a mutated attribute can't be read, and costs its line."""
    return bool(keys.unreadable_in(*((one.values,) if one.place == "user" else ({}, one.values))))


# -- doors ------------------------------------------------------------------------------------------------------------


def new_search(folder: Path, **given: Any) -> Search:
    """Return a search in memory."""
    images = ImageData.from_arrays(np.zeros((96, 8, 8), np.float32), np.arange(96) % 3)
    storage = optuna.storages.InMemoryStorage()
    settings = {
        "objective": objective,
        "storage": storage,
        "folder": Path(mkdtemp(dir=folder)),
        "tracking": None,
        "trials": 3,
    }
    return Search("attacked", SPACE, images, **{**settings, **given})


def opened(
    search: Search, changes: Sequence[Change], of_study: dict[str, Any], constrained: bool = True
) -> optuna.Study:
    """Return the study of a search with mutated attributes."""
    study = filled(open_study(search), changes, constrained)
    for key, value in of_study.items():
        if key == "study:metric_names":
            study._storage.set_study_system_attr(study._study_id, key, value)
        else:
            study.set_user_attr(key, value)
    return study


def report_door(folder: Path) -> Door:
    """Return the door of the report: `optuna-nas report`, in the terminal, as a page and as Markdown."""
    from optuna_nas.cli import result

    def use(changes: Sequence[Change], of_study: dict[str, Any]) -> list[str]:
        search, terminal = new_search(folder), io.StringIO()
        opened(search, changes, of_study)
        study = read_study(search)
        with redirect_stdout(terminal):
            result.print_result(search, summarise(search, study))
        sections = sections_of(search, study, "optuna-nas run study.py")
        page, markdown = as_html(search.name, sections), as_markdown(search.name, sections)
        for one in changes:
            if wrong(one) and len(changes) < 40:
                assert "What can&#x27;t be read" in page, "no word about what can't be read"
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in re.findall(r"^\| \d+ \|.*$", markdown, re.MULTILINE)}
        assert len(widths) < 6, widths
        return [
            re.sub(r'src="data:[^"]*"', "", page),
            markdown,
            terminal.getvalue().replace("<", ""),
        ]  # a terminal has no tags

    return door(use, folder)


def resume_door(folder: Path) -> Door:
    """Return the door of a search that goes on: retries, the total of trials, warnings."""

    def use(changes: Sequence[Change], of_study: dict[str, Any]) -> list[str]:
        said = io.StringIO()
        handler = logging.StreamHandler(said)
        logger = logging.getLogger("optuna_nas")
        logger.addHandler(handler)
        try:
            search = new_search(folder, sampler=PromotingSampler(SNASSampler(SPACE, seed=0), short=1, long=2, every=4))
            study = opened(search, changes, of_study, constrained=False)
            waiting = trial(99, TrialState.COMPLETE, {}, {})
            for one in changes[:3]:  # interrupted ones, which are tried again with what they have noted
                values = one.values if one.place == "user" else {}
                study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={**user_attributes(1), **values}))
            study.enqueue_trial(waiting.params)
            counted = run(replaced(search, len(study.trials) + 2)).study
            assert all(t.state.is_finished() for t in counted.trials), "a trial is left"
        finally:
            logger.removeHandler(handler)
        return []

    return door(use, folder)


def replaced(search: Search, trials: int) -> Search:
    """Return a search with another total."""
    other = copy.copy(search)
    object.__setattr__(other, "trials", trials)
    return other


def strategy_door(folder: Path) -> Door:
    """Return the door of samplers and pruners: they read what earlier trials have noted."""

    def use(changes: Sequence[Change], of_study: dict[str, Any]) -> list[str]:
        samplers = (
            GHNSampler(SPACE, score=convolutions, pool_size=20, trials_per_round=5, seed=0),
            SNASSampler(SPACE, seed=0),
        )
        for sampler in samplers:
            study = optuna.create_study(
                direction="maximize",
                sampler=sampler,
                pruner=GHNPruner(space=SPACE, score=convolutions, n_startup_trials=5, n_random=100),
            )
            filled(study, changes, constrained=False)
            study.optimize(objective, n_trials=3)
            assert all(trial.state.is_finished() for trial in study.trials)
        return []

    return door(use, folder)


def mirror_door(folder: Path) -> Door:
    """Return the door of MLflow: `optuna-nas mirror`, of a study that somebody else has written."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    tracker = MLflowTracker(uri)

    def use(changes: Sequence[Change], of_study: dict[str, Any]) -> list[str]:
        from optuna_nas.tracking.client import connected
        from optuna_nas.tracking.runs import COLOURS

        study = optuna.create_study(direction="maximize")
        filled(study, changes)
        for key, value in of_study.items():
            if key == "study:metric_names":
                study._storage.set_study_system_attr(study._study_id, key, value)
            else:
                study.set_user_attr(key, value)
        tracker.rebuild(study)
        with connected(uri) as client:
            (experiment,) = (e.experiment_id for e in client.search_experiments() if e.name == "optuna_nas")
            uid = keys.attribute(study.user_attrs, keys.UID_ATTRIBUTE)
            runs = client.search_runs([experiment], f"tags.`optuna_nas.study_uid` = '{uid}'", max_results=200)
            assert len(runs) >= 1 + len(study.trials), (len(runs), len(study.trials), COLOURS)
            shown = [str(run.data.tags.get("mlflow.note.content", "")) for run in runs]
            shown += [text.replace("<", "") for run in runs for text in run.data.tags.values()]  # MLflow escapes those
            return shown

    return door(use, folder)


def door(use: Callable[[Sequence[Change], dict[str, Any]], list[str]], folder: Path) -> Door:
    """Return a door, with the CPU time that an attempt may take."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna_nas").addHandler(logging.NullHandler())
    logging.getLogger("optuna_nas").propagate = False
    attack = Attack(use)
    attack.once()  # the first loads libraries and makes databases
    began = time.process_time()
    use([change_of_nothing()] * TOGETHER, {})
    attack.seconds = SECONDS + 3 * (time.process_time() - began)
    return Door(attack, 2 * TOGETHER * attack.seconds, folder / "executed")  # where it must look for the bad one


def change_of_nothing() -> Change:
    """Return a mutation that leaves everything as it is."""
    return Change("user", 0, "note", {"note": "the user's own"})


STUDIES: dict[str, Callable[[Path], Door]] = {
    "report": report_door,
    "resume": resume_door,
    "strategies": strategy_door,
    "mirror": mirror_door,
}
