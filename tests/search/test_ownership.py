"""Nothing left over, copied or changed is believed without asking whose it is."""

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
    GHNSampler,
    ImageData,
    MLflowTracker,
    NetworkSpace,
    Recipe,
    Search,
    Skeleton,
    SNASRecipe,
    TensorData,
    TrainObjective,
    load_network,
    nasbench201_skeleton,
    nasbench201_space,
)
from optuna_nas.networks.files import owner_of
from optuna_nas.oneshot import GHN, HMNAS, GHNRecipe, HMNASRecipe
from optuna_nas.search.results import network_of
from optuna_nas.storage.attributes import SURROGATE_SCORE
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
