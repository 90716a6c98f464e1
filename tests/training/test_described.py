"""What determines a result is described equally in every process, and differently where it differs."""

import functools
import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from optuna_nas import nasbench201_space
from optuna_nas.training.described import code_digest, described, value_digest


class Kind(Enum):
    NARROW = 1


class Plain:
    def __init__(self, delta):
        self.delta, self._cache = delta, object()


@dataclass
class Fields:
    rate: float
    size: tuple = (2, 3)


@pytest.mark.parametrize(("value", "expected"), [
    (np.float64(0.5), 0.5), (np.int64(3), 3), (np.bool_(True), True), (Path("a") / "b", "a/b"), (Kind.NARROW, "NARROW"),
    ({3: np.int8(1)}, {"3": 1}), ((1, [2.0]), (1, [2.0])), ({"b", "a"}, ["a", "b"]), (np.array(["x"]), ["x"]),
    (functional.l1_loss, "torch.nn.functional:l1_loss"), (nn.ReLU, "torch.nn.modules.activation:ReLU"),
    (Fields(0.1), {"rate": 0.1, "size": (2, 3)}), (torch.float16, "torch.float16"),
    (Plain(2), {"class": f"{__name__}:Plain", "delta": 2}),
    (functools.partial(functional.huber_loss, delta=2.0), ["torch.nn.functional:huber_loss", (), {"delta": 2.0}]),
])  # fmt: skip
def test_values_are_described_as_json(value, expected):
    assert described(value) == expected


@pytest.mark.parametrize(("one", "other"), [
    (torch.ones(3), torch.tensor([1.0, 1.0, 1.001])), (np.zeros(4000), np.eye(1, 4000, 2000)[0]),
    (nn.Dropout(0.1), nn.Dropout(0.2)), (nn.Linear(2, 2), nn.Linear(2, 2)), (Plain(1), Plain(2)),
    (Plain(Plain(1)), Plain(Plain(2))), (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
])  # fmt: skip
def test_what_differs_is_described_differently(one, other):
    assert value_digest(one) == value_digest(one)
    assert value_digest(one) != value_digest(other)


def test_a_space_is_what_its_description_says():
    assert described(nasbench201_space()) == described(nasbench201_space().to_dict())


def test_other_processes_describe_the_same():
    code = (
        "import torch; from optuna_nas.training.described import value_digest\n"
        "print(value_digest([lambda x: x, torch.arange(3), {'a', 'b', 'c', 'd'}, torch.nn.ReLU()]))"
    )
    digests = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(digests) == 1
    assert digests != {""}


NET = '''
from torch import nn

class Base(nn.Module):
    def forward(self, x):
        return x

class Net(Base):
    """Twice."""

    def forward(self, x):
        return 2 * super().forward(x)
'''


@pytest.mark.parametrize(("before", "after", "same"), [
    ('"""Twice."""', '"""Doubles."""  # and says so', True), ("return 2 *", "return (2) *", True),
    ("return 2 *", "return 3 *", False), ("return x", "return -x", False),
])  # fmt: skip
def test_code_counts_without_comments_and_layout(tmp_path, monkeypatch, before, after, same):
    digests = []
    for folder, text in (("before", NET), ("after", NET.replace(before, after))):
        file = tmp_path / folder / "net.py"
        file.parent.mkdir()
        file.write_text(text)
        spec = importlib.util.spec_from_file_location("net", file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "net", module)
        spec.loader.exec_module(module)
        digests.append(code_digest([module.Net]))
    assert (digests[0] == digests[1]) == same


def test_what_a_function_has_taken_from_around_it_counts():
    def scaled(factor):
        return lambda x: factor * x

    assert code_digest([scaled(2)]) == code_digest([scaled(2)]) != code_digest([scaled(3)])


def test_code_of_packages_does_not_count():
    assert code_digest([nn.Linear, np.linalg.norm, len, functools.partial(torch.relu)]) == ""
