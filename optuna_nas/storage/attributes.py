"""Keys of attributes of studies and trials, and JSON values of any length.

All keys of this package have the prefix `optuna_nas:`, so that they never collide with keys of the user. Older studies
have some of them without the prefix; `attribute` reads both. What it returns has the type of its key (`RULES`): others
may have written to the study, too, and a bad attribute costs no more than itself.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna_nas.space.reading import WRONG, brief, is_number, parse_json, shown
from optuna_nas.training.rules import (
    Rule,
    anything,
    between,
    checked,
    fields_of,
    flag,
    items,
    mapping,
    number,
    optional,
    row,
    share,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from optuna_nas.space import Space

PREFIX = "optuna_nas:"

# -- user attributes of trials: shown to users ------------------------------------------------------------------------

DIGEST = PREFIX + "architecture_digest"
"""Hash of the canonical graph of the architecture."""
DIGESTED = PREFIX + "digested_params"
"""Hash of the parameters of the space that the architecture's hash was noted for: an added trial may have others."""
TRAINING_DIGEST = PREFIX + "training_digest"
"""Hash of skeleton, recipe, data and initial weights."""
DUPLICATE_OF = PREFIX + "duplicate_of"
"""Number of the finished trial that computed the same function with the same other parameters."""
REASON = PREFIX + "reason"
"""Reason why the trial was pruned or failed, one sentence."""
FLAGGED = PREFIX + "flagged"
"""Reason why a pruner flagged the architecture, one sentence; exempt trials have it, too, and are trained anyway."""
SURROGATE_SCORE = PREFIX + "surrogate_score"
"""Score predicted without training, larger is better."""
SCORED = PREFIX + "scored_params"
"""Hash of the parameters of the space that the score was noted for: a trial may get others than were proposed."""
SCORED_BY = PREFIX + "scored_by"
"""What the score is, in a few words, such as a loss with the weights of a model."""
SURVIVAL = PREFIX + "survival"
"""Fraction of the architecture that survives the masks (HM-NAS), in [0, 1]."""
PARAMS = PREFIX + "params"
"""Number of parameters of the network."""
MULTIPLY_ADDS = PREFIX + "multiply_adds"
"""Multiply-adds (MACs) of one prediction."""
MEMORY_ACCESS = PREFIX + "memory_access"
"""Elements read and written by one prediction."""
TRAIN_SECONDS = PREFIX + "train_seconds"
"""Seconds of training in this trial, including validation; see `spending` for all seconds."""
MODEL_SECONDS = PREFIX + "model_seconds"
"""Seconds for which this trial trained a one-shot model."""
GPU_SECONDS = PREFIX + "gpu_seconds"
"""Seconds of training and of a one-shot model, times the GPUs, or the fraction of one, that the trial had."""
EPOCHS = PREFIX + "epochs"
"""Number of epochs of the whole training, whether or not the trial came to its end."""
TRAINED_EPOCHS = PREFIX + "trained_epochs"
"""Number of epochs that this trial trained itself, where its last report does not tell: of a resumed training, or with
several objectives, for which Optuna takes no reports."""
PEAK_MEMORY_BYTES = PREFIX + "peak_memory_bytes"
"""Peak GPU memory of the training in bytes."""
SKIPPED_STEPS = PREFIX + "skipped_steps"
"""Number of training steps skipped because loss or gradient was not finite."""
BATCH_HALVED = PREFIX + "batch_halved"
"""True if only half batches fitted the memory."""
START = PREFIX + "start"
"""Initial weights of trainings by a GHN: `ghn`, or `scratch` while the GHN is not fitted."""
NETWORK = PREFIX + "network_file"
"""Local file of the trained network."""
ANYTIME_CURVE = PREFIX + "anytime_curve"
"""Early exits: `multiply_adds` and the task's metric of each, under its name, and the `budget`."""
MASKED = PREFIX + "masked"
"""Every time masks shrank the network in training: epoch, remaining parameters and multiply-adds, and the metric
before and after."""

# -- user attributes of trials: bookkeeping ---------------------------------------------------------------------------

WORKER = PREFIX + "worker"
"""Host, process id and process token of the worker that runs the trial."""
REQUEUED = PREFIX + "requeued"
"""True on an interrupted trial whose parameters another trial tries again."""
RETRY_OF = PREFIX + "retry_of"
"""Number of the interrupted trial that this one tries again."""
ATTEMPT = PREFIX + "attempt"
"""Number of this attempt, from 1, since an attempt last got further; see `retries`."""
FURTHEST = PREFIX + "furthest"
"""How far earlier attempts got: the last reported step (None without reports) and the fraction in a checkpoint."""
CHECKPOINTED = PREFIX + "checkpointed"
"""Fraction of the training in the newest checkpoint, in [0, 1]."""
RESUMES = PREFIX + "resumes"
"""Number of the trial whose checkpoint file this trial resumes."""
CHECKPOINT = PREFIX + "checkpoint"
"""Reference to the newest checkpoint in the artifact store of the study."""
SHARED_NETWORK = PREFIX + "network"
"""Reference to the trained network in the artifact store of the study."""

# -- system attributes of trials: values of `write_json` --------------------------------------------------------------

MASKS = PREFIX + "masks"
"""Masks of an HM-NAS: training `step` of the model, ops `kept` and `weights` of edges by path."""
SNAS_RECORDS = PREFIX + "snas:records"
"""History of the distribution of an `SNASSampler`."""
FIT = PREFIX + "fit:"
"""Prefix of the learning curves of one-shot models, before the name of the model."""

FIXED_PARAMS = "fixed_params"
"""Parameters that a trial was enqueued with; a key of Optuna."""
RETRY_HISTORY = "retry_history"
"""Numbers of the trials that a trial retries, ascending; a key of Optuna."""
FAILED_TRIAL = "failed_trial"
"""Number of the first trial in the retry history; a key of Optuna."""
OPTUNAS = (FIXED_PARAMS, RETRY_HISTORY, FAILED_TRIAL)
"""Keys of Optuna among the system attributes that are read."""

# -- user attributes of studies ---------------------------------------------------------------------------------------

SETTING = PREFIX + "setting"
"""Space, skeleton, data and recipe as JSON; a study is resumed only with an equal setting."""
VERSION = PREFIX + "version"
"""Version of optuna_nas that created or last ran the study."""
TEST_RESULT = PREFIX + "test"
"""Number of the trial whose network was evaluated on the test split, and the metric there."""
TEST_METRICS = PREFIX + "test_metrics"
"""Metrics on the test split of the networks of a surrogate search, by the number of the trial."""
UID_ATTRIBUTE = PREFIX + "study_uid"
"""Unique id of the study, by which MLflow and files know it; see `identity`."""
PARTS = PREFIX + "parts"
"""Strategy, sampler and pruner of the newest run, by these names."""
RUN = PREFIX + "run"
"""How the study was last run: its `total` number of trials, the `command`, and why it `ended` before its total."""
MLFLOW = PREFIX + "mlflow"
"""Address at which MLflow last got the study, unless the address holds a password or token."""
HOME = PREFIX + "home"
"""Name and storage of the study when it got its id: a copy of the study has others."""

PLANNED_FOR = PREFIX + "planned_for"
"""Kind and amount of the budget of a comparison by which the strategy of the study plans."""


PROMOTES = f"{PREFIX}promotes"
"""System attribute: number of the trial whose architecture this one trains again, for longer."""
SECOND_OPINION = f"{PREFIX}second_opinion"
"""System attribute: whether the second sampler of a `SecondOpinionSampler` has proposed this trial."""
METRIC = f"{PREFIX}metric"
"""Metric of the task on the validation split, where the value of the trial is the loss."""
VALIDATION_LOSS = f"{PREFIX}validation_loss"
"""Mean loss on the validation split, its standard error (None if it is not known), and the number of examples."""


def cost_key(name: str) -> str:
    """Return the key of a cost of the network, such as `params`.

    Example:
        >>> from optuna_nas.storage.attributes import cost_key
        >>> cost_key("multiply_adds")
        'optuna_nas:multiply_adds'
    """
    return PREFIX + name


def snapshot_key(model: str) -> str:
    """Return the key of the snapshots of a one-shot model; see `model_rounds`.

    Example:
        >>> from optuna_nas.storage.attributes import snapshot_key
        >>> snapshot_key("SNAS")
        'optuna_nas:snas:snapshot'
    """
    return f"{PREFIX}{model.lower()}:snapshot"


def random_scores_key(model: str) -> str:
    """Return the key of the scores of random architectures, of which a pruner takes a quantile.

    Example:
        >>> from optuna_nas.storage.attributes import random_scores_key
        >>> random_scores_key("ghn")
        'optuna_nas:ghn:random_scores'
    """
    return f"{PREFIX}{model.lower()}:random_scores"


# -- names without the prefix -----------------------------------------------------------------------------------------

_ONCE_PLAIN = (
    DIGEST,
    TRAINING_DIGEST,
    DUPLICATE_OF,
    REASON,
    SURROGATE_SCORE,
    SURVIVAL,
    PARAMS,
    MULTIPLY_ADDS,
    MEMORY_ACCESS,
    TRAIN_SECONDS,
    GPU_SECONDS,
    PEAK_MEMORY_BYTES,
    SKIPPED_STEPS,
    BATCH_HALVED,
    START,
    ANYTIME_CURVE,
    MASKED,
    RESUMES,
)
OLD_NAMES = {key: key.removeprefix(PREFIX) for key in _ONCE_PLAIN} | {NETWORK: "network", FLAGGED: "condemned"}
"""Names of attributes in older studies, before all keys had the prefix."""
COUNTED = (DUPLICATE_OF, TRAIN_SECONDS, GPU_SECONDS, RESUMES)
"""What is reckoned with: its old name may be the user's own, unless the trial has the old name of `DIGEST`, too, which
older versions wrote first. Costs, scores and reasons are only shown, whoever named them so."""
SHOWN_NAMES = OLD_NAMES | {FLAGGED: "flagged", MODEL_SECONDS: "model_seconds", EPOCHS: "epochs"}
"""Display names in MLflow and tables; all other keys are bookkeeping and keep their prefix."""
_SHOWN_OLD_NAMES = {old: SHOWN_NAMES[key] for key, old in OLD_NAMES.items()}


# -- types ------------------------------------------------------------------------------------------------------------

_COST, _NUMBER = between(0, 1e18), between(0, 10**9, kind=int)


def reference(name: str, value: Any) -> Any:
    """Return a reference to a file in an artifact store, as the rule of it; see `artifacts`."""
    found = fields_of({"artifact": text(), "sha256": text()})(name, value)
    return found | checked(value, {"study": text()}) if "study" in value else found  # those of before name no study


JSON_HEADER = fields_of({"pieces": _NUMBER, "sha256": text()})
"""Rule of the header of a value of `write_json`."""


def _anytime_curve(name: str, value: Any) -> Any:
    curve = mapping(anything())(name, value)
    metrics = curve.keys() - {"multiply_adds", "budget"}
    if len(metrics) != 1:
        raise ValueError(f"`{name}` must hold `multiply_adds`, `budget` and a metric but holds {shown(sorted(curve))}.")
    columns = checked(curve, dict.fromkeys(("multiply_adds", *metrics), items(between(-1e300, 1e300), least=1)))
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError(f"`{name}` must have as many metrics as exits but has others.")
    return {**columns, **checked(curve, {"budget": _COST})}


def _test_result(name: str, value: Any) -> Any:
    result = mapping(anything())(name, value)
    metric = "accuracy" if "accuracy" in result else "metric"  # the name in studies of before
    found = checked(result, {"trial": _NUMBER, metric: number()})
    return {"trial": found["trial"], "metric": found[metric]}


RULES: dict[str, Rule] = {
    **dict.fromkeys((PARAMS, MULTIPLY_ADDS, MEMORY_ACCESS, PEAK_MEMORY_BYTES), _COST),
    **dict.fromkeys((TRAIN_SECONDS, MODEL_SECONDS, GPU_SECONDS), _COST),
    **dict.fromkeys((DUPLICATE_OF, RETRY_OF, RESUMES, PROMOTES, FAILED_TRIAL), _NUMBER),
    **dict.fromkeys((SKIPPED_STEPS, EPOCHS, TRAINED_EPOCHS), _NUMBER),
    **dict.fromkeys(
        (TRAINING_DIGEST, REASON, FLAGGED, SCORED, SCORED_BY, DIGESTED, START, NETWORK, WORKER, VERSION), text()
    ),
    **dict.fromkeys((SURROGATE_SCORE, METRIC), number()),
    **dict.fromkeys((SURVIVAL, CHECKPOINTED), share()),
    **dict.fromkeys((BATCH_HALVED, REQUEUED, SECOND_OPINION), flag()),
    **dict.fromkeys((CHECKPOINT, SHARED_NETWORK), reference),
    DIGEST: text("[0-9a-f]{16}", "16 hexadecimal digits"),
    ATTEMPT: between(1, 10**9, kind=int),
    VALIDATION_LOSS: row(number(), optional(between(0, 1e300)), _NUMBER),
    FURTHEST: row(optional(number(finite=True)), share()),
    ANYTIME_CURVE: _anytime_curve,
    MASKED: items(anything()),
    FIXED_PARAMS: mapping(anything()),
    RETRY_HISTORY: items(_NUMBER),
    SETTING: mapping(anything()),
    TEST_RESULT: _test_result,
    TEST_METRICS: mapping(number()),
    UID_ATTRIBUTE: text("[0-9A-Za-z_-]{1,64}", "letters and digits"),
    HOME: row(text(), text()),
    RUN: fields_of({"total": _NUMBER, "command": text(), "ended": optional(text())}),
    MLFLOW: text(),
    PARTS: mapping(text()),
    PLANNED_FOR: row(text(), number(finite=True)),
}
"""Types of the attributes that are read, by key. Whoever writes to a study may write anything into them."""


def attribute(attributes: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return the attribute with a key, or else the attribute with its name in older studies; see `COUNTED`.

    An attribute of another type than it must have is left out, as if it were not there; `unreadable` names it.

    Args:
        attributes: User or system attributes of a trial or study.
        key: One of the constants of this module.
        default: Value to return if there is no such attribute.

    Example:
        >>> from optuna_nas.storage.attributes import PARAMS, REASON, WORKER, attribute
        >>> attribute({"optuna_nas:reason": "too large"}, REASON), attribute({"reason": "too large"}, REASON)
        ('too large', 'too large')
        >>> attribute({"worker": "the user's own"}, WORKER) is None
        True
        >>> attribute({"optuna_nas:params": "many"}, PARAMS, 0)
        0
    """
    name = key if key in attributes else OLD_NAMES.get(key)
    if name is None or name not in attributes:
        return default
    if name != key and key in COUNTED and OLD_NAMES[DIGEST] not in attributes:
        return default
    try:
        return RULES.get(key, anything())(name, attributes[name])
    except ValueError:
        return default


def user_attributes(study: Study) -> dict[str, Any]:
    """Return the user attributes of a study, of which Optuna's own copy fails where values are nested deeply.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.attributes import user_attributes
        >>> study = optuna.create_study()
        >>> study.set_user_attr("note", "mine")
        >>> user_attributes(study)
        {'note': 'mine'}
    """
    return dict(study._storage.get_study_user_attrs(study._study_id))


def has_attribute(attributes: Mapping[str, Any], key: str) -> bool:
    """Return whether there is an attribute with a key or its name in older studies, of the type that it must have.

    Example:
        >>> from optuna_nas.storage.attributes import FLAGGED, has_attribute
        >>> has_attribute({"condemned": "its score is low"}, FLAGGED)
        True
    """
    return attribute(attributes, key, _ABSENT) is not _ABSENT


_ABSENT = object()


class Unreadable(NamedTuple):
    """Attribute of another type than it must have, which is left out.

    Args:
        trial: Number of its trial; None for an attribute of the study.
        key: Its key.
        why: What is wrong with it.
    """

    trial: int | None
    key: str
    why: str

    def __str__(self) -> str:
        where = "the study" if self.trial is None else f"trial {self.trial}"
        return f"attribute {self.key!r} of {where} can't be read: {self.why}"


def unreadable(study: Study) -> list[Unreadable]:
    """Return the attributes of a study and its trials that can't be read, which are left out wherever they are used.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.attributes import unreadable
        >>> study = optuna.create_study()
        >>> study.add_trial(optuna.create_trial(value=1.0, user_attrs={"optuna_nas:params": "many"}))
        >>> print(unreadable(study)[0])
        attribute 'optuna_nas:params' of trial 0 can't be read: `optuna_nas:params` must be a number but got 'many'.
    """
    found = [Unreadable(None, key, why) for key, why in unreadable_in(user_attributes(study))]
    for trial in study.get_trials(deepcopy=False):
        found += [
            Unreadable(trial.number, key, why) for key, why in unreadable_in(trial.user_attrs, trial.system_attrs)
        ]
    return found


def unreadable_in(user: Mapping[str, Any], system: Mapping[str, Any] = MappingProxyType({})) -> list[tuple[str, str]]:
    """Return key of, and what is wrong with, the attributes that can't be read.

    What bears a name of an older version but is of another type is the user's own, and is not named.

    Args:
        user: User attributes of a trial or study.
        system: System attributes of a trial.
    """
    wrong = []
    for attributes, name in [*((user, name) for name in user), *((system, name) for name in system)]:
        is_read = name.startswith(PREFIX) or (attributes is system and name in OPTUNAS)
        rule = (RULES.get(name) or _rule_of_json(attributes, name)) if is_read else None
        try:
            if rule is not None:
                rule(name, attributes[name])
        except (ValueError, Unverified) as error:
            wrong.append((name, brief(str(error))))
    return wrong


def shown_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the readable attributes by display name: without the prefix, unless they are bookkeeping.

    Example:
        >>> from optuna_nas.storage.attributes import shown_attributes
        >>> shown_attributes({"optuna_nas:params": 1300, "optuna_nas:worker": "host:1:ab", "note": "mine"})
        {'optuna_nas:worker': 'host:1:ab', 'note': 'mine', 'params': 1300}
    """
    left_out = {name for name, _ in unreadable_in(attributes)}
    attributes = {name: value for name, value in attributes.items() if name not in left_out}
    others = {_SHOWN_OLD_NAMES.get(name, name): value for name, value in attributes.items() if name not in SHOWN_NAMES}
    # Keys with the prefix take precedence over old names that a retried trial of an older study has inherited.
    return others | {SHOWN_NAMES[name]: value for name, value in attributes.items() if name in SHOWN_NAMES}


def is_own(name: str) -> bool:
    """Return whether an attribute belongs to this package, by its key or its name in older studies.

    Example:
        >>> from optuna_nas.storage.attributes import is_own
        >>> is_own("optuna_nas:worker"), is_own("reason"), is_own("note")
        (True, True, False)
    """
    return name.startswith(PREFIX) or name in _SHOWN_OLD_NAMES


def given_params(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters that a trial has or was enqueued with."""
    return {**attribute(trial.system_attrs, FIXED_PARAMS, {}), **trial.params}


def constraints_of(trial: FrozenTrial) -> dict[str, float]:
    """Return the constraints of a trial, satisfied where they are at most 0; what is no number, or NaN, is not.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.attributes import constraints_of
        >>> constraints_of(optuna.create_trial(value=1.0, system_attrs={"constraints": [-1.0, "small"]}))
        {'0': -1.0, '1': inf}
    """
    try:
        found = trial.constraints
    except (TypeError, AttributeError, ValueError):  # of another type than Optuna writes
        return {"constraints": inf}
    return {name: value if is_number(value) or value == -inf else inf for name, value in found.items()}


def objective_names(study: Study) -> list[str]:
    """Return the names of the objectives: those that the study has been given, or numbers."""
    names = study.metric_names
    if isinstance(names, list) and len(names) == len(study.directions) and all(isinstance(n, str) for n in names):
        return names
    return [f"objective {place}" for place in range(len(study.directions))]


# -- JSON values of any length ----------------------------------------------------------------------------------------

PIECE = 2045
"""Length of an attribute that every storage of Optuna accepts, in characters."""


class Unverified(Exception):
    """Raised if data published by another worker are damaged or missing."""


class Unreachable(Unverified):
    """Raised if data published by another worker cannot be read now, but perhaps later."""


def write_json(study: Study, trial: FrozenTrial, key: str, value: object) -> None:
    """Store a JSON value of any length in system attributes of a running trial.

    Args:
        study: Study of the trial.
        trial: Running trial.
        key: Key of the value.
        value: Value that can be encoded as JSON.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.attributes import find_trial, read_json, write_json
        >>> study = optuna.create_study()
        >>> trial = find_trial(study, study.ask().number)
        >>> write_json(study, trial, "optuna_nas:snas:snapshot", {"step": 3})
        >>> read_json(find_trial(study, 0).system_attrs, "optuna_nas:snas:snapshot")
        {'step': 3}
    """
    written = json.dumps(value, separators=(",", ":"))
    storage = study._storage
    pieces = [written[start : start + PIECE] for start in range(0, len(written), PIECE)]
    for place, piece in enumerate(pieces):
        storage.set_trial_system_attr(trial._trial_id, f"{key}:{place}", piece)
    header: dict[str, Any] = {"pieces": len(pieces), "sha256": hashlib.sha256(written.encode()).hexdigest()}
    storage.set_trial_system_attr(trial._trial_id, key, header)


def read_json(attributes: Mapping[str, Any], key: str, rule: Rule | None = None) -> Any | None:
    """Return a value that `write_json` stored, None if there is none.

    Args:
        attributes: System attributes of the trial.
        key: Key of the value.
        rule: Rule of the value; by default that of its key in `JSON_RULES`, if it has one.

    Raises:
        Unverified: A part of the value is missing or changed, or it violates the rule.
    """
    if key not in attributes:
        return None
    try:
        header = JSON_HEADER(key, attributes[key])
        written = "".join(attributes[f"{key}:{place}"] for place in range(header["pieces"]))
        if hashlib.sha256(written.encode()).hexdigest() != header["sha256"]:
            raise ValueError("its sha256 differs")
        value = parse_json(key, written)
        return (rule or _json_rule(key))(key, value)
    except (ValueError, *WRONG) as error:
        raise Unverified(f"attribute {key!r} is damaged: {brief(str(error))}") from error


_METRICS = mapping(number())


def _record(name: str, value: Any) -> Any:
    rules: dict[str, Rule] = {
        "step": _NUMBER,
        "metrics": _METRICS,
        "probabilities": items(items(share(), least=1), least=1),
    }
    record = fields_of({**rules, "credit": optional(items(number()))})(name, value)
    rows = record["probabilities"]
    if len(set(map(len, rows))) > 1 or len(record["credit"] or rows) != len(rows) or "entropy" not in record["metrics"]:
        raise ValueError(f"`{name}` must hold rows of one length, a credit for each, and an entropy, but does not.")
    return record


JSON_RULES: dict[str, Rule] = {
    MASKS: fields_of(
        {"step": _NUMBER, "kept": mapping(items(text())), "weights": mapping(between(-1e300, 1e300))},
    ),
    SNAS_RECORDS: items(_record),
    FIT: items(row(_NUMBER, _METRICS)),
}
"""Types of values of `write_json`, by key or, for learning curves, the prefix of the key."""


def _json_rule(key: str) -> Rule:
    return JSON_RULES.get(FIT if key.startswith(FIT) else key) or anything()


def _rule_of_json(attributes: Mapping[str, Any], key: str) -> Rule | None:
    """Return a rule that reads all of a value of `write_json`, None for other attributes."""
    if key not in JSON_RULES and not (key.startswith(FIT) and ":" not in key.removeprefix(FIT)):
        return None
    return lambda name, value: read_json(attributes, name)


def write_fit_records(
    study: Study, trial: FrozenTrial, model: str, records: Sequence[tuple[int, Mapping[str, float]]]
) -> None:
    """Store the learning curve of a one-shot model, as pairs (step, metrics), in the running trial that trained it."""
    plain = [[step, {name: float(f"{value:.6g}") for name, value in metrics.items()}] for step, metrics in records]
    write_json(study, trial, FIT + model, plain)


def fit_records_of(trial: FrozenTrial) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """Return the learning curves of the one-shot models that a trial trained, by model; empty for most trials."""
    curves: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for key in trial.system_attrs:
        model = key.removeprefix(FIT)
        if model != key and ":" not in model:
            with suppress(Unverified):
                curves[model] = [(step, metrics) for step, metrics in read_json(trial.system_attrs, key) or ()]
    return curves


def masks_of(trial: FrozenTrial, space: Space) -> dict[str, Any] | None:
    """Return the masks stored in a trial, None for most trials and for masks of another space; see `MASKS`."""
    with suppress(Unverified, ValueError):
        masks = read_json(trial.system_attrs, MASKS)
        if masks is not None and masks["weights"].keys() >= space.options().keys() <= masks["kept"].keys():
            space.architecture(masks["kept"])  # raises where it is of another space
            return masks if max(masks["weights"].values()) > 0 else None
    return None


def find_trial(study: Study, number: int) -> FrozenTrial | None:
    """Return the trial with a number, None if there is none; the cost does not grow with the study."""
    try:
        trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    except KeyError:
        return None
    return study._storage.get_trial(trial_id)


def hash_of(name: str) -> int:
    """Return a 64-bit hash that is equal in every process.

    Example:
        >>> from optuna_nas.storage.attributes import hash_of
        >>> hash_of("a") == hash_of("a") != hash_of("b")
        True
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
