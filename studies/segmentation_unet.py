"""Which small U-Net finds digits among clutter, and tells those below five from the others?

Command:   optuna-nas run studies/segmentation_unet.py
Cost:      four minutes on 2 CPU cores; scenes are made of scikit-learn's digits
Expected:  mean intersection over union about 0.6 on the validation split
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from optuna_nas import ModuleSpace, Recipe, Search, TensorData, choose, choose_inputs, choose_op, choose_ops
from optuna_nas.training import Evaluation, SummedTask

SIZE, CLASSES = 24, 3


class MeanIoU(SummedTask):
    """Segmentation by the cross-entropy of every pixel; the metric is the mean intersection over union of classes."""

    metric, direction = "mean_iou", "maximize"

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def sums(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, masks = batch
        scores = model(images)
        found = F.one_hot(scores.argmax(1), CLASSES).bool()
        there = F.one_hot(masks, CLASSES).bool()
        both, either = (found & there).sum((0, 1, 2)), (found | there).sum((0, 1, 2))
        loss = F.cross_entropy(scores.float(), masks, reduction="sum") / masks[0].numel()
        return torch.cat([both, either, loss[None], torch.tensor([len(images)])]).double()[None]

    def summarise(self, model: nn.Module, sums: Tensor) -> Evaluation:
        both, either, loss, n_images = sums[0].split([CLASSES, CLASSES, 1, 1])
        return Evaluation(float(loss / n_images), float((both / either.clamp_min(1)).mean()))


def scenes(number: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return images of three digits among noise and strokes, and the class of every pixel."""
    random, digits = np.random.default_rng(seed), load_digits()
    images = 0.25 * random.random((number, 1, SIZE, SIZE)).astype(np.float32)
    masks = np.zeros((number, SIZE, SIZE), dtype=np.int64)
    for image, mask in zip(images, masks, strict=True):
        for _ in range(4):  # clutter: bright strokes that are no digits
            row, column = random.integers(0, SIZE - 6, 2)
            image[0, row : row + random.integers(1, 6), column : column + random.integers(1, 3)] += 0.6
        for chosen in random.integers(0, len(digits.images), 3):
            row, column = random.integers(0, SIZE - 8, 2)
            drawn = digits.images[chosen] / 16
            image[0, row : row + 8, column : column + 8] += drawn
            inside = mask[row : row + 8, column : column + 8]
            inside[drawn > 0.4] = 1 if digits.target[chosen] < 5 else 2
    return images, masks


class Block(nn.Module):
    """Sum of one or two convolutions, with a norm and an activation that are the same in the whole network."""

    def __init__(self, name: str, n_in: int, n_out: int) -> None:
        super().__init__()
        ops = {
            "conv3": lambda: nn.Conv2d(n_in, n_out, 3, padding=1),
            "dilated": lambda: nn.Conv2d(n_in, n_out, 3, padding=2, dilation=2),
            "conv1": lambda: nn.Conv2d(n_in, n_out, 1),
        }
        self.op = choose_ops(f"{name}_op", ops, most=2)
        self.norm = choose_op("norm", {"batch": lambda: nn.BatchNorm2d(n_out), "group": lambda: nn.GroupNorm(4, n_out)})

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.op(x)))


class UNet(nn.Module):
    """Two levels down and up; whether the way up reads the skip connections is a choice."""

    def __init__(self) -> None:
        super().__init__()
        width = choose("width", [16, 8])
        self.down1, self.down2 = Block("down1", 1, width), Block("down2", width, 2 * width)
        self.middle = Block("middle", 2 * width, 2 * width)
        self.narrow = nn.Conv2d(2 * width, width, 1)
        self.reads2 = choose_inputs("up2_reads", 2, most=2)
        self.reads1 = choose_inputs("up1_reads", 2, most=2)
        self.up2, self.up1 = Block("up2", 2 * width, 2 * width), Block("up1", width, width)
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        first = self.down1(images)
        second = self.down2(F.max_pool2d(first, 2))
        lowest = self.middle(F.max_pool2d(second, 2))
        x = self.up2(self.reads2([F.interpolate(lowest, scale_factor=2.0), second]))
        x = self.up1(self.reads1([F.interpolate(self.narrow(x), scale_factor=2.0), first]))
        return self.head(x)  # type: ignore[no-any-return]


SPACE = ModuleSpace(UNet, example=torch.zeros(1, 1, SIZE, SIZE))


def search(trials: int = 15, epochs: int = 6, strategy: str = "auto", seed: int = 0) -> Search:
    """Search the module; the strategy is one of those of `optuna-nas run --strategy`."""
    images, masks = scenes(800, seed)
    fractions = {"test": 0.25, "choices": 0.25, "report": 0.25}
    return Search(
        name="segmentation_unet",
        space=SPACE,
        data=TensorData.from_arrays(images, masks, name="digits in clutter", fractions=fractions, seed=seed),
        recipe=Recipe(epochs=epochs, batch_size=16, optimizer="adamw", learning_rate=0.005, seed=seed),
        task=MeanIoU(),
        strategy=strategy,
        trials=trials,
        cpu_threads=1,
        description=__doc__ or "",
    )
