"""Nothing left over, copied or changed is believed without asking whose it is."""

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from mlflow import MlflowClient
from optuna.samplers import GridSampler, PartialFixedSampler, RandomSampler

from optuna_nas import (
    SNAS,
    CellKind,
    CellSpace,
    DatasetData,
    GHNSampler,
    Heartbeat,
    ImageClassification,
    ImageData,
    MLflowTracker,
    NetworkSpace,
    Recipe,
    Search,
    Skeleton,
    SNASRecipe,
    SNASSampler,
    TensorData,
    TrainObjective,
    load_network,
    nasbench201_skeleton,
    nasbench201_space,
)
from optuna_nas.networks import export_network, save_network
from optuna_nas.networks.files import owner_of
from optuna_nas.oneshot import GHN, HMNAS, GHNRecipe, HMNASRecipe
from optuna_nas.results.final_training import network_to_export
from optuna_nas.results.report import write_report
from optuna_nas.search.results import network_of
from optuna_nas.search.runner import work
from optuna_nas.storage.attributes import DUPLICATE_OF, METRIC, SETTING, SURROGATE_SCORE
from optuna_nas.storage.identity import home_of, study_uid

pytestmark = [
    pytest.mark.filterwarnings("ignore:PartialFixedSampler is experimental"),
]

LABELS = np.arange(120) % 3
IMAGES = np.random.default_rng(0).normal(size=(120, 6, 6)).astype(np.float32) + LABELS[:, None, None]
DATA = ImageData.from_arrays(IMAGES, LABELS)
SPACE = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, DATA.input_shape, 3))


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def search(name, folder=None, **changes):
    fields = {"trials": 2, "tracking": None, "pictures": False, "sampler": RandomSampler(seed=0), "cpu_threads": 1}
    return Search(name, SPACE, DATA, Recipe(epochs=1, batch_size=16), folder=folder, **{**fields, **changes})


# -- folders and files -------------------------------------------------------------------------------------------------


def test_two_studies_do_not_share_a_folder(tmp_path):
    folder = tmp_path / "shared"
    search("a", folder, storage=tmp_path / "a.db").run()
    with pytest.raises(ValueError, match=r"`folder` must belong to one study but .* holds the files of 'a' in .*a.db"):
        search("b", folder, storage=tmp_path / "b.db").run()
    assert search("a", folder, storage=tmp_path / "a.db", trials=3).run().best is not None


def test_two_storages_with_one_name_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    search("n", storage="sqlite:///one.db").run()
    with pytest.raises(ValueError, match="`folder` must belong to one study"):
        search("n", storage="sqlite:///other.db").run()


def test_files_of_a_study_that_is_no_more_are_set_aside(tmp_path):
    folder = tmp_path / "run"
    first = search("n", folder).run()
    (folder / "snas.safetensors").write_bytes(b"left over")
    (folder / "study.db").unlink()
    second = search("n", folder, sampler=RandomSampler(seed=1)).run()
    assert first.network.name in [path.name for path in folder.glob("left-by-*/networks/*")]
    assert not (folder / "snas.safetensors").exists()
    assert owner_of(second.network)["study"] == study_uid(second.study)


@pytest.mark.parametrize("name", ["outputs", "exported"])
def test_what_its_trials_and_exports_wrote_is_set_aside_with_them(name, tmp_path):
    search("n", tmp_path, objective=lambda trial: 0.5).run()
    (tmp_path / name / "trial-00000").mkdir(parents=True)
    (tmp_path / name / "trial-00000" / "weights.txt").write_text("of before")
    search("n", tmp_path, objective=lambda trial: 0.5, trials=3).run()
    assert (tmp_path / name).exists(), "the same study goes on"
    (tmp_path / "study.db").unlink()
    search("n", tmp_path, objective=lambda trial: 0.5).run()
    assert not (tmp_path / name).exists()
    assert len(list(tmp_path.glob(f"left-by-*/{name}/trial-00000/weights.txt"))) == 1


def test_links_of_a_study_that_is_no_more_lead_to_where_they_did(tmp_path):
    folder, big = tmp_path / "run", tmp_path / "big"
    folder.mkdir()
    big.mkdir()
    (folder / "networks").symlink_to("../big")
    first = search("n", folder).run()
    uid = study_uid(first.study)
    (tmp_path / "model").write_bytes(b"of a model")
    (folder / "snas.safetensors").symlink_to("../model")
    (folder / "study.db").unlink()
    second = search("n", folder, sampler=RandomSampler(seed=1)).run()
    assert (folder / "networks").readlink() == Path("../big")
    assert second.network.resolve().parent == big.resolve()
    assert not (folder / "snas.safetensors").is_symlink()
    (model,) = folder.glob("left-by-*/snas.safetensors")
    assert model.read_bytes() == b"of a model"
    (left,) = big.glob(f"left-by-*/{first.network.name}")
    assert owner_of(left)["study"] == uid


def test_a_study_that_was_moved_with_its_folder_goes_on(tmp_path):
    uid = study_uid(search("n", tmp_path / "here").run().study)
    (tmp_path / "here").rename(tmp_path / "there")
    result = search("n", tmp_path / "there", trials=3).run()
    assert study_uid(result.study) == uid
    assert result.network.exists()
    assert not list((tmp_path / "there").glob("left-by-*"))


def test_a_network_of_another_study_is_not_believed(tmp_path, caplog):
    mine, theirs = search("a", tmp_path / "a"), search("b", tmp_path / "b").run()
    result = mine.run()
    result.network.write_bytes(theirs.network.read_bytes())
    if theirs.network.name != result.network.name:
        pytest.skip("the best trials have different numbers")
    assert network_of(mine, result.study, result.best) is None
    assert "is the network of another study" in caplog.text


def test_a_changed_byte_or_a_weight_that_is_no_number_is_refused(tmp_path):
    network = search("a", tmp_path).run().network
    content = bytearray(network.read_bytes())
    content[-20] ^= 64
    (tmp_path / "flipped").write_bytes(content)
    with pytest.raises(ValueError, match="is not readable: its checksum is another"):
        load_network(tmp_path / "flipped")
    from optuna_nas.training.checkpoints import load_tensors, save_tensors

    tensors, description = load_tensors(network)
    next(iter(tensors.values())).fill_(torch.nan)
    save_tensors(tmp_path / "nan", tensors, description)
    with pytest.raises(ValueError, match="must be finite but is not"):
        load_network(tmp_path / "nan")


@pytest.fixture
def backup(tmp_path):
    """A search whose database was copied after its first trial, and the search on that copy."""
    mine = search("a", tmp_path / "runs", storage=tmp_path / "a.db", trials=1)
    mine.run()
    shutil.copy(tmp_path / "a.db", tmp_path / "backup.db")
    replace(mine, trials=2).run()
    return replace(mine, trials=2), replace(mine, storage=tmp_path / "backup.db", trials=2)


@pytest.mark.parametrize("command", [work, write_report, network_to_export, Search.run])
def test_no_command_takes_the_folder_of_another_study(command, backup, tmp_path):
    mine, copy = backup
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".db"}
    with pytest.raises(ValueError, match=r"`folder` must belong to one study but .* holds the files of 'a' in .*a.db"):
        command(copy)
    assert {file: file.read_bytes() for file in before} == before
    assert network_to_export(mine).exists()


def test_a_final_network_of_another_study_is_not_exported(tmp_path):
    mine, theirs = search("a", tmp_path / "a"), search("b", tmp_path / "b").run()
    best = mine.run().network
    (tmp_path / "a" / "final").mkdir()
    shutil.copy(theirs.network, tmp_path / "a" / "final")
    assert network_to_export(mine) == best


def test_an_added_trial_is_not_believed_whose_training_it_took_over(tmp_path):
    theirs = search("b", tmp_path / "b").run().study.trials[0]
    study = search("a", tmp_path / "a", sampler=RandomSampler(seed=5)).run().study
    claims = {**theirs.user_attrs, DUPLICATE_OF: 1}
    added = optuna.trial.create_trial(
        params=theirs.params, distributions=theirs.distributions, value=2.0, user_attrs=claims
    )
    study.add_trial(added)
    result = search("a", tmp_path / "a", trials=3).run()
    assert (result.best.number, result.network, result.test_metric) == (2, None, None)


def test_files_of_nobody_are_set_aside(tmp_path, caplog):
    first = search("a", tmp_path / "a").run()
    shutil.copytree(tmp_path / "a" / "networks", tmp_path / "b" / "networks")  # without what says whose they are
    second = search("b", tmp_path / "b", sampler=RandomSampler(seed=1)).run()
    assert (tmp_path / "b" / "left-by-unknown" / "networks" / first.network.name).exists()
    assert owner_of(second.network)["study"] == study_uid(second.study)
    assert "Files of an unknown study are in" in caplog.text


def test_a_folder_that_cannot_say_whose_it_is_is_refused(tmp_path):
    search("a", tmp_path / "a").run()
    (tmp_path / "a" / ".study.json").write_text("{")
    with pytest.raises(ValueError, match=r"`folder` must say whose files it holds but its note .* can't be read"):
        search("b", tmp_path / "a", storage=tmp_path / "b.db").run()
    assert search("a", tmp_path / "a", trials=3).run().network is not None, "its own study goes on"


RUN_ONCE = """
import optuna
from pathlib import Path
from optuna_nas import Search, nasbench201_space

space = nasbench201_space()
storage = optuna.storages.InMemoryStorage()
fields = {"storage": storage, "folder": Path("runs"), "tracking": None, "pictures": False, "trials": 1}
Search("s", space, objective=lambda trial: float(space.suggest(trial).connected), **fields).run()
"""


@pytest.mark.process
def test_a_script_with_a_study_in_memory_runs_again(tmp_path):
    for _ in range(2):
        subprocess.run([sys.executable, "-c", RUN_ONCE], cwd=tmp_path, check=True)


def test_two_studies_in_the_memory_of_one_process_do_not_share_a_folder(tmp_path):
    for name in ("first", "second"):
        wanted = search(name, tmp_path, storage=optuna.storages.InMemoryStorage())
        if name == "first":
            kept = wanted.run()
        else:
            with pytest.raises(ValueError, match="holds the files of 'first' in memory of"):
                wanted.run()
    assert kept.network.exists()


def test_a_result_that_is_taken_over_has_its_metric_too(tmp_path):
    objective = TrainObjective(SPACE, DATA, Recipe(epochs=1, batch_size=16), objectives=("loss",))
    study = optuna.create_study(direction="minimize")
    for _ in range(2):
        study.enqueue_trial(dict.fromkeys(SPACE.options(), "nor_conv_1x1"))
    study.optimize(objective, n_trials=2)
    first, second = (trial.user_attrs for trial in study.trials)
    assert second[DUPLICATE_OF] == 0
    assert first[METRIC] == second[METRIC]


def test_a_locked_database_is_not_one_that_is_no_more(tmp_path):
    search("a", tmp_path / "shared", storage=tmp_path / "a.db").run()
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ValueError, match="`folder` must belong to one study"):
            search("b", tmp_path / "shared", storage=tmp_path / "b.db").run()


# -- copies ------------------------------------------------------------------------------------------------------------


def test_a_copied_study_has_an_identity_and_runs_of_its_own(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    one, other = (f"sqlite:///{tmp_path / name}" for name in ("one.db", "other.db"))
    first = search("c", tmp_path / "one", storage=one, tracking=MLflowTracker(uri)).run()
    optuna.copy_study(from_study_name="c", from_storage=one, to_storage=other)
    copied = search("c", tmp_path / "two", storage=other, tracking=MLflowTracker(uri), trials=3).run()
    search("c", tmp_path / "one", storage=one, tracking=MLflowTracker(uri), trials=4).run()
    assert study_uid(copied.study) != study_uid(first.study)
    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {
        p.info.run_id: sum(r.data.tags.get("mlflow.parentRunId") == p.info.run_id for r in runs) for p in parents
    }
    assert sorted(children.values()) == [3, 4]


def test_the_network_of_a_copy_is_that_of_its_original_however_often_it_is_asked_for(tmp_path):
    one, other, store = (
        f"sqlite:///{tmp_path / 'one.db'}",
        f"sqlite:///{tmp_path / 'other.db'}",
        str(tmp_path / "store"),
    )
    search("c", tmp_path / "one", storage=one, artifacts=store).run()
    optuna.copy_study(from_study_name="c", from_storage=one, to_storage=other)
    copy = search("c", tmp_path / "two", storage=other, artifacts=store)
    networks = [copy.run().network for _ in range(2)]
    assert networks[0] == networks[1] == tmp_path / "two" / "networks" / networks[0].name


def test_a_renamed_storage_keeps_the_identity(tmp_path):
    study = optuna.create_study(study_name="s", storage=f"sqlite:///{tmp_path / 'old.db'}")
    uid = study_uid(study)
    (tmp_path / "old.db").rename(tmp_path / "new.db")
    moved = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'new.db'}")
    assert study_uid(moved) == uid
    assert home_of(moved).place == str(tmp_path / "new.db")


# -- what was noted when proposing -------------------------------------------------------------------------------------


def test_a_score_is_that_of_the_trials_own_parameters():
    def n_parameters(architectures):
        return np.array([float(architecture.cost().params) for architecture in architectures])

    inner = GHNSampler(SPACE, score=n_parameters, pool_size=20, trials_per_round=10, seed=0)
    study = optuna.create_study(direction="maximize", sampler=PartialFixedSampler({"cell_0_1": "none"}, inner))
    study.optimize(lambda trial: float(SPACE.suggest(trial).cost().params), n_trials=8)
    for trial in study.trials:
        assert trial.user_attrs.get(SURROGATE_SCORE, trial.value) == trial.value


# -- settings that decide results --------------------------------------------------------------------------------------


def test_another_augmentation_is_another_setting(tmp_path):
    search("a", tmp_path).run()
    data = replace(DATA, augmentation=replace(DATA.augmentation, flip=not DATA.augmentation.flip))
    with pytest.raises(ValueError, match="`data` must be that of the existing study 'a' but is another"):
        replace(search("a", tmp_path, trials=3), data=data).run()


@pytest.mark.parametrize(
    ("name", "first", "then"),
    [
        ("objectives", {"objectives": ("accuracy", "params")}, {"objectives": ("accuracy", "multiply_adds")}),
        ("constraints", {"constraints": {"params": 1e6}}, {"constraints": {"params": 10}}),
        ("constraints", {}, {"constraints": {"params": 10}}),
    ],
)
def test_other_objectives_and_constraints_are_another_setting(name, first, then, tmp_path):
    def asked(parts, trials):
        objective = TrainObjective(SPACE, DATA, Recipe(epochs=1, batch_size=16), **parts)
        return search("a", tmp_path, objective=objective, trials=trials)

    study = asked(first, 1).run().study
    with pytest.raises(ValueError, match=f"`{name}` must be that of the existing study 'a' but is another"):
        asked(then, 2).run()
    before = {
        key: value for key, value in study.user_attrs[SETTING].items() if key not in ("objectives", "constraints")
    }
    study.set_user_attr(SETTING, before)  # as studies of before noted it
    assert len(asked(first, 2).run().study.trials) == 2


class Noisy(torch.utils.data.Dataset):
    """Examples with noise of some strength."""

    def __init__(self, strength, own=False):
        self.strength, self.random = strength, np.random.default_rng() if own else np.random

    def __len__(self):
        return 120

    def __getitem__(self, place):
        noise = self.strength * self.random.normal(size=(1, 6, 6))
        return (IMAGES[place][None] + noise).astype(np.float32), int(LABELS[place])


def test_another_transform_of_a_dataset_is_another_setting(tmp_path):
    def asked(strength, trials, own=False):
        data = DatasetData(Noisy(strength, own), plain=Noisy(0.0), labels=LABELS, outputs=3)
        return replace(search("own" if own else "a", tmp_path / str(own), trials=trials), data=data)

    asked(0.1, 1).run()
    with pytest.raises(ValueError, match="`data` must be that of the existing study 'a' but is another"):
        asked(5.0, 2).run()
    assert len(asked(0.1, 2).run().study.trials) == 2
    for trials in (1, 2):  # noise of a generator of its own is never the same
        assert len(asked(0.1, trials, own=True).run().study.trials) == trials


def test_another_way_to_search_is_told(tmp_path, caplog):
    search("a", tmp_path).run()
    assert "goes on otherwise" not in caplog.text
    search("a", tmp_path, trials=3, sampler=optuna.samplers.TPESampler(seed=0)).run()
    assert (
        "'a' goes on otherwise than its 2 trials were proposed and judged: sampler TPESampler, not RandomSampler."
        in (caplog.text)
    )


def test_another_recipe_of_a_model_is_refused_before_a_trial(tmp_path):
    def asked(rate, trials):
        snas = SNAS(SPACE, SNASRecipe(relaxation="one_path", batch_size=16, learning_rate=rate))
        return search("a", tmp_path, sampler=SNASSampler(SPACE, snas, data=DATA, budget=1, seed=0), trials=trials)

    asked(0.1, 1).run()
    wrong = r"snapshot of trial 0 differs in recipe \(learning_rate 0.1, not 0.5\); give SNAS what it had, or the study"
    with pytest.raises(ValueError, match=wrong):
        asked(0.5, 2).run()
    assert len(asked(0.1, 2).run().study.trials) == 2


# -- why a search ended ------------------------------------------------------------------------------------------------


def test_an_objective_may_stop_the_study(tmp_path):
    def objective(trial):
        SPACE.suggest(trial)
        if trial.number == 2:
            trial.study.stop()
        return 0.0

    result = search("stop", tmp_path, objective=objective, trials=10).run()
    assert len(result.study.trials) == 3
    assert not result.interrupted
    assert "has stopped the study" in result.ended


def test_a_grid_that_is_exhausted_ends_the_search(tmp_path):
    cells = CellSpace(["skip_connect", "nor_conv_1x1", "avg_pool_3x3"], 1, 2, (CellKind("cell"),))
    space = NetworkSpace(cells, Skeleton(("cell",), 4, DATA.input_shape, 3))
    sampler = GridSampler({name: d.choices for name, d in space.distributions().items()})
    wanted = replace(search("grid", tmp_path, trials=30), space=space, sampler=sampler, directions=None)
    assert len(wanted.run().study.trials) == 9


# -- types and values --------------------------------------------------------------------------------------------------


def test_a_finished_or_a_fixed_trial_is_trained_again():
    objective = TrainObjective(SPACE, DATA, Recipe(epochs=1, batch_size=16))
    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=1)
    if study.trials[0].state.name != "COMPLETE":
        study.enqueue_trial(dict.fromkeys(SPACE.options(), "nor_conv_3x3"))
        study.optimize(objective, n_trials=1)
    assert objective(study.best_trial) == study.best_value
    assert objective(optuna.trial.FixedTrial(study.best_params)) == study.best_value


def test_numpy_numbers_are_numbers(tmp_path):
    skeleton = nasbench201_skeleton(np.int64(1), np.int64(4), DATA.input_shape, np.int64(3))
    space = NetworkSpace(nasbench201_space(), skeleton)
    assert space == SPACE
    wanted = search("np", tmp_path, trials=np.int64(1), n_jobs=np.int64(1))
    assert (
        replace(wanted, space=space, recipe=Recipe(epochs=np.int64(1), batch_size=np.int64(16))).run().best is not None
    )


@pytest.mark.parametrize("make", [ImageData.from_arrays, TensorData.from_arrays])
def test_numbers_of_data_and_tasks_may_be_numpys(make, tmp_path):
    data = make(torch.tensor(IMAGES, requires_grad=True), LABELS, seed=np.int64(3))
    assert data.describe() == make(IMAGES, LABELS, seed=3).describe()
    assert json.dumps(data.describe())
    if make == ImageData.from_arrays:
        assert make(IMAGES, LABELS, classes=np.int64(3)).classes == 3
        task = ImageClassification(label_smoothing=np.float32(0.1))
        assert replace(search("np", tmp_path, trials=1), data=data, task=task).run().best is not None
    for seed in (1.5, None, -1, True):
        with pytest.raises(ValueError, match="`seed` must be an integer from 0 to"):
            make(IMAGES, LABELS, seed=seed)
    with pytest.raises(ValueError, match="must be real numbers but has dtype complex64"):
        make(IMAGES.astype(np.complex64), LABELS)
    with pytest.raises(ValueError, match="`y` must hold every label from 0 to"):
        make(IMAGES, LABELS * 2**40)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tracking": True}, "`tracking` must be an `MLflowTracker`, its address or None but is a bool"),
        ({"cpu_threads": 0}, "`cpu_threads` must be an integer of at least 1 but got 0"),
        ({"heartbeat": (5, 30)}, "`heartbeat` must be a `Heartbeat` but is a tuple"),
        ({"heartbeat": Heartbeat(30, 5)}, "`heartbeat.grace` must be no less than its interval of 30 s but is 5 s"),
        ({"heartbeat": Heartbeat(0, 5)}, "`heartbeat.interval` must be an integer of at least 1 but got 0"),
        ({"seconds": "100"}, "`seconds` must be a positive number but got 100"),
        ({"seconds": True}, "`seconds` must be a positive number but got True"),
        ({"command": None}, "`command` must be a text but is a NoneType"),
        ({"sampler": RandomSampler}, "`sampler` must be a sampler of Optuna or None but is the class RandomSampler"),
        ({"pruner": "median"}, "`pruner` must be a pruner of Optuna or None but is a str"),
        ({"objective": "x"}, "`objective` must be a function of a trial but is a str"),
    ],
)
def test_settings_of_a_search_are_checked_before_there_is_a_study(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        search("a", tmp_path / "a", **wrong)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("recipe", {}, "a `Recipe` but is a dict"),
        ("task", None, "a `Task`"),
        ("data", (IMAGES, LABELS), "data such as"),
    ],
)
def test_parts_of_a_search_are_checked_before_there_is_a_study(field, value, what):
    with pytest.raises(ValueError, match=f"`{field}` must be {what}"):
        replace(search("a"), **{field: value})


def test_paths_and_addresses_may_be_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = search("a", "runs", storage="study.db", artifacts=Path("store"), tracking="sqlite:///ml.db").run()
    assert Path("study.db").exists()
    assert Path("ml.db").exists()
    network = load_network(str(result.network))
    assert export_network(network, "exported", "state-dict").path == Path("exported.safetensors")
    save_network("copy.safetensors", network)
    assert load_network("copy.safetensors").architecture == network.architecture


@pytest.mark.parametrize("labels", [np.ones(120, dtype=int), LABELS + 1])
def test_labels_without_a_zero_are_refused_with_a_way_out(labels):
    for make in (lambda y: ImageData.from_arrays(IMAGES, y), lambda y: TensorData.from_arrays(IMAGES, y)):
        with pytest.raises(ValueError, match=r"`y` must hold every label from 0 to \d but lacks 0; .*return_inverse"):
            make(labels)
    if labels.max() > 1:
        assert ImageData.from_arrays(IMAGES, np.unique(labels, return_inverse=True)[1]).classes == 3
    assert ImageData.from_arrays(IMAGES, labels, classes=5).classes == 5


def test_a_batch_of_one_is_refused_where_norms_need_more(tmp_path):
    wanted = replace(search("one", tmp_path), recipe=Recipe(epochs=1, batch_size=1))
    with pytest.raises(ValueError, match="`batch_size` must be at least 2 for a network with batch norms"):
        wanted.run()


@pytest.fixture
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double")
def test_the_default_type_of_a_process_does_not_matter(tmp_path):
    assert search("double", tmp_path).run().best is not None
    small = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, DATA.input_shape, 3, affine=False))
    data = ImageData.from_arrays(IMAGES, LABELS, fractions={"choices": 0.3})
    for model in (
        SNAS(small, SNASRecipe(batch_size=16)),
        HMNAS(small, HMNASRecipe(batch_size=16, mask_fraction=0.4)),
        GHN(small, GHNRecipe(batch_size=16, phases=1)),
    ):
        model.fit(data, 1, show_progress=False)
        assert np.isfinite(model.score([small.architecture(dict.fromkeys(small.options(), "nor_conv_3x3"))])).all()


@pytest.fixture
def _elsewhere():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.usefixtures("_elsewhere")
def test_the_default_device_of_a_process_does_not_matter(tmp_path):
    result = search("elsewhere", tmp_path).run()
    assert np.isfinite(result.best.value)
    network = load_network(next((tmp_path / "networks").iterdir()))
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}


@pytest.mark.parametrize("name", ["..", ".", "a\nb", "a\0b", "\x1b[31m", "x" * 256])
def test_a_name_that_cannot_be_a_folder_is_refused_at_once(name):
    with pytest.raises(ValueError, match="`name` must be printable, of at most 255 characters"):
        search(name)


@pytest.mark.parametrize("name", ["x" * 255, "名" * 255, "é 'quoted' \"twice\"", "-x", "a%20b", "#?&"])
def test_any_other_name_works(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = search(name, trials=1).run()
    assert Path("runs").exists()
    assert result.study.study_name == name
