"""A search opened, resumed, interrupted and summed up, in this process."""

import gc
import os
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import optuna
import pytest
from mlflow import MlflowClient
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from optuna.pruners import NopPruner
from optuna.trial import TrialState
from PIL import Image
from strategies import placed

from optuna_nas import (
    SNAS,
    ImageData,
    MLflowTracker,
    NetworkSpace,
    Recipe,
    Search,
    SNASRecipe,
    SNASSampler,
    TrainObjective,
    load_network,
    nasbench201_skeleton,
    nasbench201_space,
)
from optuna_nas.objective.trial_training import network_path
from optuna_nas.results.final_training import best_of, network_to_export
from optuna_nas.results.report import write_report
from optuna_nas.search import run
from optuna_nas.search.opening import open_study, read_study
from optuna_nas.search.results import summarise
from optuna_nas.search.runner import work
from optuna_nas.space import CellSpace
from optuna_nas.storage.attributes import DUPLICATE_OF, PARAMS, REASON, REQUEUED, RESUMES, SETTING, WORKER
from optuna_nas.storage.leaderboard import ranking
from optuna_nas.storage.quota import counted_trials
from optuna_nas.storage.retries import reap_dead_trials

SPACE = nasbench201_space()


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    labels = np.arange(120) % 3
    images = generator.normal(size=(120, 6, 6)).astype(np.float32) + labels[:, None, None]
    return ImageData.from_arrays(images, labels)


@pytest.fixture
def search(data, tmp_path):
    return Search(
        "tiny",
        NetworkSpace(SPACE, nasbench201_skeleton(1, 4, data.input_shape, data.classes)),
        data=data,
        recipe=Recipe(epochs=2, batch_size=16),
        sampler=optuna.samplers.RandomSampler(seed=1),
        trials=4,
        tracking=None,
        folder=tmp_path / "tiny",
    )


class Recorder:
    def __init__(self):
        self.started, self.epochs, self.finished = [], [], []

    def trial_started(self, trial, metrics):
        self.started.append((trial.number, metrics["params"]))

    def epoch(self, trial_number, step, metrics):
        self.epochs.append((trial_number, step))

    def progress(self, trial_number, fraction):
        assert 0 < fraction <= 1

    def model_progress(self, doing, fraction):
        pytest.fail("there is no model")

    def closing(self):
        pytest.fail("there is nothing to write to MLflow")

    def trial_finished(self, study, trial):
        self.finished.append((trial.number, trial.state))


def test_a_search_runs_to_its_total_and_hands_over_a_network(search, data):
    recorder = Recorder()
    result = run(search, recorder)
    assert len(result.study.trials) == 4
    assert not result.interrupted
    assert [number for number, _ in recorder.finished] == [0, 1, 2, 3]
    assert result.picture.stat().st_size > 1000
    network = load_network(result.network)
    assert network.architecture == search.space.decode(result.best.params)
    images, labels = next(data.batches(["test"], 1000))
    accuracy = (network(images).argmax(1) == labels).float().mean().item()
    assert result.test_metric == pytest.approx(accuracy)


def test_running_again_does_what_is_missing_and_no_more(search):
    first = [trial.params for trial in run(search).study.trials]
    again = run(search)
    assert len(again.study.trials) == 4
    more = run(replace(search, trials=6))
    assert len(more.study.trials) == 6
    assert [trial.params for trial in more.study.trials[:4]] == first


def test_a_resumed_search_with_a_seeded_sampler_proposes_something_new(search):
    run(search)
    trials = run(replace(search, trials=8, sampler=optuna.samplers.RandomSampler(seed=1))).study.trials
    assert [t.params for t in trials[4:]] != [t.params for t in trials[:4]]


def test_two_runs_at_once_stay_near_the_total(search):
    threads = [threading.Thread(target=run, args=(replace(search, trials=8, sampler=None),)) for _ in range(2)]
    open_study(search)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 8 <= len(open_study(search).trials) <= 9


def test_a_trial_that_breaks_a_constraint_is_not_the_best(search, data):
    def same_proposals(**changes):
        return replace(search, trials=6, pruner=NopPruner(), sampler=optuna.samplers.RandomSampler(seed=1), **changes)

    costs = [trial.user_attrs[PARAMS] for trial in ranking(run(same_proposals()).study)]
    bound = sorted(costs)[1]
    objective = TrainObjective(search.space, data, search.recipe, constraints={"params": bound})
    result = run(same_proposals(objective=objective, keep_networks=1, folder=search.folder / "limited"))
    assert result.best.user_attrs[PARAMS] <= bound
    assert result.network is not None
    assert result.test_metric is not None
    assert [t.constraints["params"] <= 0 for t in ranking(result.study)] == sorted(
        (t.constraints["params"] <= 0 for t in ranking(result.study)), reverse=True
    )
    impossible = replace(objective, constraints={"params": 1})
    nothing = run(same_proposals(objective=impossible, folder=search.folder / "nothing"))
    assert nothing.best is None
    assert len(ranking(nothing.study)) == len(costs)


def test_an_objective_that_asks_for_no_architecture_has_a_result_without_a_picture(tmp_path):
    result = run(Search("plain", SPACE, objective=lambda trial: 0.5, trials=2, tracking=None, folder=tmp_path))
    assert result.best.number == 0
    assert result.picture is None


def test_a_search_that_fails_says_so_in_mlflow(tmp_path):
    def objective(trial):
        SPACE.suggest(trial)
        raise RuntimeError("broken")

    tracker = MLflowTracker(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(RuntimeError, match="broken"):
        run(Search("failing", SPACE, objective=objective, tracking=tracker, folder=tmp_path))
    runs = MlflowClient(tracker.store_uri).search_runs(["1"])
    assert {r.info.run_name: r.info.status for r in runs} == {"failing": "FAILED", "trial 0 (failed)": "FAILED"}


def test_a_search_closes_its_connections_at_its_end(search, tmp_path, open_connections):
    result = run(replace(search, tracking=MLflowTracker(f"sqlite:///{tmp_path}/mlflow.db")))
    assert not open_connections
    assert len(result.study.trials) == 4
    assert open_connections, "who asks the study again opens one"
    del result
    gc.collect()  # frames of trainings refer to the study in cycles
    assert not open_connections, "and closes it by dropping the study"


def test_a_worker_closes_its_connections_at_its_end(search, tmp_path, open_connections):
    open_study(search)
    assert work(replace(search, tracking=MLflowTracker(f"sqlite:///{tmp_path}/mlflow.db"))) == 0
    assert not open_connections


def test_who_reads_a_study_closes_its_connections(search, open_connections):
    run(search)
    for read in (best_of, network_to_export, write_report):
        read(search)
        assert not open_connections, read.__name__


def test_only_the_networks_of_the_best_trials_stay(search):
    result = run(replace(search, trials=6, keep_networks=2))
    files = {int(file.stem.removeprefix("trial-")) for file in (search.folder / "networks").iterdir()}
    best = ranking(result.study)[:2]
    assert {t.user_attrs.get(DUPLICATE_OF, t.number) for t in best} <= files
    assert len(files) <= 4
    assert not list((search.folder / "checkpoints").glob("*"))


def test_the_test_split_is_touched_once(search, monkeypatch):
    result = run(search)
    monkeypatch.setattr("optuna_nas.objective.train_objective.evaluate", lambda *unused: pytest.fail("touched again"))
    assert summarise(search, result.study, judge=True).test_metric == result.test_metric


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"space": CellSpace(("none", "skip_connect", "nor_conv_3x3"), nodes=3, inputs=1)},
            "`s.*` must be that of the",
        ),
        ({"recipe": Recipe(epochs=3)}, "`recipe` must be that of the existing study 'tiny'"),
    ],
)
def test_an_existing_study_with_another_setting_is_refused(search, change, message):
    open_study(search)
    if "space" in change:
        change = {"space": NetworkSpace(change["space"], replace(search.space.skeleton, cells=("normal",)))}
    with pytest.raises(ValueError, match=message):
        open_study(replace(search, **change))


def test_a_study_of_an_earlier_version_is_read_but_runs_no_more_trials(search):
    study = open_study(search)
    study.set_user_attr(SETTING, {**search.setting(), "skeleton": "of its own"})
    with pytest.raises(ValueError, match="`study` must be of this version of optuna_nas but 'tiny' was created by"):
        open_study(search)
    with pytest.raises(ValueError, match="it can be read, but give the search another `name`"):
        open_study(search, create=False)
    assert read_study(search).study_name == "tiny"
    study.set_user_attr(SETTING, search.setting())
    with pytest.raises(ValueError, match="`recipe` must be"):
        read_study(replace(search, recipe=Recipe(epochs=3)))


def test_an_existing_study_with_another_direction_is_refused(search):
    optuna.create_study(study_name="tiny", storage=f"sqlite:///{search.folder}.db", direction="minimize")
    with pytest.raises(ValueError, match="`directions` must be those of the existing study 'tiny'"):
        open_study(replace(search, storage=f"sqlite:///{search.folder}.db"))


def test_a_storage_that_does_not_answer_is_one_sentence(search):
    with pytest.raises(
        ConnectionError, match=r"`storage` must be the address of a database that answers but .*//127.0.0.1:1/nothing"
    ):
        open_study(replace(search, storage="postgresql+psycopg://user:secret@127.0.0.1:1/nothing"))
    with pytest.raises(ConnectionError, match="`storage` must be"):
        open_study(replace(search, storage="sqlite:////nowhere/at/all.db"))


def test_a_study_that_is_not_there_is_not_made_by_a_report(search):
    with pytest.raises(ValueError, match="has none named 'tiny'; start it with"):
        read_study(replace(search, storage="sqlite://"))
    with pytest.raises(ValueError, match="has none named 'tiny'; start it with"):
        read_study(search)
    assert not search.folder.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 0}, "`trials` must be an integer of at least 1 but got 0"),
        ({"trials": 2.5}, "`trials` must be an integer of at least 1 but got 2.5"),
        ({"n_jobs": 0}, "`n_jobs` must be an integer of at least 1"),
        ({"keep_networks": 0}, "`keep_networks` must be an integer of at least 1"),
        ({"directions": ()}, "`directions` must name one direction or more"),
        ({"name": "a/b"}, "`name` must be non-empty and without slashes"),
        ({"directions": ("up",)}, "`directions` must be 'maximize' or 'minimize' but got 'up'"),
        (
            {"directions": ("minimize",)},
            "`directions` must be .'maximize',., as the objective asks, but are .'minimize',.; leave",
        ),
        ({"data": None}, "`objective` must be given where `data` are not"),
    ],
)
def test_a_search_checks_its_values_early(search, change, message):
    with pytest.raises(ValueError, match=message):
        replace(search, **change)


@pytest.mark.process
def test_the_trial_of_a_dead_process_fails_and_its_parameters_go_on(search):
    study = open_study(search)
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    trial = study.ask(SPACE.distributions())
    trial.set_user_attr(WORKER, f"{os.uname().nodename}:{child.pid}:old")
    alive = study.ask(SPACE.distributions())
    alive.set_user_attr(WORKER, f"{os.uname().nodename}:{os.getppid()}:other")
    reap_dead_trials(study)
    dead, living, waiting = study.trials
    assert dead.state == TrialState.FAIL
    assert dead.user_attrs[REASON] == "its process has ended, attempt 1 of 3"
    assert living.state == TrialState.RUNNING
    assert waiting.state == TrialState.WAITING
    assert waiting.user_attrs[RESUMES] == 0
    assert counted_trials(study) == 0
    reap_dead_trials(study)
    assert len(study.trials) == 3
    assert study.ask(SPACE.distributions()).params == dead.params


def test_parameters_that_kill_every_process_are_given_up(search):
    study = open_study(search)
    for _ in range(3):
        trial = study.ask(SPACE.distributions())
        trial.set_user_attr(WORKER, f"{os.uname().nodename}:{os.getpid()}:before")
        reap_dead_trials(study)
    assert [t.state for t in study.trials] == [TrialState.FAIL] * 3
    assert REQUEUED not in study.trials[-1].user_attrs
    assert len({str(t.params) for t in study.trials}) == 1


def test_an_objective_of_ones_own_needs_no_training(tmp_path):
    def objective(trial):
        return float(placed(SPACE.suggest(trial), nasbench201_skeleton()).cost().params)

    result = run(
        Search("own", SPACE, objective=objective, trials=5, tracking=None, folder=tmp_path, directions=("minimize",))
    )
    assert result.best.values[0] == min(t.values[0] for t in result.study.trials)
    assert result.network is None
    assert result.test_metric is None


def test_several_objectives(search, data):
    objective = TrainObjective(search.space, data, Recipe(epochs=1), objectives=("accuracy", "params"))
    result = run(replace(search, objective=objective, directions=("maximize", "minimize"), pruner=None))
    assert all(len(t.values) == 2 for t in result.study.best_trials)
    assert result.study.metric_names == ["accuracy", "params"]
    assert result.best.values[0] == max(t.values[0] for t in result.study.trials)
    assert result.picture.exists()
    assert network_path(search.folder, result.best.user_attrs.get(DUPLICATE_OF, result.best.number)).exists()


def test_a_search_runs_in_a_thread_without_touching_signals(search):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(search)))
    thread.start()
    thread.join()
    assert len(results[0].study.trials) == 4


# -- a sampler that trains ----------------------------------------------------------------------------------------


def trained_search(search, **changes):
    skeleton = nasbench201_skeleton(1, 4, search.data.input_shape, search.data.classes, affine=False)
    snas = SNAS(NetworkSpace(SPACE, skeleton), SNASRecipe(batch_size=16, relaxation="one_path"))
    arguments = {"budget": 4, "n_trials": 6, "trials_per_round": 2, "seed": 0}
    return replace(search, sampler=SNASSampler(SPACE, snas, data=search.data, **arguments), trials=6, **changes)


def test_a_sampler_that_trains_keeps_its_rounds_in_the_folder_and_says_how_far_it_is(search):
    search, heard = trained_search(search, pictures=False), []
    recorder = Recorder()
    recorder.model_progress = lambda what, fraction: heard.append((what, fraction))
    result = run(search, recorder)
    assert counted_trials(result.study) == 6
    assert len(list((search.folder / "artifacts").iterdir())) == 2
    assert search.sampler.model.step == search.sampler.model.total_steps
    assert list(dict.fromkeys(what for what, _ in heard)) == [f"SNAS trains, round {n} of 3" for n in (1, 2, 3)]
    fractions = [fraction for _, fraction in heard]
    assert fractions.count(1.0) == 3
    assert 0 < min(fractions) < 0.3


def test_a_search_that_goes_on_takes_up_the_training_of_its_sampler(search):
    straight = trained_search(search, name="straight", folder=search.folder / "straight")
    run(straight)
    run(replace(trained_search(search), trials=3))
    resumed = trained_search(search)
    result = run(resumed)
    assert counted_trials(result.study) == 6
    assert np.array_equal(resumed.sampler.model.logits, straight.sampler.model.logits)


def test_a_stop_in_the_middle_of_a_round_is_heard_and_the_round_is_made_up_for(search, monkeypatch):
    first = trained_search(search)
    steps = []

    def interrupt(what, fraction):
        steps.append(fraction)
        if len(steps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(
        SNASSampler,
        "prepare",
        lambda self, folder, on_progress, should_stop, store, n_trials: self.in_study_fit.prepare(
            folder, interrupt, None, store, n_trials
        ),
    )
    assert run(first).interrupted
    monkeypatch.undo()
    resumed = trained_search(search)
    result = run(resumed)
    assert not result.interrupted
    assert counted_trials(result.study) == 6
    assert resumed.sampler.model.step == resumed.sampler.model.total_steps


def test_every_trial_that_trains_has_its_picture_for_optunas_dashboard(search, tmp_path):
    result = run(search)
    store = FileSystemArtifactStore(str(tmp_path / "tiny" / "artifacts"))
    for trial in result.study.trials:
        if trial.state != TrialState.COMPLETE:
            continue
        (meta,) = get_all_artifact_meta(trial, storage=result.study._storage)
        assert (meta.filename, meta.mimetype) == ("architecture.png", "image/png")
        with store.open_reader(meta.artifact_id) as file:
            assert np.asarray(Image.open(file)).std() > 10
    without = replace(search, name="plain", pictures=False, folder=tmp_path / "plain")
    run(without)
    assert not (tmp_path / "plain" / "artifacts").exists()


@pytest.mark.parametrize("start", [run, work])
def test_a_listener_that_cannot_be_told_everything_is_refused_at_once(search, start):
    belongs = r"MLflowTracker lacks progress, model_progress, closing; .* belongs in `Search\(tracking="
    with pytest.raises(ValueError, match=belongs):
        start(search, MLflowTracker())
    assert not search.resolved_folder().exists()


def nest(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("queued", [False, True])
def test_attributes_that_are_nested_deeply_are_left_out_or_named(queued, tmp_path):
    sys.setrecursionlimit(1000)  # Python's; compilers raise it
    storage = optuna.storages.InMemoryStorage()
    space = nasbench201_space()
    arguments = {"objective": lambda trial: float(space.suggest(trial).connected), "trials": 2, "storage": storage}
    search = Search("deep", space, folder=tmp_path, tracking=None, pictures=False, **arguments)
    study = open_study(search)
    if not queued:
        storage.set_study_user_attr(study._study_id, "note", nest(700))
        assert len(search.run().study.trials) == 2
        return
    study.enqueue_trial({})
    storage.get_all_trials(study._study_id, deepcopy=False)[0].user_attrs["note"] = nest(700)
    with pytest.raises(ValueError, match="nested too deeply; give the search another `name`"):
        search.run()
