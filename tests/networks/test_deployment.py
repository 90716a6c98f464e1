"""Networks on raw inputs: from their files, from programs of `torch.export` and ONNX."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import nn

from optuna_nas import (
    ImageClassification,
    ImageData,
    ModuleSpace,
    NetworkSpace,
    Regression,
    TensorData,
    digits,
    load_network,
    nasbench201_skeleton,
    nasbench201_space,
)
from optuna_nas.data.arranging import arranged
from optuna_nas.data.preprocessing import Preprocessing
from optuna_nas.networks import export_network, save_network
from optuna_nas.networks.deployment import Deployment
from optuna_nas.networks.files import read_network

NAMES = [f"digit {number}" for number in range(10)]


def bytes_data(**kwargs):
    loaded = load_digits()
    return ImageData.from_arrays((loaded.images * 15).astype(np.uint8), loaded.target, **kwargs)


def network_for(data):
    skeleton = nasbench201_skeleton(1, 4, data.input_shape, data.classes)
    space = NetworkSpace(nasbench201_space(), skeleton)
    return space.sample(np.random.default_rng(3)).build(seed=0).eval()


def saved(path, data, task):
    network = network_for(data)
    save_network(path, network, deployment=Deployment.of(data, task))
    return network


@pytest.mark.parametrize("data", [digits(), bytes_data()], ids=["numbers", "bytes"])
def test_predictions_of_raw_images_are_those_of_normalised_batches(tmp_path, data):
    network = saved(tmp_path / "a.safetensors", data, ImageClassification())
    loaded = load_network(tmp_path / "a.safetensors")
    raw = data.images[data.splits["report"]].numpy()
    with torch.no_grad():
        scores = torch.cat([network(inputs) for inputs, _ in data.batches(["report"], 50)])
    assert np.array_equal(loaded.predict(raw), scores.argmax(1).numpy())
    torch.testing.assert_close(torch.from_numpy(loaded.predict_proba(raw)), scores.softmax(1))
    for shaped in (raw[:, 0], raw.transpose(0, 2, 3, 1), raw.reshape(len(raw), -1), raw.tolist()):
        assert np.array_equal(loaded.predict(shaped), scores.argmax(1).numpy())


def test_labels_are_the_names_of_classes(tmp_path):
    data = bytes_data(class_names=NAMES)
    saved(tmp_path / "a.safetensors", data, ImageClassification())
    predicted = load_network(tmp_path / "a.safetensors").predict(data.images.numpy()[:20])
    assert set(predicted) <= set(NAMES)


def test_copies_and_pickles_of_a_loaded_network_predict(tmp_path):
    data = digits()
    saved(tmp_path / "a.safetensors", data, ImageClassification())
    loaded, raw = load_network(tmp_path / "a.safetensors"), data.images.numpy()[:5]
    for other in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        with torch.no_grad():
            next(iter(other.parameters())).mul_(0)
        assert not np.array_equal(other.predict_proba(raw), loaded.predict_proba(raw))


def test_a_regression_predicts_values_of_raw_rows(tmp_path):
    x, y = load_diabetes(return_X_y=True, scaled=False)
    data = TensorData.from_arrays(x, y)
    space = ModuleSpace(_perceptron, torch.zeros(1, 10), "perceptron of a test")
    architecture = space.sample(np.random.default_rng(0))
    network = architecture.build(seed=0).eval()
    save_network(tmp_path / "a.safetensors", network, architecture, deployment=Deployment.of(data, Regression()))
    loaded = load_network(tmp_path / "a.safetensors")
    with torch.no_grad():
        expected = network(data.inputs).numpy()
    np.testing.assert_allclose(loaded.predict(x), expected, atol=1e-4)
    with pytest.raises(ValueError, match="class scores"):
        loaded.predict_proba(x)


def _perceptron():
    from optuna_nas import choose

    return nn.Sequential(nn.Linear(10, width := choose("width", [4, 8])), nn.Tanh(), nn.Linear(width, 1))


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_exported_programs_take_raw_images_and_tell_their_labels(tmp_path, kind):
    data = bytes_data(class_names=NAMES)
    saved(tmp_path / "a.safetensors", data, ImageClassification())
    read = read_network(tmp_path / "a.safetensors")
    exported = export_network(read.network, tmp_path / "a", kind, read.architecture, read.deployment)
    raw = data.images.numpy()[:7]
    if kind == "pt2":
        about = {"optuna_nas.json": ""}
        program = torch.export.load(exported.path, extra_files=about).module()
        scores, text = program(torch.from_numpy(raw)).detach().numpy(), about["optuna_nas.json"]
    else:
        session = pytest.importorskip("onnxruntime").InferenceSession(exported.path)
        scores = session.run(["scores"], {"images": raw})[0]
        text = session.get_modelmeta().custom_metadata_map["optuna_nas"]
    described = json.loads(text)
    labels = np.array(described["classes"])[scores.argmax(1)]
    assert np.array_equal(labels, load_network(tmp_path / "a.safetensors").predict(raw))
    assert described["preprocessing"]["divisor"] == 255
    assert described["task"]["metric"] == "accuracy"
    np.testing.assert_allclose(np.ravel(described["mean"]), data.mean, rtol=1e-6)


def test_files_that_do_not_tell_say_so(tmp_path):
    data = digits()
    save_network(tmp_path / "a.safetensors", network_for(data))
    with pytest.raises(ValueError, match="does not tell"):
        load_network(tmp_path / "a.safetensors").predict(data.images.numpy())


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros((2, 3, 8, 8)), r"shape \(N, 1, 8, 8\) but has \(2, 3, 8, 8\)"),
        (np.full((2, 64), np.nan), "input 0 holds NaN"),
        (np.full((2, 64), 300), "from 0 to 255"),
        (np.full((2, 64), 0.5), "whole numbers"),
        ([["a"] * 64], "numbers"),
        (5.0, "numbers"),
    ],
)
def test_raw_inputs_that_do_not_fit_are_refused(raw, message):
    with pytest.raises(ValueError, match=message):
        arranged(raw, (1, 8, 8), "uint8")


def test_class_names_must_be_one_for_each_class():
    with pytest.raises(ValueError, match=r"10 different names but got 2"):
        bytes_data(class_names=["cat", "dog"])


@pytest.mark.parametrize(
    "change",
    [
        {"classes": [1, 1]},
        {"classes": 3},
        {"preprocessing": {"shape": [0], "dtype": "float32", "divisor": 1}},
        {"preprocessing": {"shape": [2], "dtype": "object", "divisor": 1}},
        {"preprocessing": {"shape": [2], "dtype": "float32", "divisor": 0}},
        {"preprocessing": {"shape": [2], "dtype": "float32"}},
        {"task": None},
    ],
)
def test_damaged_descriptions_are_refused(change):
    whole = Deployment(Preprocessing((2,), "float32", 1, torch.zeros(2), torch.ones(2)), ("a", "b"), {}, "0")
    assert Deployment.from_parts(whole.to_dict(), whole.tensors()).to_dict() == whole.to_dict()
    with pytest.raises(ValueError, match=r"`\w+` must"):
        Deployment.from_parts(whole.to_dict() | change, whole.tensors())


def test_a_normalisation_of_another_shape_is_refused():
    whole = Deployment(Preprocessing((2,), "float32", 1, torch.zeros(2), torch.ones(2)), ("a", "b"), {}, "0")
    for tensors in ({"mean": torch.zeros(3), "std": torch.ones(3)}, {"mean": torch.zeros(2)}):
        with pytest.raises(ValueError, match="`preprocessing` must"):
            Deployment.from_parts(whole.to_dict(), tensors)
