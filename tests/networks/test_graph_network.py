"""The weighted sum of a mixture: what it is, how it is derived twice, and how often it reads its tensors."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from optuna_nas.networks.graph_network import _weighted_sum

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def terms(layout, dtype=torch.float64, n=3):
    torch.manual_seed(0)
    values = [torch.randn(2, 3, 4, 5, dtype=dtype).contiguous(memory_format=layout).requires_grad_() for _ in range(n)]
    return values, [torch.randn((), dtype=torch.float64, requires_grad=True) for _ in range(n)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mixture_is_the_sum_of_products_with_first_and_second_derivatives(layout):
    values, weights = terms(layout)
    plain = sum(weight * value for value, weight in zip(values, weights, strict=True))

    def mixture(*given):
        return _weighted_sum(list(zip(given[:3], given[3:], strict=True)))

    assert torch.allclose(mixture(*values, *weights), plain, atol=1e-14)
    assert torch.autograd.gradcheck(mixture, (*values, *weights))
    assert torch.autograd.gradgradcheck(mixture, (*values, *weights))


def test_constants_and_plain_terms_go_along():
    values, weights = terms(torch.channels_last, n=4)
    given = [1.0, weights[1], 0.5, weights[3]]
    plain = sum(weight * value for value, weight in zip(values, given, strict=True))
    assert torch.allclose(_weighted_sum(list(zip(values, given, strict=True))), plain, atol=1e-14)
    assert _weighted_sum([(values[0], 1.0)]) is values[0]
    assert _weighted_sum([]) is None


def test_terms_of_two_precisions_and_layouts_mix():
    values, weights = terms(torch.channels_last, dtype=torch.float32)
    other = values[1].detach().to(torch.bfloat16).contiguous().requires_grad_()
    mixed = _weighted_sum([(values[0], weights[0].float()), (other, weights[1].float())])
    assert mixed.dtype == torch.float32
    mixed.sum().backward()
    assert other.grad.dtype == torch.bfloat16
    assert float(weights[1].grad) == pytest.approx(float(other.detach().float().sum()), rel=1e-2)


class Counted(TorchDispatchMode):
    """Counts passes over large tensors."""

    def __init__(self):
        super().__init__()
        self.passes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mul", "add", "add_", "addcmul_", "sum", "dot"):
            self.passes.append(name)
        return out


def test_a_term_is_one_pass_forward_and_two_backward():
    values, weights = terms(torch.channels_last)
    with Counted() as counted:
        mixed = _weighted_sum(list(zip(values, weights, strict=True)))
    assert sorted(counted.passes) == ["addcmul_", "addcmul_", "mul"]
    grad = torch.ones_like(mixed)
    with Counted() as counted:
        mixed.backward(grad)
    assert sorted(counted.passes) == ["dot"] * 3 + ["mul"] * 3
