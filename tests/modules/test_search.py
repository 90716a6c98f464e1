"""A user's module from a study file to MLflow, report, final training, export and comparison."""

import re

import pytest
import torch
from declared import PERCEPTRON, TRANSFORMER
from terminal import here, nas
from torch import nn
from tracked import read

from optuna_nas import (
    ImageClassification,
    MLflowTracker,
    ModuleSpace,
    Recipe,
    Search,
    SNASRecipe,
    SNASSampler,
    Task,
    TensorData,
    choose,
    load_network,
    suggest_float,
)
from optuna_nas.oneshot import SNAS
from optuna_nas.plots import plot_architecture, plot_distribution
from optuna_nas.samplers import distribution_records
from optuna_nas.search.strategy import STRATEGIES

STUDY = """
import torch
from torch import nn
from optuna_nas import ModuleSpace, Recipe, Search, TensorData, choose, choose_op

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        width = choose("width", [8, 4])
        self.stem = nn.Linear(6, width)
        self.act = choose_op("act", {"relu": nn.ReLU, "deep": lambda: nn.Linear(width, width)})
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.act(self.stem(x)))

def search(trials: int = 4, epochs: int = 1, strategy: str = "random", seed: int = 0) -> Search:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    data = TensorData.from_arrays(x.numpy(), (x[:, 0] > 0).long().numpy() + (x[:, 1] > 0).long().numpy(), name="signs")
    space = ModuleSpace(Net, example=torch.zeros(1, 6))
    recipe = Recipe(epochs=epochs, batch_size=16, seed=seed)
    return Search("net", space, data, recipe, strategy=strategy, trials=trials, cpu_threads=1)
"""


def signs():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    return TensorData.from_arrays(x.numpy(), ((x[:, 0] > 0).long() + (x[:, 1] > 0).long()).numpy(), name="signs")


def test_a_search_learns_draws_and_shows_a_module(tmp_path):
    data, uri = signs(), f"sqlite:///{tmp_path / 'mlflow.db'}"
    snas = SNAS(PERCEPTRON, SNASRecipe(batch_size=16, relaxation="one_path"))
    search = Search(
        "module",
        PERCEPTRON,
        data,
        Recipe(epochs=1, batch_size=16),
        sampler=SNASSampler(PERCEPTRON, snas, data=data, budget=4, trials_per_round=3, seed=0),
        trials=6,
        tracking=MLflowTracker(uri),
        folder=tmp_path / "run",
        cpu_threads=1,
    )
    result = search.run()
    architecture = PERCEPTRON.decode(result.best.params)
    assert result.picture.exists()
    texts = [text.get_text() for text in plot_architecture(architecture).texts]
    assert [name.strip() for name in texts[::2]] == list(PERCEPTRON.asked(architecture))
    records = distribution_records(result.study)
    assert records
    figure = plot_distribution(PERCEPTRON, records)
    figure.canvas.draw()
    assert type(load_network(result.network)).__name__ == "Perceptron"
    shown = read(uri)
    assert shown.children[0].data.params["width"] in ("8", "4", "12")


def told(*arguments):
    done = here(*arguments)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.process
@pytest.mark.usefixtures("small_pools")
def test_the_command_line_runs_reports_trains_and_exports_a_module(folder):
    study, snas = folder / "net.py", ("net.py", "--set", "strategy=snas")
    study.write_text(STUDY)
    ran = nas("run", *snas)
    assert ran.returncode == 0, ran.stderr
    assert "width=" in ran.stdout
    assert "Test accuracy" in ran.stdout
    assert "[6/6]" in told("run", *snas, "--trials", "6")
    told("report", "net.py")
    assert "act" in (folder / "runs/net/report/report.md").read_text()
    assert re.search(r"accuracy", told("train", "net.py", "--recipe", "epochs=2"))
    for form in ("pt2", "state-dict"):
        told("export", "net.py", "--format", form)
    assert "free" in told("compare", "net.py", "--strategy", "free", "--strategy", "snas", "--budget", "trials=3")
    study.write_text(STUDY.replace("[8, 4]", "[8, 5]"))
    refused = here("run", *snas, "--trials", "8")
    assert refused.exit_code == 2
    assert "`space` must be that of the existing study" in refused.stderr
    assert "runs/other/" in told("run", "net.py", "--set", "strategy=random", "--set", "name=other", "--trials", "1")


class Median(Task):
    """A task that tells a metric, and no loss of its evaluation."""

    metric, direction = "agreement", "maximize"

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model, batches):
        return float(torch.cat([(model(x).argmax(1) == y).double() for x, y in batches]).mean())


@pytest.mark.usefixtures("small_pools")
@pytest.mark.parametrize("strategy", ["auto", "snas", "tpe"])
def test_a_task_that_tells_no_loss_is_judged_by_its_metric(strategy, tmp_path):
    recipe, fields = Recipe(epochs=2, batch_size=32), {"tracking": None, "pictures": False, "folder": tmp_path}
    search = Search("own", PERCEPTRON, signs(), recipe, Median(), strategy=strategy, trials=2, **fields)
    assert search.directions == ("maximize",)
    assert 0 <= search.run().best.value <= 1


@pytest.mark.parametrize(
    ("parts", "name", "where"),
    [
        ({"recipe": Recipe(learning_rate=suggest_float(0.01, 0.1))}, "learning_rate", "recipe"),
        ({"task": ImageClassification(label_smoothing=suggest_float(0.0, 0.1))}, "label_smoothing", "task"),
        ({"strategy": "auto"}, "epochs", "recipe"),
    ],
)
def test_a_choice_named_like_a_suggestion_is_refused_before_the_first_trial(parts, name, where):
    def net():
        return nn.Sequential(nn.Linear(6, choose(name, [4, 8])), nn.ReLU(), nn.Linear(choose(name, [4, 8]), 3))

    wrong = f"`space` must not have a choice with the name of what `{where}` suggests but both have '{name}'"
    with pytest.raises(ValueError, match=wrong):
        Search("own", ModuleSpace(net, example=torch.zeros(1, 6)), signs(), trials=50, **parts)


@pytest.mark.usefixtures("small_pools")
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "auto"])
def test_every_strategy_searches_a_module(strategy, tmp_path):
    search = Search(
        strategy,
        PERCEPTRON,
        signs(),
        Recipe(epochs=3, batch_size=32),
        strategy=strategy,
        trials=3,
        tracking=None,
        pictures=False,
        folder=tmp_path,
    )
    assert search.run().best is not None


def test_masks_need_choices_of_several_in_a_strategy_too(tmp_path):
    with pytest.raises(ValueError, match="`space` must have a choice of several to mask"):
        Search("masks", TRANSFORMER, signs(), strategy="hmnas", trials=3, tracking=None, folder=tmp_path)
