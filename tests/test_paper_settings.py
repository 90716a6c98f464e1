"""Studies in the papers' own settings end when their time is up, and the same call goes on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
