"""Which blocks should end a pretrained ResNet-18 for a new task? All else is frozen.

Command:   optuna-nas run studies/pretrained_resnet.py --set weights=DEFAULT
Cost:      five minutes on 2 CPU cores, and 45 MB of weights from PyTorch's server. Without `--set` the weights are
           random, which needs no network and shows that it runs, not what transfer is worth
Expected:  frozen parts are the same tensors afterwards; the accuracy depends on the weights
"""

import copy
from functools import lru_cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models import resnet18

from optuna_nas import SNAS, ModuleSpace, Recipe, Search, SNASRecipe, SNASSampler, TensorData, choose_op


@lru_cache(maxsize=1)
def base(weights: str | None) -> nn.Module:
    """Return torchvision's ResNet-18, all of it frozen."""
    torch.manual_seed(0)
    model: nn.Module = resnet18(weights=weights)
    return model.requires_grad_(False)


class Thin(nn.Module):
    """Residual block through few channels."""

    def __init__(self, channels: int, inside: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.Conv2d(channels, inside, 1, bias=False),
            nn.BatchNorm2d(inside),
            nn.ReLU(),
            nn.Conv2d(inside, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.inside(x)).relu()


def space_of(weights: str | None) -> ModuleSpace:
    """Return the space of the last block of two stages: kept, replaced by a thin one that learns, or left out."""
    base(weights)  # before the constructor is first called, which is without weights

    def net() -> nn.Module:
        model = copy.deepcopy(base(weights))
        for name, channels in (("layer3", 256), ("layer4", 512)):
            stage = getattr(model, name)
            kept = stage[1]
            ops = {"pretrained": kept, "thin": lambda n=channels: Thin(n, n // 4), "skip": nn.Identity}
            stage[1] = choose_op(f"{name}_1", ops)
        model.fc = nn.Linear(512, 10)
        return model

    return ModuleSpace(net, example=torch.zeros(1, 3, 32, 32), name=f"resnet18_{weights}")


def search(trials: int = 8, epochs: int = 2, weights: str | None = None, budget: float = 4.0, seed: int = 0) -> Search:
    """Let SNAS mix the blocks for some epochs while trials train them; what is frozen keeps weights and statistics."""
    digits = load_digits(n_class=10)
    images = torch.tensor(digits.images, dtype=torch.float32)[:600, None] / 16
    images = nn.functional.interpolate(images, size=32, mode="bilinear").expand(-1, 3, -1, -1)
    data = TensorData.from_arrays(images.numpy(), digits.target[:600], name="digits as photographs", seed=seed)
    space = space_of(weights)
    snas = SNAS(space, SNASRecipe(batch_size=16, learning_rate=0.01, relaxation="one_path", seed=seed))
    return Search(
        name=f"pretrained_resnet_{weights}",
        space=space,
        data=data,
        recipe=Recipe(epochs=epochs, batch_size=32, learning_rate=0.02, seed=seed),
        sampler=SNASSampler(space, snas, data=data, budget=budget, trials_per_round=4, seed=seed),
        trials=trials,
        cpu_threads=2,
        description=__doc__ or "",
    )
