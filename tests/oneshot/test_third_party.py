"""A one-shot method of somebody else's, in fifteen lines and without a private name: GDAS."""

import math

import numpy as np
import optuna
import pytest
import torch
from mlflow import MlflowClient
from strategies import few_digits
from torch import nn

from optuna_nas import (
    CellKind,
    CellSpace,
    GHNSampler,
    MLflowTracker,
    NetworkSpace,
    OneShotModel,
    Search,
    Skeleton,
    SNASRecipe,
    SNASSampler,
    run,
)
from optuna_nas.networks import one_hot
from optuna_nas.storage.attributes import fit_records_of, read_json, snapshot_key
from optuna_nas.training import Calling, TrainingStopped

SPACE = CellSpace(("none", "skip_connect", "nor_conv_3x3", "avg_pool_3x3"), 2, 1, (CellKind("cell"),))
NETWORKS = NetworkSpace(SPACE, Skeleton(("cell",), 4, (1, 8, 8), 10, affine=False))


class GDAS(OneShotModel):
    """Hard one-path sampling by the Gumbel-softmax trick (Dong and Yang, CVPR 2019, arXiv 1910.04465)."""

    name = "GDAS"

    def __init__(self, space, recipe):
        super().__init__(space, recipe)
        self.supernet = space.supernet(recipe.seed)
        self.alphas = nn.ParameterList([torch.zeros(len(space.options()), len(space.cells.ops))])
        self.modules = {"supernet": self.supernet, "alphas": self.alphas}

    def make_optimizers(self):
        by_weights = torch.optim.SGD(self.supernet.parameters(), self.recipe.learning_rate, momentum=0.9)
        return {"weights": by_weights, "choices": torch.optim.Adam(self.alphas.parameters(), 0.01)}

    def train_step(self, batch):
        uniform = torch.rand(self.alphas[0].shape, generator=self.generator(), device=self.device)
        soft = (self.alphas[0] - (-uniform.log()).log()).div(10 - 9.9 * self.fraction).softmax(-1)
        hard = nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]) - soft.detach() + soft
        weights = dict(zip(self.space.options(), hard, strict=True))
        return self.update(*self.task.training_step(Calling(lambda images: self.supernet(images, weights)), batch))

    def predict(self, architecture, images):
        return self.supernet(images, one_hot(architecture))

    @property
    def logits(self):
        return self.alphas[0].detach().cpu().numpy().copy()


@pytest.fixture(scope="module")
def data():
    return few_digits(64)


def gdas(seed=0):
    return GDAS(NETWORKS, SNASRecipe(batch_size=16, learning_rate=0.1, seed=seed))


def assert_same(one, other):
    assert one.step == other.step
    assert one.records == other.records
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def test_it_learns_and_scores_architectures(data):
    model = gdas()
    model.fit(data, 20)
    assert model.fitted
    losses = [record.metrics["loss"] for record in model.records]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
    assert (model.logits != 0).all()
    architecture = SPACE.architecture(dict.fromkeys(SPACE.paths, ("nor_conv_3x3",)))
    assert model.score([architecture])[0] > -math.log(10)


@pytest.mark.parametrize("stop_at", [1, 5])
def test_a_fit_that_was_stopped_ends_with_the_same_numbers(data, tmp_path, stop_at):
    through, stopped, resumed = gdas(), gdas(), gdas()
    through.fit(data, 3)
    with pytest.raises(TrainingStopped):
        stopped.fit(data, 3, checkpoint=tmp_path / "c", should_stop=lambda: stopped.step == stop_at)
    assert stopped.step == stop_at < through.step
    resumed.fit(data, 3, checkpoint=tmp_path / "c")
    assert_same(resumed, through)


def test_a_checkpoint_of_another_method_is_refused(data, tmp_path):
    class Other(GDAS):
        name = "Other"

    gdas().save(tmp_path / "c")
    with pytest.raises(ValueError, match="`path` must be a checkpoint of a Other"):
        Other(NETWORKS, SNASRecipe(batch_size=16, learning_rate=0.1)).load(tmp_path / "c")


def test_names_of_modules_and_optimizers_must_differ(data):
    class Clash(GDAS):
        def make_optimizers(self):
            return {"supernet": torch.optim.SGD(self.supernet.parameters(), 0.1)}

    with pytest.raises(ValueError, match="`make_optimizers` must use names unlike those of `modules`"):
        Clash(NETWORKS, SNASRecipe(batch_size=16)).fit(data, 1)


def test_a_study_trains_it_in_rounds_under_its_own_name(data, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    sampler = SNASSampler(SPACE, gdas(), data=data, budget=4, trials_per_round=2, seed=0)
    search = Search(
        "gdas",
        SPACE,
        objective=lambda trial: str(SPACE.suggest(trial)).count("conv"),
        sampler=sampler,
        trials=4,
        folder=tmp_path / "runs",
        tracking=MLflowTracker(uri),
        pictures=False,
    )
    study = run(search).study
    assert sampler.model.fitted
    openers = [trial for trial in study.trials if read_json(trial.system_attrs, snapshot_key("GDAS"))]
    assert [trial.number for trial in openers] == [0, 2]
    assert [list(fit_records_of(trial)) for trial in openers] == [["GDAS"], ["GDAS"]]
    assert read_json(openers[0].system_attrs, snapshot_key("GDAS"))["files"].keys() == {"gdas.safetensors"}
    client = MlflowClient(uri)
    (experiment,) = [found for found in client.search_experiments() if found.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (found for found in runs if found.data.tags["optuna_nas.kind"] == "study")
    assert client.get_metric_history(parent.info.run_id, "gdas/loss")
    straight = gdas()
    straight.fit(data, 4)
    assert_same(sampler.model, straight)


def test_a_pool_is_scored_by_its_inherited_weights(data, tmp_path):
    from optuna_nas.storage.artifacts import folder_store

    sampler = GHNSampler(
        SPACE, gdas(), data=data, budget=2, pool_size=12, trials_per_round=6, exploration=0.0, seed=0,
        artifact_store=folder_store(tmp_path),
    )  # fmt: skip
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(lambda trial: sampler.model.score([SPACE.suggest(trial)])[0], n_trials=4)
    values = [trial.value for trial in study.trials]
    assert values == sorted(values, reverse=True)
    assert sampler.model.fitted


def test_a_model_without_logits_cannot_be_drawn_from():
    class Scorer(GDAS):
        logits = property(doc="nothing to draw from")

    with pytest.raises(ValueError, match="`model` must have `logits` to draw from but a GDAS has none"):
        SNASSampler(SPACE, Scorer(NETWORKS, SNASRecipe()))
