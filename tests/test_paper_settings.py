"""Studies in the papers' own settings end when their time is up, and the same call goes on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optuna_nas import NetworkSpace, anytime_skeleton, anytime_space

STUDIES = Path(__file__).parents[1] / "studies"
SEARCH = """
import sys, time
sys.path.insert(0, {studies!r})
from optuna.samplers import RandomSampler
from optuna_nas import Search, nasbench201_space, run
from paper_settings import ends_after

over = ends_after(float(sys.argv[1]))
space = nasbench201_space()

def objective(trial):
    space.suggest(trial)
    time.sleep(0.1)
    return 0.5

result = run(
    Search("lease", space, objective=objective, sampler=RandomSampler(0), trials=int(sys.argv[2]), tracking=None,
           pictures=False)
)
print(result.interrupted, over(), len(result.study.trials))
"""


@pytest.mark.process
def test_a_search_ends_when_the_time_is_up_and_goes_on(tmp_path):
    def called(seconds, trials):
        program = SEARCH.format(studies=str(STUDIES))
        command = [sys.executable, "-c", program, str(seconds), str(trials)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    interrupted, over, trials = called(1, 100_000)
    assert (interrupted, over) == ("True", "True")
    assert 0 < int(trials) < 100_000
    assert called(3600, int(trials) + 1) == ["False", "False", str(int(trials) + 1)]


@pytest.mark.process
def test_a_final_training_on_a_folder_of_images_ends_when_the_time_is_up_and_goes_on(tmp_path):
    def called(*arguments):
        command = [sys.executable, str(STUDIES / "imagenet_mobile.py"), "--smoke", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)

    first = called("--until", "0.001")
    assert first.returncode == 0, first.stderr
    assert first.stdout.endswith("the time is up; the same command goes on\n")
    assert (tmp_path / "runs/imagenet-mobile-smoke/final.safetensors").exists()
    again = called()
    assert again.returncode == 0, again.stderr
    assert "test error" in again.stdout
    assert (tmp_path / "runs/imagenet-mobile-smoke/network.safetensors").exists()
    assert called().stdout.splitlines()[-2:] == again.stdout.splitlines()[-2:]


def test_nothing_is_sent_where_no_search_runs(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    from paper_settings import ends_after

    before = signal.getsignal(signal.SIGALRM)
    terminated = signal.signal(
        signal.SIGTERM, signal.SIG_DFL
    )  # as a process begins; a worker run by a test sets its own
    try:
        over = ends_after(0.05)
        time.sleep(0.3)
        assert over()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGTERM, terminated)


@pytest.mark.process
def test_anytime_networks_are_trained_beside_fixed_ones_and_go_on(tmp_path):
    def called(*arguments):
        command = [sys.executable, str(STUDIES / "cifar10_anytime.py"), "--smoke", "--networks", "fixed", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    assert called("--until", "0.000001").stdout.endswith("the same command goes on\n")
    again = called()
    assert again.returncode == 0, again.stderr
    assert "fixed: 3 networks" in again.stdout
    assert called().stdout == again.stdout


@pytest.mark.parametrize("nodes", [(24, 16, 8), (6, 4, 2)])
def test_fixed_networks_have_layers_of_several_scales_and_exits_of_the_coarsest(nodes, monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    from multi_scale import multi_scale

    space = NetworkSpace(anytime_space(nodes), anytime_skeleton(3, 4, (1, 8, 8), 10, budget=1e9))
    layers = nodes[2]
    for every in (1, 2):
        chosen = dict(multi_scale(space, every).choices)
        for cell, width in (("cell1", 3), ("cell2", 2), ("cell3", 1)):
            named = [path for path in chosen if path.startswith(f"{cell}_") and path.count("_") == 1]
            scales = [chosen[f"{path}_scale"][0] for path in named]
            assert scales == ["1", "2", "4"][:width] * layers
            exits = [path for path in named if chosen[f"{path}_exit"] == ("exit",)]
            assert len(exits) == layers // every
            assert {chosen[f"{path}_scale"][0] for path in exits} == {scales[width - 1]}
            for place, path in enumerate(named):
                reads = {int(number) for number in chosen[f"{path}_inputs"]}
                assert max(reads) <= place
                if place >= width and place % width:
                    assert reads == {place + 1 - width, place - width}, (
                        "its own scale and the finer one, a layer before"
                    )
    network = multi_scale(space, 1).build(seed=0).eval()
    assert len(network.exit_costs) == 3 * layers + 1  # and the last classifier
