"""What the README and the pages of `docs/` show works as it stands."""

import re
from pathlib import Path

import optuna
import pytest

from optuna_nas import CellSpace, Search, unregister_op
from optuna_nas.networks import build_op
from optuna_nas.space import Site

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PIPELINES = ROOT / "docs" / "pipelines.md"


def block(word, page=README, language="python"):
    blocks = re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    (found,) = [text for text in blocks if word in text]
    return found


def run(text, **names):
    exec(compile(text, "README.md", "exec"), names)
    return names


def test_the_study_is_one():
    assert callable(run(block("def search("))["search"])


def test_an_objective_of_ones_own_gets_its_network_in_one_line():
    losses = []

    def your_training(model, learning_rate):
        losses.append(sum(p.numel() for p in model.parameters()))
        return learning_rate

    run(block(").optimize(objective").replace("n_trials=20", "n_trials=1"), your_training=your_training)
    assert losses[0] > 1000


def test_a_module_of_ones_own_asks_where_one_hesitates():
    names = run(block("choose_depth("), optuna=optuna, your_training=lambda model, learning_rate: learning_rate)
    study = optuna.create_study()
    study.optimize(names["objective"], n_trials=2)
    assert study.best_params.keys() >= {"width", "norm", "depth", "head_reads", "learning_rate"}
    assert names["space"].size == 3 * 2 * 4 * 3


def test_a_search_is_an_estimator():
    names = run(block("NASClassifier(", PIPELINES).replace("n_trials=4, epochs=10", "n_trials=1, epochs=1"))
    assert names["grid"].best_params_


def test_ask_here_and_tell_there():
    assert run(block("study.ask(", PIPELINES))["study"].best_value == 0.9


def test_a_one_shot_model_in_a_loop_of_ones_own():
    snas = run(block("snas.plan(", PIPELINES))["snas"]
    assert all(parameter.grad is not None for parameter in snas.parameters() if parameter.requires_grad)


def test_ordinary_categoricals_need_no_space():
    assert len(run(block("CategoricalDistribution", PIPELINES))["study"].trials) == 5


def test_a_study_as_a_file(tmp_path):
    (tmp_path / "study.yaml").write_text(block("name: digits-darts", PIPELINES, "yaml"))
    search = Search.from_yaml(tmp_path / "study.yaml", ["recipe.epochs=20", "name=longer"])
    assert (search.name, search.recipe.epochs, search.trials) == ("longer", 20, 30)


@pytest.mark.pipeline
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_ray_tune_is_put_together():
    pytest.importorskip("ray.tune")
    names = run(block("PrunerScheduler(", PIPELINES), your_training=lambda model: 0.5)
    assert type(names["tuner"]).__name__ == "Tuner"


@pytest.mark.pipeline
def test_a_script_of_hydra_is_a_search():
    pytest.importorskip("hydra")
    assert callable(run(block("@hydra.main", PIPELINES))["train"])


def test_data_and_a_task_other_than_images():
    names = run(block("TensorData.from_arrays("))
    assert names["table"].input_shape == (10,)
    assert names["task"].direction == "minimize"


def test_snas_as_a_sampler_and_alone():
    names = run(block("SNASSampler("))
    assert names["sampler"].learning == "score function of trials"
    shown = run(block("snas.fit(").replace("budget=2", "budget=0.1"), **names)
    assert shown["snas"].step == 2
    assert shown["cell"].connected


def test_a_ghn_as_a_sampler_and_alone():
    names = run(block("ghn = GHN(space"))
    shown = run(block("ghn.fit(").replace("budget=1)", "budget=0.1)"), **names)
    assert shown["ghn"].step == 2
    assert len(shown["cells"]) == 20


def test_a_score_without_training():
    names = run(block("ghn = GHN(space"))
    shown = run(block("ghn.fit(").replace("budget=1)", "budget=0.1)"), **names)
    shown = run(block("free = FreeScore("), **shown)
    assert ((shown["both"](shown["cells"][:3]) >= 0) & (shown["free"](shown["cells"][:3]) <= 1)).all()


def test_networks_that_may_be_stopped():
    names = run(block("ghn = GHN(space"))
    shown = run(block("anytime_skeleton("), **names)
    costs = shown["network"].exit_costs
    assert len(shown["answers"]) == sum(cost <= 1e5 for cost in costs)
    assert shown["answers"][-1].shape == (10, 10)


def test_pruning_with_learned_masks(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = run(block("ghn = GHN(space"))
    shown = run(block("HMNASPruner("), **names)
    shown = run(block("hmnas.fit("), **shown)
    assert shown["hmnas"].fitted
    assert shown["network"](shown["data"].images[:4].float()).shape == (4, 10)


def test_a_space_and_an_op_of_ones_own(capsys):
    run(block('CellSpace(["none"'))
    assert "Cost(params=" in capsys.readouterr().out
    run(block("register_op("))
    try:
        module = build_op("wide_conv_9x9", Site((4, 8, 8), (4, 4, 4), stride=2))
        assert sum(p.numel() for p in module.parameters()) == 9 * 9 * 4 * 4 + 4
        assert CellSpace(["wide_conv_9x9", "skip_connect"]).size == 2**28
    finally:
        unregister_op("wide_conv_9x9")


@pytest.mark.parametrize("picture", re.findall(r"\]\((studies/\S+\.png)\)", README.read_text()))
def test_pictures_are_there(picture):
    assert (README.parent / picture).stat().st_size > 1000
