"""Export of trained networks for deployment, with a check of the exported file."""

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
"""Maximum difference between a class score of the network and of its export."""
CHECKED_BATCHES = (1, 2, 5)
INPUT, OUTPUT = "images", "scores"


class Exported(NamedTuple):
    """Result of an export.

    Args:
        path: The exported file.
        max_difference: Maximum absolute difference between class scores of the file and of the network, over random
            batches of 1, 2 and 5 images.
    """

    path: Path
    max_difference: float


def export_network(network: DiscreteNetwork, path: Path, format: str = PT2) -> Exported:  # noqa: A002
    """Export a network in evaluation mode for batches of any size, and compare the file with the network.

    - `pt2`: a `torch.export` program; load it with `torch.export.load(path).module()`.
    - `onnx`: an ONNX file with input `images` and output `scores`. Needs `pip install 'optuna_nas[onnx]'`.
    - `state-dict`: weights, architecture and skeleton as safetensors; load it with `load_network(path)`.

    Outputs are logits. Inputs must be normalised in the same way as in training.

    Args:
        network: Trained network.
        path: File to write; the suffix of the format is appended if missing.
        format: `pt2`, `onnx` or `state-dict`.

    Raises:
        ValueError: The format is unknown, or its packages are not installed.
        ArithmeticError: A class score differs by more than 1e-4; the file is removed.

    Example:
        >>> from pathlib import Path
        >>> from optuna_nas import NetworkSpace, nasbench201_skeleton, nasbench201_space
        >>> from optuna_nas.networks import export_network
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(repeats=1, channels=2))
        >>> network = space.architecture({"cell_0_3": ["skip_connect"]}).build()
        >>> exported = export_network(network, Path("network"), "state-dict")
        >>> exported.path.name, exported.max_difference
        ('network.safetensors', 0.0)
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
    """Return a compact copy in evaluation mode on the CPU, with contiguous weights, as exporters need them."""
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
        warnings.simplefilter("ignore")  # deprecations inside the exporter
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
