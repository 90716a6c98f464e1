"""Every command ends with one command to copy, which runs; with `--json` it is `next` of the result."""

import json
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import optuna
import pytest
from study_files import TINY
from terminal import here

from optuna_nas.cli import mlflow_server, options
from optuna_nas.tracking import MLflowTracker

OWN = """
from optuna_nas import Search, nasbench201_space
def search(value: float = 0.5):
    return Search("own", nasbench201_space(), objective=lambda trial: value, trials=1, tracking=None, pictures=False)
"""
SEEDED = TINY.replace('name: str = "tiny"', 'name: str = "tiny", seed: int = 0')
SHORT = ("--set", "epochs=1")
FEW = ("--n-best", "1", "--n-random", "1", "--n-repeats", "1", "--pool-size", "3", "--brief-epochs", "1")


def said(words):
    """Return the lines that a command prints, which is started as a shell does, so that it can name itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["optuna-nas", *words])
        done = here(*words)
    assert done.exit_code == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with studies that have been run, one of them in MLflow at an address of its own."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        (folder / "tiny.py").write_text(TINY)
        (folder / "own.py").write_text(OWN)
        (folder / "seeded.py").write_text(SEEDED)
        for words in (
            ("run", "tiny.py", *SHORT, "--mlflow", "sqlite:///other.db"),
            ("run", "own.py"),
            ("run", "own.py", "--name", "nothing", "--set", "value=nan"),
        ):
            assert said(words)
    return folder


@pytest.fixture
def folder(made, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return made


def runs(line, monkeypatch):
    """Run a command as a shell would; MLflow's pages are opened by nobody, and its servers say what they would do."""
    assignments, words = [], shlex.split(line)
    while "=" in words[0]:
        assignments.append(words.pop(0))
    if words[0] == "optuna-nas":
        monkeypatch.setattr(mlflow_server, "mlflow_server", lambda *unused: nullcontext())
        monkeypatch.setattr("webbrowser.open", lambda address: True)
        done = here(*words[1:], *(["--dry-run"] if words[1] == "run" and "study.yaml" in words else []))
        assert done.exit_code == 0, done.stderr
    else:
        done = subprocess.run([*words, *(["--help"] if "serve" in words else [])], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


ENDINGS = {
    "": "optuna-nas init",
    "init --force": "optuna-nas run",
    "run tiny.py --set epochs=1 --mlflow sqlite:///other.db": "optuna-nas view",
    "run own.py": "optuna-nas report",
    "run tiny.py --dry-run --set epochs=1": "optuna-nas run",
    "list": "optuna-nas run",
    "report tiny.py --set epochs=1": "optuna-nas train",
    "report own.py": "optuna-nas mirror",
    "report own.py --name nothing --set value=nan": "optuna-nas run",
    "train tiny.py --set epochs=1 --no-mlflow": "optuna-nas export",
    "export tiny.py --set epochs=1 --format state-dict": options.python("-c"),
    "export tiny.py --set epochs=1 --format mlflow": f"{options.on_path()}MLFLOW_TRACKING_URI=sqlite:///",
    "mirror tiny.py --set epochs=1 --mlflow sqlite:///other.db": "optuna-nas view",
    "create tiny.py --set epochs=1": "optuna-nas worker",
    "worker tiny.py --set epochs=1 --no-mlflow": "optuna-nas report",
    "compare seeded.py --set epochs=1 --seeds 1 --budget trials=1 --no-mlflow": "optuna-nas list",
    "compare seeded.py --set epochs=1 --seeds 1 --budget trials=1 --mlflow sqlite:///other.db": "optuna-nas view",
    "surrogate tiny.py --strategy free --name pooled --no-mlflow": "optuna-nas export",
    "surrogate tiny.py --strategy free --name pooled --mlflow sqlite:///other.db": "optuna-nas view",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("words", ENDINGS)
def test_the_last_line_is_one_command_that_runs(words, folder, monkeypatch):
    last = said([*words.split(), *(FEW if words.startswith("surrogate") else ())])[-1]
    name, line = last[:20].strip(), last[20:]
    assert name
    assert line.startswith(ENDINGS[words])
    runs(line, monkeypatch)


@pytest.mark.parametrize("words", ["mirror tiny.py --set epochs=1"])
def test_the_address_of_a_server_is_said_before_the_command(words, folder, monkeypatch):
    monkeypatch.setattr(MLflowTracker, "served", True)
    *_, said, last = here(*words.split(), "--mlflow", "sqlite:///other.db").stdout.splitlines()
    assert "http://" in said
    assert last.split(maxsplit=2)[2].startswith("optuna-nas view")


def test_the_python_of_a_program_off_the_search_path_is_named_by_its_path(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert options.python("-c", "print()") == shlex.join([sys.executable, "-c", "print()"])
    assert options.on_path() == f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH "
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert options.on_path() == ""


JSON = {
    "worker tiny.py --set epochs=1 --no-mlflow": {"study": "tiny", "trials": 3, "missing": 0, "interrupted": False},
    "train tiny.py --set epochs=1": {"study": "tiny", "interrupted": False, "metric": "accuracy"},
    "export tiny.py --set epochs=1 --format state-dict": {},
    "mirror tiny.py --set epochs=1 --mlflow sqlite:///other.db": {"study": "tiny", "trials": 3},
    "compare seeded.py --set epochs=1 --seeds 1 --budget trials=1 --no-mlflow": {
        "name": "tiny",
        "interrupted": False,
        "seeds": 1,
    },
}


@pytest.mark.parametrize("words", JSON)
def test_results_are_json_and_quiet_shows_them_alone(words, folder):
    for quiet in ((), ("--quiet",)):
        lines = [json.loads(one, parse_constant=pytest.fail) for one in said([*words.split(), "--json", *quiet])]
        assert all("event" in line for line in lines)
        result = lines[-1]
        assert result["event"] == "result"
        assert JSON[words].items() <= result.items()
        assert result["next"]
        assert (len(lines) == 1) or not quiet
    assert said([*words.split(), "--quiet"])[-1].endswith(result["next"])


def test_epochs_of_a_final_training_are_json(folder):
    words = ("train", "tiny.py", *SHORT, "--recipe", "epochs=2", "--recipe", "seed=5", "--no-mlflow")
    first, *epochs, result = (json.loads(line) for line in here(*words, "--json").stdout.splitlines())
    assert first == {"event": "study", "study": "tiny", "epochs": 2, "strategy": None}
    assert [one["epoch"] for one in epochs] == [1, 2]
    assert epochs[-1]["validation_metric"] == result["validation_metric"]


def test_a_study_is_viewed_by_its_name(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(mlflow_server, "mlflow_server", lambda *unused: nullcontext())
    monkeypatch.setattr("webbrowser.open", opened.append)
    done = here("view", "tiny", "--storage", "sqlite:///runs/tiny/study.db")
    assert done.exit_code == 0, done.stderr
    study = optuna.load_study(study_name="tiny", storage="sqlite:///runs/tiny/study.db")
    assert study.user_attrs["optuna_nas:study_uid"] in opened[0]


def test_a_comparison_is_viewed_by_its_name(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(mlflow_server, "mlflow_server", lambda *unused: nullcontext())
    monkeypatch.setattr("webbrowser.open", opened.append)
    compare = ("compare", "seeded.py", *SHORT, "--seeds", "1", "--budget", "trials=1", "--mlflow", "sqlite:///other.db")
    view = shlex.split(said(compare)[-1][20:])[1:]
    assert view == ["view", "compare-tiny", "--mlflow", "sqlite:///other.db"]
    assert here(*view, "--port", "5007").exit_code == 0
    assert opened[0].startswith("http://127.0.0.1:5007/#/experiments/")
    assert "viewStateShareKey=optuna_nas_comparison_" in opened[0]
