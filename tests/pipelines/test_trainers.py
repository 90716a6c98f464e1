"""Networks and modules of ours under other people's training loops, as their users write them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from torch import nn

from optuna_nas import (
    DiscreteNetwork,
    ModuleSpace,
    NetworkSpace,
    choose,
    choose_op,
    nasbench201_skeleton,
    nasbench201_space,
)

pytestmark = pytest.mark.pipeline

CELLS = NetworkSpace(nasbench201_space(), nasbench201_skeleton(repeats=1, channels=4, input_shape=(1, 8, 8)))
DEAD_END = {"cell_0_3": "nor_conv_1x1", "cell_0_2": "nor_conv_3x3", "cell_1_3": "nor_conv_3x3"}


class Net(nn.Module):
    """Classifier of six numbers, with choices; the loss comes with the scores, as transformers want it."""

    def __init__(self):
        super().__init__()
        width = choose("width", [8, 16])
        self.stem = nn.Linear(6, width)
        self.act = choose_op("act", {"relu": nn.ReLU, "tanh": nn.Tanh, "linear": lambda: nn.Linear(width, width)})
        self.head = nn.Linear(width, 2)

    def forward(self, x, labels=None):
        scores = self.head(self.act(self.stem(x)))
        return scores if labels is None else {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}


MODULES = ModuleSpace(Net, example=torch.zeros(1, 6), name="TrainerNet")


def table(n_rows=96):
    x = torch.randn(n_rows, 6, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()


# -- skorch -----------------------------------------------------------------------------------------------------------


def test_skorch_trains_an_architecture_and_grid_search_chooses_one():
    skorch = pytest.importorskip("skorch")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV

    digits = load_digits()
    x, y = (digits.images[:120, None] / 16).astype(np.float32), digits.target[:120].astype(np.int64)
    architectures = [CELLS.architecture(DEAD_END), CELLS.architecture({"cell_0_3": "nor_conv_3x3"})]
    classifier = skorch.NeuralNetClassifier(
        DiscreteNetwork, module__architecture=architectures[0], module__seed=0, criterion=nn.CrossEntropyLoss,
        max_epochs=2, lr=0.1, batch_size=32, train_split=None, verbose=0,
    )  # fmt: skip
    assert classifier.fit(x, y).predict_proba(x).shape == (120, 10)
    grid = GridSearchCV(classifier, {"module__architecture": architectures}, cv=2).fit(x, y)
    assert grid.best_params_["module__architecture"] in architectures


def test_skorch_trains_what_a_module_space_builds():
    skorch = pytest.importorskip("skorch")
    x, y = table()
    model = MODULES.architecture({"width": 16, "act": "tanh"}).build(seed=0)
    classifier = skorch.NeuralNetClassifier(
        model, criterion=nn.CrossEntropyLoss, max_epochs=30, lr=0.5, verbose=0, train_split=None
    )
    assert classifier.fit(x.numpy(), y.numpy()).score(x.numpy(), y.numpy()) > 0.9


# -- transformers -----------------------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    """Rows of a table by the names of a module's arguments."""

    def __init__(self, n_rows=96):
        self.x, self.y = table(n_rows)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, position):
        return {"x": self.x[position], "labels": self.y[position]}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_transformers_search_an_architecture_with_our_sampler_and_pruner(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    from optuna_nas import SNASSampler

    monkeypatch.chdir(tmp_path)
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=2, per_device_train_batch_size=32, learning_rate=0.05, eval_strategy="epoch",
        save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, label_names=["labels"],
    )  # fmt: skip
    built = []

    def model_init(trial):
        if trial is None:  # the Trainer asks once before any trial
            return MODULES.architecture({}).build()
        built.append(MODULES.suggest(trial))
        return built[-1].build(seed=0)

    trainer = transformers.Trainer(
        args=arguments, model_init=model_init, train_dataset=Rows(), eval_dataset=Rows(32),
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
    )  # fmt: skip
    best = trainer.hyperparameter_search(
        backend="optuna", direction="maximize", n_trials=3, hp_space=lambda trial: {},
        compute_objective=lambda metrics: metrics["eval_accuracy"],
        sampler=SNASSampler(MODULES, seed=0), pruner=optuna.pruners.MedianPruner(),
    )  # fmt: skip
    assert len(built) == 3
    assert MODULES.decode(best.hyperparameters) in built
    assert best.objective > 0.5


# -- accelerate and torchrun ------------------------------------------------------------------------------------------

ACCELERATE = """
import torch
from accelerate import Accelerator
from torch import nn
from pipelines.test_trainers import CELLS, DEAD_END

torch.manual_seed(0)
accelerator = Accelerator(cpu=True)
model = CELLS.architecture(DEAD_END).build(seed=0)
optimizer = torch.optim.SGD(model.parameters(), 0.05)
dataset = torch.utils.data.TensorDataset(torch.randn(64, 1, 8, 8), torch.arange(64) % 10)
loader = torch.utils.data.DataLoader(dataset, batch_size=8)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
steps = 0
for x, y in loader:
    optimizer.zero_grad()
    accelerator.backward(nn.functional.cross_entropy(model(x), y))
    optimizer.step()
    steps += 1
print(f"rank {accelerator.process_index} of {accelerator.num_processes}: {steps} steps\\n", end="", flush=True)
accelerator.end_training()
"""

TORCHRUN = """
import torch
from torch import distributed, nn
from pipelines.test_trainers import CELLS, DEAD_END

distributed.init_process_group("gloo")
rank, size = distributed.get_rank(), distributed.get_world_size()
model = nn.parallel.DistributedDataParallel(CELLS.architecture(DEAD_END).build(seed=0))
optimizer = torch.optim.SGD(model.parameters(), 0.05)
steps = 0
for _ in range(3):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8)).backward()
    optimizer.step()
    steps += 1
print(f"rank {rank} of {size}: {steps} steps\\n", end="", flush=True)
distributed.destroy_process_group()
"""


def ranks_of(folder, script, *launcher):
    """Run a script by a launcher; return the lines of its ranks."""
    (folder / "train.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run(
        [sys.executable, *launcher, "train.py"],
        cwd=folder,
        env=environment | {"PYTHONWARNINGS": "ignore", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))


@pytest.mark.process
@pytest.mark.parametrize("n_processes", [1, 2])
def test_accelerate_trains_a_cell_with_dead_ends(n_processes, tmp_path):
    pytest.importorskip("accelerate")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    found = ranks_of(tmp_path, ACCELERATE, *launcher)
    assert found == [f"rank {rank} of {n_processes}: {8 // n_processes} steps" for rank in range(n_processes)]


@pytest.mark.process
def test_torchrun_trains_a_cell_with_dead_ends(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert ranks_of(tmp_path, TORCHRUN, *launcher) == ["rank 0 of 2: 3 steps", "rank 1 of 2: 3 steps"]
