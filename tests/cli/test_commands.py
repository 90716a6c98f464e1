"""The command line as a person meets it: real processes, real signals, bad input."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from servers import free_port
from study_files import TINY
from terminal import command, here, nas, start, wait_for

from optuna_nas.cli import options
from optuna_nas.search import study_file
from optuna_nas.search.study_file import UsageError

STUDIES = Path(__file__).parents[2] / "studies"


def trials_of(folder, name="tiny"):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/runs/{name}/study.db").trials


@pytest.mark.process
def test_run_ends_with_all_that_a_person_wants_to_know(folder):
    done = nas("run", "tiny.py")
    assert done.returncode == 0, done.stderr
    assert "tiny: the best of 3 trials" in done.stdout
    picture = re.search(r"picture in (\S+)", done.stdout)[1]
    assert (folder / picture).stat().st_size > 1000
    assert re.search(r"Test accuracy +[01]\.\d{4}", done.stdout)
    assert "optuna-nas view tiny.py" in done.stdout
    assert (folder / "mlflow.db").exists()
    assert done.stderr == ""
    reported = here("report", "tiny.py")
    assert reported.exit_code == 0
    assert re.search(r"Test accuracy.*", reported.stdout)[0] in done.stdout
    more = here("run", "tiny.py", "--trials", "4", "--no-mlflow")
    assert more.exit_code == 0
    assert len(trials_of(folder)) == 4


def test_arguments_of_the_study_can_be_set(folder):
    assert here("run", "tiny.py", "--set", "trials=2", "--set", "name=other", "--no-mlflow").exit_code == 0
    assert len(trials_of(folder, "other")) == 2


def test_settings_have_the_type_of_the_default_or_the_annotation():
    def search(n: int, k: int | None = None, rate: float = 1, flag: bool = False, name="x", **others):
        return n, k, rate, flag, name

    def given(*settings):
        return search(**study_file._arguments(search, list(settings), Path("study.py")))

    assert given("n=2", "k=3", "rate=0.5", "flag=true", "name=y") == (2, 3, 0.5, True, "y")
    assert given("n=2", "k=None") == (2, None, 1, False, "x")
    with pytest.raises(UsageError, match="add --set n="):
        given()


BAD = {
    "missing file": (None, [], "`study` must be a Python or YAML file but study.py is not there"),
    "no search": ("x = 1", [], "`study` must define a function `search\\(\\)`"),
    "another value": ("def search(): return 1", [], "must return a `Search` but returned int"),
    "broken": ("import nothing_of_this_name", [], "line 1 of study.py fails: ModuleNotFoundError"),
    "broken inside": ("def search():\n    return 1 / 0", [], "line 2 of study.py fails: ZeroDivisionError"),
    "unknown setting": (TINY, ["--set", "seed=1"], "`--set` must be NAME=VALUE for an argument of `search`"),
    "wrong setting": (
        TINY,
        ["--set", "trials=many"],
        "`--set trials` must be of type <class 'int'>, but got 'many'",
    ),
    "no trials": (TINY, ["--trials", "0"], "`--trials` must be an integer of at least 1 but got 0"),
    "unknown op": (
        "from optuna_nas import CellSpace\ndef search(): return CellSpace(['sep_conv_9x9'])",
        [],
        "`op` must be a registered op but got 'sep_conv_9x9'",
    ),
    "too deep": (
        TINY.replace("nasbench201_skeleton(1, 4, data.input_shape, 3)", "nasbench201_skeleton(1, 4, (1, 2, 2), 3)"),
        [],
        "`skeleton` must not reduce an image below one pixel",
    ),
    "labels": (
        TINY.replace("from_arrays(images, labels)", "from_arrays(images, labels, classes=2)"),
        [],
        "`y` must hold",
    ),
    "NaN": (
        TINY.replace("from_arrays(images", "from_arrays(np.where(labels[:, None, None] == 1, np.nan, images)"),
        [],
        "`x` must be finite but image 1",
    ),
    "storage": (TINY, ["--storage", "sqlite:////nowhere/study.db"], "`--storage` must be the address of a database"),
    "mlflow": (TINY, ["--mlflow", "http://127.0.0.1:1"], "http://127.0.0.1:1"),
}

IN_A_PROCESS = ("missing file", "mlflow")  # the others spare the seconds that a new process takes to load torch


def bad_cases():
    return [pytest.param(case, marks=pytest.mark.process if case in IN_A_PROCESS else ()) for case in BAD]


@pytest.mark.parametrize("case", bad_cases())
def test_bad_input_gets_one_sentence_and_exit_code_2(folder, case):
    content, arguments, message = BAD[case]
    if content is not None:
        (folder / "study.py").write_text(content)
    if case in IN_A_PROCESS:
        done = nas("run", "study.py", *arguments)
        code = done.returncode
    else:
        done = here("run", "study.py", *arguments)
        code = done.exit_code
    assert code == 2, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("Error: ")


@pytest.mark.process
def test_an_error_in_the_objective_names_its_place_and_keeps_what_is_done(folder):
    (folder / "study.py").write_text(
        "from optuna_nas import Search, nasbench201_space\n"
        "def objective(trial):\n"
        "    nasbench201_space().suggest(trial)\n"
        "    return 1 / (2 - trial.number)\n"
        "def search(): return Search('broken', nasbench201_space(), objective=objective, trials=9, tracking=None)\n"
    )
    done = nas("run", "study.py")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "study.py, line 4" in done.stderr
    assert "Traceback" not in done.stderr
    assert [t.state for t in trials_of(folder, "broken")] == [TrialState.COMPLETE] * 2 + [TrialState.FAIL]


def running_in_training(folder):
    trials = trials_of(folder)
    return any(t.state == TrialState.RUNNING and t.intermediate_values for t in trials)


@pytest.mark.process
def test_ctrl_c_once_ends_after_the_running_trial_and_says_how_to_go_on(folder):
    arguments = ("run", "tiny.py", "--no-mlflow", "--trials", "50", "--set", "epochs=6")
    process = start(*arguments)
    wait_for(lambda: running_in_training(folder))
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "To resume           optuna-nas run tiny.py --no-mlflow --trials 50 --set epochs=6" in output
    assert "ending after the running trial" in error
    trials = trials_of(folder)
    assert 0 < len(trials) < 50
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    total = str(len(trials) + 1)
    again = here("run", "tiny.py", "--no-mlflow", "--trials", total, "--set", "epochs=6")
    assert again.exit_code == 0
    assert len(trials_of(folder)) == int(total)


@pytest.mark.process
def test_sigterm_ends_at_the_next_step_and_the_training_goes_on(folder):
    settings = ("--no-mlflow", "--trials", "1", "--set", "epochs=150")
    process = start("run", "tiny.py", *settings)
    wait_for(lambda: running_in_training(folder))
    process.terminate()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    stopped, waiting = trials_of(folder)
    assert stopped.state == TrialState.FAIL
    assert waiting.state == TrialState.WAITING
    assert list((folder / "runs/tiny/checkpoints").glob("*.safetensors"))
    assert here("run", "tiny.py", *settings).exit_code == 0
    _, resumed = trials_of(folder)
    assert resumed.state in (TrialState.COMPLETE, TrialState.PRUNED)
    # The epochs of the first run are the very numbers of the second.
    seen = stopped.intermediate_values
    assert len(seen) > 0
    assert {step: resumed.intermediate_values[step] for step in seen} == seen
    assert not list((folder / "runs/tiny/checkpoints").glob("*"))


@pytest.mark.process
def test_stopping_on_purpose_never_gives_a_trial_up(folder):
    settings = ("--no-mlflow", "--trials", "1", "--set", "epochs=4000")
    for _ in range(4):
        process = start("run", "tiny.py", *settings)
        n_before = len(trials_of(folder)) if (folder / "runs").exists() else 0
        wait_for(lambda n=n_before: len(trials_of(folder)) >= n and running_in_training(folder))
        process.terminate()
        _, error = process.communicate(timeout=120)
        assert process.returncode == 130, error
    assert trials_of(folder)[-1].state == TrialState.WAITING
    assert len(list((folder / "runs/tiny/checkpoints").glob("*"))) == 1


@pytest.mark.process
def test_after_kill_9_the_study_goes_on(folder):
    settings = ("--no-mlflow", "--trials", "2", "--set", "epochs=40")
    process = start("run", "tiny.py", *settings)
    wait_for(lambda: running_in_training(folder))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert here("run", "tiny.py", *settings).exit_code == 0
    trials = trials_of(folder)
    assert trials[0].state in (TrialState.FAIL, TrialState.COMPLETE)
    finished = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(finished) == 2
    assert any(t.params == trials[0].params for t in finished)


SNAS_STUDY = """
from tiny import search as tiny
from dataclasses import replace
from optuna_nas import SNAS, SNASRecipe, SNASSampler

def search():
    base = tiny(name="snas", trials=4)
    snas = SNAS(base.space.with_skeleton(affine=False), SNASRecipe(batch_size=4))
    sampler = SNASSampler(base.space, snas, data=base.data, budget=40, n_trials=4, trials_per_round=2, seed=0)
    return replace(base, sampler=sampler)
"""


@pytest.mark.process
def test_a_training_of_the_sampler_that_is_stopped_and_killed_goes_on(folder):
    (folder / "snas.py").write_text(SNAS_STUDY)

    def training():
        (trial, *_) = [t for t in trials_of(folder, "snas") if t.state == TrialState.RUNNING]
        return trial.user_attrs and not trial.params

    process = start("run", "snas.py", "--no-mlflow")
    wait_for(training)
    time.sleep(1)
    process.terminate()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert (folder / "runs/snas/snas.safetensors").exists()
    process = start("run", "snas.py", "--no-mlflow")
    wait_for(training)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    finished = here("run", "snas.py", "--no-mlflow")
    assert finished.exit_code == 0, finished.stderr
    trials = trials_of(folder, "snas")
    assert sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials) == 4
    assert any("optuna_nas:snas:snapshot" in t.system_attrs for t in trials)


def test_the_table_of_nasbench201_is_a_study(folder, data_folder):
    table = data_folder / "nasbench201" / "nb201_accuracy.csv.gz"
    done = here("run", STUDIES / "nasbench201.py", "--set", f"table={table}", "--trials", "30", "--no-mlflow")
    assert done.exit_code == 0, done.stderr
    assert "the best of 30 trials" in done.stdout
    wrong = here("run", STUDIES / "nasbench201.py", "--set", f"table={table}", "--set", "column=accuracy")
    assert wrong.exit_code == 2
    assert "`column` must be one of ['cifar10_valid_12ep'" in wrong.stderr


def test_a_study_lives_in_postgresql(folder, postgresql):
    arguments = ("run", "tiny.py", "--no-mlflow", "--storage", postgresql)
    first = here(*arguments, "--trials", "2")
    assert first.exit_code == 0, first.stderr
    again = here(*arguments)
    assert "[3/3] trial 2" in again.stdout
    assert "[2/3]" not in again.stdout
    reported = here("report", "tiny.py", "--storage", postgresql)
    assert "tiny: the best of 3 trials" in reported.stdout
    assert re.search(r"Test accuracy.*", reported.stdout)[0] in again.stdout


def test_a_program_off_the_search_path_is_named_by_its_path(monkeypatch):
    monkeypatch.setattr(sys, "argv", [".venv/bin/optuna-nas", "run"])
    monkeypatch.setenv("PATH", "")
    assert options.program() == ".venv/bin/optuna-nas"
    monkeypatch.setattr(sys, "argv", ["cli.py", "run"])
    assert options.program() == "optuna-nas"


@pytest.mark.process
def test_help_and_version():
    assert "run" in nas("--help").stdout
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", nas("--version").stdout)


def into_closed_pipe(*arguments):
    """Run a process whose output nobody reads; return its exit code and what it wrote to stderr."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(command(*arguments), stdout=closed, stderr=subprocess.PIPE, text=True, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.process
@pytest.mark.parametrize("words", [["list"], ["--help"], ["run", "--help"], []], ids=" ".join)
def test_a_command_whose_output_nobody_reads_ends_quietly(words, folder):
    assert into_closed_pipe(*words) == (141, "")


@pytest.mark.process
@pytest.mark.parametrize("options", [[], ["--json"]], ids=" ".join)
def test_a_search_whose_output_nobody_reads_goes_on(options, folder):
    with open("tiny.py", "a") as file:
        file.write("print('loaded', flush=True)\n")
    said = "Nobody reads the output any more; the search goes on without it.\n"
    assert into_closed_pipe("run", "tiny.py", "--no-mlflow", *options) == (141, said)
    assert [trial.state for trial in trials_of(folder)] == [TrialState.COMPLETE] * 3
    assert into_closed_pipe("report", "tiny.py", *options) == (141, "")
    assert list(folder.rglob("report.html"))


@pytest.mark.process
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_search_needs_no_streams(closed, folder):
    script = f'exec "$@" {closed}'
    words = command("run", "tiny.py", "--no-mlflow", "--set", "epochs=1")
    done = subprocess.run(["sh", "-c", script, "sh", *words], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert [trial.state for trial in trials_of(folder)] == [TrialState.COMPLETE] * 3


@pytest.mark.process
def test_view_opens_mlflow_and_ends_it_with_itself(folder, monkeypatch):
    monkeypatch.setenv("BROWSER", "true")  # the program, which opens nothing
    assert nas("view", "tiny.py").returncode == 2  # no study yet
    assert nas("run", "tiny.py", "--trials", "1").returncode == 0
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        port = free_port()
        process = start("view", "tiny.py", "--port", str(port))
        address = process.stdout.readline()
        assert address.startswith(f"Opening http://127.0.0.1:{port}/#/experiments/1/runs?viewStateShareKey=optuna_nas_")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
            assert answer.status == 200
        process.send_signal(ending)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
