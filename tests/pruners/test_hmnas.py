"""HMNASPruner: stops what the masks cut, says what that was, and keeps quiet when its masks say nothing."""

import pickle

import numpy as np
import optuna
import pytest
import torch
from mlflow import MlflowClient
from optuna import TrialPruned
from optuna.pruners import HyperbandPruner, NopPruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from strategies import few_digits

import optuna_nas
from optuna_nas import (
    CellKind,
    CellSpace,
    MLflowTracker,
    NetworkSpace,
    Recipe,
    Search,
    Skeleton,
    TrainObjective,
    should_prune,
)
from optuna_nas.oneshot import HMNAS, HMNASRecipe
from optuna_nas.pruners import HMNASPruner
from optuna_nas.storage.artifacts import folder_store
from optuna_nas.storage.attributes import (
    FLAGGED,
    REASON,
    SURROGATE_SCORE,
    fit_records_of,
    masks_of,
    random_scores_key,
    read_json,
    snapshot_key,
)
from optuna_nas.training import TrainingStopped

SPACE = CellSpace(("none", "skip_connect", "nor_conv_3x3", "avg_pool_3x3"), 3, 1, (CellKind("cell"),))
FRAME = Skeleton(("cell",), 4, (1, 8, 8), 10, affine=False)


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def masked(seed=0, share=0.4):
    """An HMNAS of which a share of the ops and two edges fell, as if it had learned that."""
    hmnas = HMNAS(NetworkSpace(SPACE, FRAME), HMNASRecipe())
    hmnas.step = hmnas.total_steps = 10
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        hmnas.masks.op_masks_EO[torch.rand(hmnas.masks.op_masks_EO.shape, generator=random) < share] = 0.0
        hmnas.masks.edge_masks_E[:2] = 0.0
        hmnas.masks.edge_logits_E += torch.randn(len(hmnas.paths), generator=random)
    return hmnas


def run(pruner, worth, n_trials=300):
    study = optuna.create_study(direction="maximize", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial):
        architecture = SPACE.suggest(trial)
        if not architecture.connected or trial.should_prune():
            raise TrialPruned
        return worth(architecture)

    study.optimize(objective, n_trials=n_trials)
    return study


def test_trials_that_live_on_what_was_cut_are_stopped_and_say_on_what():
    hmnas = masked()
    noise = np.random.default_rng(0)
    study = run(HMNASPruner(hmnas, by="survival"), lambda a: hmnas.survival(a).share + 0.1 * noise.normal())
    flagged = [t for t in study.trials if FLAGGED in t.user_attrs]
    assert 0.1 < len(flagged) / len(study.trials) < 0.3
    for trial in flagged:
        architecture = SPACE.decode(trial.params)
        edges, ops = hmnas.cut(architecture)
        reason = trial.user_attrs[FLAGGED]
        assert f"the masks keep {hmnas.survival(architecture).share:.0%} of it" in reason
        assert f"edges removed: {edges[0]}" in reason if edges else f"ops removed: {ops[0][1]} at {ops[0][0]}" in reason
    best = max(hmnas.survival(SPACE.decode(t.params)).share for t in flagged)
    passed = [t for t in study.trials if t.state == TrialState.COMPLETE and FLAGGED not in t.user_attrs]
    late = [hmnas.survival(SPACE.decode(t.params)).share for t in passed if t.number > 40]
    assert min(late) >= best - 0.1


def test_where_masks_cut_little_it_judges_by_how_long_an_architecture_endures():
    hmnas = masked(share=0.0)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        hmnas.masks.edge_masks_E.fill_(0.02)
        hmnas.masks.op_masks_EO.copy_(0.006 + 0.01 * torch.rand(hmnas.masks.op_masks_EO.shape, generator=random))
    noise = np.random.default_rng(0)
    study = run(HMNASPruner(hmnas), lambda a: hmnas.endurance([a])[0] + 0.05 * noise.normal())
    flagged = [t for t in study.trials if FLAGGED in t.user_attrs]
    assert 0.1 < len(flagged) / len(study.trials) < 0.3
    for trial in flagged:
        path, op = next(iter(hmnas.weakest(SPACE.decode(trial.params))), (None, None))
        assert f"the masks keep 100% of it (weakest ops: {op} at {path}" in trial.user_attrs[FLAGGED]


def test_masks_of_something_else_stop_nobody():
    others, hmnas = np.random.default_rng(1), masked()
    study = run(HMNASPruner(hmnas), lambda _: others.normal(), 150)
    late = [t for t in study.trials if t.number > 60 and FLAGGED in t.user_attrs]
    assert len(late) <= 5


def test_without_fallen_masks_or_before_the_fit_ends_all_pass():
    fresh = HMNAS(NetworkSpace(SPACE, FRAME))
    assert not any(FLAGGED in t.user_attrs for t in run(HMNASPruner(fresh), lambda a: len(str(a)), 40).trials)
    fresh.step = fresh.total_steps = 10
    pruner = HMNASPruner(fresh, by="survival")
    assert not any(FLAGGED in t.user_attrs for t in run(pruner, lambda a: len(str(a)), 40).trials)
    without = HMNAS(NetworkSpace(SPACE, FRAME), HMNASRecipe(mask_fraction=0.0))
    without.step = without.total_steps = 10
    assert not any(FLAGGED in t.user_attrs for t in run(HMNASPruner(without), lambda a: len(str(a)), 40).trials)


def test_what_passes_goes_to_the_wrapped_pruner_by_default_the_median():
    pruner = HMNASPruner(masked())
    assert isinstance(pruner.pruner, optuna.pruners.MedianPruner)
    assert isinstance(HMNASPruner(masked(), pruner=NopPruner()).pruner, NopPruner)


def test_a_pickled_pruner_judges_alike():
    pruner = HMNASPruner(masked())
    other = pickle.loads(pickle.dumps(pruner))
    study = optuna.create_study()
    assert pruner.threshold(study, 20) == other.threshold(study, 20)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"quantile": 1.0}, r"`quantile` must be in \(0, 1\)"),
        ({"exempt": 0.0}, r"`exempt` must be in \(0, 1\]"),
        ({"by": "accuracy"}, "`by` must be one of"),
        ({"n_random": 5}, "`n_random` must be at least 10"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        HMNASPruner(masked(), **arguments)


# -- rounds -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    return few_digits(96)


def learning(data, store, **arguments):
    hmnas = HMNAS(NetworkSpace(SPACE, FRAME), HMNASRecipe(batch_size=16, mask_fraction=0.5))
    return HMNASPruner(hmnas, data=data, budget=4, n_trials=6, trials_per_round=3, artifact_store=store, **arguments)


def test_masks_learn_in_rounds_that_all_workers_share(data, tmp_path):
    store = folder_store(tmp_path)
    pruner = learning(data, store)
    study = run(pruner, lambda a: len(str(a)), 4)
    total = pruner.model.total_steps
    assert pruner.model.fitted
    steps = [(value["step"], value["done"]) for value in map(snapshot, study.trials) if value]
    half = pruner.model.supernet_steps + pruner.model.mask_steps // 2
    assert steps == [(half, False), (total, True)]  # the supernet and half of the masks come first
    told = [dict(fit_records_of(trial)) for trial in study.trials if fit_records_of(trial)]
    assert [step for one in told for step, _ in one["HMNAS"]] == list(range(1, total + 1))
    assert {"edges", "ops", "weights", "loss", "accuracy"} <= set(told[1]["HMNAS"][-1][1])
    # Another process takes what was published, without a step of its own.
    other = learning(data, store)
    trial = study.ask()
    SPACE.suggest(trial)
    other.prune(study, study._storage.get_trial(trial._trial_id))
    assert other.model.step == total
    for name, tensor in pruner.model.tensors().items():
        assert torch.equal(tensor, other.model.tensors()[name]), name


def snapshot(trial):
    return read_json(trial.system_attrs, snapshot_key("hmnas"))


def test_a_round_that_was_cut_off_goes_on_from_its_checkpoint(data, tmp_path):
    whole = learning(data, folder_store(tmp_path / "whole"))
    run(whole, lambda a: len(str(a)), 4)
    first, second = (learning(data, folder_store(tmp_path / "cut")) for _ in range(2))
    first.prepare(tmp_path, None, lambda: first.model.step == 5)
    study = optuna.create_study(direction="maximize", pruner=first, sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    SPACE.suggest(trial)
    with pytest.raises(TrainingStopped):
        trial.should_prune()
    study.tell(trial, state=TrialState.FAIL)
    shares = []
    second.prepare(tmp_path, lambda what, share: shares.append(share), None)
    study.pruner = second
    for _ in range(3):
        trial = study.ask()
        SPACE.suggest(trial)
        trial.should_prune()
        trial.should_prune()  # asking twice trains once
        study.tell(trial, 1.0)
    assert 0 < len(shares) < second.model.total_steps  # it did not begin anew
    assert shares[-1] == 1
    for name, tensor in whole.model.tensors().items():
        assert torch.equal(tensor, second.model.tensors()[name]), name


def test_data_and_budget_belong_together(data):
    hmnas = HMNAS(NetworkSpace(SPACE, FRAME))
    for arguments in ({"data": data}, {"budget": 2}):
        with pytest.raises(ValueError, match="`data` and `budget` must be given together"):
            HMNASPruner(hmnas, **arguments)
    with pytest.raises(ValueError, match="`trials_per_round` must be at least 1"):
        HMNASPruner(hmnas, data=data, budget=2, trials_per_round=0)


# -- as studies meet it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
@pytest.mark.parametrize("n_jobs", [1, 4])
def test_it_stops_the_same_trials_in_every_storage_and_with_threads(kind, n_jobs, tmp_path):
    if kind == "sqlite":
        storage = f"sqlite:///{tmp_path / 'study.db'}"
    else:
        storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    hmnas = masked()
    study = optuna.create_study(
        direction="maximize",
        storage=storage,
        pruner=HMNASPruner(hmnas, by="survival", pruner=HyperbandPruner(1, 4), n_random=100, n_startup_trials=5),
        sampler=optuna.samplers.RandomSampler(seed=0),
    )

    def objective(trial):
        architecture = SPACE.suggest(trial)
        if not architecture.connected:
            raise TrialPruned
        share = hmnas.survival(architecture).share
        if trial.should_prune():
            raise TrialPruned
        for epoch in range(1, 5):
            trial.report(share, epoch)
            if epoch < 4 and trial.should_prune():
                raise TrialPruned
        return share

    study.optimize(objective, n_trials=80, n_jobs=n_jobs)
    assert len(study.trials) == 80
    assert {t.state for t in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    flagged = [t for t in study.trials if FLAGGED in t.user_attrs]
    limit = study.pruner.threshold(study, 79)
    assert len(flagged) > 2
    assert all(t.user_attrs[SURROGATE_SCORE] < limit for t in flagged)
    by_hyperband = [t for t in study.trials if t.state == TrialState.PRUNED and t.intermediate_values]
    assert by_hyperband


def test_a_retried_trial_is_judged_by_itself():
    hmnas, noise = masked(), np.random.default_rng(0)
    pruner = HMNASPruner(hmnas, n_random=300, by="survival")
    study = run(pruner, lambda a: hmnas.survival(a).share + 0.05 * noise.normal(), 2)
    dead = study.trials[1]
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.WAITING,
            system_attrs=dead.system_attrs | {"failed_trial": 1, "fixed_params": dead.params},
            user_attrs=dead.user_attrs,
        )
    )
    trial = study.ask()
    assert trial.number == 2
    SPACE.suggest(trial)
    trial.should_prune()
    own = [SPACE.sample(np.random.default_rng([0, place])) for place in range(200, 300)]
    published = read_json(study._storage.get_trial(trial._trial_id).system_attrs, random_scores_key("hmnas"))
    assert published["piece"] == 2
    assert published["scores"] == [hmnas.survival(a).share for a in own]


def test_with_several_objectives_it_is_asked_through_the_objective(data):
    hmnas = masked(share=0.3)
    objective = TrainObjective(
        NetworkSpace(SPACE, FRAME),
        data,
        Recipe(epochs=1, batch_size=32),
        objectives=("accuracy", "params"),
        reuse_duplicates=False,
    )
    study = optuna.create_study(
        directions=objective.directions,
        pruner=HMNASPruner(hmnas, by="survival", n_random=50, quantile=0.5, n_startup_trials=5),
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    # Trials of before that agree with the masks, so that the pruner may speak.
    random = np.random.default_rng(5)
    before = [a for a in (SPACE.sample(random) for _ in range(60)) if a.connected]
    for architecture in before:
        share = hmnas.survival(architecture).share
        study.add_trial(
            optuna.trial.create_trial(
                values=(share, 1.0),
                params=SPACE.encode(architecture),
                distributions=SPACE.distributions(),
            )
        )
    study.optimize(objective, n_trials=16)
    ours = study.trials[len(before) :]
    stopped = [t for t in ours if FLAGGED in t.user_attrs]
    assert stopped
    assert any(t.state == TrialState.PRUNED and "HMNASPruner stopped it" in t.user_attrs[REASON] for t in stopped)
    assert any(t.state == TrialState.COMPLETE for t in ours)


def test_plain_pruners_are_not_asked_with_several_objectives():
    study = optuna.create_study(directions=["maximize", "minimize"], pruner=optuna.pruners.MedianPruner())
    assert not should_prune(study.ask())


def test_a_wrapped_pruner_that_raises_is_named():
    class Broken(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            raise KeyError("rung")

    study = optuna.create_study(direction="maximize", pruner=HMNASPruner(masked(), pruner=Broken()))
    trial = study.ask()
    SPACE.suggest(trial)
    assert not trial.should_prune()
    trial.report(0.5, 1)
    with pytest.raises(RuntimeError, match=r"`pruner` must answer .* but Broken raised KeyError at trial 0"):
        trial.should_prune()


def test_trials_of_another_space_go_to_the_wrapped_pruner_and_it_is_said_once(caplog):
    other = CellSpace(("none", "skip_connect", "nor_conv_3x3"), 3, 1, (CellKind("cell"),))  # the same names of edges
    study = optuna.create_study(direction="maximize", pruner=HMNASPruner(masked()))
    for _ in range(3):
        trial = study.ask()
        other.suggest(trial)
        assert not trial.should_prune()
        study.tell(trial, 1.0)
    assert caplog.text.count("`space` of HMNASPruner must be that of the trials but trial 0") == 1
    with pytest.raises(ValueError, match="`pruner` must be of the space of the search"):
        Search(name="a", space=other, objective=lambda trial: 1.0, pruner=HMNASPruner(masked()))


def test_masks_are_told_once_for_their_picture(tmp_path):
    hmnas = masked()
    study = run(HMNASPruner(hmnas), lambda a: 1.0, 5)
    told = [masks_of(trial, SPACE) for trial in study.trials]
    assert told[0]["step"] == hmnas.step
    assert {path: tuple(kept) for path, kept in told[0]["kept"].items()} == hmnas.kept()
    assert told[0]["weights"] == pytest.approx(hmnas.edge_weights, rel=1e-3)
    assert told[1:] == [None] * 4


def test_mlflow_shows_the_masks_and_how_they_fell(data, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    recipe = Recipe(epochs=1, batch_size=32)
    wanted = Search(
        name="masks",
        space=SPACE,
        objective=TrainObjective(NetworkSpace(SPACE, FRAME), data, recipe),
        data=data,
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=learning(data, None),
        trials=4,
        folder=tmp_path / "runs",
        tracking=MLflowTracker(uri),
    )
    optuna_nas.run(wanted)
    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (found for found in runs if found.data.tags["optuna_nas.kind"] == "study")
    assert "masks.png" in {file.path for file in client.list_artifacts(parent.info.run_id)}
    for name in ("edges", "ops", "weights"):
        assert client.get_metric_history(parent.info.run_id, f"hmnas/{name}")
