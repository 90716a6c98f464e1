"""`optuna-nas init`: a file that runs as it is, written once."""

import pytest
from terminal import here, nas

from optuna_nas import Search
from optuna_nas.search.new_study import DATA, SKELETONS, NewStudy
from optuna_nas.search.strategy import STRATEGIES
from optuna_nas.search.study_file import load


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.process
def test_the_first_two_commands_end_with_a_network(folder):
    written = nas("init")
    assert written.returncode == 0, written.stderr
    assert written.stdout.splitlines()[-1] == "Run it              optuna-nas run study.yaml"
    assert Search.from_yaml("study.yaml").strategy == "auto"
    settings = ("--strategy", "random", "--set", "recipe.epochs=1")  # spares the scores of a pool
    done = here("run", "study.yaml", "--trials", "1", "--no-mlflow", *settings)
    assert done.exit_code == 0, done.stderr
    assert "study: the best of 1 trials" in done.stdout
    assert list(folder.glob("runs/study/networks/*.safetensors"))


def test_python_too(folder):
    written = here("init", "--python", "--name", "a study", "--strategy", "random", "--seconds", "20")
    assert written.exit_code == 0, written.stderr
    search = load(folder / "study.py", ["epochs=1", "seed=3"])
    assert (search.name, search.strategy, search.trials, search.seconds) == ("a study", "random", None, 20)
    done = here("run", "study.py", "--trials", "1", "--set", "epochs=1", "--no-mlflow")
    assert done.exit_code == 0, done.stderr
    assert list((folder / "runs/a study/networks").glob("*.safetensors"))


@pytest.mark.parametrize("space", SKELETONS)
def test_both_languages_say_the_same(folder, space):
    strategies = STRATEGIES if space != "ghn_space" else ("auto", "ghn", "tpe", "random")
    for number, strategy in enumerate(strategies):
        new = NewStudy(f"s{number}", space=space, strategy=strategy, seconds=9.5 if number % 2 else None)
        (folder / "s.yaml").write_text(new.yaml("run"))
        (folder / "s.py").write_text(new.python("run"))
        searches = Search.from_yaml(folder / "s.yaml"), load(folder / "s.py", None)
        first, second = ((s.name, s.strategy, s.trials, s.seconds, s.setting()) for s in searches)
        assert first == second
        assert max(map(len, [*new.yaml("run").splitlines(), *new.python("run").splitlines()])) <= 120


@pytest.mark.parametrize("name", ["x: y # z", 'quo"te', "null", "2026", "ünï", "it's"])
def test_any_name_survives(folder, name):
    for suffix in ("yaml", "py"):
        assert here("init", f"s.{suffix}", "--name", name, "--trials", "7").exit_code == 0
        search = load(folder / f"s.{suffix}", None)
        assert (search.name, search.trials) == (name, 7)


def test_nothing_is_overwritten_unless_asked(folder):
    (folder / "study.yaml").write_text("mine")
    refused = here("init")
    assert refused.exit_code == 2
    assert refused.stderr == "Error: study.yaml is there already; pass --force to overwrite it, or give another path.\n"
    assert (folder / "study.yaml").read_text() == "mine"
    assert here("init", "--force").exit_code == 0
    assert Search.from_yaml("study.yaml").name == "study"


@pytest.mark.parametrize(("arguments", "message"), [
    (["--data", "cifar"], "`--data` must be one of digits, mnist, fashion_mnist, cifar10, cifar100 but got 'cifar'; "),
    (["--space", "moon"], "`--space` must be one of nasbench201_space, darts_space, hmnas_space, ghn_space but got"),
    (["--space", "ghn_space", "--strategy", "snas"], "`--strategy` must be one of auto, free, ghn, tpe, random for"),
    (["--strategy", "best"], "`--strategy` must be one of auto, free, snas, ghn, hmnas, tpe, random but got 'best'."),
    (["--trials", "0"], "`--trials` must be an integer of at least 1 but got 0."),
    (["--seconds", "-1"], "`--seconds` must be a positive number but got -1.0; None sets no limit."),
    (["--name", "a/b"], "`--name` must be non-empty and without slashes but got 'a/b'."),
    (["study.txt"], "`study` must be a file that ends with .yaml, .yml or .py but is study.txt; give"),
    (["study.yaml", "--python"], "`study` must be a file that ends with .py, with --python, but is study.yaml; "),
    (["nowhere/study.yaml"], "`study` must be a file to write but nowhere/study.yaml is not: No such file"),
])  # fmt: skip
def test_bad_input_is_one_sentence_and_writes_nothing(folder, arguments, message):
    done = here("init", *arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"Error: {message}")
    assert list(folder.iterdir()) == []


def test_data_are_those_that_a_file_may_name():
    from optuna_nas.search.study_types import DATA as NAMES

    assert set(DATA) < set(NAMES)
