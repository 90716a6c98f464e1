"""Studies in the papers' own settings end when their time is up, and the same call goes on."""

import importlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from optuna_nas import (
    NetworkSpace,
    anytime_skeleton,
    anytime_space,
    darts_imagenet_skeleton,
    ghn_mobile_skeleton,
    ghn_skeleton,
    ghn_space,
    load_network,
    published_cell,
    widest_skeleton,
)
from optuna_nas.networks.files import read_network
from optuna_nas.oneshot.base import OneShotModel

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


@pytest.mark.process
def test_a_block_is_trained_in_the_mobile_network_of_its_paper(tmp_path):
    space = ghn_space(3)
    block = NetworkSpace(space, ghn_skeleton(3, 4)).adopt(space.sample(np.random.default_rng(0)))
    (tmp_path / "block.json").write_text(block.to_json())
    options = ["--smoke", "--cell", "block.json", "--stem-stride", "4"]
    command = [sys.executable, str(STUDIES / "imagenet_mobile.py"), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    network = load_network(tmp_path / re.search("^network: (.*)$", done.stdout, re.MULTILINE)[1])
    assert network.architecture.space.skeleton.stem == "stride4"
    assert network.architecture.space.skeleton.cells.count("block") == 11


def test_blocks_have_as_many_channels_as_the_mobile_setting_allows(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    frame_of = importlib.import_module("imagenet_mobile").frame_of
    data = SimpleNamespace(input_shape=(3, 224, 224), classes=1000)
    block, cell = ghn_space(3).sample(np.random.default_rng(0)), published_cell("SNAS_mild")
    strided = [frame_of(block, data, False, None, stride) for stride in (None, 4)]
    assert strided == [widest_skeleton(block, ghn_mobile_skeleton(stem_stride=stride)) for stride in (2, 4)]
    assert frame_of(cell, data, False, None, None) == darts_imagenet_skeleton(channels=52)
    with pytest.raises(ValueError, match="`stem_stride` must be 4 for cells"):
        frame_of(cell, data, False, None, 2)


def test_the_headlines_say_what_was_scaled_down(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(STUDIES))
    headline = importlib.import_module("headline")
    monkeypatch.setattr(
        headline, "PAPERS", {paper: lambda seed: {"child": ("90.67", seed)} for paper in headline.PAPERS}
    )
    monkeypatch.setattr(sys, "argv", ["headline.py", "--seeds", "2"])
    headline.main()
    printed = capsys.readouterr().out
    assert re.findall("^(.*), scaled down: .* -> ", printed, re.MULTILINE) == ["SNAS", "GHN", "HM-NAS"]
    assert printed.count("90.67      0.5   (0.0, 1.0)") == 3


KILLED_AT = {
    "cifar10_snas": "final.safetensors",  # a checkpoint of the final training
    "cifar10_hmnas": "hmnas.safetensors",  # one of supernet and masks
    "cifar10_ghn": "brief/networks/*.safetensors",
    "cifar10_anytime": "networks/*.safetensors",
    "imagenet_mobile": "final.safetensors",
}
"""By study a file of its folder after which it is killed."""
OPTIONS = {"cifar10_anytime": ["--networks", "best"]}


def kill_when(study, folder, there):
    """Run a study, and kill it once a function of what it has printed says so; return what it has printed."""
    command = [sys.executable, "-u", str(STUDIES / f"{study}.py"), "--smoke", *OPTIONS.get(study, [])]
    folder.mkdir()
    with (folder / "printed").open("w+") as printed:
        process = subprocess.Popen(command, cwd=folder, stdout=printed, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None and not there((folder / "printed").read_text()):
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    return (folder / "printed").read_text()


@pytest.mark.process
@pytest.mark.parametrize("study", KILLED_AT)
def test_a_killed_study_goes_on_to_the_same_network_which_is_judged_and_exported(study, tmp_path):
    judged = re.compile("^test error.* [0-9.]+ %$", re.MULTILINE)
    wanted = judged.search(printed := kill_when(study, tmp_path / "whole", judged.search))
    assert wanted is not None, printed
    folder = tmp_path / "killed"
    printed = kill_when(study, folder, lambda printed: list(folder.glob(f"runs/*/{KILLED_AT[study]}")))
    assert judged.search(printed) is None, printed
    command = [sys.executable, str(STUDIES / f"{study}.py"), "--smoke", *OPTIONS.get(study, [])]
    again = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert again.returncode == 0, again.stderr
    assert judged.search(again.stdout)[0] == wanted[0]
    file = folder / re.search("^network: (.*)$", again.stdout, re.MULTILINE)[1]
    program = torch.export.load(folder / re.search("^exported: (.*)$", again.stdout, re.MULTILINE)[1]).module()
    inputs = read_network(file).deployment.preprocessing
    raw = torch.zeros(3, *inputs.shape, dtype=getattr(torch, inputs.dtype))
    program(raw)
    assert len(load_network(file).predict(raw)) == 3


@pytest.mark.parametrize("study", ["cifar10_snas", "cifar10_hmnas", "cifar10_ghn", "cifar10_anytime"])
def test_in_a_papers_setting_all_kernels_learn(study, monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    begun, init = [], OneShotModel.__init__

    def noted(self, *arguments, **named):
        init(self, *arguments, **named)
        begun.append(self.recipe)

    monkeypatch.setattr(OneShotModel, "__init__", noted)
    module = importlib.import_module(study)
    if study == "cifar10_hmnas":
        module.make_hmnas(True, False, module.bilevel(module.search_data(True, 0, 0)), 0)
    else:
        module.search(smoke=True, device="cpu")
    assert [recipe.freeze_fraction for recipe in begun] == [0]


def test_script_and_command_line_plan_the_same_tables_of_the_ghn_paper(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    from optuna_nas.results import SurrogateSearch
    from optuna_nas.search.study_file import load

    ghn = importlib.import_module("cifar10_ghn")
    both = ghn.surrogate_searches(["top", "top-best", "random"], True, "cpu", 0)
    assert [planned.protocols for planned in both] == [("top", "random"), ("top-best",)]
    for planned, settings in zip(both, ([], ["cutout=true"]), strict=True):
        loaded = load(STUDIES / "cifar10_ghn.py", ["smoke=true", "device=cpu", *settings], None, None)
        of_command = SurrogateSearch(loaded, planned.protocols, n_best=2)
        assert of_command.search.name == planned.search.name
        assert of_command.brief_epochs == planned.brief_epochs
        assert of_command.search.data.describe() == planned.search.data.describe()


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
