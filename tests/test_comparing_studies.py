"""Studies that compare ways run, tiny, and say what they have found; what they count by themselves is right."""

import importlib
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from strategies import few_digits

from optuna_nas.networks import measures

STUDIES = Path(__file__).parents[1] / "studies"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the `main` of a study with arguments, and return what it prints; whatever it sets is set back."""
    monkeypatch.syspath_prepend(str(STUDIES))
    monkeypatch.syspath_prepend(str(STUDIES / "benchmarks"))
    monkeypatch.setattr(measures, "clock", measures.clock)
    threads, verbosity = torch.get_num_threads(), optuna.logging.get_verbosity()

    def main(name, *arguments, **replaced):
        study = importlib.import_module(name)
        for what, by in replaced.items():
            monkeypatch.setattr(study, what, by)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.main()
        return capsys.readouterr().out

    yield main
    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(verbosity)


def no_score(*arguments, **named):
    """A score that costs nothing, in place of the free score of a pool."""
    return lambda architectures: np.arange(len(architectures), dtype=float)


def share_below(points, samples=200_000):
    """The oracle: the share of random points of the unit cube that some point is at least as good as."""
    points = np.array(points)
    drawn = np.random.default_rng(0).random((samples, points.shape[1]))
    return np.any([(point <= drawn).all(1) for point in points], axis=0).mean()


def test_hypervolumes_by_hand_and_by_counting(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    hypervolume = importlib.import_module("several_objectives").hypervolume
    assert hypervolume([]) == hypervolume([[1.0, 0.0]]) == 0.0
    assert hypervolume([[0.25]]) == 0.75
    assert hypervolume([[0.5, 0.5], [0.75, 0.75]]) == 0.25  # the second one adds nothing
    assert hypervolume([[0.2, 0.6], [0.6, 0.2]]) == pytest.approx(2 * 0.8 * 0.4 - 0.4 * 0.4)
    assert hypervolume([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]) == 0.125
    for seed in range(3):
        points = np.random.default_rng(seed).random((12, 3)).tolist()
        assert hypervolume(points) == pytest.approx(share_below(points), abs=0.005)


def test_several_objectives_are_compared_and_what_is_kept_is_not_measured_again(run, tmp_path):
    arguments = ("several_objectives", "--seeds", 1, "--seconds", 0.01, "--json", tmp_path / "front.json")
    printed = run(*arguments, "--samplers", "random", "NSGA")
    found = json.loads((tmp_path / "front.json").read_text())
    assert found.keys() == {"NSGA-II", "random"}
    assert all(0 < value < 1 for values in found.values() for value in values)
    assert "seed 0, random: 1 trials" in printed
    assert "seed 0" not in run(*arguments, "--samplers", "random", "NSGA")


def test_shares_within_a_bound_are_counted(run, tmp_path):
    file = tmp_path / "bound.json"
    printed = run("under_a_bound", "--seeds", 1, "--trials", 2, "--json", file, FreeScore=no_score)
    found = {name: rows[0] for name, rows in json.loads(file.read_text()).items()}
    assert found["GHNSampler, bounds"][0] == 1.0
    assert all(share in (0.0, 0.5, 1.0) for share, _ in found.values())
    assert len(found) == printed.count("within the bounds, loss") == 6


def test_three_ways_to_tune_are_compared(run, tmp_path):
    file = tmp_path / "joint.json"
    printed = run("joint_search", "--seeds", 1, "--seconds", 0.01, "--json", file, FreeScore=no_score)
    found = json.loads(file.read_text())
    assert list(found) == ["joint", "architecture first", "hyperparameters only"]
    assert all(loss > 0 for (loss,) in found.values())
    assert "seed 0, architecture first: validation loss" in printed
    assert "after 2 trials" in printed


def test_three_ways_to_tune_a_module_are_compared(run):
    printed = run("joint_search", "--module", "--seeds", 1, "--seconds", 0.01)
    assert printed.count("seed 0, ") == 3


def test_what_was_learned_elsewhere_is_compared(run, tmp_path):
    file = tmp_path / "transfer.json"
    tiny = {"digits": lambda seed: few_digits(64), "small_fashion_mnist": lambda folder, seed: few_digits(64)}
    tiny |= {"EPOCHS": 0.1, "STUDY_SECONDS": 0.5}
    printed = run("transfer", "--seeds", 1, "--seconds", 0.01, "--json", file, **tiny)
    (found,) = json.loads(file.read_text())
    assert list(found) == ["from nothing", "from an SNAS", "from a study", "from a GHN", "TPE"]
    assert "from a GHN: mean loss" in printed


def test_nodes_of_blocks_are_compared(run, tmp_path):
    file = tmp_path / "nodes.json"
    arguments = ("--nodes", 3, "--blocks", 2, "--epochs", 0.05, "--seeds", 1, "--json", file)
    printed = run("ghn_nodes", *arguments, digits=lambda: few_digits(64))
    found = json.loads(file.read_text())
    assert len(found["losses"]) == 2
    assert [row["nodes"] for row in found["rows"]] == [3]
    assert "2 blocks: loss" in printed
