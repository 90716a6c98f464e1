"""Files that `attacks.py` mutates: networks, checkpoints, one-shot states, architectures, skeletons."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from mutations import (
    SECONDS,
    Attempt,
    Door,
    as_json,
    changed_tensors,
    changed_values,
    damaged,
    disturbed_tensors,
    foreign_files,
    refusal,
)
from safetensors import safe_open
from safetensors.torch import save_file

from optuna_nas import (
    GHN,
    HMNAS,
    SNAS,
    Architecture,
    CellKind,
    CellSpace,
    GHNRecipe,
    HMNASRecipe,
    ImageData,
    NetworkSpace,
    Recipe,
    Search,
    Skeleton,
    SNASRecipe,
    darts_space,
    ghn_skeleton,
    ghn_space,
    load_network,
    nasbench201_skeleton,
    nasbench201_space,
)
from optuna_nas.networks import save_network
from optuna_nas.results.final_training import read_architecture, read_skeleton
from optuna_nas.training import TrainingStopped, train
from optuna_nas.training.checkpoints import checksum

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor, nn

SHAPE, CLASSES = (1, 8, 8), 3
CELLS = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, SHAPE, CLASSES))
SEARCHED = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, SHAPE, CLASSES, affine=False))
DARTS = NetworkSpace(darts_space(), Skeleton(("normal", "reduction"), 4, SHAPE, CLASSES, stem_multiplier=3))
BLOCKS = NetworkSpace(ghn_space(nodes=3), ghn_skeleton(3, 4, SHAPE, CLASSES))
OPS, KINDS = ("skip_connect", "nor_conv_3x3", "avg_pool_3x3"), (CellKind("cell"), CellKind("reduction", 2))
MASKED = NetworkSpace(CellSpace(OPS, 2, 1, KINDS, 3), Skeleton(("cell", "reduction"), 4, SHAPE, CLASSES, affine=False))


class Seen(NamedTuple):
    """What somebody sees of what was read.

    Args:
        numbers: Numbers of all tensors, as bytes.
        said: JSON of the rest.
    """

    numbers: bytes
    said: str


def data() -> ImageData:
    """Return 96 small images of three classes."""
    labels = np.arange(96) % CLASSES
    images = np.random.default_rng(0).normal(size=(96, 8, 8)).astype(np.float32) + labels[:, None, None]
    return ImageData.from_arrays(images, labels)


def seen(tensors: dict[str, Tensor], said: Any) -> Seen:
    """Return what is compared."""
    numbers = [
        tensors[name].detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name in sorted(tensors)
    ]
    return Seen(b"".join(numbers), json.dumps(said, sort_keys=True, default=str))


# -- files of tensors -------------------------------------------------------------------------------------------------


class TensorFiles:
    """Attacks on files of tensors with a description.

    Args:
        originals: Files, the first of which is attacked most.
        read: Function of a file that returns what is seen of it.
        folder: Folder of the mutated files.
        foreign: Contents of other files.
    """

    def __init__(
        self, originals: Sequence[Path], read: Callable[[Path], Seen], folder: Path, foreign: list[bytes]
    ) -> None:
        self._read, self._file, self._foreign = read, folder / "mutated.safetensors", foreign
        self._contents = [path.read_bytes() for path in originals]
        self._parts = [opened(path) for path in originals]
        self._seen = [self._of(content) for content in self._contents]

    def _of(self, content: bytes) -> Seen | str:
        self._file.write_bytes(content)
        try:
            return self._read(self._file)
        except ValueError as error:  # the file of another study
            return str(error)

    def __call__(self, draw: random.Random) -> Attempt:
        number = draw.randrange(len(self._contents)) if draw.random() < 0.3 else 0
        if not isinstance(self._seen[number], Seen):
            number = 0
        others = [*self._foreign, *self._contents]
        way = draw.random()
        says_itself = False  # whether the file is whole and says something else
        if way < 0.45:
            content = damaged(self._contents[number], draw, others)
            self._file.write_bytes(content)
        else:
            tensors, description, before = self._parts[number]
            text = json.dumps(description)
            if way < 0.6:
                tensors = disturbed_tensors(tensors, draw)  # with the checksum of before
                self._write(tensors, text, before)
            elif way < 0.8:
                tensors = changed_tensors(tensors, draw)
                self._write(tensors, text, before if draw.random() < 0.3 else None)
            else:
                changed, says_itself = changed_values(description, draw), draw.random() < 0.7
                self._write(tensors, as_json(changed), None if says_itself else before)
        try:
            found = self._read(self._file)
        except ValueError as error:
            return refusal(error, self._file.name)
        if found in self._seen or (says_itself and found.numbers == self._seen[number].numbers):  # type: ignore[union-attr]
            return Attempt(("same",))
        return Attempt(("wrong",), f"way {way:.3f} of file {number}; {found.said[:500]}")

    def _write(self, tensors: dict[str, Tensor], text: str, check: str | None) -> None:
        tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, self._file, {"optuna_nas": text, "checksum": check or checksum(tensors, text)})


def opened(path: Path) -> tuple[dict[str, Tensor], Any, str]:
    """Return tensors, description and checksum of a file."""
    with safe_open(path, "pt") as file:
        header, names = file.metadata(), list(file.keys())
        return {name: file.get_tensor(name) for name in names}, json.loads(header["optuna_nas"]), header["checksum"]


def door_of(attack: Callable[[random.Random], Attempt], once: Callable[[], object], folder: Path) -> Door:
    """Return a door, with the CPU time that an attempt may take."""
    began = time.process_time()
    once()
    return Door(attack, SECONDS + 3 * (time.process_time() - began), folder / "executed")


def network_door(folder: Path) -> Door:
    """Return the door of network files: cells, masked and weighed cells, a perceptron with choices."""
    files = []
    for number, space in enumerate((CELLS, DARTS, BLOCKS)):
        network = space.sample(np.random.default_rng(number)).build(seed=number)
        files.append(folder / f"network{number}.safetensors")
        save_network(files[-1], network, owner={"study": "a1b2", "trial": number})
    masked = DARTS.sample(np.random.default_rng(5))
    mixing = {path: dict.fromkeys(chosen, 0.5) for path, chosen in masked.choices}
    network = masked.space.build(masked, seed=5)
    names = [name for name, parameter in network.named_parameters() if parameter.ndim > 1][:2]
    masks = {name: (network.get_parameter(name) > 0).float() for name in names}
    from optuna_nas import DiscreteNetwork

    files.append(folder / "masked.safetensors")
    save_network(files[-1], DiscreteNetwork(masked, seed=5, mixing=mixing, masks=masks))

    def read(path: Path) -> Seen:
        network = load_network(path)
        with torch.no_grad():
            network(torch.zeros(2, *SHAPE))
        return seen({**network.state_dict(), **masks_of(network)}, [network.architecture.to_dict(), network.mixing])

    attack = TensorFiles(files, read, folder, foreign_files(folder / "executed"))
    return door_of(attack, partial(read, files[0]), folder)


def masks_of(network: nn.Module) -> dict[str, Tensor]:
    """Return the masks of a network."""
    masks: dict[str, Tensor] = network.masks_by_name()
    return {f"mask of {name}": mask for name, mask in masks.items()}


def checkpoint_door(folder: Path) -> Door:
    """Return the door of a training's checkpoint: SGD and AdamW, in the middle of an epoch."""
    images, files = data(), []
    for number, optimizer in enumerate(("sgd", "adamw")):
        recipe = Recipe(epochs=2, batch_size=16, optimizer=optimizer, learning_rate=0.1)
        files.append(folder / f"{number}.safetensors")
        stops = iter([False] * 4 + [True] * 9)  # three steps are an epoch
        with suppress(TrainingStopped):
            train(_network(), images, recipe, checkpoint=files[-1], should_stop=lambda stops=stops: next(stops))
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.1)

    def read(path: Path) -> Seen:
        network = _network()
        result = train(network, images, recipe, checkpoint=path, checkpoint_seconds=1e9)
        return seen(network.state_dict(), [result.last.epoch, result.last.validation_loss, result.skipped_steps])

    attack = TensorFiles(files, read, folder, foreign_files(folder / "executed"))
    return door_of(attack, partial(read, files[0]), folder)


def _network() -> nn.Module:
    return CELLS.sample(np.random.default_rng(3)).build(seed=0)


def model_door(make: Callable[[int], Any], folder: Path) -> Door:
    """Return the door of a one-shot model's state, in a study, as a checkpoint or a snapshot."""
    images, files = data(), []
    for seed in (0, 1):  # the second is that of another study
        model = make(seed)
        model.fit(images, budget=0.8 if seed == 0 else 0.5, show_progress=False)
        files.append(folder / f"{seed}.safetensors")
        model.save(files[-1])
    unused = [make(0)]
    before = seen(unused[0].tensors(), [0, unused[0].progress()])

    def read(path: Path) -> Seen:
        model = unused[0]
        try:
            model.load(path)
        except ValueError:
            if seen(model.tensors(), [model.step, model.progress()]) != before:
                raise AssertionError("a model took part of a file that it refused") from None
            raise
        unused[0] = make(0)
        model.attach(images)
        assert np.isfinite(model.score([model.space.sample(np.random.default_rng(0))])).all()
        return seen(model.tensors(), [model.step, model.total_steps, model.skipped, model.progress()])

    attack = TensorFiles(files, read, folder, foreign_files(folder / "executed"))
    return door_of(attack, partial(read, files[0]), folder)


MODELS: dict[str, Callable[[int], Any]] = {
    "snas": lambda seed: SNAS(SEARCHED, SNASRecipe(batch_size=16, scoring_images=8, seed=seed)),
    "ghn": lambda seed: GHN(BLOCKS, GHNRecipe(batch_size=16, scoring_images=8, seed=seed)),
    "hmnas": lambda seed: HMNAS(MASKED, HMNASRecipe(batch_size=16, scoring_images=8, seed=seed)),
}
"""One-shot models, small, by their seed."""

# -- files of JSON ----------------------------------------------------------------------------------------------------


class JSONFiles:
    """Attacks on JSON files.

    Args:
        originals: JSON values of whole files.
        read: Function of a file that returns what it holds.
        describe: Function of that which returns JSON values.
        folder: Folder of the mutated files.
        foreign: Contents of other files.
    """

    def __init__(
        self,
        originals: Sequence[Any],
        read: Callable[[str], Any],
        describe: Callable[[Any], Any],
        folder: Path,
        foreign: list[bytes],
    ) -> None:
        self._originals, self._read, self._describe = originals, read, describe
        self._file, self._again, self._foreign = folder / "mutated.json", folder / "again.json", foreign

    def __call__(self, draw: random.Random) -> Attempt:
        original = draw.choice(self._originals)
        if draw.random() < 0.4:
            self._file.write_bytes(damaged(json.dumps(original).encode(), draw, self._foreign))
        else:
            changed = original
            for _ in range(draw.choice((1, 1, 2))):
                changed = changed_values(changed, draw)
            self._file.write_text(as_json(changed), encoding="utf-8", errors="surrogatepass")
        try:
            found = self._read(str(self._file))
        except ValueError as error:
            return refusal(error, self._file.name)
        described = self._describe(found)  # a value of the space, perhaps another one: it must come back as it is
        self._again.write_text(json.dumps(described))
        whole = self._read(str(self._again)) == found
        return Attempt(("same",)) if whole else Attempt(("wrong",), json.dumps(described)[:500])


def architecture_door(folder: Path) -> Door:
    """Return the door of architectures in JSON, as `optuna-nas train --architecture` takes them."""
    spaces = (CELLS, DARTS, BLOCKS, darts_space(), ghn_space(nodes=5))
    originals = [space.sample(np.random.default_rng(0)).to_dict() for space in spaces]

    def read(text: str) -> Architecture:
        found = read_architecture(text)
        found.canonical()
        assert found.summary is not None
        return found

    attack = JSONFiles(originals, read, Architecture.to_dict, folder, foreign_files(folder / "executed"))
    return door_of(attack, lambda: attack.__class__, folder)


def skeleton_door(folder: Path) -> Door:
    """Return the door of skeletons in JSON, as `optuna-nas train --skeleton` takes them."""
    images = data()
    originals = [space.skeleton.to_dict() for space in (CELLS, DARTS, BLOCKS)]
    attack = JSONFiles(
        originals,
        lambda text: read_skeleton(text, images),
        Skeleton.to_dict,
        folder,
        foreign_files(folder / "executed"),
    )
    return door_of(attack, lambda: attack.__class__, folder)


STUDIES = (
    {"name": "a", "data": "digits", "space": "nasbench201_space", "skeleton": {"type": "nasbench201_skeleton"}},
    {
        "name": "b",
        "seed": 1,
        "data": "digits",
        "space": "darts_space",
        "skeleton": {"type": "darts_search_skeleton", "n_cells": 3, "channels": 4},
        "recipe": {"epochs": 5, "learning_rate": {"type": "suggest_float", "low": 0.01, "high": 0.2, "log": True}},
        "sampler": {"type": "TPESampler", "n_startup_trials": 3},
        "pruner": "MedianPruner",
        "trials": 30,
    },
)
"""Studies as files; JSON is YAML, too."""


def yaml_door(folder: Path) -> Door:
    """Return the door of studies in YAML, as `optuna-nas run` takes them; read twice, they must be the same."""
    file, foreign = folder / "mutated.yaml", foreign_files(folder / "executed")

    def read() -> str:
        search = Search.from_yaml(file)
        return f"{search.name} {search.trials} {search.seconds} {search.space} {search.recipe}"

    def attack(draw: random.Random) -> Attempt:
        original = draw.choice(STUDIES)
        if draw.random() < 0.4:
            file.write_bytes(damaged(json.dumps(original, indent=1).encode(), draw, foreign))
        else:
            file.write_text(as_json(changed_values(original, draw)), encoding="utf-8", errors="surrogatepass")
        try:
            found = read()
        except ValueError as error:
            return refusal(error, file.name)
        return Attempt(("same",)) if read() == found else Attempt(("wrong",), found[:500])

    return door_of(attack, lambda: STUDIES, folder)


FILES: dict[str, Callable[[Path], Door]] = {
    "network": network_door,
    "checkpoint": checkpoint_door,
    **{name: partial(model_door, make) for name, make in MODELS.items()},
    "architecture": architecture_door,
    "skeleton": skeleton_door,
    "yaml": yaml_door,
}
