"""Export of trained networks for deployment, with a check of the exported file."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import warnings
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from optuna_nas.networks.deployment import RawNetwork
from optuna_nas.networks.discrete import DiscreteNetwork
from optuna_nas.networks.files import architecture_of, load_network, save_network
from optuna_nas.space.model_space import ModelSpace
from optuna_nas.training.disk import whole_file
from optuna_nas.training.task import Arguments, call

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from optuna_nas.data.preprocessing import Preprocessing
    from optuna_nas.networks.deployment import Deployment
    from optuna_nas.space import Architecture

PT2, ONNX, STATE_DICT = FORMATS = ("pt2", "onnx", "state-dict")
SUFFIXES = {PT2: ".pt2", ONNX: ".onnx", STATE_DICT: ".safetensors"}
MAX_DIFFERENCE = 1e-4
"""Maximum difference between an output of the network and of its export."""
CHECKED_BATCHES = (1, 2, 5)
INPUT, OUTPUT = "images", "scores"
ABOUT = "optuna_nas"
"""Name of the description in an exported file: labels, task, normalisation, version, as JSON."""


class Exported(NamedTuple):
    """Result of an export.

    Args:
        path: The exported file.
        max_difference: Maximum absolute difference between outputs of the file and of the network, over random
            batches of 1, 2 and 5 inputs.
    """

    path: Path
    max_difference: float


def export_network(
    network: nn.Module,
    path: str | Path,
    format: str = PT2,  # noqa: A002
    architecture: Architecture | None = None,
    deployment: Deployment | None = None,
) -> Exported:
    """Export a network in evaluation mode for batches of any size, and compare the file with the network.

    - `pt2`: a `torch.export` program; load it with `torch.export.load(path).module()`.
    - `onnx`: an ONNX file with input `images` and output `scores`. Needs `pip install 'optuna_nas[onnx]'`.
    - `state-dict`: weights, architecture and space as safetensors; load it with `load_network(path)`.

    Outputs are those of the network: class scores before the softmax. With a `deployment`, programs take raw inputs as
    the data had them, and hold labels, task and normalisation as JSON (`optuna_nas.json` among the extra files of a
    `pt2`, `optuna_nas` among the properties of an ONNX file); without, inputs must be normalised as in the training.

    Args:
        network: Trained network.
        path: File to write; the suffix of the format is appended if missing.
        format: `pt2`, `onnx` or `state-dict`.
        architecture: Architecture that the network was built from; a `DiscreteNetwork` knows its own.
        deployment: Preprocessing of raw inputs, and labels of classes, as `read_network` returns them.

    Raises:
        ValueError: The format is unknown, its packages are not installed, or the network needs an architecture.
        ArithmeticError: An output differs by more than 1e-4; the file is removed.

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
    path = Path(path)
    if path.suffix != SUFFIXES[format]:
        path = path.with_name(path.name + SUFFIXES[format])
    path.parent.mkdir(parents=True, exist_ok=True)
    network = for_programs(network)
    architecture = architecture_of(network, architecture)
    space = architecture.space
    assert isinstance(space, ModelSpace)
    if format == STATE_DICT:
        save_network(path, network, architecture, deployment=deployment)
        program, raw = network, None
        read: Callable[..., Any] = load_network(path)
    else:
        program, raw = for_raw_inputs(network, deployment)
        about = {} if deployment is None else {ABOUT: json.dumps(deployment.to_dict() | _lists(deployment.tensors()))}
        read = {PT2: write_pt2, ONNX: _write_onnx}[format](program, raw_example(space, 2, raw), path, about)
    worst = 0.0
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for size in CHECKED_BATCHES:
            inputs = random_like(raw_example(space, size, raw), draw)
            worst = max(worst, difference(call(read, inputs), call(program, inputs)))
    if not worst <= MAX_DIFFERENCE:  # NaN too
        path.unlink()
        raise ArithmeticError(
            f"`format` must keep the outputs within {MAX_DIFFERENCE} but {format!r} differs by {worst:.3g}; "
            "export another format, and report the network."
        )
    return Exported(path, worst)


def for_raw_inputs(network: nn.Module, deployment: Deployment | None) -> tuple[nn.Module, Preprocessing | None]:
    """Return a network that takes raw inputs, and what they are; itself and None where that is not known."""
    if deployment is None or deployment.preprocessing is None:
        return network, None
    return RawNetwork(network, deployment.preprocessing).eval(), deployment.preprocessing


def raw_example(space: ModelSpace, size: int, raw: Preprocessing | None) -> Any:
    """Return an example of raw inputs, or else of the network's; shape (size, ...)."""
    if raw is None:
        return space.example_inputs(size)
    return torch.zeros(size, *raw.shape, dtype=getattr(torch, raw.dtype))


def _lists(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def random_like(example: Any, generator: torch.Generator) -> Any:
    """Return inputs of an example's shapes: normal numbers, random bytes; other integers and booleans as they are."""

    def drawn(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype == torch.uint8:
            return torch.randint(256, value.shape, generator=generator, dtype=torch.uint8)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator, dtype=value.dtype)

    return tree_map(drawn, example)


def difference(outputs: Any, others: Any) -> float:
    """Return the maximum absolute difference between outputs of equal structure."""
    pairs = zip(tree_leaves(outputs), tree_leaves(others), strict=True)
    differences = [float((one - other).abs().max()) for one, other in pairs if isinstance(one, Tensor)]
    return nan if any(map(isnan, differences)) else max(differences, default=0.0)


def for_programs(network: nn.Module) -> nn.Module:
    """Return a compact copy in evaluation mode on the CPU, with contiguous weights, as exporters need them."""
    network = copy.deepcopy(network)
    network = (network.compact() if isinstance(network, DiscreteNetwork) else network).cpu().eval()
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return network


def _dynamic(example: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Return arguments, arguments by name, and which of their dimensions is that of the batch."""
    args, kwargs = example if isinstance(example, Arguments) else ((example,), {})
    batch = torch.export.Dim("batch")
    shapes = tree_map(lambda value: {0: batch} if isinstance(value, Tensor) else None, (args, kwargs))
    return args, kwargs, shapes[0] if not kwargs else {**dict(enumerate(shapes[0])), **shapes[1]}


def write_pt2(network: nn.Module, example: Any, path: Path, about: dict[str, str]) -> Callable[..., Any]:
    """Write a program of `torch.export` for batches of any size, with named texts in it, and return it as read."""
    args, kwargs, shapes = _dynamic(example)
    try:
        exported = torch.export.export(network, args, kwargs, dynamic_shapes=shapes)
    except Exception as error:  # of the compiler, in types of its own
        if "Constraints violated" not in str(error):
            raise
        raise ValueError(
            "`network` must take batches of any size to be exported but its `forward` fixes their size, as `len(x)` "
            "does; use `x.shape[0]`."
        ) from error
    content = io.BytesIO()  # PyTorch's own writer ends the process on a full disk
    torch.export.save(exported, content, extra_files={f"{name}.json": text for name, text in about.items()})
    with whole_file(path) as file:
        file.write_bytes(content.getbuffer())
    return torch.export.load(path).module()


def _write_onnx(network: nn.Module, example: Any, path: Path, about: dict[str, str]) -> Callable[..., Any]:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"`format` 'onnx' needs {missing[0]}, which is not installed; pip install 'optuna_nas[onnx]'.")
    import onnxruntime

    args, kwargs, shapes = _dynamic(example)
    if not all(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        raise ValueError(
            "`format` 'onnx' must be of a module whose arguments are tensors but this one takes others; export 'pt2'."
        )
    with torch.no_grad():
        leaves, structure = tree_flatten(network(*args, **kwargs))
    results = [OUTPUT] if len(leaves) == 1 else [f"{OUTPUT}_{i}" for i in range(len(leaves))]
    names = [INPUT] if len(args) == 1 and not kwargs else [f"{INPUT}_{i}" for i in range(len(args))] + list(kwargs)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        program = torch.onnx.export(
            network,
            args,
            kwargs=kwargs,
            input_names=names,
            output_names=results,
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
        assert program is not None  # there is one with `dynamo`
        program.model.metadata_props.update(about)
        with whole_file(path) as file:
            program.save(file, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*given: Tensor, **named: Tensor) -> Any:
        arrays = [value.numpy() for value in (*given, *named.values())]
        outputs = session.run(results, dict(zip(names, arrays, strict=True)))
        return tree_unflatten([torch.from_numpy(output) for output in outputs], structure)

    return run
