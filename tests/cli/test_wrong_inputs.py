"""What a person types wrong: one sentence with argument, rule, value, way out, and an exit code; help for the rest."""

import pytest
from study_files import TINY
from terminal import here

from optuna_nas.cli.commands import app
from optuna_nas.search.new_study import NewStudy

WRONG = {
    "rum": "`optuna-nas` must be followed by a command but 'rum' is none; did you mean 'run'?",
    "--versio": "`--versio` must be an option of `optuna-nas` but is none; did you mean '--version'?",
    "run": "`STUDY` must be given to `optuna-nas run` but is missing; add it",
    "run nowhere.py": "`study` must be a Python or YAML file but nowhere.py is not there; give the path",
    "run .": "`study` must be a Python or YAML file but . is not there",
    "run notes.txt": "`study` must run but notes.txt fails: SyntaxError",
    "run nothing.py": "`study` must define a function `search()` that returns a `Search` but nothing.py has none; add",
    "run tiny.py --trails 3": "`--trails` must be an option of `optuna-nas run` but is none; did you mean '--trials'?",
    "run tiny.py --trials many": "`--trials` must be a valid integer but got 'many'; see",
    "run tiny.py --trials=2.5": "`--trials` must be a valid integer but got '2.5'; see",
    "run tiny.py --trials": "`--trials` must be followed by one value but is not",
    "run tiny.py --trials 0": "`--trials` must be an integer of at least 1 but got 0",
    "run tiny.py other.py": "`optuna-nas run` must be given no more arguments but got 'other.py'; leave it out",
    "run tiny.py --seconds=-1": "`--seconds` must be a positive number but got -1.0; None sets no limit",
    "run tiny.py --strategy gnh": "`--strategy` must be one of auto, free, snas, ghn, hmnas, tpe, random but got",
    "run tiny.py --name a/b": "`--name` must be non-empty and without slashes but got 'a/b'",
    "run tiny.py --set epochs": "`--set` must be NAME=VALUE for an argument of `search` in tiny.py (epochs, trials,",
    "run tiny.py --set epochs=many": "`--set epochs` must be of type <class 'int'>, but got 'many'; correct the value",
    "run tiny.py --set colour=red": "`--set` must be NAME=VALUE for an argument of `search` in tiny.py (epochs, trials",
    "run tiny.py --storage sqlite:////nowhere/study.db": "`--storage` must be the address of a database that answers",
    "run tiny.py --storage nonsense": "`--storage` must be the address of a database that answers but 'nonsense' does",
    "run tiny.py --mlflow nonsense://x": "MLflow can't be used at nonsense://x: this is neither a server nor a",
    "run tiny.py --gpus-per-trial 0.5": "`--gpus-per-trial` must go with --workers but there is none; add --workers 1",
    "run tiny.py --ray local": "`--ray` must go with --workers but there is none; add --workers 1 or more",
    "run tiny.py --workers 0": "`--workers` must be at least 1 but got 0",
    "run broken.yaml": "broken.yaml",
    "run study.yaml --set recipe.epoch=3": "did you mean 'epochs'?",
    "run study.yaml --set trials=-1": "`trials` must be an integer of at least 1 but got -1",
    "init --data cifar": "`--data` must be one of digits, mnist, fashion_mnist, cifar10, cifar100 but got 'cifar';",
    "init --space moon": "`--space` must be one of nasbench201_space, darts_space, hmnas_space, ghn_space but got",
    "init --space ghn_space --strategy snas": "`--strategy` must be one of auto, free, ghn, tpe, random for ghn_space",
    "init study.txt": "`study` must be a file that ends with .yaml, .yml or .py but is study.txt; give another name",
    "init": "study.yaml is there already; pass --force to overwrite it, or give another path",
    "list nowhere": "`folder` must be a folder of studies but nowhere is none; give another",
    "list --storage sqlite:///nowhere.db": "`--storage` must hold studies but nowhere.db holds none; give another",
    "report tiny.py": "`study` must exist but sqlite:///runs/tiny/study.db has none named 'tiny'; start it with",
    "worker tiny.py": "`study` must exist but sqlite:///runs/tiny/study.db has none named 'tiny'; start it with",
    "view tiny.py --port 0": "`--port` must be greater than or equal to 1 but got '0'; see",
    "view tiny.py": "`study` must exist but sqlite:///runs/tiny/study.db has none named 'tiny'; start it with",
    "view nowhere": "`study` must be a Python or YAML file but nowhere is not there; give the path",
    "view compare-nothing": "`study` must be a study or a comparison but MLflow has no comparison 'compare-nothing';",
    "mirror mine": "`--storage` must be given if `study` is a name but 'mine' is no file; add it",
    "mirror mine --storage sqlite:///nowhere.db": "`study` must exist but sqlite:///nowhere.db has none named 'mine';",
    "compare study.yaml --budget 30": "`--budget` must be such as trials=30, seconds=600 or epochs=200 but got '30'",
    "compare study.yaml tiny.py --strategy snas": "`--strategy` must go with one study but there are 2; leave out the",
    "compare study.yaml --seeds 0": "`--seeds` must be at least",
    "train tiny.py --architecture moon": "`--architecture` must be a JSON file or one of",
    "train tiny.py --architecture DARTS_V2 --skeleton moon": "`--skeleton` must be a JSON file or one of",
    "train tiny.py --architecture DARTS_V2 --skeleton darts_cifar --recipe epoch=3": "`--recipe` must name one of its",
    "train tiny.py --architecture DARTS_V2 --skeleton darts_cifar --recipe epochs": "`--recipe` must be NAME=VALUE",
    "export tiny.py --format tflite": "`--format` must be one of pt2, onnx, state-dict, mlflow but got 'tflite'",
    "export tiny.py --register mine": "`--register` must go with --format mlflow but the format is 'pt2'; add",
    "export tiny.py --network nowhere.safetensors": "`--network` must be the file of a network but",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "study.yaml").write_text(NewStudy("study", strategy="tpe").yaml("run"))
    (tmp_path / "broken.yaml").write_text("name: [1, 2")
    (tmp_path / "notes.txt").write_text("What to do: search.\n")
    (tmp_path / "nothing.py").write_text("")
    return tmp_path


@pytest.mark.parametrize("words", WRONG)
def test_wrong_input_is_one_sentence_and_exit_code_2(folder, words):
    done = here(*words.split())
    said = done.stderr
    assert done.exit_code == 2, said
    assert said.startswith("Error: ")
    assert said.count("\n") == 1
    assert WRONG[words] in said
    assert "Traceback" not in said
    assert done.stdout == ""
    assert said.rstrip().endswith((".", "?"))


COMMANDS = [info.name or info.callback.__name__ for info in app.registered_commands]


@pytest.mark.parametrize("name", [*COMMANDS, ""])
def test_every_command_has_help(name):
    done = here(*name.split(), "--help")
    assert done.exit_code == 0
    assert "Usage:" in done.stdout
    assert all(command in done.stdout for command in ([] if name else COMMANDS))
