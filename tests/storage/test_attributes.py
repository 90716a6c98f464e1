"""What workers tell each other arrives whole, or not at all."""

import math

import optuna
import pytest
from optuna.study import StudyDirection

from optuna_nas.plots.anytime import anytime_curves
from optuna_nas.plots.progress import pareto, progress
from optuna_nas.plots.surrogate import scores_of
from optuna_nas.storage import attributes
from optuna_nas.storage.artifacts import fetch_file, folder_store, publish_file
from optuna_nas.storage.attributes import (
    ANYTIME_CURVE,
    FLAGGED,
    NETWORK,
    OLD_NAMES,
    PARAMS,
    PIECE,
    PREFIX,
    REASON,
    SURROGATE_SCORE,
    TRAIN_SECONDS,
    WORKER,
    Unverified,
    attribute,
    constraints_of,
    find_trial,
    has_attribute,
    is_own,
    read_json,
    shown_attributes,
    write_json,
)

OPTUNAS = ("FIXED_PARAMS", "RETRY_HISTORY", "FAILED_TRIAL")
KEY = PREFIX + "key"


@pytest.fixture(params=["memory", "sqlite"])
def study(request, tmp_path):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(storage=None if request.param == "memory" else f"sqlite:///{tmp_path}/study.db")


def frozen(study, number=0):
    return find_trial(study, number)


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, "é" * 3000]}, [], list(range(5000))])
def test_json_comes_back_in_pieces_that_every_storage_takes(study, value):
    study.ask()
    write_json(study, frozen(study), KEY, value)
    written = frozen(study).system_attrs
    assert read_json(written, KEY) == value
    assert all(len(piece) <= PIECE for piece in written.values() if isinstance(piece, str))
    assert all(name.startswith(KEY) for name in written)


def test_what_is_not_there_is_none_and_what_lacks_its_header_is_not_there(study):
    study.ask()
    write_json(study, frozen(study), KEY, "x" * 5000)
    written = dict(frozen(study).system_attrs)
    assert read_json(written, "other") is None
    del written[KEY]
    assert read_json(written, KEY) is None


@pytest.mark.parametrize("damage", [{KEY + ":1": "y"}, {KEY + ":1": None}, {KEY: 3}])
def test_damage_is_found(study, damage):
    study.ask()
    write_json(study, frozen(study), KEY, "x" * 5000)
    with pytest.raises(Unverified, match=f"'{KEY}' is damaged"):
        read_json({**frozen(study).system_attrs, **damage}, KEY)


def test_a_file_is_what_was_published_or_unverified(study, tmp_path):
    study.ask()
    store, source = folder_store(tmp_path / "store"), tmp_path / "source"
    source.write_bytes(b"weights")
    reference = publish_file(study, frozen(study), store, source)
    fetch_file(store, reference, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"weights"
    with pytest.raises(Unverified, match="sha256 differs"):
        fetch_file(store, {**reference, "sha256": "0"}, tmp_path / "copy")
    with pytest.raises(Unverified, match="can't be read"):
        fetch_file(store, {**reference, "artifact": "gone"}, tmp_path / "copy")


def test_trials_are_found_by_number(study):
    study.ask()
    assert find_trial(study, 0).number == 0
    assert find_trial(study, 1) is None


# -- the table of keys -------------------------------------------------------------------------------------------------


def keys():
    return {name: value for name, value in vars(attributes).items() if name.isupper() and isinstance(value, str)}


def test_every_key_is_prefixed_and_no_two_are_equal():
    ours = {name: key for name, key in keys().items() if name not in ("PREFIX", *OPTUNAS)}
    assert len(ours) > 30
    assert all(key.startswith(PREFIX) and key != PREFIX for key in ours.values())
    assert len(set(ours.values())) == len(ours)


TEXTS, FLAGS = (attributes.TRAINING_DIGEST, REASON, FLAGGED, attributes.START, NETWORK), (attributes.BATCH_HALVED,)
CURVE = {"multiply_adds": [1, 2], "accuracy": [0.1, 0.2], "budget": 3}
PAIRS = {
    **dict.fromkeys(TEXTS, ("new", "old")),
    **dict.fromkeys(FLAGS, (True, False)),
    attributes.DIGEST: ("0" * 16, "1" * 16),
    ANYTIME_CURVE: (CURVE, {**CURVE, "budget": 4}),
    attributes.MASKED: ([], [{"epoch": 1}]),
}


@pytest.mark.parametrize(("key", "old_name"), OLD_NAMES.items())
def test_an_attribute_is_read_under_its_key_and_under_its_old_name(key, old_name):
    new, old = PAIRS.get(key, (1, 0))
    assert attribute({key: new, old_name: old}, key) == new
    digest = {"architecture_digest": "1" * 16}
    assert attribute({**digest, old_name: old}, key) == old
    assert attribute({}, key, 3) == 3
    assert [has_attribute({**digest, name: new}, key) for name in (key, old_name)] == [True, True]
    assert not has_attribute({"other": new}, key)
    assert has_attribute({old_name: new}, key) == (key not in attributes.COUNTED)
    assert is_own(key)
    assert is_own(old_name)


@pytest.mark.parametrize("key", [key for key in attributes.RULES if key.startswith(PREFIX)])
def test_an_attribute_of_another_type_is_left_out_and_named(key):
    for value in (object(), [object()], float("nan"), "\x1b[31m" if key not in TEXTS else None):
        if attribute({key: value}, key, "absent") == "absent":
            break
    assert attribute({key: value}, key, "absent") == "absent"
    assert not has_attribute({key: value}, key)
    assert [name for name, _ in attributes.unreadable_in({key: value})] == [key]
    assert shown_attributes({key: value}) == {}


def test_what_a_user_calls_as_an_older_version_did_is_the_users_own():
    own = {"params": {"width": 3}, "reason": 5, "failed_trial": "mine"}
    assert attribute(own, PARAMS) is None
    assert attributes.unreadable_in(own) == []
    assert shown_attributes(own) == own


def test_what_never_had_another_name_is_not_taken_from_the_users_attributes():
    assert attribute({"worker": "mine", "attempt": 3, "setting": {}}, WORKER) is None
    assert not has_attribute({"worker": "mine"}, WORKER)
    assert not is_own("worker")


def test_attributes_are_shown_without_the_prefix_and_the_newer_of_two_counts():
    known = {"reason": "old", REASON: "new", "condemned": "low", WORKER: "host:1:a", "note": 1, NETWORK: "file"}
    shown = {"reason": "new", "flagged": "low", WORKER: "host:1:a", "note": 1, "network": "file"}
    assert shown_attributes(known) == shown


def renamed(trial, names):
    known = {names.get(key, key): value for key, value in trial.user_attrs.items()}
    return optuna.create_trial(
        state=trial.state, values=trial.values, user_attrs=known, intermediate_values=trial.intermediate_values
    )


def test_an_older_study_looks_the_same():
    trials = [
        optuna.create_trial(
            value=0.1 * number,
            intermediate_values={1: 0.1 * number},
            user_attrs={
                attributes.DIGEST: "0" * 16,
                TRAIN_SECONDS: 3.0 + number,
                PARAMS: 100 * number,
                SURROGATE_SCORE: 0.2 * number,
                **({FLAGGED: "its score is low"} if number == 1 else {}),
                ANYTIME_CURVE: {"multiply_adds": [1, 2], "accuracy": [0.1, 0.2], "budget": 3},
            },
        )
        for number in range(8)
    ]
    older = [renamed(trial, OLD_NAMES) for trial in trials]
    assert not any(name.startswith(PREFIX) for trial in older for name in trial.user_attrs)
    for number, (trial, other) in enumerate(zip(trials, older, strict=True)):
        trial.number = other.number = number
    up = StudyDirection.MAXIMIZE
    assert scores_of(older, up) == scores_of(trials, up)
    assert scores_of(older, up).flagged.count(True) == 1
    assert progress(older, up) == progress(trials, up)
    assert progress(older, up).seconds[-1] == 52
    assert pareto(older, "params", up) == pareto(trials, "params", up)
    assert len(pareto(older, "params", up)) == 8
    assert anytime_curves(older, up) == anytime_curves(trials, up)
    assert len(anytime_curves(older, up)) == 8


def test_a_bound_that_is_infinite_is_kept_as_in_optuna():
    study = optuna.create_study(direction="maximize")
    trial = study.ask()
    trial.set_constraint("params", -math.inf)
    study.tell(trial, 1.0)
    assert constraints_of(study.trials[0]) == {"params": -math.inf}
