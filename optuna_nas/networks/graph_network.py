"""Base class of the discrete network and the supernet: a module that runs a computation graph."""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optuna_nas.networks.ops import blank_op, build_op, has_module
from optuna_nas.space.graph import AUXILIARY, ComputationGraph
from optuna_nas.space.ops import STRUCTURAL, get_op

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

Weight: TypeAlias = Tensor | float
"""Factor of a term of a sum: a scalar tensor, or a constant (0.0 skips the term, 1.0 skips the product)."""

_BUILDING = threading.RLock()  # a module may build others in its constructor


@contextmanager
def seeded_building(seed: int | None) -> Iterator[None]:
    """Seed the initial weights of modules that are built inside the block.

    Modules draw from torch's global generator. Its state is restored afterwards, and a lock keeps other threads that
    build modules waiting. Weights are float32, whatever PyTorch's default is.

    Args:
        seed: Seed of the initial weights; None leaves the global generator as it is.

    Example:
        >>> import torch
        >>> from optuna_nas.networks import seeded_building
        >>> weights = []
        >>> for _ in range(2):
        ...     with seeded_building(0):
        ...         weights.append(torch.nn.Linear(3, 2).weight)
        >>> torch.equal(*weights)
        True
    """
    with _BUILDING, torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)  # as the data are, whatever the process prefers
        try:
            yield
        finally:
            torch.set_default_dtype(before)


class GraphNetwork(nn.Module):
    """Module that runs a computation graph, with one submodule per node, under the node's name.

    Four things make it fast: a ReLU, or an op without parameters (up to a norm that ends it), is computed once for all
    readers of a tensor; the factor of an op in a sum becomes the scale of the norm that ends the op, if that norm has
    none; tensors are freed after their last use; images and kernels are in `channels_last` format.

    Args:
        graph: Graph of the network, with shapes.
        seed: Seed of the initial weights; None draws from torch's global generator.
        blank: Build the modules without weights, for `torch.func.functional_call(..., tie_weights=False)`.
    """

    def __init__(self, graph: ComputationGraph, seed: int | None = None, blank: bool = False) -> None:
        super().__init__()
        self.graph = graph
        self.parts = nn.ModuleDict()
        with seeded_building(seed) if not blank else nullcontext():
            for node in graph:
                if has_module(node.op, node.site):
                    self.parts[node.name] = blank_op(node.op, node.site) if blank else build_op(node.op, node.site)
        if not blank:
            self.to(memory_format=torch.channels_last)
        self._relu_first = [node.op not in STRUCTURAL and get_op(node.op).relu_first for node in graph]
        parts = {position: part for position in range(len(graph)) if (part := self._part(position)) is not None}
        self._normed = {position for position, part in parts.items() if _ends_in_plain_norm(part)}
        self._scaled_by = self._find_scaled()
        self._stateless = {
            position
            for position, part in parts.items()
            if get_op(graph.nodes[position].op).parameter_free
            and not any(layer.state_dict() for layer in self._layers(position, part)[0])
        }

    def _find_scaled(self) -> dict[int, tuple[int, int]]:
        """Return the ops whose norm can apply their factor in the only sum that reads them, with (sum, slot)."""
        readers: dict[int, list[tuple[int, int]]] = {}
        for position, node in enumerate(self.graph):
            for slot, source in enumerate(node.inputs):
                readers.setdefault(source, []).append((position, slot))
        return {
            source: places[0]
            for source, places in readers.items()
            if len(places) == 1
            and self.graph.nodes[places[0][0]].op == "sum"
            and len(self.graph.nodes[source].inputs) == 1
            and source in self._normed
        }

    def _part(self, position: int) -> nn.Module | None:
        return self.parts._modules.get(self.graph.nodes[position].name)

    def _layers(self, position: int, module: nn.Module) -> tuple[list[nn.Module], nn.BatchNorm2d | None]:
        """Return the layers of an op, and the norm without parameters that ends it, if there is one."""
        if position not in self._normed:
            return [module], None
        *layers, norm = cast("nn.Sequential", module)
        return layers, cast("nn.BatchNorm2d", norm)

    def _run(
        self,
        images: Tensor,
        live: Collection[int],
        input_weights: Callable[[int], list[Weight]] | None = None,
        drop_path: float = 0.0,
        generator: torch.Generator | None = None,
        ones: bool = False,
    ) -> list[Tensor | None]:
        """Compute the live nodes and return the values of the outputs.

        Args:
            images: Shape (B, C, H, W).
            live: Positions of the nodes to compute; the others have no value, and sums skip them.
            input_weights: Function from a position to the factors of the node's inputs (of a sum) or of its results on
                each input (of an op); None if all are 1.
            drop_path: Probability of dropping an op's output for an image; the others are scaled by its inverse.
            generator: Random generator of drop-path.
            ones: Whether the factors of choices that are tensors equal 1 and only need gradients.
        """
        values: list[Tensor | None] = [None] * len(self.graph)
        shared: dict[int, dict[object, Tensor]] = {}  # for a source, results that several ops use
        last_use = {source: position for position in sorted(live) for source in self.graph.nodes[position].inputs}
        outputs = set(self.graph.outputs)
        for position in sorted(live):
            node = self.graph.nodes[position]
            if node.op == "input":
                values[position] = images.contiguous(memory_format=torch.channels_last)
            elif node.op == "concat":
                values[position] = self._concatenate([values[source] for source in node.inputs], node.inputs, images)
            else:
                weights = input_weights(position) if input_weights else [1.0] * len(node.inputs)
                scale: Weight = 1.0
                if position in self._scaled_by and input_weights:
                    reader, slot = self._scaled_by[position]
                    scale = input_weights(reader)[slot]
                terms = []
                for source, weight in zip(node.inputs, weights, strict=True):
                    value = values[source]
                    if value is None or (isinstance(weight, float) and weight == 0):
                        continue
                    if node.op != "sum":
                        value = self._compute(position, value, scale, shared.setdefault(source, {}))
                        if drop_path > 0 and node.path and node.name in self.parts:
                            keep = torch.empty((len(value), 1, 1, 1), device=value.device, dtype=value.dtype)
                            value = value * (keep.bernoulli_(1 - drop_path, generator=generator) / (1 - drop_path))
                    elif source in self._scaled_by and isinstance(weight, Tensor):
                        weight = 1.0  # applied by its norm
                    chosen = node.op != "sum" or bool(self.graph.nodes[source].path)
                    if ones and chosen and isinstance(weight, Tensor):
                        value, weight = credited(value, weight), 1.0
                    terms.append((value, weight))
                values[position] = _weighted_sum(terms)
            for source in node.inputs:
                if last_use[source] == position and source not in outputs:
                    values[source] = None
                    shared.pop(source, None)
        return [values[output] for output in self.graph.outputs]

    def _compute(self, position: int, value: Tensor, scale: Weight, shared: dict[object, Tensor]) -> Tensor:
        """Apply the op at a position, with `scale` applied by its norm; `shared` has results for the same input."""
        module, node = self._part(position), self.graph.nodes[position]
        if module is None:
            return value
        if self._relu_first[position]:
            if F.relu not in shared:
                shared[F.relu] = F.relu(value)
            value = shared[F.relu]
        if position not in self._stateless and not isinstance(scale, Tensor):
            return module(value)  # type: ignore[no-any-return]
        layers, norm = self._layers(position, module)
        if position in self._stateless and (node.op, node.site) in shared:
            value = shared[node.op, node.site]
        else:
            for layer in layers:
                value = layer(value)
            if position in self._stateless:
                shared[node.op, node.site] = value
        if norm is None:
            return value
        return _scaled_norm(norm, value, scale) if isinstance(scale, Tensor) else cast("Tensor", norm(value))

    def _concatenate(self, parts: list[Tensor | None], sources: tuple[int, ...], images: Tensor) -> Tensor | None:
        """Concatenate channels; a part without a value contributes zeros, so that the number of channels is fixed."""
        like = next((part for part in parts if part is not None), None)
        if like is None or len(parts) == 1:
            return like
        filled = [
            like.new_zeros((images.shape[0], *self.graph.nodes[source].site.out_shape)) if part is None else part
            for part, source in zip(parts, sources, strict=True)
        ]
        if torch.compiler.is_compiling():  # the compiler chooses the layout of gradients itself
            return torch.cat(filled, 1)
        return _Concatenation.apply(*filled)  # type: ignore[no-any-return]

    @property
    def auxiliary(self) -> int | None:
        """Position of the auxiliary head, None if there is none."""
        return self.graph.index(AUXILIARY) if AUXILIARY in self.parts else None


def _ends_in_plain_norm(module: nn.Module) -> bool:
    if not (isinstance(module, nn.Sequential) and isinstance(module[-1], nn.BatchNorm2d)):
        return False
    norm = module[-1]
    return not norm.affine and norm.running_mean is not None


def _scaled_norm(norm: nn.BatchNorm2d, value: Tensor, scale: Tensor) -> Tensor:
    """Return `norm(value) * scale` for a norm without parameters, with `scale` applied inside its kernel."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    scales = scale.to(mean.dtype).repeat(norm.num_features)  # dense, since the kernel ignores strides
    if norm.training and not norm.track_running_stats:
        mean = variance = None
    elif norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    momentum = 1.0 / float(norm.num_batches_tracked or 1) if norm.momentum is None else norm.momentum
    return F.batch_norm(value, mean, variance, scales, None, norm.training, momentum, norm.eps)


class _Concatenation(torch.autograd.Function):
    """Concatenation of channels with dense gradients: norms are several times slower on a gradient with gaps."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        """Return the concatenated feature maps."""
        ctx.channels = [part.shape[1] for part in parts]
        return torch.cat(parts, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Return the gradient of every feature map."""
        return tuple(part.contiguous(memory_format=torch.channels_last) for part in grad.split(ctx.channels, 1))


class _Mixture(torch.autograd.Function):
    """Weighted sum of K tensors of one shape with scalar tensors as weights, with few passes over memory.

    Forward fuses a product and a sum into one pass; backward computes the gradient of a weight by a dot product instead
    of a product and a sum.
    """

    @staticmethod
    def forward(ctx: Any, *terms: Tensor) -> Tensor:
        """Return the weighted sum; `terms` are K tensors followed by K weights."""
        ctx.save_for_backward(*terms)
        half = len(terms) // 2
        values, weights = terms[:half], terms[half:]
        dtype = reduce(torch.promote_types, (value.dtype for value in values))  # autocast mixes dtypes
        total = values[0].to(dtype) * weights[0].to(dtype)
        for value, weight in zip(values[1:], weights[1:], strict=True):
            total.addcmul_(value.to(dtype), weight.to(dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the tensors, followed by those of the weights."""
        terms = ctx.saved_tensors
        half = len(terms) // 2
        values, weights = terms[:half], terms[half:]
        needed = ctx.needs_input_grad
        return (
            *(grad * weight.to(grad.dtype) if needed[k] else None for k, weight in enumerate(weights)),
            *(_dot(grad, value).to(weights[k].dtype) if needed[half + k] else None for k, value in enumerate(values)),
        )


def credited(value: Tensor, weight: Tensor) -> Tensor:
    """Return the product with a scalar that equals 1: it is only computed for the scalar's gradient."""
    return _Credited.apply(value, weight)  # type: ignore[no-any-return]


class _Credited(torch.autograd.Function):
    """Product with a scalar tensor that equals 1: forward skips it, backward computes the scalar's gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor) -> Tensor:
        """Return the tensor."""
        ctx.save_for_backward(value)
        ctx.dtype = weight.dtype
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return both gradients."""
        (value,) = ctx.saved_tensors
        return grad, _dot(grad, value).to(ctx.dtype) if ctx.needs_input_grad[1] else None


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Return the dot product of two tensors of one shape."""
    if one.stride() == other.stride() and one.dtype == other.dtype and _is_dense(one):
        size = (one.numel(),)
        return torch.dot(one.as_strided(size, (1,)), other.as_strided(size, (1,)))
    return (one * other).sum()


def _is_dense(tensor: Tensor) -> bool:
    channels_last = torch.channels_last
    return tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=channels_last))


def _weighted_sum(terms: list[tuple[Tensor, Weight]]) -> Tensor | None:
    """Return the weighted sum of the terms, None if there are none."""
    mixed = [(value, weight) for value, weight in terms if isinstance(weight, Tensor)]
    total: Tensor | None = None
    fresh = False  # whether `total` may be changed in place
    if mixed:
        values, weights = zip(*mixed, strict=True)
        if torch.compiler.is_compiling():  # the compiler fuses products and sums itself
            total = reduce(torch.add, (value * weight for value, weight in mixed))
        else:
            total = _Mixture.apply(*values, *weights)
        fresh = True
    for value, weight in terms:
        if isinstance(weight, Tensor):
            continue
        plain = weight == 1
        if total is None:
            total, fresh = (value, False) if plain else (value * weight, True)
        elif fresh:
            total += value if plain else value * weight
        else:
            total, fresh = total + (value if plain else value * weight), True
    return total
