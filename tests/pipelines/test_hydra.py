"""Hydra: configurations that are searches, and scripts whose task function is searched."""

import json
import subprocess
import sys

import optuna
import pytest
from optuna.samplers import RandomSampler

from optuna_nas import Search, SNASSampler, nasbench201_space

pytestmark = pytest.mark.pipeline
hydra = pytest.importorskip("hydra")
omegaconf = pytest.importorskip("omegaconf")

from hydra.core.hydra_config import HydraConfig  # noqa: E402

from optuna_nas.pipelines.hydra import make_search, searched  # noqa: E402 - it imports Hydra

WITH_TARGETS = """\
_target_: optuna_nas.Search
name: digits
data: {_target_: optuna_nas.digits}
space:
  _target_: optuna_nas.NetworkSpace
  cells: {_target_: optuna_nas.nasbench201_space}
  skeleton: {_target_: optuna_nas.nasbench201_skeleton, repeats: 1, channels: 4, input_shape: [1, 8, 8], classes: 10}
recipe:
  _target_: optuna_nas.Recipe
  epochs: 5
  learning_rate: {_target_: optuna_nas.suggest_float, low: 0.01, high: 0.2, log: true}
sampler:
  _target_: optuna_nas.SNASSampler
  space: ${space}
  model: {_target_: optuna_nas.SNAS, space: "${space}", recipe: {_target_: optuna_nas.SNASRecipe, resource: mild}}
  data: ${data}
  budget: 40
pruner: {_target_: optuna.pruners.MedianPruner}
trials: 30
tracking: null
"""
SHORT = """\
name: digits
channels: 4
study:
  name: ${name}
  data: digits
  space: nasbench201_space
  skeleton: {type: nasbench201_skeleton, repeats: 1, channels: "${channels}"}
  recipe: {epochs: 5, learning_rate: {type: suggest_float, low: 0.01, high: 0.2, log: true}}
  sampler: {type: SNASSampler, model: {type: SNAS, recipe: {resource: mild}}, budget: 40}
  pruner: MedianPruner
  trials: 30
  tracking: null
"""
SCRIPT = '''\
"""A script as Hydra's users have it, with one line more."""

import json
import logging
from pathlib import Path

import hydra
import optuna
from hydra.core.hydra_config import HydraConfig

from optuna_nas import nasbench201_space
from optuna_nas.pipelines.hydra import searched

space = nasbench201_space()


@hydra.main(version_base=None, config_path=".", config_name="config")
@searched(space)
def train(config, trial):
    cell = space.decode(config.architecture)
    value = config.optimizer.lr + str(cell).count("conv")
    output = Path(HydraConfig.get().runtime.output_dir)
    (output / "seen.json").write_text(json.dumps([value, config.epochs]))
    logging.info("value %s", value)
    if trial is not None:
        trial.report(value, 1)
        if trial.number == 1:
            raise optuna.TrialPruned
    return value


train()
'''
CONFIG = """\
epochs: 3
optimizer:
  name: sgd
  lr: {type: suggest_float, low: 0.1, high: 0.2}
search:
  name: convolutions
  trials: 3
  sampler: {type: RandomSampler, seed: 0}
  tracking: null
  pictures: false
"""


def composed(folder, text, *overrides):
    (folder / "config.yaml").write_text(text)
    with hydra.initialize_config_dir(str(folder), version_base=None):
        return hydra.compose("config", overrides=list(overrides))


def test_a_configuration_of_targets_is_a_whole_search(tmp_path):
    search = hydra.utils.instantiate(composed(tmp_path, WITH_TARGETS, "recipe.epochs=3", "trials=2"))
    assert isinstance(search, Search)
    assert (search.trials, search.recipe.epochs) == (2, 3)
    assert isinstance(search.sampler, SNASSampler)
    short = make_search(composed(tmp_path, SHORT, "study.recipe.epochs=3", "channels=4").study)
    assert search.setting() == short.setting()
    assert isinstance(short.sampler, SNASSampler)
    assert make_search(composed(tmp_path, SHORT, "channels=8").study).space.skeleton.channels == 8
    random = make_search(composed(tmp_path, SHORT, "study.sampler=RandomSampler").study)
    assert isinstance(random.sampler, RandomSampler)


@pytest.mark.parametrize(("override", "message"), [
    ("+study.recipe.epoch=3", "the configuration: `recipe` has no field 'epoch'; did you mean 'epochs'?"),
    ("study.trials=0", "the configuration: `trials` must be an integer of at least 1 but got 0."),
    ("study.trials=???", "the configuration must have all values but one can't be read: Missing mandatory value"),
    ("study.name=${absent}", "the configuration must have all values but one can't be read: Interpolation key"),
    ("study.space=moon", "the configuration: `space` must be of a known type but is of 'moon'; known: "),
])  # fmt: skip
def test_a_configuration_that_is_no_search_is_one_sentence(tmp_path, override, message):
    config = composed(tmp_path, SHORT, override)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - compared below, brackets and all
        make_search(config.study)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def script(folder, *arguments):
    (folder / "train.py").write_text(SCRIPT)
    (folder / "config.yaml").write_text(CONFIG)
    command = [sys.executable, "train.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)


@pytest.mark.process
def test_a_script_becomes_a_search_that_resumes_and_a_trial_that_runs_alone(tmp_path, monkeypatch):
    done = script(tmp_path)
    assert done.returncode == 0, done.stderr
    storage = f"sqlite:///{tmp_path}/runs/convolutions/study.db"
    study = optuna.load_study(study_name="convolutions", storage=storage)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert study.best_params.keys() == {*nasbench201_space().distributions(), "optimizer_lr"}
    outputs = tmp_path / "runs/convolutions/outputs"
    for trial in study.trials:
        folder = outputs / f"trial-{trial.number:05d}"
        value, epochs = json.loads((folder / "seen.json").read_text())
        assert (value, epochs) == (trial.intermediate_values[1], 3)
        kept = omegaconf.OmegaConf.load(folder / ".hydra/config.yaml")
        assert kept.optimizer.lr == trial.params["optimizer_lr"]
        assert {**kept.architecture, "optimizer_lr": kept.optimizer.lr} == trial.params
    assert f"Best of 3 trials: [{study.best_value}], {outputs}/trial-0000{study.best_trial.number}" in done.stdout

    again = script(tmp_path, "search.trials=4", "hydra.job.chdir=true")
    assert again.returncode == 0, again.stderr
    assert len(optuna.load_study(study_name="convolutions", storage=storage).trials) == 4
    function = searched(nasbench201_space())(lambda config: 0.0)
    monkeypatch.chdir(tmp_path)
    other = composed(tmp_path, CONFIG, "epochs=4", "search.trials=5")
    with pytest.raises(ValueError, match="`config` must be that of the existing study"):
        function(other)

    alone = script(tmp_path, "--config-path", str(outputs / "trial-00002/.hydra"), "--config-name", "config")
    assert alone.returncode == 0, alone.stderr
    assert f"value {study.trials[2].value}" in alone.stdout
    assert "Best of" not in alone.stdout
    assert len(optuna.load_study(study_name="convolutions", storage=storage).trials) == 4


def test_what_is_another_in_every_run_and_what_names_the_search_are_no_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []

    @searched(nasbench201_space())
    def train(config):
        seen.append(config.log)
        return 0.0

    hydra.core.utils.setup_globals()
    text = CONFIG + "out: ${hydra:runtime.output_dir}/ckpt\ncopy: ${out}\nlog: ${now:%f}-${search.name}-${epochs}\n"
    for trials, folder, epochs in ((1, "a", 3), (2, "b", 3), (3, "c", 4)):
        config = composed(tmp_path, text, f"search.trials={trials}", f"epochs={epochs}")
        started = {"runtime": {"output_dir": folder, "cwd": str(tmp_path)}}
        monkeypatch.setattr(HydraConfig.instance(), "cfg", omegaconf.OmegaConf.create({"hydra": started}))
        if epochs == 4:
            with pytest.raises(ValueError, match="`config` must be that of the existing study"):
                train(config)
        else:
            train(config)
        monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    assert [log.split("-")[1:] for log in seen] == [["convolutions", "3"]] * 2
    assert len(set(seen)) == 2


@pytest.mark.parametrize(("config", "message"), [
    ({}, "`search` of the configuration must hold the settings of the search but is None; add search: {name:"),
    ({"search": {"trials": 3}}, "the configuration: the file must have `name`; add it."),
    ({"search": {"name": "a", "space": "darts_space"}}, "the configuration: `space` must be left out, since the"),
    ({"search": {"name": "a", "n_jobs": 2}}, "`search.n_jobs` must be 1, since Hydra has one configuration a process"),
    ({"search": {"name": "a"}, "lr": {"type": "suggest_flot"}}, "`lr.type` must be one of suggest_float, suggest_int,"),
    ({"search": {"name": "a"}, "lr": {"type": "suggest_int"}}, "`lr` must be what `suggest_int` takes but is {}: "),
    ({"search": {"name": "a"}, "cell_0_1": {"type": "suggest_int", "low": 1, "high": 2}},
     "`cell_0_1` of the configuration must not have the name of a choice; rename the key."),
])  # fmt: skip
def test_a_script_without_what_it_needs_says_so(config, message):
    function = searched(nasbench201_space())(lambda config: 0.0)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - compared below, brackets and all
        function(omegaconf.OmegaConf.create(config))
    assert str(raised.value).startswith(message)


@pytest.mark.process
def test_nothing_else_loads_hydra():
    code = (
        "import sys, optuna_nas.pipelines, optuna_nas.cli, optuna_nas.search.study_yaml\nprint('hydra' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
