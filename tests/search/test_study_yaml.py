"""A study as a YAML file: the same search as in Python, or one sentence with the line and the way out."""

import random
import re
import time
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.pruners import MedianPruner, NopPruner, PatientPruner
from optuna.samplers import RandomSampler, TPESampler
from terminal import here, start

from optuna_nas import (
    GHN,
    SNAS,
    Augmentation,
    CellKind,
    CellSpace,
    GHNPruner,
    GHNSampler,
    ImageData,
    MLflowTracker,
    NetworkSpace,
    Recipe,
    Regression,
    Search,
    SNASRecipe,
    SNASSampler,
    TrainObjective,
    darts_search_skeleton,
    darts_space,
    digits,
    register_type,
    suggest_float,
    suggest_int,
    unregister_type,
)
from optuna_nas.search import study_types
from optuna_nas.search.study_file import load
from optuna_nas.search.study_yaml import read_text

TINY = """\
name: tiny
data: {type: digits}
space: {type: nasbench201_space}
skeleton: {type: nasbench201_skeleton, repeats: 1, channels: 4}
recipe:
  epochs: 1
  batch_size: 256
sampler: {type: RandomSampler, seed: 0}
trials: 2
cpu_threads: 1
"""
TRAINED = """\
name: trained
seed: 3
data: {type: digits, augmentation: {flip: true, cutout: {type: suggest_int, low: 0, high: 3}}}
space: darts_space
skeleton: {type: darts_search_skeleton, n_cells: 3, channels: 4}
recipe: {epochs: 5, learning_rate: {type: suggest_float, low: 0.01, high: 2e-1, log: true}}
sampler:
  type: SNASSampler
  model: {type: SNAS, recipe: {warmup_fraction: 0.3, resource: {params: 2e6}}}
  budget: 40
  independent_sampler: {type: TPESampler, multivariate: true}
pruner: {type: PatientPruner, wrapped_pruner: MedianPruner, patience: 2}
tracking: {tags: {team: vision, year: 2026}}
description: "yes"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def read(text, *settings, **given):
    return read_text(text, "study.yaml", settings, given)


@pytest.mark.filterwarnings("ignore:.*experimental")  # Optuna's PatientPruner, multivariate TPE
def test_a_file_is_the_search_that_python_would_write():
    search = read(TRAINED)
    data = digits(seed=3, augmentation=Augmentation(flip=True, cutout=suggest_int(0, 3)))
    space = NetworkSpace(darts_space(), darts_search_skeleton(3, 4, data.input_shape, data.classes))
    recipe = Recipe(epochs=5, learning_rate=suggest_float(0.01, 0.2, log=True), seed=3)
    assert search.setting() == Search("trained", space, data, recipe).setting()
    sampler = search.sampler
    assert isinstance(sampler, SNASSampler)
    assert isinstance(sampler.in_study_fit.model, SNAS)
    assert sampler.in_study_fit.model.recipe == SNASRecipe(warmup_fraction=0.3, resource={"params": 2e6}, seed=3)
    assert sampler.in_study_fit._data is search.data
    assert sampler.in_study_fit.budget == 40
    assert isinstance(search.pruner, PatientPruner)
    assert isinstance(search.tracking, MLflowTracker)
    assert search.description == "yes"
    assert search.trials is None


def test_arguments_without_a_default_come_from_the_study_and_a_task_reaches_all_models():
    more = "task: {type: ImageClassification, label_smoothing: 0.1}\n"
    more += "objective: {type: TrainObjective, objectives: [loss]}\n"
    more += "pruner: {type: GHNPruner, score: FreeScore}\nstorage: sqlite:///study.db\ntracking: null\n"
    search = read(TINY.replace("{type: RandomSampler, seed: 0}", "{type: GHNSampler, model: GHN, budget: 3}") + more)
    assert isinstance(search.objective, TrainObjective)
    assert search.objective.recipe is search.recipe
    assert search.objective.task is search.task
    assert search.directions == ("minimize",)
    assert isinstance(search.sampler, GHNSampler)
    assert isinstance(search.sampler.in_study_fit.model, GHN)
    assert search.sampler.in_study_fit.model.task is search.task
    assert isinstance(search.pruner, GHNPruner)
    assert search.tracking is None


def test_a_space_of_ones_own_ops_and_plain_lists():
    text = (
        "name: own\nspace: {type: CellSpace, ops: [none, skip_connect], nodes: 2, inputs: 1, cell_kinds: [{name: a}]}\n"
    )
    search = read(text, objective=lambda trial: 0.0)
    assert search.space == CellSpace(("none", "skip_connect"), 2, 1, (CellKind("a"),))


def test_an_anchor_is_one_object():
    text = TINY + "pruner: {type: GHNPruner, model: &ghn {type: GHN, recipe: {phases: 1}}}\n"
    text = text.replace("{type: RandomSampler, seed: 0}", "null") + "heartbeat: {interval: 5}\n"
    shared = text.replace("sampler: null\n", "") + "sampler: {type: GHNSampler, model: *ghn, budget: 3}\n"
    search = read(shared)
    assert search.pruner.model is search.sampler.in_study_fit.model
    assert search.heartbeat == (5, 90)
    assert read(text).sampler is None


def test_settings_replace_what_is_in_the_file_or_add_to_it():
    search = read(
        TINY, "recipe.epochs=3", "recipe.learning_rate=1e-3", "sampler=TPESampler", "sampler.seed=7", "trials=9"
    )
    assert (search.recipe.epochs, search.recipe.learning_rate, search.trials) == (3, 0.001, 9)
    assert isinstance(search.sampler, TPESampler)
    assert isinstance(read(TINY, "pruner={type: NopPruner}").pruner, NopPruner)
    assert read(TINY, "seed=5").data.seed == 5
    assert read("name: a\nspace: darts_space\nseed: 4", objective=lambda trial: 0.0).recipe.seed == 4
    assert read(TINY, "trials=").trials is None
    other = read(TINY + "folder: here\n", "name=2026")
    assert (other.name, str(other.resolved_folder())) == ("2026", "runs/2026")
    kinds = "name: own\nspace: {type: CellSpace, ops: [none, skip_connect], cell_kinds: [{name: a}, {name: b}]}\n"
    assert read(kinds, "space.cell_kinds.1.stride=2", objective=lambda trial: 0.0).space.cell_kinds[1].stride == 2


def test_types_of_ones_own():
    def stripes(classes_of=3, seed=0):
        labels = np.arange(90) % classes_of
        return ImageData.from_arrays(np.random.default_rng(seed).random((90, 6, 6), dtype=np.float32), labels)

    register_type("stripes", stripes)
    try:
        search = read(TINY, "data={type: stripes, classes_of: 5}", "seed=2")
        assert search.data.classes == search.space.skeleton.classes == 5
        assert search.data.seed == 0
        assert search.space.skeleton.input_shape == (1, 6, 6)
        with pytest.raises(ValueError, match="line 2: `data` has no field 'classes'; did you mean 'classes_of'"):
            read(TINY.replace("{type: digits}", "{type: stripes, classes: 5}"))
    finally:
        unregister_type("stripes")
    with pytest.raises(ValueError, match="`name` must be a type of your own but 'stripes' is none"):
        unregister_type("stripes")
    with pytest.raises(ValueError, match="`name` must be new but 'digits' is a type of the"):
        register_type("digits", stripes)
    with pytest.raises(ValueError, match="`name` must be a Python identifier"):
        register_type("os.system", stripes)
    with pytest.raises(ValueError, match="`make` must be a function or class"):
        register_type("three", 3)


def test_a_study_in_python_registers_types_for_its_file(folder):
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        "from optuna_nas import Search, digits, register_type\n"
        "def half(data=None, seed=0):\n"
        "    return digits(seed=seed)\n"
        "register_type('half', half)\n"
        "def search(seed: int = 0) -> Search:\n"
        "    return Search.from_yaml(Path(__file__).with_name('tiny.yaml'), ['data=half', f'seed={seed}'])\n"
    )
    try:
        assert load(folder / "own.py", None).data.seed == 0
        assert load(folder / "own.py", ["seed=4"]).data.seed == 4  # a command may read the file several times
    finally:
        unregister_type("half")


def test_every_skeleton_has_a_name():
    import optuna_nas

    made = {name for name in optuna_nas.__all__ if name.endswith("_skeleton")} - {"widest_skeleton"}  # of another one
    assert set(study_types.SKELETONS) == {*made, "Skeleton"}


def test_only_constructors_of_studies_have_names():
    import optuna_nas

    for name in {*optuna_nas.__all__, "os.system", "builtins.exec", "__import__"} - set(study_types.built_in()):
        with pytest.raises(ValueError, match=r"`space` must be of a known type"):
            read(TINY.replace("nasbench201_space", name))
    assert not {"run", "run_workers", "Job", "load_network", "register_op", "register_type"} & set(
        study_types.built_in()
    )


BAD = {
    "unknown field": (("epochs", "epoch"), "study.yaml, line 6: `recipe` has no field 'epoch'; did you mean 'epochs'?"),
    "unknown key": (("trials", "budget"), "line 9: the file has no key 'budget'; it has name, space, data, "),
    "missing key": (("name: tiny\n", ""), "study.yaml, line 1: the file must have `name`; add it."),
    "missing argument": (
        ("{type: nasbench201_space}", "{type: CellSpace}"),
        "line 3: `space` must have `ops`; add it.",
    ),
    "wrong type": (
        ("nasbench201_sp", "nasbench_sp"),
        "line 3: `space` must be of a known type but is of 'nasbench_space'; did",
    ),
    "wrong role": (
        ("RandomSampler, seed: 0", "NopPruner"),
        "line 8: `sampler` must be of a known type but is of 'NopPruner'; known: ",
    ),
    "no type": (
        ("{type: nasbench201_space}", "{nodes: 3}"),
        "line 3: `space` must name its `type`, one of darts_space,",
    ),
    "type of no name": (("type: digits", "type: [a]"), "line 2: `data.type` must be a name but is a list."),
    "refused value": (("epochs: 1", "momentum: 1.5"), "line 6: in `recipe`, `momentum` must be in [0, 1) but got 1.5."),
    "refused search": (("trials: 2", "trials: 0"), "line 9: `trials` must be an integer of at least 1 but got 0."),
    "word": (("epochs: 1", "momentum: many"), "line 6: `recipe.momentum` must be a number but is 'many'."),
    "list": (("trials: 2", "trials: [2]"), "line 9: `trials` must be a whole number or null but is a list."),
    "null": (("channels: 4", "channels: null"), "line 4: `skeleton.channels` must be a whole number but is None."),
    "text": (("repeats: 1", "repeats: '1'"), "line 4: `skeleton.repeats` must be a whole number but is '1'."),
    "mapping": (("trials: 2", "trials: {a: 2}"), "line 9: `trials` must be a whole number or null but is a mapping."),
    "function": (
        ("RandomSampler, seed: 0", "TPESampler, gamma: 3"),
        "`sampler.gamma` must be left out, since only Python can",
    ),
    "searched width": (
        ("channels: 4", "channels: {type: suggest_int, low: 1, high: 3}"),
        "only fields of `recipe` and `task` can be",
    ),
    "no skeleton": (("skeleton:", "description: x #"), "line 3: `skeleton` must say what cells are placed into;"),
    "other skeleton": (
        ("nasbench201_skeleton, repeats: 1", "darts_search_skeleton"),
        "line 4: in `skeleton`, `skeleton.cells` must",
    ),
    "two strategies": (("trials: 2", "strategy: tpe"), "line 8: `sampler` must be left out where `strategy` sets it"),
    "huge network": (
        ("repeats: 1", "repeats: 1000000000"),
        "line 4: in `skeleton`, `repeats` must be an integer of at most 1000",
    ),
    "duplicate": (("trials: 2", "name: b"), "line 9: the key 'name' is there twice, first in line 1; remove one."),
    "tab": (("  epochs", "\tepochs"), "study.yaml, line 6: a tab can't indent; use spaces."),
    "unclosed": (
        ("trials: 2", "trials: [2"),
        "line 10: must be YAML but while parsing a flow sequence expected ',' or ']'",
    ),
    "two documents": (("trials: 2", "---\na: b"), "must be YAML but expected a single document"),
    "code": (("epochs: 1", "epochs: !!python/object/apply:os.getpid []"), "line 6: a value must have no tag but has"),
    "merge": (("recipe:", "<<: {trials: 3}\nrecipe:"), "line 5: `<<` is not read; write the keys out"),
    "list of keys": (("epochs: 1", "[epochs]: 1"), "line 6: a key must be a plain word."),
    "infinite": (
        ("epochs: 1", "momentum: .inf"),
        "line 6: a number must be finite but is .inf; leave it out for no limit.",
    ),
    "long number": (
        ("epochs: 1", "epochs: " + "9" * 5000),
        "line 6: a number must be at most 1e+15 but is 99999999999999999999.",
    ),
    "control character": (("trials: 2", "trials: \a"), "study.yaml must be text but has the character 7; remove it."),
    "itself": (("trials: 2", "description: &a [*a]"), "must not contain itself; remove the alias."),
    "deep": (
        ("trials: 2", "description: " + "[" * 5000),
        "line 9: has more than 16 levels of lists and mappings; write it flatter.",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_with_line_and_way_out(case):
    change, message = BAD[case]
    assert change[0] in TINY
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        read(TINY.replace(*change))
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("study.yaml")
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(("text", "message"), [
    ("", "study.yaml is empty; write at least `name` and `space`"),
    ("# nothing\n", "study.yaml is empty"),
    ("- name\n", "line 1: the file must be a mapping, with lines such as `name: digits`, but is a list."),
    ("name", "line 1: the file must be a mapping, with lines such as `name: digits`, but is 'name'."),
    ("x" * 100_001, "must be of at most 100,000 characters but has 100,001; shorten it."),
])  # fmt: skip
def test_files_that_are_no_study_are_said_so(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(text)


def test_aliases_of_aliases_are_counted_not_written_out():
    lines = [f"  - &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 10)}]" for i in range(12)]
    started = time.process_time()
    with pytest.raises(ValueError, match="at most 10,000 values, with aliases written out; shorten it"):
        read(TINY + "description:\n" + "\n".join(lines))
    assert time.process_time() - started < 20


@pytest.mark.parametrize(("setting", "message"), [
    ("trials", "`--set` must be NAME=VALUE, such as recipe.epochs=5, but got 'trials'."),
    ("a..b=3", "`--set` must be NAME=VALUE"),
    ("recipe.epoch=3", "`--set recipe.epoch`: `recipe` has no field 'epoch'; did you mean 'epochs'?"),
    ("trials=[", "`--set trials`: must be YAML but"),
    ("trials=0", "`--set trials`: `trials` must be an integer of at least 1 but got 0."),
    ("recipe.epochs.x=3", "`--set recipe.epochs.x`: 'recipe.epochs' must be a mapping but is 1."),
    ("sampler.x=!!python/name:os.system x", "`--set sampler.x`: a value must have no tag but has"),
])  # fmt: skip
def test_bad_settings_are_named(setting, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(TINY, setting)
    with pytest.raises(
        ValueError, match=re.escape("'objective' must be left out, since the program gives it".replace("'", "`"))
    ):
        read(TINY + "objective: TrainObjective\n", objective=lambda trial: 0.0)


def test_what_the_program_gives_is_not_in_the_file():
    with pytest.raises(ValueError, match="line 11: `objective` must be left out, since the program gives it"):
        read(TINY + "objective: TrainObjective\n", objective=lambda trial: 0.0)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "study.yaml").write_bytes(b"name: \xff")
    with pytest.raises(ValueError, match="must be text in UTF-8 but is not at byte 6"):
        Search.from_yaml(tmp_path / "study.yaml")
    with pytest.raises(ValueError, match="must be a file that can be read but is not: No such file"):
        Search.from_yaml(tmp_path / "other.yaml")
    (tmp_path / "study.yaml").write_bytes(b"\xef\xbb\xbf" + TINY.encode())  # as some editors of Windows save it
    assert Search.from_yaml(tmp_path / "study.yaml").trials == 2


PIECES = [
    *(
        "&a",
        "*a",
        "{",
        "}",
        "[",
        "]",
        ":",
        "-",
        "\t",
        "\n",
        "  ",
        "!!x",
        "'",
        '"',
        "|",
        "?",
        "<<",
        "~",
        "%",
        "#",
        ",",
        "é",
    ),
    *("null", "-1", "1e9", "0", "999999", ".nan", "true", "---", "type", "space", "TPESampler", "darts_space", "GHN"),
]


def mutated(generator):
    """Return a text with a few pieces cut, doubled, exchanged or put in."""
    text = generator.choice([TINY, TRAINED])
    if generator.random() < 0.3:
        return re.sub(r"(?<=: )[\d.]+", lambda found: generator.choice(["1", "2", "3", "3", "0.5", found[0]]), text)
    for _ in range(generator.randint(1, 2)):
        words = [(found.start(), found.end()) for found in re.finditer(r"[a-z]\w+|[\d.]+", text)]
        start = generator.randrange(len(text))
        start, end = generator.choice([generator.choice(words), (start, start + generator.randint(0, 5))])
        others = [text[first:last] for first, last in words]
        piece = generator.choice([*PIECES, *others, "", text[start:end] * 2, str(generator.randint(-5, 10**6))])
        text = text[:start] + piece + text[end:]
    return text


def outcome_of(text):
    """Return the search of a text, or the sentence that says why there is none."""
    try:
        return read(text)
    except ValueError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore")  # of constructors with odd numbers
def test_damaged_files_are_a_search_or_one_sentence():
    generator = random.Random(0)
    outcomes = []
    for _ in range(200):
        text = mutated(generator)
        outcome = outcome_of(text)
        outcomes.append(outcome)
        if isinstance(outcome, str):
            assert "\n" not in outcome, text
            assert outcome.startswith(("study.yaml, line", "study.yaml must be", "study.yaml is empty")), text
        else:
            assert outcome_of(text).setting() == outcome.setting(), text
    assert 10 < sum(isinstance(outcome, Search) for outcome in outcomes) < 150


def trials_of(folder, name="tiny"):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/runs/{name}/study.db").trials


def test_a_study_runs_resumes_and_refuses_another_recipe(folder):
    first = here("run", "tiny.yaml", "--no-mlflow", "--trials", "1")
    assert first.exit_code == 0, first.stderr
    again = here("run", "tiny.yaml", "--no-mlflow")
    assert "[2/2] trial 1" in again.stdout
    assert len(trials_of(folder)) == 2
    reported = here("report", "tiny.yaml")
    assert reported.exit_code == 0, reported.stderr
    assert "optuna-nas run tiny.yaml" in next(folder.glob("runs/tiny/**/*.md")).read_text()
    exported = here("export", "tiny.yaml", "--format", "state-dict")
    assert exported.exit_code == 0, exported.stderr
    other = here("run", "tiny.yaml", "--no-mlflow", "--set", "recipe.epochs=2")
    assert other.exit_code == 2
    assert "`recipe` must be that of the existing study 'tiny' but is another" in other.stderr
    named = here("run", "tiny.yaml", "--no-mlflow", "--set", "recipe.epochs=2", "--set", "name=two", "--trials", "1")
    assert named.exit_code == 0, named.stderr
    assert len(trials_of(folder, "two")) == 1
    searched = Search.from_yaml("tiny.yaml").setting()
    sampler = RandomSampler(seed=1)
    assert searched == replace(Search.from_yaml("tiny.yaml"), sampler=sampler, pruner=MedianPruner()).setting()


def test_a_study_is_trained_in_full_and_compared(folder):
    assert here("run", "tiny.yaml", "--no-mlflow", "--trials", "1").exit_code == 0
    trained = here("train", "tiny.yaml", "--recipe", "epochs=1", "--device", "cpu")
    assert trained.exit_code == 0, trained.stderr
    compared = here("compare", "tiny.yaml", "--budget", "trials=1", "--seeds", "1", "--no-mlflow")
    assert compared.exit_code == 0, compared.stderr
    assert "random" in compared.stdout


def test_an_error_of_a_file_ends_with_exit_code_2(folder):
    (folder / "bad.yaml").write_text(TINY.replace("epochs", "epoch"))
    done = here("run", "bad.yaml")
    assert done.exit_code == 2
    assert done.stderr == "Error: bad.yaml, line 6: `recipe` has no field 'epoch'; did you mean 'epochs'?\n"


def test_a_regression_needs_another_task_by_name():
    assert isinstance(read(TINY + "task: Regression\n").task, Regression)


@pytest.mark.process
def test_workers_read_the_same_file_and_settings(folder):
    process = start("run", "tiny.yaml", "--no-mlflow", "--workers", "2", "--set", "recipe.batch_size=512")
    output, error = process.communicate(timeout=220)
    assert process.returncode == 0, error
    assert "tiny: the best of 2 trials" in output
    assert (folder / "runs/tiny/postgresql").exists()
