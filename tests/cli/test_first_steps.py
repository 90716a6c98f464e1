"""What to do first, what there is, what a search would cost: `optuna-nas` alone, `init`, `list`, `run --dry-run`."""

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time

import optuna
import pytest
from study_files import TINY
from terminal import command, here

from optuna_nas import Search, nasbench201_space
from optuna_nas.cli import start
from optuna_nas.cli.json_lines import result_values
from optuna_nas.search.new_study import SKELETONS, STRATEGIES_OF, NewStudy
from optuna_nas.search.strategy import STRATEGIES


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path


def json_lines(done):
    assert done.exit_code == 0, done.stderr
    return [json.loads(line, parse_constant=pytest.fail) for line in done.stdout.splitlines()]


def test_without_a_command_it_says_what_to_do_first(folder):
    assert here().stdout.splitlines()[-1].split(maxsplit=1) == ["Now", "optuna-nas init"]
    assert here("init").stdout.splitlines()[-1].split(maxsplit=2)[2] == "optuna-nas run study.yaml"
    told = here()
    assert told.exit_code == 0
    assert told.stdout.splitlines()[-1].split(maxsplit=1) == ["Now", "optuna-nas run study.yaml"]


@pytest.mark.process
@pytest.mark.parametrize(("words", "heavy"), [
    (["--help"], {"torch", "optuna", "mlflow"}), (["init"], {"torch", "mlflow"}), (["list"], {"torch", "mlflow"}),
])  # fmt: skip
def test_what_needs_no_pytorch_does_not_load_it(folder, words, heavy):
    study = optuna.create_study(study_name="mine", storage=f"sqlite:///{folder / 'study.db'}")
    study.optimize(lambda trial: 0.5, n_trials=1)
    words += [str(folder)] if words == ["list"] else []
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "optuna_nas.cli", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert not heavy & loaded


def test_init_asks_in_a_terminal_what_no_option_says(folder, monkeypatch):
    answers = {"Data": "mnist", "What may be chosen": "ghn_space", "Strategy": "ghn"}
    asked = {}

    def ask(question, console, choices, default):
        asked[question] = choices
        return answers[question]

    monkeypatch.setattr(start.Prompt, "ask", ask)
    monkeypatch.setattr(type(start.console), "is_terminal", property(lambda self: True))
    monkeypatch.setattr(
        start, "sys", type("Sys", (), {"stdin": type("In", (), {"isatty": staticmethod(lambda: True)})})
    )
    done = here("init")
    assert done.exit_code == 0, done.output
    assert asked["Strategy"] == ["auto", "free", "ghn", "tpe", "random"]
    written = (folder / "study.yaml").read_text()
    assert all(line in written for line in ("data: mnist", "space: ghn_space", "strategy: ghn"))


@pytest.mark.parametrize("space", SKELETONS)
def test_init_allows_the_strategies_that_a_search_allows(folder, space):
    for strategy in STRATEGIES:
        path = folder / f"{strategy}.yaml"
        path.write_text(NewStudy("any", space=space, strategy=strategy).yaml("run"))
        try:
            Search.from_yaml(path)
            fits = True
        except ValueError:
            fits = False
        assert fits == (strategy in STRATEGIES_OF[space])


def test_list_tells_state_best_and_how_to_go_on(folder):
    assert "optuna-nas init" in here("list").stdout
    assert json_lines(here("list", "--json")) == [{"event": "result", "studies": 0, "next": "optuna-nas init"}]
    (folder / "other").mkdir()
    study = optuna.create_study(study_name="foreign", storage="sqlite:///other/study.db")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    done = here("run", "tiny.py", "--trials", "2", "--no-mlflow", "--set", "epochs=1")
    assert done.exit_code == 0, done.stderr
    tiny, result = json_lines(here("list", "--json"))
    assert result == {"event": "result", "studies": 1, "next": tiny["command"]}
    assert (tiny["name"], tiny["state"], tiny["trials"], tiny["total"]) == ("tiny", "finished", 2, 2)
    study = optuna.load_study(study_name="tiny", storage="sqlite:///runs/tiny/study.db")
    assert tiny["best"] == study.best_value
    study.set_user_attr("optuna_nas:run", {"total": 5, "command": "optuna-nas run tiny.py", "ended": None})
    shown = here("list").stdout
    assert "to go on" in shown
    assert shown.splitlines()[-1].split(maxsplit=2) == ["Go", "on", "optuna-nas run tiny.py"]
    *both, _ = json_lines(here("list", ".", "--json"))
    assert {one["name"]: one["state"] for one in both} == {"tiny": "to go on", "foreign": "unknown"}
    foreign = here("list", "--storage", "sqlite:///other/study.db").stdout
    assert "optuna-nas mirror foreign --storage sqlite:///other/study.db" in foreign


def test_list_shows_what_others_wrote_and_obeys_none_of_it(folder):
    hostile = "\x1b[31m[bold]red"
    (folder / "runs").mkdir()
    study = optuna.create_study(study_name=hostile, storage="sqlite:///runs/study.db")
    study.set_user_attr("optuna_nas:run", {"total": 1, "command": hostile, "ended": None})
    done = here("list")
    assert done.exit_code == 0, done.stderr
    assert "\x1b[31m" not in done.stdout
    assert "[bold]red" in done.stdout
    study.set_user_attr("optuna_nas:run", {"total": "many"})
    assert json_lines(here("list", "--json"))[0]["state"] == "unknown"


@pytest.mark.parametrize("study", ["tiny.py", "own.py"])
def test_a_dry_run_tells_what_a_search_would_cost_and_writes_nothing(folder, study):
    (folder / "own.py").write_text(
        "from optuna_nas import Search, darts_space\n"
        "def search(): return Search('own', darts_space(), objective=lambda trial: 0.0, trials=9)\n"
    )
    before = set(folder.rglob("*.db"))
    (plan,) = json_lines(here("run", study, "--dry-run", "--json"))
    shown = here("run", study, "--dry-run")
    assert set(folder.rglob("*.db")) == before
    assert not (folder / "runs").exists()
    if study == "own.py":
        assert plan["trial_seconds"] is None
        assert "not known: the objective is the study's own" in shown.stdout
        return
    assert (plan["size"], plan["steps"], plan["trials"]) == (15625, 4, 3)
    assert 0 < plan["params"]["least"] < plan["params"]["most"]
    assert plan["search_seconds"]["most"] > plan["trial_seconds"]["most"] > plan["step_seconds"]["most"] > 0
    assert plan["disk_bytes"] < plan["free_bytes"]
    assert re.search(r"All trials +3, if none is pruned: ", shown.stdout)
    assert shown.stdout.splitlines()[-1].split(maxsplit=2)[:2] == ["Run", "it"]


def test_events_and_result_are_json(folder):
    options = ("--strategy", "snas", "--name", "events", "--no-mlflow", "--set", "epochs=1")
    done = json_lines(here("run", "tiny.py", "--json", *options))
    assert done[0] | {"strategy": ""} == {"event": "study", "study": "events", "trials": 3, "strategy": ""}
    kinds = [one["event"] for one in done]
    assert kinds.count("trial_finished") == kinds.count("trial_started") == 3
    assert {one["what"] for one in done if one["event"] == "model"} == {"SNAS trains"}
    result = done[-1]
    assert (result["event"], result["trials"], result["interrupted"]) == ("result", 3, False)
    assert os.path.exists(result["network"])
    assert result["next"] == "optuna-nas report tiny.py --strategy snas --set epochs=1 --set name=events"
    (again,) = json_lines(here("run", "tiny.py", "--json", "--quiet", *options))
    (reported,) = json_lines(here(*shlex.split(result["next"])[1:], "--json"))
    assert again["best"] == reported["best"] == result["best"]
    assert os.path.exists(reported["report"])


def test_attributes_of_an_objective_do_not_take_the_place_of_the_results_own(tmp_path):
    claims = {"trial": 99, "values": 7, "metric": 0.1, "architecture": 5, "params": 3, "seconds": 8}
    space = nasbench201_space()

    def objective(trial):
        for name, number in claims.items():
            trial.set_user_attr(name, number)
        return float(space.suggest(trial).connected)

    search = Search("own", space, objective=objective, folder=tmp_path, tracking=None, pictures=False, trials=1)
    result = search.run()
    best = result_values(search, result)["best"]
    assert (best["trial"], best["values"], best["metric"], best["seconds"]) == (0, result.best.values, None, 8)
    assert best["architecture"] == space.decode(result.best.params).summary
    assert best["params"] == result.best.params


def test_quiet_shows_the_result_only(folder):
    done = here("run", "tiny.py", "--quiet", "--no-mlflow", "--trials", "1", "--set", "epochs=1")
    assert done.exit_code == 0, done.stderr
    assert "[1/1]" not in done.stdout
    assert done.stdout.splitlines()[-1].split(maxsplit=2) == ["See", "why", "optuna-nas report tiny.py --set epochs=1"]


@pytest.mark.process
@pytest.mark.parametrize(("typed", "completed"), [
    ("optuna-nas li", "list"), ("optuna-nas run a.py --strategy hm", "hmnas"),
    ("optuna-nas init --data fas", "fashion_mnist"),
    ("optuna-nas nothing x", ""),
])  # fmt: skip
def test_a_shell_completes_commands_and_names(typed, completed):
    program = "import sys; sys.argv[0] = 'optuna-nas'; from optuna_nas.cli import main; main()"
    asked = {"_OPTUNA_NAS_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | asked, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (completed, "")


CTRL_C_WHILE_IT_IMPORTS = """
import sys
from optuna_nas.cli import main

class Interrupting:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
main()
"""


@pytest.mark.process
def test_ctrl_c_in_the_first_moment_prints_no_traceback():
    done = subprocess.run([sys.executable, "-c", CTRL_C_WHILE_IT_IMPORTS], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.process
def test_in_a_terminal_ctrl_c_says_its_sentence_above_the_bars(folder):
    """The sentence is whole, the bars are drawn below it again, and the note of the opening has ended."""
    try:
        ours, theirs = pty.openpty()
    except OSError as error:  # a container without /dev/pts
        pytest.skip(f"no terminal can be opened here: {error}")
    words = command("run", "tiny.py", "--no-mlflow", "--trials", "50", "--set", "epochs=12")
    wide = os.environ | {"COLUMNS": "120", "TERM": "xterm"}
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=wide, start_new_session=True)
    os.close(theirs)
    seen, sent, end = "", False, time.monotonic() + 120
    while time.monotonic() < end:
        if not select.select([ours], [], [], 1.0)[0]:
            continue
        try:
            seen += os.read(ours, 65536).decode(errors="replace")
        except OSError:  # the process has ended
            break
        if not sent and re.search(r"epoch \d", seen):
            sent, last_bar = True, seen[seen.rindex("trials") :]
            process.send_signal(signal.SIGINT)
    os.close(ours)
    assert process.wait(60) == 130
    assert "opening the study" not in last_bar
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    sentence = "Interrupted: ending after the running trial. Press Ctrl-C again to end at once."
    assert plain.count(sentence) == 1
    assert "trials" in plain.split(sentence)[1].splitlines()[1]
    assert "To resume           optuna-nas run tiny.py --no-mlflow --trials 50 --set epochs=12" in plain
