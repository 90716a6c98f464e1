"""A LightningModule as it is: searched, learned from by all methods, and trained by Lightning afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from torch import nn
from tracked import read

from optuna_nas import (
    GHN,
    HMNAS,
    SNAS,
    GHNRecipe,
    HMNASRecipe,
    MLflowTracker,
    ModuleSpace,
    NetworkSpace,
    Recipe,
    Search,
    Skeleton,
    SNASRecipe,
    TensorData,
    choose,
    choose_op,
    choose_ops,
    hmnas_space,
    nasbench201_skeleton,
    nasbench201_space,
)
from optuna_nas.training import train

lightning = pytest.importorskip("lightning.pytorch")
torchmetrics = pytest.importorskip("torchmetrics")

from optuna_nas.pipelines.lightning import LightningTask  # noqa: E402 - it imports Lightning


class Net(lightning.LightningModule):
    """Classifier whose steps are Lightning's."""

    def __init__(self):
        super().__init__()
        self.save_hyperparameters()
        width = choose("width", [8, 4])
        self.stem = nn.Linear(6, width)
        self.act = choose_op("act", {"relu": nn.ReLU, "layer": lambda: nn.Linear(width, width)})
        self.head = nn.Linear(width, 2)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=2)

    def forward(self, x):
        return self.head(self.act(self.stem(x)))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        scores = self(batch[0])
        self.accuracy(scores, batch[1])
        right = (scores.argmax(1) == batch[1]).float().mean()
        self.log_dict({"val_acc": right, "val_loss": nn.functional.cross_entropy(scores, batch[1])})
        self.log("val_metric", self.accuracy)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


SPACE = ModuleSpace(Net, example=torch.zeros(1, 6))
TASK = LightningTask("val_acc")


def data():
    x = torch.randn(240, 6, generator=torch.Generator().manual_seed(0))
    return TensorData.from_arrays(x.numpy(), (x[:, 0] > 0).long().numpy(), name="sign")


def test_a_search_uses_its_steps(tmp_path):
    recipe = Recipe(epochs=6, batch_size=16)
    search = Search("net", SPACE, data(), recipe, TASK, trials=3, tracking=None, folder=tmp_path, cpu_threads=1)
    result = search.run()
    assert result.best.value > 0.8
    assert result.study.best_trial.user_attrs


@pytest.mark.parametrize("metric", ["val_acc", "val_metric"])
def test_values_and_torchmetrics_are_means_over_examples(metric):
    module = SPACE.full_architecture().build(seed=0).eval()
    batches = [(torch.eye(6), torch.tensor([0, 1, 0, 1, 0, 1])), (torch.eye(6)[:2], torch.tensor([0, 0]))]
    right = sum(int((module(x).argmax(1) == y).sum()) for x, y in batches)
    for _ in range(2):  # a torchmetrics object begins anew
        assert LightningTask(metric).evaluate(module, batches) == pytest.approx(right / 8)


def test_its_supernet_and_generated_weights_learn_by_its_steps():
    for model in (
        SNAS(SPACE, SNASRecipe(batch_size=16, learning_rate=0.1), TASK),
        SNAS(SPACE, SNASRecipe(batch_size=16, learning_rate=0.1, relaxation="one_path"), TASK),
        GHN(SPACE, GHNRecipe(batch_size=16, phases=1), TASK),
    ):
        model.fit(data(), 6, show_progress=False)
        assert model.records[-1].metrics["loss"] < model.records[0].metrics["loss"]
        architectures = [SPACE.sample(np.random.default_rng(seed)) for seed in range(3)]
        assert np.isfinite(model.score(architectures)).all()


class Summed(Net):
    """A classifier with a choice of several, which masks need."""

    def __init__(self):
        super().__init__()
        ops = {"tanh": nn.Tanh, "layer": lambda: nn.Linear(2, 2), "same": nn.Identity}
        self.head = nn.Sequential(self.head, choose_ops("sums", ops))


def test_its_masks_learn_by_its_steps_and_what_is_derived_is_fine_tuned_by_them():
    space = ModuleSpace(Summed, example=torch.zeros(1, 6))
    hmnas = HMNAS(space, HMNASRecipe(batch_size=16, learning_rate=0.1, mask_fraction=0.4), TASK)
    hmnas.fit(data(), 6, show_progress=False)
    assert hmnas.records[-1].metrics["loss"] < hmnas.records[0].metrics["loss"]
    assert any((mask != 1).any() for mask in hmnas.masks.weight_masks.values())
    derived = hmnas.derive()
    module = hmnas.inherited(derived.architecture)
    assert isinstance(module, Summed)
    before = TASK.evaluate(module, data().batches(("report",), 64))
    assert before > 0.8
    train(module, data(), Recipe(epochs=1, batch_size=16), TASK)
    assert TASK.evaluate(module, data().batches(("report",), 64)) > 0.8


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*The number of training batches")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_lightning_trains_what_was_built(tmp_path):
    module = SPACE.architecture({"act": "layer", "width": 4}).build()
    x = torch.randn(64, 6)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    assert trainer.global_step == 4


def test_a_metric_that_is_not_logged_is_named():
    module, batch = SPACE.full_architecture().build(), (torch.eye(6), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"`metric` must be logged by `validation_step` but 'f1' is not among \["):
        LightningTask("f1").evaluate(module, [batch])
    with pytest.raises(ValueError, match="`direction` must be one of"):
        LightningTask("val_acc", "up")


def test_a_module_without_a_validation_step_is_told_so():
    class Silent(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.act = choose_op("act", {"relu": nn.ReLU, "linear": lambda: nn.Linear(6, 6)})

        def forward(self, x):
            return self.act(x)

    module = ModuleSpace(Silent, example=torch.zeros(1, 6)).full_architecture().build()
    with pytest.raises(
        ValueError, match=r"`validation_step` must be a method of Silent, .* but there is none; add one"
    ):
        TASK.evaluate(module, [(torch.eye(6), torch.zeros(6, dtype=torch.int64))])


# -- a Trainer of the user's own ------------------------------------------------------------------------------------

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]
CELLS = NetworkSpace(nasbench201_space(), nasbench201_skeleton(repeats=1, channels=4, input_shape=(1, 8, 8)))


class Wrapped(lightning.LightningModule):
    """An ordinary LightningModule around what was built."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self.model(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05, 0.9)


class Supernet(lightning.LightningModule):
    """A one-shot model, trained by Lightning."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def on_fit_start(self):
        self.model.plan(self.trainer.estimated_stepping_batches, self.device)

    def training_step(self, batch, batch_idx):
        return self.model.loss(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.model.parameters(), 0.01)


def images(n_images=128):
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.from_numpy(found.images[:n_images, None]).float() / 16
    dataset = torch.utils.data.TensorDataset(x, torch.from_numpy(found.target[:n_images]))
    return torch.utils.data.DataLoader(dataset, batch_size=32)


def trainer(folder, **options):
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    plain = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False, "default_root_dir": folder}
    return lightning.Trainer(**{**plain, **quiet, **options})


class LastPruned(optuna.pruners.BasePruner):
    """Prunes trial 1 at its second report."""

    def prune(self, study, trial):
        return trial.number == 1 and len(trial.intermediate_values) > 1


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_an_objective_with_its_pruning_callback_and_its_logger_on_the_run_of_the_trial(tmp_path, monkeypatch):
    integration = pytest.importorskip("optuna_integration")
    from lightning.pytorch.loggers import MLFlowLogger

    monkeypatch.chdir(tmp_path)
    uri, loader = f"sqlite:///{tmp_path / 'mlflow.db'}", images()
    tracker = MLflowTracker(uri)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0), pruner=LastPruned()
    )
    tracker.start(study, space=CELLS)
    ids = []

    def objective(trial):
        module = Wrapped(CELLS.suggest(trial).build())
        ids.append(tracker.run_id(trial))
        logger = MLFlowLogger(tracking_uri=uri, run_id=ids[-1])
        pruning = integration.PyTorchLightningPruningCallback(trial, "val_acc")
        fit = trainer(tmp_path, logger=logger, callbacks=[pruning])
        fit.fit(module, loader, loader)
        return fit.callback_metrics["val_acc"].item()

    study.optimize(objective, n_trials=2, callbacks=[tracker.trial_finished])
    tracker.finish(study)
    shown = read(uri)
    assert [shown.children[number].info.run_id for number in (0, 1)] == ids
    assert shown.statuses == ["FINISHED", "KILLED"]
    assert [step for step, _ in shown.curve(shown.children[0], "val_acc")] == [3, 7]  # Lightning's own points
    assert "cell_0_1" in shown.children[0].data.params
    with pytest.raises(RuntimeError, match=r"`run_id` needs a started tracker; call `start\(study\)` first"):
        tracker.run_id(study.trials[0])


def test_a_trainer_trains_one_shot_models(tmp_path):
    small = CELLS.with_skeleton(affine=False)
    masked = NetworkSpace(hmnas_space(), Skeleton(("normal", "reduction"), 2, (1, 8, 8), 10, affine=False))
    for model in (
        SNAS(small, SNASRecipe(relaxation="one_path", warmup_fraction=0.0)),
        GHN(small, GHNRecipe(phases=1)),
        HMNAS(masked, HMNASRecipe(mask_fraction=0.4)),
    ):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        trainer(tmp_path, max_epochs=1).fit(Supernet(model), images())
        assert model.step == model.total_steps == 4
        assert model.fitted
        moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
        assert np.mean(moved) > 0.5


DDP = """
import lightning.pytorch as lightning, torch
from pipelines.test_lightning import CELLS, Wrapped, images, trainer

torch.manual_seed(0)
dead_end = {"cell_0_3": "nor_conv_1x1", "cell_0_2": "nor_conv_3x3", "cell_1_3": "nor_conv_3x3"}
module = Wrapped(CELLS.architecture(dead_end).build())
fit = trainer(".", strategy="ddp", devices=2, max_epochs=1, use_distributed_sampler=False)
fit.fit(module, images())
print(f"rank {fit.global_rank} of {fit.world_size}: {fit.global_step} steps", flush=True)
"""


@pytest.mark.process
def test_two_processes_of_a_trainer_train_by_plain_ddp(tmp_path):
    (tmp_path / "train.py").write_text(DDP)
    paths = [str(Path(__file__).parents[1]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in (0, 1):  # which may share a line
        assert f"rank {rank} of 2: 4 steps" in done.stdout
