import pytest
import torch
from torch import nn

from optuna_nas.training.device import autocast


@pytest.mark.parametrize(
    "layer", [nn.LSTM(4, 4), nn.GRU(4, 4), nn.Linear(4, 4)], ids=lambda layer: type(layer).__name__
)
def test_bfloat16_on_any_cpu(layer: nn.Module) -> None:
    with autocast(torch.device("cpu"), "bfloat16"):
        output = layer(torch.ones(2, 3, 4))
    output = output[0] if isinstance(output, tuple) else output
    output.float().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in layer.named_parameters() if "weight_ih" in name)


def test_onednn_is_enabled_again_when_the_last_of_several_blocks_ends() -> None:
    outer, inner = (autocast(torch.device("cpu"), "bfloat16") for _ in range(2))
    with outer:
        with inner:
            pass
        nn.LSTM(4, 4)(torch.ones(2, 3, 4))
    assert torch.backends.mkldnn.enabled
