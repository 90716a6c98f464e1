"""What workers tell each other arrives whole, or not at all."""

import optuna
import pytest

from optuna_nas.storage.artifacts import fetch_file, folder_store, publish_file
from optuna_nas.storage.attributes import PIECE, PREFIX, Unverified, find_trial, read_json, write_json

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
    attributes = frozen(study).system_attrs
    assert read_json(attributes, KEY) == value
    assert all(len(piece) <= PIECE for piece in attributes.values() if isinstance(piece, str))
    assert all(name.startswith(KEY) for name in attributes)


def test_what_is_not_there_is_none_and_what_lacks_its_header_is_not_there(study):
    study.ask()
    write_json(study, frozen(study), KEY, "x" * 5000)
    attributes = dict(frozen(study).system_attrs)
    assert read_json(attributes, "other") is None
    del attributes[KEY]
    assert read_json(attributes, KEY) is None


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
