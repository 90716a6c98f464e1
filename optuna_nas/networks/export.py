"""Trained networks for deployment: one file, checked against the network it came from."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from optuna_nas.networks.files import load_network, save_network

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optuna_nas.networks import DiscreteNetwork


PT2, ONNX, STATE_DICT = FORMATS = ("pt2", "onnx", "state-dict")
SUFFIXES = {PT2: ".pt2", ONNX: ".onnx", STATE_DICT: ".safetensors"}
MAX_DIFFERENCE = 1e-4
"""Largest difference between a class score of the network and of its export."""
CHECKED_BATCHES = (1, 2, 5)
INPUT, OUTPUT = "images", "scores"


class Exported(NamedTuple):
    """A file and how far its class scores are from the network's, at most, over batches of several sizes."""

    path: Path
    max_difference: float


def export_network(network: DiscreteNetwork, path: Path, format: str = PT2) -> Exported:  # noqa: A002
    """Write a network in evaluation mode to a file that takes batches of any size, and compare the two.

    - `pt2`: a program of `torch.export`; read with `torch.export.load(path).module()`.
    - `onnx`: for ONNX Runtime and others; input `images`, output `scores`. Needs `pip install 'optuna_nas[onnx]'`.
    - `state-dict`: weights, architecture and skeleton as safetensors; read with `load_network(path)`.

    Class scores are not normalised; images must be prepared as the data of the training were.

    Args:
        network: Any network of a study, trained.
        path: Where to; the format's suffix is added where it lacks one.
        format: One of `FORMATS`.

    Raises:
        ValueError: The format is unknown, or lacks its packages.
        ArithmeticError: A class score differs by more than 1e-4; the file is removed.
    """
    if format not in FORMATS:
        raise ValueError(f"`format` must be one of {FORMATS} but got {format!r}.")
    if path.suffix != SUFFIXES[format]:
        path = path.with_name(path.name + SUFFIXES[format])
    path.parent.mkdir(parents=True, exist_ok=True)
    network = for_programs(network)
    example = network.space.example_inputs(2)
    read = {PT2: _write_pt2, ONNX: _write_onnx, STATE_DICT: _write_state}[format](network, example, path)
    worst = 0.0
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for size in CHECKED_BATCHES:
            images = torch.randn(network.space.example_inputs(size).shape, generator=draw)
            expected = network(images)
            assert isinstance(expected, Tensor)
            worst = max(worst, float((read(images) - expected).abs().max()))
    if not worst <= MAX_DIFFERENCE:  # NaN too
        path.unlink()
        raise ArithmeticError(
            f"`format` must keep the class scores within {MAX_DIFFERENCE} but {format!r} differs by {worst:.3g}; "
            "export another format, and report the network."
        )
    return Exported(path, worst)


def for_programs(network: DiscreteNetwork) -> DiscreteNetwork:
    """Return a copy in evaluation mode on the CPU, without what was removed, weights laid out as programs keep them."""
    network = copy.deepcopy(network).compact().cpu().eval()
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return network


def _write_pt2(network: DiscreteNetwork, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    batch = torch.export.Dim("batch")
    exported = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
    torch.export.save(exported, path)
    return torch.export.load(path).module()


def _write_onnx(network: DiscreteNetwork, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"`format` 'onnx' needs {missing[0]}, which is not installed; pip install 'optuna_nas[onnx]'.")
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        torch.onnx.export(
            network,
            (example,),
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _write_state(network: DiscreteNetwork, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    save_network(path, network)
    return load_network(path)
