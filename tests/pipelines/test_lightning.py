"""A LightningModule as it is: searched, learned from by all methods, and trained by Lightning afterwards."""

import numpy as np
import pytest
import torch
from torch import nn

from optuna_nas import GHN, SNAS, GHNRecipe, ModuleSpace, Recipe, Search, SNASRecipe, TensorData, choose, choose_op

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
