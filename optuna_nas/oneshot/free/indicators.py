"""Indicators of an untrained network: numbers that say something about what it would reach, at no cost of training.

They read what the network does on one batch: the inputs of its nonlinearities ("responses"), the gradients of its
outputs with respect to these and to its inputs, and its parameters. Functions are observed, not modules, so that any
`torch.nn` network can be read: convolutional, recurrent (outside of fused kernels), transformer.

B examples, U units of a nonlinearity (all but the first dimension).
"""

from __future__ import annotations

import math
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from optuna_nas.data.batches import map_tensors, split_batch
from optuna_nas.networks.graph_network import seeded_building

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna_nas.space import Architecture
    from optuna_nas.training.task import Task

NONLINEARITIES = frozenset(
    {
        F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.leaky_relu, F.leaky_relu_,
        F.prelu, F.elu, F.elu_, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.hardtanh, F.softplus,
        F.tanh, torch.tanh, Tensor.tanh,
    }
)  # fmt: skip
NORMS = frozenset({F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm})
JITTER = 1e-5
"""Added to eigenvalues, which may be zero."""
NOTHING = -math.inf
"""Indicator of a network that gives nothing to read."""


class _Stop(Exception):  # it is no error
    """Raised when a network has computed its outputs: the loss is not needed."""


class _Recorder(TorchFunctionMode):
    """Records the inputs of nonlinearities and the results of embeddings; may leave norms out."""

    def __init__(self, without_norms: bool = False) -> None:
        super().__init__()
        self.without_norms = without_norms
        self.responses: list[Tensor] = []
        self.embedded: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.without_norms and func in NORMS:
            return args[0] if args else kwargs["input"]
        if func in NONLINEARITIES:
            value = args[0] if args else kwargs["input"]
            if not self.responses or self.responses[-1] is not value:
                self.responses.append(value)
            kwargs = {name: given for name, given in kwargs.items() if name != "inplace"}
            func = getattr(F, func.__name__.rstrip("_"), func) if func.__name__.endswith("_") else func
        result = func(*args, **kwargs)
        if func is F.embedding:
            self.embedded.append(result)
        return result


class Untrained:
    """An untrained network of an architecture, and what it does on a batch.

    Args:
        architecture: Architecture of a `ModelSpace`.
        batch: Examples, B of them.
        task: Task whose training step calls the network.
        seed: Seed of the initial weights.

    Example:
        >>> import torch
        >>> from optuna_nas import ImageClassification, NetworkSpace, nasbench201_skeleton, nasbench201_space
        >>> from optuna_nas.oneshot.free.indicators import INDICATORS, Untrained
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, (1, 8, 8), 10))
        >>> architecture = space.architecture({"cell_0_3": ["nor_conv_3x3"]})
        >>> batch = torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64)
        >>> network = Untrained(architecture, batch, ImageClassification(), seed=0)
        >>> INDICATORS["multiply_adds"](network) == architecture.cost().multiply_adds
        True
    """

    def __init__(self, architecture: Architecture, batch: Any, task: Task, seed: int) -> None:
        self.architecture, self._batch, self._task, self._seed = architecture, batch, task, seed
        self._unchanged: nn.Module | None = None

    def build(self, changes: bool = False) -> nn.Module:
        """Return the network on the device of the batch, in training mode.

        Args:
            changes: Whether the caller changes its weights, so that the next one needs a new network.
        """
        network, self._unchanged = self._unchanged, None
        network = network or self.architecture.build(seed=self._seed)
        if not changes:
            self._unchanged = network
        (device,) = {tensor.device for tensor in _tensors(self._batch)}
        return network.to(device).train()

    def run(self, network: nn.Module, recorder: _Recorder, batch: Any, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the outputs of a network as one vector.

        Args:
            network: The network.
            recorder: What records the run.
            batch: Examples.
            change: Function of every floating-point input.
        """
        outputs: list[Tensor] = []

        def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return map_tensors(args, changed), map_tensors(kwargs, changed)

        def changed(value: Tensor) -> Tensor:
            return change(value) if value.is_floating_point() else value

        def leave(module: nn.Module, args: Any, result: Any) -> None:
            outputs.extend(value.flatten() for value in _tensors(result) if value.is_floating_point())
            raise _Stop

        handles = [
            network.register_forward_pre_hook(enter, with_kwargs=True),
            network.register_forward_hook(leave),
        ]
        try:
            with recorder, seeded_building(self._seed):  # dropout draws from the global generator
                self._task.loss(network, batch)
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if not outputs:
            raise ValueError(
                "`task` must call the network in `loss` but does not; score with a function of your own instead."
            )
        return torch.cat(outputs)

    @cached_property
    def observed(self) -> tuple[list[Tensor], list[Tensor | None], Tensor | None]:
        """Responses, the gradients of the outputs' sum with respect to them, and those with respect to the inputs.

        The last has the shape (B, inputs); it is None where nothing leads from the inputs to the outputs.
        """
        network = self.build()
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        inputs: list[Tensor] = []

        def entering(value: Tensor) -> Tensor:
            inputs.append(value.detach().clone().requires_grad_(True))
            return inputs[-1]

        recorder = _EmbeddingsLearn()
        outputs = self.run(network, recorder, self._batch, entering)
        sources = inputs + recorder.embedded
        responses = [value for value in recorder.responses if value.ndim > 1]
        if not outputs.requires_grad:
            return responses, [None] * len(responses), None
        learning = [value for value in responses if value.requires_grad]
        found = torch.autograd.grad(outputs.sum(), [*sources, *learning], allow_unused=True)
        of_inputs = [slope.flatten(1) for slope in found[: len(sources)] if slope is not None]
        slopes = {id(value): slope for value, slope in zip(learning, found[len(sources) :], strict=True)}
        gradient = torch.cat(of_inputs, dim=1).double().cpu() if of_inputs else None
        return [value.detach() for value in responses], [slopes.get(id(value)) for value in responses], gradient

    @cached_property
    def signs(self) -> list[Tensor]:
        """Whether each response is positive, shape (B, U) for every nonlinearity."""
        return [(response > 0).flatten(1) for response in self.observed[0]]

    @cached_property
    def entropies(self) -> list[float]:
        """Entropy of the principal components of every response, in nats; channels are features."""
        entropies = []
        for value in self.observed[0]:
            channels = value.transpose(1, -1) if value.ndim == 4 else value  # features last
            matrix_NC = channels.reshape(-1, channels.shape[-1])
            centred_NC = matrix_NC - matrix_NC.mean(0)
            variances = torch.linalg.eigvalsh((centred_NC.T @ centred_NC).double()).clamp_min(0)
            shares = variances / variances.sum().clamp_min(1e-300)
            entropies.append(-float((shares * (shares + 1e-12).log()).sum()))
        return entropies


class _EmbeddingsLearn(_Recorder):
    """Recorder that lets gradients reach the results of embeddings, which stand for the inputs of a language model."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        if func is F.embedding and not result.requires_grad:
            result.requires_grad_(True)
        return result


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(value, found.append)
    return found


def multiply_adds(network: Untrained) -> float:
    """Return the multiply-adds of one example."""
    return float(network.architecture.cost().multiply_adds)


def params(network: Untrained) -> float:
    """Return the number of parameters."""
    return float(network.architecture.cost().params)


def codes(network: Untrained) -> float:
    """Return how differently nonlinearities answer to different examples (Mellor et al. 2021, NASWOT).

    Log-determinant of the kernel that counts the units at which two examples have the same sign.
    """
    if not network.signs:
        return NOTHING
    kernel = sum(_agreements(signs_BU) for signs_BU in network.signs)
    return _log_determinant(cast("Tensor", kernel))


def _agreements(signs_BU: Tensor) -> Tensor:
    code = signs_BU.float()
    on, both = code.sum(1), code @ code.T
    return (2 * both - on[:, None] - on[None] + code.shape[1]).double().cpu()


def jacobian(network: Untrained) -> float:
    """Return how little correlated the outputs' gradients with respect to different examples are (Mellor et al. 2020).

    `-sum_i (log(v_i + e) + 1 / (v_i + e))` of the eigenvalues `v` of their correlation matrix, `e` = 1e-5.
    """
    gradient_BI = network.observed[2]
    if gradient_BI is None:
        return NOTHING
    correlation_BB = _correlations(gradient_BI)
    if not torch.isfinite(correlation_BB).all():
        return NOTHING
    eigenvalues = torch.linalg.eigvalsh(correlation_BB).clamp_min(0) + JITTER
    return -float((eigenvalues.log() + 1 / eigenvalues).sum())


def flow(network: Untrained) -> float:
    """Return the logarithm of synaptic flow without norms (Tanaka et al. 2020), summed over kernels.

    `sum(p * dR/dp)`, where R sums the outputs for an input of ones, with the absolute values of all parameters.
    """
    model = network.build(changes=True).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
            parameter.requires_grad_(True)
    (example, *_) = split_batch(network._batch, 1)
    outputs = network.run(model, _Recorder(without_norms=True), example, lambda x: torch.ones_like(x).double())
    if not outputs.requires_grad:
        return NOTHING
    kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    gradients = torch.autograd.grad(outputs.sum(), kernels, allow_unused=True)
    total = sum(float((p.detach() * g).sum()) for p, g in zip(kernels, gradients, strict=True) if g is not None)
    return math.log(total) if 0 < total < math.inf else NOTHING


def patterns(network: Untrained) -> float:
    """Return the number of distinct sample-wise activation patterns (Peng et al. 2024, SWAP).

    A pattern is the signs of one unit for all examples.
    """
    if not network.signs:
        return NOTHING
    patterns_UB = torch.cat([signs_BU.T for signs_BU in network.signs]).cpu().numpy()
    return float(len(np.unique(np.packbits(patterns_UB, axis=1), axis=0)))


def responses(network: Untrained) -> float:
    """Return weighted response correlation (Jing et al. 2025, WRCor).

    Log-determinant of `sum_l 2^l (|A_l| + |G_l|)`: correlation matrices of examples by the responses of nonlinearity l
    and by the gradients of the outputs with respect to them. Divided by 2^L, which adds a constant only.
    """
    values, slopes, _ = network.observed
    total = None
    for depth, (value, slope) in enumerate(zip(values, slopes, strict=True)):
        for response in (value, slope):
            if response is not None and torch.isfinite(one := _correlations(response.flatten(1).double())).all():
                weighted = 2.0 ** (depth - len(values)) * one.abs().cpu()
                total = weighted if total is None else total + weighted
    if total is None:
        return NOTHING
    return _log_determinant(total) + len(total) * len(values) * math.log(2)


def expressivity(network: Untrained) -> float:
    """Return the summed entropy of the principal components of responses (Lee and Ham 2024, AZ-NAS).

    AZ-NAS reads the outputs of residual blocks, this the inputs of nonlinearities, which any network has.
    """
    return float(sum(network.entropies)) if network.entropies else NOTHING


def progressivity(network: Untrained) -> float:
    """Return the least gain of entropy from one nonlinearity to the next (Lee and Ham 2024); see `expressivity`."""
    return float(min(np.diff(network.entropies), default=NOTHING))


def trainability(network: Untrained) -> float:
    """Return how well gradients keep their size from one nonlinearity to the one before (Lee and Ham 2024).

    Mean of `2 - s - 1 / s`, where s estimates the norm of the Jacobian: the ratio of the gradients' root mean squares.
    """
    sizes = [float(g.double().square().mean().sqrt()) for g in network.observed[1] if g is not None]
    ratios = [early / late for early, late in pairwise(sizes) if early > 0 and late > 0]
    return float(np.mean([2 - ratio - 1 / ratio for ratio in ratios])) if ratios else NOTHING


def _correlations(rows_BI: Tensor) -> Tensor:
    """Return the correlation coefficients of rows, shape (B, B); not finite where a row is constant."""
    centred_BI = rows_BI - rows_BI.mean(1, keepdim=True)
    normed_BI = centred_BI / centred_BI.norm(dim=1, keepdim=True)
    correlations_BB: Tensor = normed_BI @ normed_BI.T
    return correlations_BB


def _log_determinant(matrix_BB: Tensor) -> float:
    sign, value = torch.linalg.slogdet(matrix_BB)
    return float(value) if sign > 0 else NOTHING


INDICATORS: dict[str, Callable[[Untrained], float]] = {
    "multiply_adds": multiply_adds,
    "params": params,
    "codes": codes,
    "jacobian": jacobian,
    "flow": flow,
    "patterns": patterns,
    "responses": responses,
    "expressivity": expressivity,
    "progressivity": progressivity,
    "trainability": trainability,
}
"""Indicators by name; larger is better."""
