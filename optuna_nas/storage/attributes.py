"""Attributes of studies and trials: the table of their keys, and JSON values of any length.

Every key that the package writes bears the prefix `optuna_nas:`, so that it never meets one of the user's. Older
studies bear some of them without it; `attribute` reads both.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

PREFIX = "optuna_nas:"

# -- user attributes of trials: what a user may want to see -----------------------------------------------------------

DIGEST = PREFIX + "architecture_digest"
"""Digest of the canonical architecture."""
TRAINING_DIGEST = PREFIX + "training_digest"
"""Digest of skeleton, recipe, data and initial weights."""
DUPLICATE_OF = PREFIX + "duplicate_of"
"""Number of the finished trial that computed the same function under the same other parameters."""
REASON = PREFIX + "reason"
"""Why the trial was pruned or failed, one sentence."""
FLAGGED = PREFIX + "flagged"
"""Why a pruner judged the architecture not worth training, one sentence; also on exempt trials, which train anyway."""
SURROGATE_SCORE = PREFIX + "surrogate_score"
"""Score predicted without training, larger is better."""
SURVIVAL = PREFIX + "survival"
"""Share of the architecture that the masks keep (HM-NAS), a fraction."""
PARAMS = PREFIX + "params"
"""Parameters of the network."""
MULTIPLY_ADDS = PREFIX + "multiply_adds"
"""Multiply-adds (MACs) of one prediction."""
MEMORY_ACCESS = PREFIX + "memory_access"
"""Elements read and written by one prediction."""
TRAIN_SECONDS = PREFIX + "train_seconds"
"""Seconds of training, validation included."""
GPU_SECONDS = PREFIX + "gpu_seconds"
"""Seconds of GPU time, times the share of the GPU that the trial had."""
PEAK_MEMORY_BYTES = PREFIX + "peak_memory_bytes"
"""Largest GPU memory in use during the training."""
SKIPPED_STEPS = PREFIX + "skipped_steps"
"""Training steps skipped because loss or gradient was not finite."""
BATCH_HALVED = PREFIX + "batch_halved"
"""True where whole batches did not fit the memory and halves did."""
START = PREFIX + "start"
"""Initial weights of trainings by a GHN: `ghn`, or `scratch` while the GHN is not fitted."""
NETWORK = PREFIX + "network_file"
"""Local file of the trained network."""
ANYTIME_CURVE = PREFIX + "anytime_curve"
"""Early exits: `multiply_adds` and the task's metric of each, under its name, and the `budget`."""
MASKED = PREFIX + "masked"
"""Every time masks shrank the running network: the epoch, parameters and multiply-adds left, the metric before
and after."""

# -- user attributes of trials: bookkeeping ---------------------------------------------------------------------------

WORKER = PREFIX + "worker"
"""Host, process id and process token of the worker that runs the trial."""
REQUEUED = PREFIX + "requeued"
"""True on an interrupted trial whose parameters another trial tries again."""
RETRY_OF = PREFIX + "retry_of"
"""Number of the interrupted trial that this one tries again."""
ATTEMPT = PREFIX + "attempt"
"""Number of this attempt, counted from 1 since the parameters last got further; see `retries`."""
FURTHEST = PREFIX + "furthest"
"""How far earlier attempts got: the last reported step (None without reports) and the fraction in a checkpoint."""
CHECKPOINTED = PREFIX + "checkpointed"
"""Fraction of the training that the newest checkpoint holds."""
RESUMES = PREFIX + "resumes"
"""Number of the trial whose checkpoint file this trial resumes."""
CHECKPOINT = PREFIX + "checkpoint"
"""Where the newest checkpoint is in the artifact store that workers share."""
SHARED_NETWORK = PREFIX + "network"
"""Where the trained network is in the artifact store that workers share."""

# -- system attributes of trials: values of `write_json` --------------------------------------------------------------

MASKS = PREFIX + "masks"
"""Masks of an HM-NAS: `step` of the model, `kept` ops and `weights` of edges by path."""
SNAS_RECORDS = PREFIX + "snas:records"
"""Distribution of an `SNASSampler` over time."""
FIT = PREFIX + "fit:"
"""Prefix of the learning curves of one-shot models; the name of the model follows."""

FIXED_PARAMS = "fixed_params"
"""Optuna's: parameters that a trial was enqueued with."""
RETRY_HISTORY = "retry_history"
"""Optuna's: numbers of the trials that a retried trial tries again, ascending."""
FAILED_TRIAL = "failed_trial"
"""Optuna's: number of the first trial of that history."""

# -- user attributes of studies ---------------------------------------------------------------------------------------

SETTING = PREFIX + "setting"
"""Space, skeleton, data and recipe as JSON; a study is resumed under the same setting only."""
VERSION = PREFIX + "version"
"""Version of optuna_nas that created the study or ran it last."""
TEST_RESULT = PREFIX + "test"
"""Number of the trial whose network was evaluated on the test split, and its metric."""
UID_ATTRIBUTE = PREFIX + "study_uid"
"""Identity of the study in MLflow, where names may repeat."""


def cost_key(name: str) -> str:
    """Return the key of a cost of the network, such as `params`.

    >>> cost_key("multiply_adds")
    'optuna_nas:multiply_adds'
    """
    return PREFIX + name


def snapshot_key(model: str) -> str:
    """Return the key of the snapshots of a one-shot model (`model_rounds`).

    >>> snapshot_key("SNAS")
    'optuna_nas:snas:snapshot'
    """
    return f"{PREFIX}{model.lower()}:snapshot"


def random_scores_key(model: str) -> str:
    """Return the key of the scores of random architectures, by which a pruner knows a quantile.

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
"""Names of attributes in older studies, from before they had the prefix."""
SHOWN_NAMES = OLD_NAMES | {FLAGGED: "flagged"}
"""What people see, in MLflow and in tables; the other keys are bookkeeping and keep their prefix."""
_SHOWN_OLD_NAMES = {old: SHOWN_NAMES[key] for key, old in OLD_NAMES.items()}


def attribute(attributes: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return an attribute under its key, or else under the name that it had in older studies.

    >>> attribute({"optuna_nas:reason": "too large"}, REASON), attribute({"reason": "too large"}, REASON)
    ('too large', 'too large')
    >>> attribute({"worker": "the user's own"}, WORKER) is None
    True

    Args:
        attributes: User attributes of a trial or study.
        key: One of the constants of this module.
        default: Returned where neither is there.
    """
    if key in attributes:
        return attributes[key]
    old_name = OLD_NAMES.get(key)
    return default if old_name is None else attributes.get(old_name, default)


def has_attribute(attributes: Mapping[str, Any], key: str) -> bool:
    """Return whether an attribute is there, under its key or its old name.

    >>> has_attribute({"condemned": "its score is low"}, FLAGGED)
    True
    """
    return key in attributes or OLD_NAMES.get(key) in attributes


def shown_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes under the names that people see: without the prefix, unless they are bookkeeping.

    >>> shown_attributes({"optuna_nas:params": 1300, "optuna_nas:worker": "host:1:ab", "note": "mine"})
    {'optuna_nas:worker': 'host:1:ab', 'note': 'mine', 'params': 1300}
    """
    others = {_SHOWN_OLD_NAMES.get(name, name): value for name, value in attributes.items() if name not in SHOWN_NAMES}
    # Ours last, to prevail over what a retried trial of an old study has inherited under the old names.
    return others | {SHOWN_NAMES[name]: value for name, value in attributes.items() if name in SHOWN_NAMES}


def is_own(name: str) -> bool:
    """Return whether an attribute is one of this package, by its key or its old name.

    >>> is_own("optuna_nas:worker"), is_own("reason"), is_own("note")
    (True, True, False)
    """
    return name.startswith(PREFIX) or name in _SHOWN_OLD_NAMES


def given_params(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters that a trial has or was enqueued with."""
    return {**trial.system_attrs.get(FIXED_PARAMS, {}), **trial.params}


# -- JSON values of any length ----------------------------------------------------------------------------------------

PIECE = 2045
"""Characters that every storage of Optuna takes in one attribute."""


class Unverified(Exception):
    """What another worker published is damaged or gone."""


class Unreachable(Unverified):
    """What another worker published can't be read now; perhaps later."""


def write_json(study: Study, trial: FrozenTrial, key: str, value: object) -> None:
    """Attach a JSON value to a running trial, in pieces of system attributes.

    >>> import optuna
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
    """Return a value that `write_json` attached, None where there is none.

    Args:
        attributes: System attributes of the trial.
        key: As written.

    Raises:
        Unverified: A piece is missing or changed.
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
    """Attach to a running trial the learning curves of a one-shot model that it trained: (step, metrics)."""
    plain = [[step, {name: float(f"{value:.6g}") for name, value in metrics.items()}] for step, metrics in records]
    write_json(study, trial, FIT + model, plain)


def fit_records_of(trial: FrozenTrial) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """Return the learning curves of the one-shot models that a trial trained, by model; empty for most trials."""
    found: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for key in trial.system_attrs:
        model = key.removeprefix(FIT)
        if model != key and ":" not in model:
            with suppress(Unverified):
                published = read_json(trial.system_attrs, key)
                found[model] = [(step, metrics) for step, metrics in published or ()]
    return found


def masks_of(trial: FrozenTrial) -> dict[str, Any] | None:
    """Return the masks that judged a trial, where it is the first that they judged; else None."""
    with suppress(Unverified):
        return read_json(trial.system_attrs, MASKS)
    return None


def find_trial(study: Study, number: int) -> FrozenTrial | None:
    """Return the trial of a number as it is now, None where there is none; the cost does not grow with the study."""
    try:
        trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    except KeyError:
        return None
    return study._storage.get_trial(trial_id)


def hash_of(name: str) -> int:
    """Return a 64-bit number, the same in every process.

    >>> hash_of("a") == hash_of("a") != hash_of("b")
    True
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
