"""Numbers of a built network on a device: what a measure gives to its function, and how long a network takes."""

import pickle
import time

import pytest
import torch
from strategies import TINY, small_skeleton
from torch import nn

from optuna_nas.networks import Measure, NetworkSpace, latency, measure_latency

SPACE = NetworkSpace(TINY, small_skeleton(TINY))
NETWORK = SPACE.architecture(dict.fromkeys(SPACE.options(), "nor_conv_3x3")).build(seed=0)


class Sleeping(nn.Module):
    """Takes so many milliseconds an input, and longer in its first two calls."""

    def __init__(self, milliseconds):
        super().__init__()
        self.milliseconds, self.calls = milliseconds, []

    def forward(self, inputs):
        self.calls.append((len(inputs), self.training, torch.is_inference_mode_enabled()))
        time.sleep(1e-3 * self.milliseconds * len(inputs) + 0.2 * (len(self.calls) <= 2))
        return inputs


def test_a_function_gets_a_copy_in_evaluation_mode_and_a_batch():
    seen = []

    def function(network, inputs):
        seen.append((network.training, inputs.shape, torch.is_inference_mode_enabled(), network is NETWORK))
        network.parts["stem"][0].weight.zero_()
        return torch.tensor(2.5)

    before = {name: tensor.clone() for name, tensor in NETWORK.state_dict().items()}
    found = Measure("mine", function, batch_size=5, device="cpu")(NETWORK.train(), SPACE.example_inputs())
    assert found == 2.5
    assert type(found) is float
    assert seen == [(False, (5, 3, 8, 8), True, False)]
    assert NETWORK.training
    assert all(torch.equal(before[name], tensor) for name, tensor in NETWORK.state_dict().items())


@pytest.mark.parametrize("n_inputs", [1, 2, 3, 7])
def test_inputs_are_repeated_or_cut_to_the_batch(n_inputs):
    seen = []
    measure = Measure("mine", lambda network, inputs: seen.append(inputs) or 0.0, batch_size=3, device="cpu")
    inputs = torch.arange(float(n_inputs))
    measure(nn.Identity(), inputs)
    assert seen[0].tolist() == inputs.repeat(3)[:3].tolist()


def test_a_latency_is_the_median_of_a_batch_after_a_warm_up():
    network = Sleeping(5)
    seconds = measure_latency(network, torch.zeros(4, 1), repeats=5)
    assert 0.02 <= seconds < 0.1
    assert network.calls == [(4, False, True)] * 7
    assert network.training


def test_latency_measures_its_batch_on_its_device():
    measure = latency(batch_size=4, device="cpu", repeats=3)
    assert (measure.batch_size, measure.direction) == (4, "minimize")
    assert 0.02 <= measure(Sleeping(5), torch.zeros(1, 1)) < 0.1
    assert 0 < measure(NETWORK, SPACE.example_inputs()) < 1


def test_a_name_tells_device_and_batch():
    assert latency(device="cpu").name == "latency_cpu_1"
    assert latency(32, "cpu").name == "latency_cpu_32"
    assert latency(8).name in ("latency_cpu_8", "latency_cuda_8")


def test_equal_latencies_are_equal_also_in_another_process():
    measure = latency(8, "cpu", repeats=3)
    assert pickle.loads(pickle.dumps(measure)) == measure == latency(8, "cpu", repeats=3) != latency(8, "cpu")


@pytest.mark.gpu
def test_a_gpu_is_waited_for():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")

    class Multiplying(nn.Module):
        def forward(self, inputs):
            for _ in range(20):
                inputs = inputs @ inputs
            return inputs

    matrices = torch.zeros(1, 4096, 4096)
    measure = latency(device="cuda", repeats=5)
    assert measure.name == "latency_cuda_1"
    assert measure(Multiplying(), matrices) > 1e-3  # 2.7 TFLOP; to start it takes a fraction of that


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Measure("no identifier", float), "`name` must be a Python identifier but got 'no identifier'; use"),
        (lambda: Measure("", float), "`name` must be a Python identifier but got ''"),
        (
            lambda: Measure("mine", float, direction="down"),
            "`direction` must be 'minimize' or 'maximize' but got 'down'",
        ),
        (lambda: Measure("mine", float, batch_size=0), "`batch_size` must be at least 1 but got 0"),
        (lambda: latency(batch_size=0), "`batch_size` must be at least 1 but got 0"),
        (lambda: latency(repeats=0), "`repeats` must be at least 1 but got 0"),
        (lambda: latency(device="moon"), "`device` must be"),
        (
            lambda: measure_latency(NETWORK, SPACE.example_inputs(), repeats=-1),
            "`repeats` must be at least 1 but got -1",
        ),
    ],
)
def test_refuses_with_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
