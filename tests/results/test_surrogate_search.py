"""Sample many, score all, train the best: `SurrogateSearch`, `optuna-nas surrogate`."""

import json
import signal
from dataclasses import replace

import numpy as np
import optuna
import pytest
from mlflow import MlflowClient
from strategies import few_digits
from terminal import here, start, wait_for

from optuna_nas import (
    GHN,
    GHNRecipe,
    GHNSampler,
    MLflowTracker,
    NetworkSpace,
    Recipe,
    Search,
    SplitScore,
    SurrogateSearch,
    load_network,
    nasbench201_skeleton,
    nasbench201_space,
    suggest_float,
)
from optuna_nas.data import REPORT
from optuna_nas.objective import trial_training
from optuna_nas.samplers import PromotingSampler
from optuna_nas.storage.database import connect

STUDY = """
from dataclasses import replace
from optuna_nas import GHN, GHNRecipe, GHNSampler, NetworkSpace, Recipe, Search, digits
from optuna_nas import nasbench201_skeleton, nasbench201_space

def search(name: str = "tiny") -> Search:
    data = digits()
    data = replace(data, splits={split: positions[:90] for split, positions in data.splits.items()})
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, data.input_shape, data.classes))
    ghn = GHN(space, GHNRecipe(phases=1, scoring_images=45, batch_size=45))
    sampler = GHNSampler(space, ghn, data=data, budget=1, pool_size=20, trials_per_round=1, seed=0)
    return Search(
        name, space, data, Recipe(epochs=3), sampler=sampler, tracking=None, pictures=False, cpu_threads=1,
    )
"""
FEW = ("--n-best", 2, "--n-random", 1, "--n-repeats", 2, "--brief-epochs", 1)


def many_ops(architectures):
    """Score by the number of ops, with a little that breaks ties."""
    return np.array([sum(map(len, dict(a.choices).values())) + 1e-9 * a.cost().params for a in architectures])


@pytest.fixture(scope="module")
def data():
    return few_digits(60)


@pytest.fixture
def search(data, tmp_path):
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, data.input_shape, data.classes))
    sampler = GHNSampler(space, score=many_ops, pool_size=30, trials_per_round=1, seed=0)
    return Search(
        "digits",
        space,
        data,
        Recipe(epochs=2),
        sampler=sampler,
        folder=tmp_path / "runs",
        tracking=None,
        pictures=False,
    )


def small(search, **changes):
    return SurrogateSearch(search, **{"n_best": 3, "n_random": 2, "n_repeats": 2, "brief_epochs": 1, **changes})


# -- scores -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_images", [7, 8, 20])
def test_a_score_on_the_split_is_the_mean_over_all_its_examples(data, n_images):
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, data.input_shape, data.classes))
    ghn = GHN(space, GHNRecipe(phases=1, scoring_images=n_images))
    ghn.attach(data)
    score = SplitScore(ghn, data)
    cells = [space.sample(np.random.default_rng(seed)) for seed in range(3)]
    batches = list(data.batches([REPORT], score.batch_size))
    assert min(len(labels) for _, labels in batches) >= 2
    assert sum(len(labels) for _, labels in batches) == data.size([REPORT])
    by_hand = sum(len(batch[1]) * ghn.scores_on(batch, cells) for batch in batches) / data.size([REPORT])
    np.testing.assert_allclose(score(cells), by_hand)


def test_a_split_of_one_batch_is_scored_as_the_model_does(data):
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, data.input_shape, data.classes))
    ghn = GHN(space, GHNRecipe(phases=1, scoring_images=10_000))
    ghn.attach(data)
    cells = [space.sample(np.random.default_rng(seed)) for seed in range(3)]
    np.testing.assert_array_equal(SplitScore(ghn, data)(cells), ghn.score(cells))


# -- protocols ----------------------------------------------------------------------------------------------------


def test_the_best_of_the_pool_are_trained_and_nothing_twice(search):
    result = small(search).run()
    rows = {row.protocol: row for row in result.protocols}
    assert {name: len(row.values) for name, row in rows.items()} == {"top": 3, "top-best": 2, "random": 2}
    assert len(result.study.trials) == 3 + 2 + 1  # the first training of the best is one of the top
    lines = (search.resolved_folder() / "scores" / "scores.jsonl").read_text().splitlines()
    noted = [json.loads(line)[2] for line in lines]
    taken = [trial.user_attrs.get("optuna_nas:surrogate_score") for trial in result.study.trials[:3]]
    assert taken == sorted(noted, reverse=True)[:3]
    assert len(noted) == 30
    assert all(row.tested is not None and len(row.tested) == len(row.values) for row in rows.values())
    assert rows["random"].search_seconds == 0 < rows["top"].search_seconds < rows["top-best"].search_seconds
    assert set(rows["top-best"].values) & set(rows["top"].values)
    assert load_network(result.network).architecture.choices == result.best.choices
    assert json.loads((search.resolved_folder() / "surrogate.json").read_text()) == json.loads(result.to_json())


def test_brief_trainings_are_promoted_by_their_loss_and_report_their_metric(search, monkeypatch):
    losses = iter([0.9, 0.2, 0.5])
    accuracies = iter([0.9, 0.1, 0.2])
    train = trial_training.train

    def trained(network, data, recipe, *args, **named):
        result = train(network, data, recipe, *args, **named)
        if recipe.epochs > 1:
            return result
        last = replace(result.last, validation_loss=next(losses), validation_metric=next(accuracies))
        return replace(result, last=last)

    monkeypatch.setattr(trial_training, "train", trained)
    result = small(search, protocols=("top-best",), n_repeats=1).run()
    brief = optuna.load_study(study_name="digits-brief", storage=connect(search.resolved_storage()))
    assert [one.value for one in brief.trials] == [0.9, 0.1, 0.2]
    choices = search.space.distributions()
    assert all(result.study.trials[0].params[name] == brief.trials[1].params[name] for name in choices)


def test_another_run_trains_nothing_and_more_may_be_asked_for(search, monkeypatch):
    first = small(search, protocols=("top",)).run()
    trained = []
    train = trial_training.train
    monkeypatch.setattr(trial_training, "train", lambda *args, **named: trained.append(1) or train(*args, **named))
    again = small(search, protocols=("top",)).run()
    assert not trained
    assert again.to_dict() == first.to_dict()
    more = small(search).run()
    assert len(trained) == 3 + 1 + 2  # brief ones, a second seed of the best, random ones
    np.testing.assert_array_equal(more.protocols[0].values, first.protocols[0].values)


def test_the_table_is_a_run_in_mlflow_beside_the_trials(search, tmp_path):
    tracker = MLflowTracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "surrogate")
    planned = small(replace(search, tracking=tracker), protocols=("random",), n_random=1)
    result = planned.run()
    planned.run()  # which writes nothing twice
    client = MlflowClient(tracker.tracking_uri)
    experiment = client.get_experiment_by_name("surrogate")
    runs = client.search_runs([experiment.experiment_id], "tags.`optuna_nas.kind` = 'final'")
    assert [run.info.run_name.rsplit(" ", 1)[0] for run in runs] == ["surrogate search"]
    assert runs[0].data.metrics["random/accuracy/mean"] == pytest.approx(result.protocols[0].values.mean())
    assert "| random | 1 |" in runs[0].data.tags["mlflow.note.content"]


def test_what_is_inside_another_sampler_or_a_strategy_is_found(search):
    promoting = PromotingSampler(search.sampler, short=1, long=2)
    assert small(replace(search, sampler=promoting))._sampler is search.sampler
    by_strategy = small(search.with_strategy("free", trials=40), protocols=("random", "top"))
    assert isinstance(by_strategy._sampler, GHNSampler)
    assert by_strategy._objective.recipe.epochs == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocols": ("best",)}, "`protocols` must be of top, top-best, random"),
        ({"n_best": 0}, "`n_best` must be an integer of at least 1"),
        ({"n_best": 31}, "`pool_size` must be at least `n_best`"),
        ({"brief_epochs": 2}, "`brief_epochs` must be fewer than the 2 epochs"),
    ],
)
def test_what_cannot_be_is_refused(search, changes, message):
    with pytest.raises(ValueError, match=message):
        small(search, **changes)


def test_a_search_must_score_and_train(search):
    with pytest.raises(ValueError, match="`search` must have a GHNSampler"):
        small(replace(search, sampler=None))
    with pytest.raises(ValueError, match="`search` must have the default objective"):
        small(replace(search, objective=lambda trial: 0.0))
    with pytest.raises(ValueError, match="`learning_rate` must be a number"):
        small(replace(search, recipe=Recipe(epochs=2, learning_rate=suggest_float(0.1, 0.2))))


# -- the command --------------------------------------------------------------------------------------------------


def numbers(folder):
    """Return what does not depend on time."""
    found = json.loads((folder / "surrogate.json").read_text())
    return found["best"], [
        {name: value for name, value in row.items() if not name.endswith("seconds")} for row in found["protocols"]
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What comes out where nothing is killed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.py").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = here("surrogate", "tiny.py", *FEW)
    assert done.exit_code == 0, done.stderr
    assert "top-best" in done.stdout
    return numbers(folder / "runs" / "tiny")


@pytest.mark.process
@pytest.mark.parametrize("begun", ["scores/scores.jsonl", "full/checkpoints/*"])
def test_a_killed_search_goes_on_to_the_same_result(begun, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(STUDY)
    process = start("surrogate", "tiny.py", *FEW, "--quiet")
    wait_for(lambda: process.poll() is not None or list(tmp_path.glob(f"runs/tiny/{begun}")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = here("surrogate", "tiny.py", *FEW, "--quiet", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["interrupted"] is False
    assert numbers(tmp_path / "runs" / "tiny") == whole
