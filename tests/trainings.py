"""Small networks and data to train, and the obvious way to train them."""

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from optuna_nas.data import TRAIN, Augmentation, ImageData
from optuna_nas.networks import NetworkSpace
from optuna_nas.space import Skeleton, darts_space
from optuna_nas.training import (
    ImageClassification,
    Recipe,
)


def images(n=120, classes=3, seed=0, **kwargs):
    """Noise with a bright column per class: learnable, but not at once; 72 of 120 to train, 24 to report."""
    draw = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = draw.normal(size=(n, 8, 8)) + 1.5 * (np.arange(8) == 2 * y[:, None])[:, None, :]
    return ImageData.from_arrays(x.astype(np.float32), y, **kwargs)


DATA = images()


AUGMENTED = images(augmentation=Augmentation(crop_padding=1, flip=True, cutout=2))


RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=0.1)  # 4 steps an epoch


TASK = ImageClassification()


def small_network(seed=0, norm=False):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(144, 3))


def darts_network(drop_path=0.0):
    """Make a DARTS network of three cells with every op of the space somewhere and an auxiliary head."""
    cells = darts_space()
    # Two reductions would leave one pixel; batch norms then need more than one image, which a batch of 16 has.
    skeleton = Skeleton(
        ("normal", "reduction", "normal"), 4, (1, 8, 8), 3, stem_multiplier=3, auxiliary=True, drop_path=drop_path
    )
    choices = {path: (cells.ops[i % 8],) for i, path in enumerate(cells.paths) if i % 8}
    return NetworkSpace(cells, skeleton).architecture(choices).build(seed=0)


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one, other):
    """Tell whether two states are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one, other, tolerance=1e-6):
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance)


def without_seconds(history):
    return [replace(result, seconds=0.0) for result in history]


class Wrapped(nn.Module):
    """A network whose training scores go through `hook(number of the call, images, scores)`."""

    def __init__(self, network, hook):
        super().__init__()
        self.network, self.hook, self.calls = network, hook, 0

    def forward(self, images):
        scores = self.network(images)
        if self.training:
            self.calls += 1
            return self.hook(self.calls, images, scores)
        return scores


def plain_rate(recipe, step, steps):
    warmup = round(recipe.warmup_fraction * steps)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    cosine = math.cos(math.pi * (step - warmup) / (steps - warmup))
    return recipe.final_learning_rate + (recipe.learning_rate - recipe.final_learning_rate) * 0.5 * (1 + cosine)


def plain_training(network, data, recipe, task=TASK, splits=TRAIN, skip=()):
    """Train the obvious way; steps in `skip` (counted from 1) have no effect."""
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            network.parameters(), lr=1.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * (data.size(splits) // recipe.batch_size)
    step = 0
    for epoch in range(recipe.epochs):
        network.train()
        for batch, labels in data.batches(splits, recipe.batch_size, seed=recipe.seed, epoch=epoch):
            scores = network(batch)
            auxiliary = None
            if isinstance(scores, tuple):
                scores, auxiliary = scores
            loss = F.cross_entropy(scores, labels, label_smoothing=task.label_smoothing)
            if auxiliary is not None:
                loss = loss + task.auxiliary_weight * F.cross_entropy(
                    auxiliary, labels, label_smoothing=task.label_smoothing
                )
            optimizer.zero_grad()
            loss.backward()
            if recipe.clip_norm:
                torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = plain_rate(recipe, step, steps)
            step += 1
            if step not in skip:
                optimizer.step()
    return network


def not_finite(calls):
    return lambda call, images, scores: scores * math.nan if call in calls else scores
