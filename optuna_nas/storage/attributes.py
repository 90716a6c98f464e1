"""Keys of attributes of studies and trials, and JSON values of any length.

All keys of this package have the prefix `optuna_nas:`, so that they never collide with keys of the user. Older studies
have some of them without the prefix; `attribute` reads both.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

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
SURVIVAL = PREFIX + "survival"
"""Fraction of the architecture that survives the masks (HM-NAS), in [0, 1]."""
PARAMS = PREFIX + "params"
"""Number of parameters of the network."""
MULTIPLY_ADDS = PREFIX + "multiply_adds"
"""Multiply-adds (MACs) of one prediction."""
MEMORY_ACCESS = PREFIX + "memory_access"
"""Elements read and written by one prediction."""
TRAIN_SECONDS = PREFIX + "train_seconds"
"""Seconds of training, including validation."""
GPU_SECONDS = PREFIX + "gpu_seconds"
"""Seconds on the GPU, times the fraction of the GPU that the trial had."""
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

# -- user attributes of studies ---------------------------------------------------------------------------------------

SETTING = PREFIX + "setting"
"""Space, skeleton, data and recipe as JSON; a study is resumed only with an equal setting."""
VERSION = PREFIX + "version"
"""Version of optuna_nas that created or last ran the study."""
TEST_RESULT = PREFIX + "test"
"""Number of the trial whose network was evaluated on the test split, and the metric there."""
UID_ATTRIBUTE = PREFIX + "study_uid"
"""Unique id of the study, by which MLflow and files know it; see `identity`."""
HOME = PREFIX + "home"
"""Name and storage of the study when it got its id: a copy of the study has others."""


PROMOTES = f"{PREFIX}promotes"
"""System attribute: number of the trial whose architecture this one trains again, for longer."""
METRIC = f"{PREFIX}metric"
"""Metric of the task on the validation split, where the value of the trial is the loss."""


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
SHOWN_NAMES = OLD_NAMES | {FLAGGED: "flagged"}
"""Display names in MLflow and tables; all other keys are bookkeeping and keep their prefix."""
_SHOWN_OLD_NAMES = {old: SHOWN_NAMES[key] for key, old in OLD_NAMES.items()}


def attribute(attributes: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return the attribute with a key, or else the attribute with its name in older studies.

    Args:
        attributes: User attributes of a trial or study.
        key: One of the constants of this module.
        default: Value to return if there is no such attribute.

    Example:
        >>> from optuna_nas.storage.attributes import REASON, WORKER, attribute
        >>> attribute({"optuna_nas:reason": "too large"}, REASON), attribute({"reason": "too large"}, REASON)
        ('too large', 'too large')
        >>> attribute({"worker": "the user's own"}, WORKER) is None
        True
    """
    if key in attributes:
        return attributes[key]
    old_name = OLD_NAMES.get(key)
    return default if old_name is None else attributes.get(old_name, default)


def has_attribute(attributes: Mapping[str, Any], key: str) -> bool:
    """Return whether there is an attribute with a key or its name in older studies.

    Example:
        >>> from optuna_nas.storage.attributes import FLAGGED, has_attribute
        >>> has_attribute({"condemned": "its score is low"}, FLAGGED)
        True
    """
    return key in attributes or OLD_NAMES.get(key) in attributes


def shown_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes by display name: without the prefix, unless they are bookkeeping.

    Example:
        >>> from optuna_nas.storage.attributes import shown_attributes
        >>> shown_attributes({"optuna_nas:params": 1300, "optuna_nas:worker": "host:1:ab", "note": "mine"})
        {'optuna_nas:worker': 'host:1:ab', 'note': 'mine', 'params': 1300}
    """
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


def params_hash(params: Mapping[str, Any], names: Iterable[str]) -> str:
    """Return a hash of the parameters of some names.

    Example:
        >>> from optuna_nas.storage.attributes import params_hash
        >>> params_hash({"a": 1, "rate": 0.1}, ["a"]) == params_hash({"a": 1}, ["a"])
        True
    """
    return f"{hash_of(json.dumps([[name, params.get(name)] for name in sorted(names)])):016x}"


def digest_noted(trial: FrozenTrial, names: Iterable[str]) -> str | None:
    """Return the hash of the architecture that a trial notes, None if there is none or it is another architecture's.

    Args:
        trial: Trial of an objective that notes hashes.
        names: Names of the parameters of the space.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.attributes import DIGEST, DIGESTED, digest_noted, params_hash
        >>> op = {"op": optuna.distributions.CategoricalDistribution(("a", "b"))}
        >>> noted = {DIGEST: "0f", DIGESTED: params_hash({"op": "a"}, op)}
        >>> for choice in ("a", "b"):
        ...     trial = optuna.create_trial(value=1, params={"op": choice}, distributions=op, user_attrs=noted)
        ...     print(digest_noted(trial, op))
        0f
        None
    """
    noted, digest = trial.user_attrs.get(DIGESTED), attribute(trial.user_attrs, DIGEST)
    return digest if isinstance(digest, str) and noted in (None, params_hash(trial.params, names)) else None


def given_params(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters that a trial has or was enqueued with."""
    return {**trial.system_attrs.get(FIXED_PARAMS, {}), **trial.params}


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
        >>> from optuna_nas.storage.attributes import MASKS, find_trial, read_json, write_json
        >>> study = optuna.create_study()
        >>> trial = find_trial(study, study.ask().number)
        >>> write_json(study, trial, MASKS, {"step": 3})
        >>> read_json(find_trial(study, 0).system_attrs, MASKS)
        {'step': 3}
    """
    text = json.dumps(value, separators=(",", ":"))
    storage = study._storage
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    for number, piece in enumerate(pieces):
        storage.set_trial_system_attr(trial._trial_id, f"{key}:{number}", piece)
    header: dict[str, Any] = {"pieces": len(pieces), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    storage.set_trial_system_attr(trial._trial_id, key, header)


def read_json(attributes: Mapping[str, Any], key: str) -> Any | None:
    """Return a value that `write_json` stored, None if there is none.

    Args:
        attributes: System attributes of the trial.
        key: Key of the value.

    Raises:
        Unverified: A part of the value is missing or changed.
    """
    if key not in attributes:
        return None
    try:
        header = attributes[key]
        text = "".join(attributes[f"{key}:{number}"] for number in range(header["pieces"]))
        if hashlib.sha256(text.encode()).hexdigest() != header["sha256"]:
            raise ValueError("its sha256 differs")
        return json.loads(text)
    except (KeyError, TypeError, ValueError) as error:
        raise Unverified(f"attribute {key!r} is damaged: {error}") from error


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
                published = read_json(trial.system_attrs, key)
                curves[model] = [(step, metrics) for step, metrics in published or ()]
    return curves


def masks_of(trial: FrozenTrial) -> dict[str, Any] | None:
    """Return the masks stored in a trial, None for most trials; see `MASKS`."""
    with suppress(Unverified):
        return read_json(trial.system_attrs, MASKS)
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
