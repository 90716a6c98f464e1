"""What README and the pages of `docs/` show works as it stands: code, commands, sample outputs, links, figures."""

import ast
import importlib.util
import json
import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
import pytest
import typer
import yaml
from terminal import here

import optuna_nas
from optuna_nas import CellSpace, Search, digits, unregister_op
from optuna_nas.cli import app
from optuna_nas.networks import build_op, save_network
from optuna_nas.networks.deployment import Deployment
from optuna_nas.space import Site
from optuna_nas.training import ImageClassification

ROOT = Path(__file__).parent.parent
README, BENCHMARKS = ROOT / "README.md", ROOT / "BENCHMARKS.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
LINKING = [*PAGES, BENCHMARKS, ROOT / "CHANGELOG.md"]
COMMANDS = dict(typer.main.get_command(app).commands)
QUICK = "tracking=None, pictures=False, "
TOOLS = ("ray", "hydra")  # blocks with these run where `make test-pipelines` has installed them

SMALLER = {
    "README.md": {"n_trials=20": "n_trials=2"},
    "docs/quickstart.md": {
        'strategy="auto",': f'{QUICK}strategy="tpe",',
        "search(trials=10)": "search(trials=1, epochs=1)",
    },
    "docs/own-model.md": {"n_trials=20": "n_trials=2", "trials=20": f"{QUICK}trials=2", "epochs=20": "epochs=2"},
    "docs/own-parts.md": {"n_trials=20": "n_trials=1"},
    "docs/coming-from.md": {"n_trials=20": "n_trials=2"},
    "docs/snas.md": {"snas.fit(data, budget=2)": "snas.fit(data, budget=0.1)"},
    "docs/ghn.md": {
        "ghn.fit(data, budget=1)": "ghn.fit(data, budget=0.1)",
        "range(20)": "range(3)",
        "Recipe(epochs=5), ": "Recipe(epochs=2), pictures=False, ",
        "pool_size=40": "pool_size=4",
    },
    "docs/hmnas.md": {"hmnas.fit(data, budget=2)": "hmnas.fit(data, budget=0.5)"},
    "docs/latency.md": {".residual(cells)": ".residual(cells, repeats=2)"},
    "docs/objectives.md": {"trials=30": f"{QUICK}trials=2", "epochs=5": "epochs=1"},
    "docs/export.md": {"epochs=5": "epochs=1"},
    "docs/pipelines.md": {"n_trials=4, epochs=10": "n_trials=1, epochs=1"},
}
"""Budgets of pages as tests run them; what is replaced must be there."""


class Block(NamedTuple):
    """A block of code of a page, the number of its first line, and its language."""

    text: str
    line: int
    language: str


def blocks_of(page, language=None):
    """Return the blocks of a page, also those inside of lists."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE)
    blocks = [Block(textwrap.dedent(one[3]), text[: one.start(3)].count("\n"), one[2]) for one in found]
    assert text.count("```") == 2 * len(blocks), "a block is not closed"
    return [block for block in blocks if language is None or block.language == language]


def needs(block):
    """Return the tools of others that a block imports."""
    imported = {node.module or "" for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.ImportFrom)}
    imported |= {
        name.name for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.Import) for name in node.names
    }
    return {tool for tool in TOOLS if any(name.split(".")[0] == tool for name in imported)}


def run_blocks(page, blocks, **names):
    """Run blocks one after another, as a reader would; a traceback names page and line."""
    names |= {"__name__": "page", "optuna": optuna}
    for block in blocks:
        text = block.text
        for long, short in SMALLER.get(page.relative_to(ROOT).as_posix(), {}).items():
            text = text.replace(long, short)
        exec(compile("\n" * block.line + text, str(page), "exec"), names)
    return names


def your_training(model, learning_rate=0.0):
    """Stand for the reader's own training."""
    return float(sum(p.numel() for p in model.parameters()) > 0) + learning_rate


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Run the code of a page in a folder that has what the page speaks of; return its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(page):
        data = digits()
        space = optuna_nas.NetworkSpace(
            optuna_nas.nasbench201_space(), optuna_nas.nasbench201_skeleton(1, 2, data.input_shape, data.classes)
        )
        network = Path("runs/digits/networks/trial-00007.safetensors")
        network.parent.mkdir(parents=True)
        built = space.architecture({"cell_0_3": ["skip_connect"]}).build()
        save_network(network, built, deployment=Deployment.of(data, ImageClassification()))
        blocks = [block for block in blocks_of(page, "python") if not needs(block)]
        return run_blocks(page, blocks, your_training=your_training, raw_images=np.zeros((2, 8, 8)))

    return run


WITH_CODE = [name for name, page in zip(NAMES, PAGES, strict=True) if blocks_of(page, "python")]


def check_readme(names):
    assert names["search"]().trials == 20
    assert names["space"].size == 3 * 2 * 4 * 3


def check_quickstart(names):
    assert names["labels"].shape == (2,)
    assert names["result"].network.exists()


def check_own_model(names):
    assert names["study"].best_params.keys() >= {"width", "norm", "depth", "head_reads", "learning_rate"}
    assert names["space"].size == 72
    assert names["predictions"].shape == (5, 1)


def check_own_parts(names):
    assert callable(names["search"])
    assert names["table"].input_shape == (10,)
    assert names["task"].direction == "minimize"
    model, batch = names["nn"].Linear(10, 1), (names["torch"].ones(4, 10), names["torch"].ones(4))
    forecast = names["Forecast"]()
    assert forecast.loss(model, batch) >= 0
    with names["torch"].no_grad():
        assert forecast.evaluate(model, [batch]) >= 0
    module = build_op("wide_conv_9x9", Site((4, 8, 8), (4, 4, 4), stride=2))
    assert sum(p.numel() for p in module.parameters()) == 9 * 9 * 4 * 4 + 4
    assert CellSpace(["wide_conv_9x9", "skip_connect"]).size == 2**28


def check_snas(names):
    assert names["sampler"].learning == "score function of trials"
    assert names["snas"].step == 2
    assert names["cell"].connected


def check_ghn(names):
    assert [len(row.values) for row in names["result"].protocols] == [2, 2, 2]
    assert names["ghn"].step == 2
    cells = names["cells"]
    assert np.isfinite(names["both"](cells)).all()
    costs = names["network"].exit_costs
    assert len(names["answers"]) == sum(cost <= 1e5 for cost in costs)
    assert names["answers"][-1].shape == (10, 10)


def check_hmnas(names):
    assert names["hmnas"].fitted
    assert names["network"](names["data"].images[:4].float()).shape == (4, 10)


def check_latency(names):
    assert names["seconds"] > 0
    assert names["both"].directions == ("maximize", "minimize")
    assert list(names["bounded"].predictions) == [names["table"].name]


def check_objectives(names):
    assert len(names["result"].study.directions) == 2
    assert names["front"]
    assert Path("front.png").exists()


def check_export(names):
    assert len(names["result"].history) == 1
    assert names["exported"].path.exists()
    assert names["exported"].max_difference < 1e-5


def check_pipelines(names):
    assert names["grid"].best_params_
    assert all(p.grad is not None for p in names["snas"].parameters() if p.requires_grad)
    assert len(names["study"].trials) == 5


CHECKS = {
    "README.md": check_readme,
    "docs/quickstart.md": check_quickstart,
    "docs/own-model.md": check_own_model,
    "docs/own-parts.md": check_own_parts,
    "docs/snas.md": check_snas,
    "docs/ghn.md": check_ghn,
    "docs/hmnas.md": check_hmnas,
    "docs/latency.md": check_latency,
    "docs/objectives.md": check_objectives,
    "docs/export.md": check_export,
    "docs/pipelines.md": check_pipelines,
}


@pytest.mark.parametrize("name", WITH_CODE)
def test_the_code_of_a_page_runs(ran, name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert [long for long in SMALLER.get(name, {}) if long not in text] == [], "a budget that the page no longer has"
    try:
        CHECKS.get(name, len)(ran(ROOT / name))
    finally:
        if name == "docs/own-parts.md":
            unregister_op("wide_conv_9x9")


def test_the_study_of_the_readme_goes_from_run_to_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks_of(README, "python") if "def search(" in block.text]
    Path("net.py").write_text(block.text.replace("trials=20", "trials=2, tracking=None, pictures=False"))
    lines = README.read_text().splitlines()
    commands = [line.split("#")[0].split() for line in lines if line.startswith("optuna-nas ")]
    names = [name for _, name, file, *_ in commands if file == "net.py"][:5]
    assert names == ["run", "view", "report", "train", "export"]
    for _, name, file, *options in commands[:5]:
        if name == "view":  # whose server and pages are looked at in tests/tracking/test_server.py
            continue
        done = here(name, file, *(option.replace("epochs=20", "epochs=1") for option in options))
        assert done.exit_code == 0, done.output
    assert list(tmp_path.glob("runs/net/exported/*.pt2"))
    assert (tmp_path / "runs/net/report/report.html").exists()


@pytest.mark.pipeline
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_code_for_other_tools_is_put_together(tool):
    pytest.importorskip(f"{tool}.tune" if tool == "ray" else tool)
    found = [(page, block) for page in PAGES for block in blocks_of(page, "python") if needs(block) == {tool}]
    assert found
    for page, block in found:
        names = run_blocks(page, [block], your_training=your_training)
        assert type(names["tuner"]).__name__ == "Tuner" if tool == "ray" else callable(names["train"])


def test_studies_in_yaml(tmp_path):
    (block,) = [block for page in PAGES for block in blocks_of(page, "yaml")]
    (tmp_path / "study.yaml").write_text(block.text)
    search = Search.from_yaml(tmp_path / "study.yaml", ["recipe.epochs=20", "name=longer"])
    assert (search.name, search.recipe.epochs, search.trials) == ("longer", 20, 30)


def test_every_block_is_of_a_kind_that_is_tested():
    kinds = {block.language for page in PAGES for block in blocks_of(page)}
    assert kinds == {"python", "sh", "yaml", ""}


# -- commands -----------------------------------------------------------------------------------------------------


def shell_lines(page):
    """Return the commands of a page's shell blocks, and of `code` that begins like one."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks_of(page, "sh") for line in block.text.splitlines()]
    inline = re.findall(
        r"`((?:optuna-nas|make|python|pip|torchrun) [^`]+)`",
        re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE),
    )
    return [part.strip() for line in [*lines, *inline] for part in line.split(" && ")]


def options_of(name):
    """Return the options of a command, without those of all."""
    return {option for parameter in COMMANDS[name].params for option in parameter.opts if option.startswith("--")}


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_options_exist(name):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for line in shell_lines(ROOT / name):
        words = shlex.split(re.sub(r"\$\(.*\)", "X", line), comments=True)
        for study in [word for word in words if word.startswith(("studies/", "tests/"))]:
            assert (ROOT / study).exists(), line
        if words[:1] == ["make"]:
            assert words[1] in targets, line
        if words[:2] == ["pip", "install"]:
            assert set(re.findall(r"\w+", "".join(re.findall(r"^\.\[(.*)\]", words[2])))) <= set(extras), line
        if words[:1] == ["python"] and words[1].endswith(".py") and words[1].startswith("studies/"):
            source = (ROOT / words[1]).read_text()
            assert [word for word in words[2:] if word.startswith("--") and f'"{word}"' not in source] == [], line
        called = words[words.index("optuna-nas") + 1 :] if "optuna-nas" in words else []
        if (
            not called
            or words[:2] == ["docker", "build"]
            or called[0] in ("COMMAND", "--version", "--help", "--install-completion")
        ):
            continue
        assert called[0] in COMMANDS, line
        unknown = {word for word in called[1:] if word.startswith("--")} - options_of(called[0])
        assert unknown == set(), line


def test_the_page_of_commands_has_them_all():
    text = (ROOT / "docs/commands.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    documented = {re.match(r"`optuna-nas (\w+)", row[0])[1] for row in rows if row[0].startswith("`optuna-nas")}
    assert documented == set(COMMANDS)
    options = {name: set() for name in COMMANDS}
    for option, of, _ in (row for row in rows if row[0].startswith("`--")):
        named = set(re.findall(r"`(\w+)`", of))
        for name in set(COMMANDS) - named if of.startswith("all") else named:
            options[name].add(re.match(r"`(--[\w-]+)", option)[1])
    assert options == {name: options_of(name) for name in COMMANDS}


def test_sample_outputs_are_those_of_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = str(ROOT / "studies" / "digits.py")
    monkeypatch.setenv("COLUMNS", "110")
    done = here("run", study, "--trials", "2", "--set", "epochs=1", "--set", "snas_epochs=1", "--no-mlflow")
    assert done.exit_code == 0, done.stderr

    def shape(line):
        return re.sub(r"\d[\d.,]*", "0", re.sub(r"\s+", " ", line.replace("━", "").replace("─", ""))).strip()

    printed = {shape(line) for line in done.stdout.splitlines()}
    samples = [block for page in PAGES for block in blocks_of(page, "")]
    assert len(samples) == 2
    for sample in samples:
        for line in sample.text.splitlines():
            if line.strip() == "...":
                continue
            if line.startswith("│"):  # another architecture
                assert line.count("│") == 8
            elif line.startswith("See it in MLflow"):
                assert "view" in COMMANDS
                assert line.endswith("optuna-nas view studies/digits.py")
            else:
                assert shape(line) in printed


# -- links and files ----------------------------------------------------------------------------------------------


def anchors(page):
    """Return the anchors of a page's headings, as a repository's host makes them."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_relative_to(ROOT), target
        assert linked.exists(), target
        if linked.suffix == ".png":
            assert linked.stat().st_size > 1000, target
        if anchor:
            assert anchor in anchors(linked), target


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name):
    named = re.findall(
        r"`((?:studies|tests|docs|examples|optuna_nas|optunahub)/[\w./-]*)[`:]", (ROOT / name).read_text()
    )
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 200


def script_of(name):
    """Return a script as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_pictures_are_not_older_than_the_code_that_draws_them(tmp_path):
    script = script_of("studies/pictures.py")
    drawn = {name: script.hash_of(name) for name in script.DRAWN_BY}
    assert json.loads(script.CODE.read_text()) == drawn, "run `python studies/pictures.py` and look at what it makes"
    assert all((script.PICTURES / name).exists() for name in drawn)
    (file := tmp_path / "code.py").write_text('"""What."""\n\n# Why.\nx = 1\n')
    said = script.code_of(file)
    file.write_text('"""What else."""\nx = 1\n')
    assert script.code_of(file) == said == "x = 1"


def test_the_picture_of_a_trial_is_that_of_its_script():
    script = script_of("docs/trial_picture.py")
    texts = {text for pair in [*script.STEPS, *script.BESIDE.values()] for text in pair}
    drawn = set(re.findall(r"<text[^>]*>([^<]*)</text>", (ROOT / "docs/trial.svg").read_text()))
    assert drawn == texts
    assert script.draw().axes


# -- what is said of studies, figures, names ------------------------------------------------------------------------


def numbers(text):
    return set(re.findall(r"(?<![\w.])\d+\.\d+(?!\w|\.\d)", text))


@pytest.mark.parametrize("name", ["README.md", "docs/strategies.md", "docs/latency.md", "docs/studies.md"])
def test_figures_are_those_of_the_benchmarks(name):
    said = re.sub(r"^ *```.*?^ *```$", "", (ROOT / name).read_text(), flags=re.DOTALL | re.MULTILINE)
    said = said.replace("Python >= 3.11", "").replace("Apache-2.0", "")
    known = numbers(BENCHMARKS.read_text())
    if name == "docs/studies.md":  # where there is no benchmark, what a study expects
        known |= {
            n for path in (ROOT / "studies").iterdir() if path.is_file() for n in numbers(path.read_text()[:2000])
        }
    assert numbers(said) - known == set()


def test_means_of_strategies_are_those_of_the_benchmarks():
    measured = (ROOT / "docs/strategies.md").read_text().replace("**", "")
    means = re.findall(r"\d+\.\d+ \[\d[^]]*\]", measured)
    assert len(means) > 15
    benchmarks = BENCHMARKS.read_text().replace("**", "")
    assert [mean for mean in means if mean not in benchmarks] == []
    short = re.findall(r"(\d+\.\d+) \((\d+)\)", README.read_text().replace("**", ""))
    assert len(short) > 15
    without = [(mean, n) for mean, n in short if not re.search(rf"{mean}( \[[^]]*\])?, {n} ", measured)]
    assert without == []


def test_every_study_is_in_the_gallery_with_its_question():
    gallery = (ROOT / "docs/studies.md").read_text()
    rows = dict(re.findall(r"^\| \[`([\w.]+)`\]\([^)]*\) \| ([^|]+) \|", gallery, re.MULTILINE))
    for study in sorted((ROOT / "studies").glob("*.py")):
        asked = ast.get_docstring(ast.parse(study.read_text())).split("\n\n")[0].replace("\n", " ")
        if "Command:" in study.read_text():
            assert asked.startswith(rows[study.name]), study.name
        else:
            assert f"[`{study.name}`]" in gallery
    assert yaml.safe_load((ROOT / "studies/digits.yaml").read_text())["description"].startswith(rows["digits.yaml"])


def test_the_reference_has_every_public_name():
    shown = set()
    for page in (ROOT / "docs/reference").glob("*.md"):
        for room in re.findall(r"^::: (optuna_nas\.\w+)$", page.read_text(), re.MULTILINE):
            shown |= set(importlib.import_module(room).__all__)
    assert set(optuna_nas.__all__) <= shown
