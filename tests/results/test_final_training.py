"""From a study to a network somebody can deploy: `optuna-nas train`, `optuna-nas export`."""

import json
import signal
import subprocess
import time
from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch
from optuna.samplers import RandomSampler
from optuna.trial import create_trial
from strategies import SMALL_SUPERNETS, TINY, TINY_MULTI, placed, small_skeleton, whole
from study_files import TINY as STUDY
from terminal import command, here

from optuna_nas import (
    Augmentation,
    DiscreteNetwork,
    ImageClassification,
    NetworkSpace,
    Recipe,
    Search,
    digits,
    load_network,
    nasbench201_skeleton,
    nasbench201_space,
    published_cell,
    suggest_float,
    suggest_int,
)
from optuna_nas.networks import export_network, save_network
from optuna_nas.networks.export import FORMATS
from optuna_nas.results import final_training
from optuna_nas.results.final_training import read_architecture, read_recipe, read_skeleton
from optuna_nas.space import (
    CellKind,
    CellSpace,
    Skeleton,
    anytime_skeleton,
    anytime_space,
    darts_cifar_skeleton,
)

EXPORTER = "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of three trials that has run."""
    path = tmp_path_factory.mktemp("study")
    (path / "tiny.py").write_text(STUDY.replace("cpu_threads=1", f'cpu_threads=1, folder="{path}/runs"'))
    done = here("run", path / "tiny.py", "--no-mlflow")
    assert done.exit_code == 0, done.stderr
    return path


def test_a_final_training_has_the_values_of_the_trial(tmp_path, monkeypatch):
    used, train = [], final_training.train

    def spy(network, data, recipe, task, **callbacks):
        used.append((data.augmentation.cutout, task.label_smoothing))
        return train(network, data, recipe, task, **callbacks)

    monkeypatch.setattr(final_training, "train", spy)
    data = digits(augmentation=Augmentation(cutout=suggest_int(1, 3)))
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, data.input_shape, data.classes))
    task, recipe = ImageClassification(label_smoothing=suggest_float(0.1, 0.2)), Recipe(epochs=1, batch_size=512)
    search = Search("values", space, data, recipe, task, sampler=RandomSampler(0), folder=tmp_path, tracking=None)
    trial = create_trial(
        params={"cutout": 2, "label_smoothing": 0.15},
        distributions={"cutout": suggest_int(1, 3), "label_smoothing": suggest_float(0.1, 0.2)},
        value=0.5,
    )
    architecture = space.sample(np.random.default_rng(0))
    first = final_training.train_in_full(search, architecture, recipe, trial=trial)
    assert final_training.train_in_full(search, architecture, recipe).network != first.network
    assert used == [(2, 0.15), (0, 0.0)]


# -- exports ------------------------------------------------------------------------------------------------------


def mixed():
    architecture = TINY_MULTI.full_architecture()
    mixing = {path: dict.fromkeys(kept, 0.3) for path, kept in architecture.choices}
    network = DiscreteNetwork(placed(architecture, small_skeleton(TINY_MULTI)), mixing=mixing, seed=0)
    names = [name for name, weight in network.named_parameters() if weight.ndim == 4]
    random = torch.Generator().manual_seed(0)
    network.remove((), {n: (torch.rand(network.get_parameter(n).shape, generator=random) < 0.5).float() for n in names})
    return network


def early_exits():
    space = anytime_space((2, 2, 1))
    skeleton = anytime_skeleton(3, 4, (3, 16, 16), budget=1e6)
    return DiscreteNetwork(placed(space.sample(np.random.default_rng(0)), skeleton), seed=0)


def dead_nodes(space):
    """Return a network of a cell some of whose nodes no edge reaches, or lead nowhere."""
    drawn = (placed(space.sample(np.random.default_rng(seed)), small_skeleton(space)) for seed in range(200))
    architecture = next(one for one in drawn if len(one.graph()) < len(whole(one)))
    return DiscreteNetwork(architecture, seed=0)


def unreached():
    """Return a network of a cell whose first node is fed by nothing, and concatenated with one that is."""
    space = CellSpace(("none", "skip_connect", "nor_conv_3x3"), 2, 1, (CellKind("cell"),))
    architecture = space.architecture({"cell_0_2": ["nor_conv_3x3"]})
    return DiscreteNetwork(placed(architecture, Skeleton(("cell",), 4, (3, 8, 8), 3)), seed=0)


DEAD_NODES = {
    "unreached": unreached,
    **{name: partial(dead_nodes, space) for name, space in SMALL_SUPERNETS.items() if name != "block"},
}
NETWORKS = {
    "darts": lambda: DiscreteNetwork(placed(published_cell("DARTS_V2"), darts_cifar_skeleton(3, 4)), seed=0),
    "one op an edge": lambda: DiscreteNetwork(
        placed(TINY.sample(np.random.default_rng(1)), small_skeleton(TINY)), seed=0
    ),
    "masked": mixed,
    "early exits": early_exits,
    **DEAD_NODES,
}


@pytest.mark.filterwarnings(*EXPORTER)
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_program_has_the_same_outputs_for_batches_of_any_size(kind, tmp_path):
    network = NETWORKS[kind]()
    path, difference = export_network(network, tmp_path / "net", "pt2")
    assert path == tmp_path / "net.pt2"
    assert difference <= 1e-5
    program = torch.export.load(path).module()
    for size in (1, 7):
        images = torch.randn(size, *network.skeleton.input_shape)
        assert torch.allclose(program(images), network.eval()(images), atol=1e-5)


@pytest.mark.filterwarnings(*EXPORTER)
@pytest.mark.parametrize("kind", ["masked", *DEAD_NODES])
def test_onnx_runs_elsewhere(kind, tmp_path):
    network = NETWORKS[kind]()
    path, difference = export_network(network, tmp_path / "net.onnx", "onnx")
    assert difference <= 1e-4
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in (1, 6):
        images = torch.randn(size, *network.skeleton.input_shape)
        (scores,) = session.run(None, {"images": images.numpy()})
        assert np.allclose(scores, network.eval()(images).detach().numpy(), atol=1e-4)


def test_weights_alone_are_a_network_file(tmp_path):
    network = mixed()
    path, difference = export_network(network, tmp_path / "net", "state-dict")
    assert difference <= 1e-5
    assert load_network(path).architecture == network.architecture


def test_an_export_that_differs_is_an_error_and_leaves_no_file(tmp_path, monkeypatch):
    network = mixed()
    monkeypatch.setattr(
        "optuna_nas.networks.export.load_network", lambda path: lambda images: network.eval()(images) + 2e-4
    )
    with pytest.raises(ArithmeticError, match="`format` must keep the outputs"):
        export_network(network, tmp_path / "net", "state-dict")
    assert list(tmp_path.iterdir()) == []


def test_an_export_leaves_the_network_alone(tmp_path):
    network = mixed().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    export_network(network, tmp_path / "net", "state-dict")
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    with pytest.raises(ValueError, match="`format` must be one of"):
        export_network(network, tmp_path / "net", "tflite")


@pytest.mark.filterwarnings(*EXPORTER)
@pytest.mark.parametrize("kind", FORMATS)
def test_the_best_network_of_a_study_is_exported(folder, kind):
    done = here("export", folder / "tiny.py", "--format", kind)
    assert done.exit_code == 0, done.stderr
    assert "Largest difference" in done.stdout
    assert list((folder / "runs" / "exported").glob("trial-*"))


# -- final trainings ----------------------------------------------------------------------------------------------


def test_the_best_architecture_is_trained_in_full_once(folder, tmp_path):
    first = here("train", folder / "tiny.py", "--recipe", "epochs=3")
    assert first.exit_code == 0, first.stderr
    assert "[3/3] validation" in first.stdout
    again = here("train", folder / "tiny.py", "--recipe", "epochs=3")
    assert "[1/3]" not in again.stdout
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    wider = here("train", folder / "tiny.py", "--recipe", "epochs=1", "--skeleton", "nasbench201:repeats=1,channels=8")
    assert wider.exit_code == 0, wider.stderr
    finals = sorted((folder / "runs" / "final").glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    assert [load_network(file).skeleton.channels for file in finals] == [4, 8]
    # The newest final network is what is exported.
    done = here("export", folder / "tiny.py", "--format", "state-dict", "--output", tmp_path / "out")
    assert load_network(tmp_path / "out.safetensors").skeleton.channels == 8, done.stderr


def test_a_published_cell_is_trained_in_the_data_of_a_study(folder, tmp_path):
    arguments = ("--skeleton", "darts_search:n_cells=2,channels=4", "--recipe", "epochs=1")
    done = here("train", folder / "tiny.py", "--architecture", "snas-mild", *arguments)
    assert done.exit_code == 0, done.stderr
    file = tmp_path / "cell.json"
    file.write_text(published_cell("SNAS_mild").to_json())
    same = here("train", folder / "tiny.py", "--architecture", file, *arguments)
    assert "[1/1]" not in same.stdout  # the same training, done already
    assert same.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]


@pytest.mark.process
def test_ctrl_c_keeps_a_checkpoint_and_the_same_command_goes_on(folder):
    arguments = command("train", folder / "tiny.py", "--recipe", "epochs=2000")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[3/2000]"):
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "To resume" in output
    assert list((folder / "runs" / "final").glob("*.checkpoint"))
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    started = time.monotonic()
    assert process.stdout.readline().startswith("[1/2000]")  # what was done is told again
    assert process.stdout.readline().startswith("[2/2000]")
    assert time.monotonic() - started < 60
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", "--architecture", "ENAS"), "`--architecture` must be a JSON file or one of NASNet"),
        (("train", "--skeleton", "resnet"), "`--skeleton` must be a JSON file or one of darts_cifar"),
        (("train", "--skeleton", "darts_cifar"), "`skeleton.cells` must name the space's cells"),
        (("train", "--skeleton", "nasbench201:depth=3"), "must be given whole numbers for repeats, channels"),
        (
            ("train", "--recipe", "epoch=3"),
            "`--recipe` must name one of its fields but has none named 'epoch'; did you mean 'epochs'?",
        ),
        (("train", "--recipe", "epochs=many"), "`--recipe` 'epochs' must be of type int"),
        (("export", "--network", "nothing.safetensors"), "`--network` must be the file of a network"),
        (("export", "--format", "tflite"), "`--format` must be one of"),
    ],
)
def test_bad_input_is_one_sentence(folder, arguments, sentence):
    done = here(arguments[0], folder / "tiny.py", *arguments[1:])
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_study_without_trials_has_nothing_to_train(folder):
    done = here("train", folder / "tiny.py", "--set", "name=other")
    assert done.exit_code == 2
    assert "`study` must exist" in done.stderr


def test_what_the_options_mean(tmp_path):
    class Images:
        input_shape, outputs = (1, 8, 8), 7

    found = read_skeleton("darts_cifar:n_cells=5,channels=6", Images())
    assert (len(found.cells), found.channels, found.input_shape, found.classes) == (5, 6, (1, 8, 8), 7)
    (tmp_path / "s.json").write_text(json.dumps(found.to_dict()))
    assert read_skeleton(str(tmp_path / "s.json"), Images()) == found
    recipe = read_recipe(Recipe(), ["epochs=7", "learning_rate=0.5", "optimizer=adamw", "compile=true"])
    assert recipe == Recipe(epochs=7, learning_rate=0.5, optimizer="adamw", compile=True)
    assert read_architecture("pdarts") == published_cell("PDARTS")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"must be an architecture but .* is not readable"):
        read_architecture(str(tmp_path / "a.json"))
    save_network(tmp_path / "n.safetensors", mixed())
