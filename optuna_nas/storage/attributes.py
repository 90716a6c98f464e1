"""Attributes of a study: their names, and JSON values of any length."""

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
RESUMES = "resumes"
"""Trial attribute: number of the trial whose checkpoint this one goes on from."""
DIGEST = "architecture_digest"
"""Trial attribute: digest of the canonical architecture, of trials that know it."""
SURROGATE_SCORE = "surrogate_score"
"""Trial attribute: what was guessed of it without training, larger is better."""
GPU_SECONDS = "gpu_seconds"
"""Trial attribute: seconds of a GPU that it took, times the share of the GPU that it had."""
CONDEMNED = "condemned"
"""Trial attribute: why a pruner wanted to stop it before its first step, one sentence."""
ANYTIME_CURVE = "anytime_curve"
"""Trial attribute of networks with early exits: `multiply_adds` and `accuracy` of each, and the `budget`."""
MASKS = "masks"
"""Key of what masks keep (HM-NAS): `step` of the model, `kept` ops and `weights` of edges by path."""
FIT = "fit:"
"""Begins the keys of how the fits of models went, before the model's name."""
PIECE = 2045
"""Characters that every storage of Optuna takes in one attribute."""


def hash_of(name: str) -> int:
    """Return a number of 64 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def write_json(study: Study, trial: FrozenTrial, key: str, value: object) -> None:
    """Attach a JSON value to a running trial."""
    text = json.dumps(value, separators=(",", ":"))
    storage, name = study._storage, PREFIX + key
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    for number, piece in enumerate(pieces):
        storage.set_trial_system_attr(trial._trial_id, f"{name}:{number}", piece)
    header: dict[str, Any] = {"pieces": len(pieces), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    storage.set_trial_system_attr(trial._trial_id, name, header)


def read_json(attributes: Mapping[str, Any], key: str) -> Any | None:
    """Return a value that `write_json` attached, None where there is none.

    Args:
        attributes: System attributes of the trial.
        key: As written.

    Raises:
        Unverified: A piece is missing or changed.
    """
    name = PREFIX + key
    if name not in attributes:
        return None
    try:
        header = attributes[name]
        text = "".join(attributes[f"{name}:{number}"] for number in range(header["pieces"]))
        if hashlib.sha256(text.encode()).hexdigest() != header["sha256"]:
            raise ValueError("its sha256 differs")
        return json.loads(text)
    except (KeyError, TypeError, ValueError) as error:
        raise Unverified(f"attribute {name!r} is damaged: {error}") from error


def write_fit_records(
    study: Study, trial: FrozenTrial, model: str, records: Sequence[tuple[int, Mapping[str, float]]]
) -> None:
    """Attach to a running trial how the fit of a one-shot model went that it trained: (step, metrics)."""
    plain = [[step, {name: float(f"{value:.6g}") for name, value in metrics.items()}] for step, metrics in records]
    write_json(study, trial, FIT + model, plain)


def fit_records_of(trial: FrozenTrial) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """Return how the fits of the models went that a trial trained, by model; empty for most trials."""
    found: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for key in trial.system_attrs:
        model = key.removeprefix(PREFIX + FIT)
        if model != key and ":" not in model:
            with suppress(Unverified):
                published = read_json(trial.system_attrs, FIT + model)
                found[model] = [(step, metrics) for step, metrics in published or ()]
    return found


def masks_of(trial: FrozenTrial) -> dict[str, Any] | None:
    """Return how the masks stood that judged a trial, where it is the first to tell."""
    with suppress(Unverified):
        return read_json(trial.system_attrs, MASKS)
    return None


def find_trial(study: Study, number: int) -> FrozenTrial | None:
    """Return the trial of a number as it is now, at a cost that does not grow with the study."""
    try:
        trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    except KeyError:
        return None
    return study._storage.get_trial(trial_id)


REASON = "reason"
"""Trial attribute: why it was pruned or failed, one sentence."""

DUPLICATE_OF = "duplicate_of"
"""Trial attribute: number of the finished trial that computed the same function under the same other parameters."""

TRAINING_DIGEST = "training_digest"
"""Trial attribute: digest of skeleton, recipe, data and what the training started from."""

START = "start"
"""Trial attribute, where trainings start from generated weights: `ghn`, or `scratch` while the GHN has not learned."""

NETWORK = "network"
"""Trial attribute: file of the trained network, as long as the trial is among the best."""

SHARED_NETWORK = PREFIX + "network"
"""Trial attribute: where that file is in the store that workers share."""

MASKED = "masked"
"""Trial attribute: for every time that masks made the running network smaller, the epoch, the parameters and
multiply-adds that are left, and the accuracy before and after."""

CHECKPOINT = PREFIX + "checkpoint"
"""Trial attribute: where its newest checkpoint is in the store that workers share."""


SETTING = PREFIX + "setting"
"""Study attribute: space, skeleton, data and recipe, as JSON; a study goes on under the same setting only."""

VERSION = PREFIX + "version"
"""Study attribute: of optuna_nas, as it was last run or created."""


TEST_RESULT = PREFIX + "test"
"""Study attribute: which trial's network was judged on the test split, and its accuracy."""


WORKER = PREFIX + "worker"
"""Trial attribute: who runs it: host, process id, and a token of that process."""


REQUEUED = PREFIX + "requeued"
"""Trial attribute: it was interrupted, and another trial goes on with its parameters."""

RETRY_OF = PREFIX + "retry_of"
"""Trial attribute: number of the interrupted trial that it goes on with."""

ATTEMPT = PREFIX + "attempt"
"""Trial attribute: how often these parameters were tried, counting processes that died."""

RETRY_HISTORY = "retry_history"
"""Optuna's system attribute: numbers of the dead trials that it goes on with."""


UID_ATTRIBUTE = PREFIX + "study_uid"


class Unverified(Exception):
    """What another worker published is damaged or gone."""


class Unreachable(Unverified):
    """It can't be read now; perhaps later."""
