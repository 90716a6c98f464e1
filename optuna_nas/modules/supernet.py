"""The supernet of a user's module: a store of tensors, of which every architecture computes with a part.

The store has a tensor for every name that a parameter may have, of its largest shape. A *frame* is the user's module
with all ops in it, made for one combination of values (widths, rates); it is called with tensors cut from the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from optuna_nas.modules.frames import NORMS, Frame, Frames, is_channels_last
from optuna_nas.networks.statistics import use_batch_statistics
from optuna_nas.training.task import call

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from optuna_nas.modules.module_space import ModuleSpace
    from optuna_nas.networks.sums import Factor
    from optuna_nas.networks.supernet import ChoiceWeights
    from optuna_nas.space import Architecture


class ModuleSupernet(nn.Module):
    """All modules of a `ModuleSpace` in one: ops, inputs and depths are weighed, values are drawn.

    Parameters that learn are those of the user's module; frozen ones keep their values, and norms with frozen
    parameters their statistics. All other batch norms compute with the statistics of the batch. Layers such as dropout
    act while gradients are recorded.

    Args:
        space: Space of the modules.
        seed: Seed of the initial weights; None draws from torch's global generator.

    Raises:
        ValueError: A value changes the number of dimensions of a parameter, or the module does not compute with
            parameters that are given to it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from optuna_nas import ModuleSpace, choose, choose_op
        >>> from optuna_nas.networks import one_hot
        >>> def net():
        ...     width = choose("width", [4, 8])
        ...     act = choose_op("act", {"relu": nn.ReLU, "linear": lambda: nn.Linear(width, width)})
        ...     return nn.Sequential(nn.Linear(3, width), act, nn.Linear(width, 1))
        >>> space = ModuleSpace(net, example=torch.zeros(1, 3))
        >>> supernet = space.supernet(seed=0)
        >>> architecture = space.architecture({"width": 4, "act": "linear"})
        >>> module = architecture.build(supernet.weights_of(architecture))
        >>> x = torch.rand(5, 3)
        >>> torch.equal(supernet(x, one_hot(architecture)), module(x))
        True
    """

    def __init__(self, space: ModuleSpace, seed: int | None = None) -> None:
        super().__init__()
        self.space = space
        self.names = space.mixed_names()
        self._frames = Frames(space, 0 if seed is None else seed)
        self._drawn = self._frames.drawn
        learns: dict[str, bool] = {}
        store: dict[str, Tensor] = {}
        for values in self._probes():
            for name, parameter in Frame(space, values, seed).weights.items():
                learns[name] = parameter.requires_grad
                store[name] = _joined(name, store.get(name), parameter.detach())
        for name, tensor in store.items():
            self.register_parameter(_key(name), nn.Parameter(tensor.clone(), learns[name]))
        if space.example is not None:
            self._check_runs()

    def _probes(self) -> Iterator[dict[str, tuple[str, ...]]]:
        """Yield the largest values, and those with one other value each."""
        choices = [self.space.choices[name] for name in self._drawn]
        largest = {choice.name: choice.largest for choice in choices}
        yield largest
        for choice in choices:
            for _, names in choice.options:
                if names != choice.largest:
                    yield {**largest, choice.name: names}

    def _check_runs(self) -> None:
        """Check that a module computes with tensors of the store what it computes by itself."""
        architecture = self.space.architecture({})
        module = self.space.build(architecture, self.weights_of(architecture), seed=1)  # other than the store's
        use_batch_statistics(module)
        for part in module.eval().modules():
            if isinstance(part, NORMS):
                part.train(not part.track_running_stats)
        inputs = self.space.example_inputs(2)
        weights = {
            name: torch.tensor([float(text in architecture[name]) for text in names])
            for name, names in self.names.items()
        }
        with torch.no_grad():
            try:
                expected = call(module, inputs)
            except Exception:  # it may need more than two examples; a training will say so
                return
            try:
                same = _equal(self(inputs, weights), expected)
            except Exception as error:
                raise self._unfit(f"fails: {error}") from error
        self._check_learns(inputs, weights)
        if not same:
            raise self._unfit("computes something else; it may keep parameters that it has not registered")

    def _check_learns(self, inputs: Any, weights: ChoiceWeights) -> None:
        """Check that gradients reach the store, also through parts that are computed again for them."""
        try:
            with torch.random.fork_rng(devices=[]):  # dropout draws
                outputs = self(inputs, weights)
            parts = [part for part in tree_leaves(outputs) if isinstance(part, Tensor) and part.requires_grad]
            learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
            if parts and learning:
                torch.autograd.grad([part.sum().real for part in parts], learning, allow_unused=True)
        except Exception as error:
            raise self._unfit(f"fails when it learns: {str(error).splitlines()[0]}") from error

    def _unfit(self, why: str) -> ValueError:
        return ValueError(
            f"`space` must be of modules that `torch.func.functional_call` can run but {self.space.name} {why}; build "
            "architectures one by one instead, by a sampler without a model."
        )

    @property
    def device(self) -> torch.device:
        """Where the store is."""
        return next(self.parameters()).device

    def forward(
        self,
        inputs: Any,
        weights: ChoiceWeights,
        active: Mapping[str, Collection[str]] | None = None,
        ones: bool = False,
    ) -> Any:
        """Return what the user's module returns.

        Args:
            inputs: A value, or the `Arguments` of the module.
            weights: Vector of every choice, in the order of `names[choice]`. Names with a constant weight of zero are
                not computed. Of a value the name with the largest weight is taken.
            active: Names to compute of a choice; a choice left out computes all.
            ones: Whether all weights in use equal 1, and only need gradients.

        Raises:
            ValueError: A choice is missing, or a vector has the wrong length.
        """
        used = self._used(weights, active)
        frame = self._frames.of(used, self.device)
        frame.set_mode(self.training and torch.is_grad_enabled())
        frame.mixer.ones = ones
        # Not `get_parameter`: within a `functional_call` stored tensors may stand in for parameters.
        tensors = {name: frame.cut(name, getattr(self, _key(name))) for name in frame.used(used)}
        return frame.run(tensors, used, inputs)

    def _used(
        self, weights: ChoiceWeights, active: Mapping[str, Collection[str]] | None
    ) -> dict[str, dict[str, Factor]]:
        """Return the weights of the names to compute, by choice."""
        used: dict[str, dict[str, Factor]] = {}
        for choice, names in self.names.items():
            if choice not in weights:
                raise ValueError(f"`weights` must hold every choice of the space but lacks {choice!r}.")
            vector = weights[choice]
            if vector.shape != (len(names),):
                raise ValueError(
                    f"`weights[{choice!r}]` must have shape ({len(names)},), one for each of {names}, but has "
                    f"{tuple(vector.shape)}."
                )
            wanted = names if active is None or choice not in active else active[choice]
            if choice in self._drawn:
                value = next(iter(wanted)) if len(wanted) == 1 else names[int(vector.detach().argmax())]
                used[choice] = {value: 1.0}
            elif vector.requires_grad:
                used[choice] = {name: vector[i] for i, name in enumerate(names) if name in wanted}
            else:
                constants = zip(names, vector.tolist(), strict=True)
                used[choice] = {name: weight for name, weight in constants if weight != 0 and name in wanted}
        return used

    def weights_of(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return parameters and buffers of an architecture's module by its own names, for `space.build`.

        The tensors are parts of the store, not copies, where a part is one slice. Statistics of norms are left out.
        """
        buffers = self._frames.of(dict(architecture.choices), self.device).own_buffers(dict(architecture.choices))
        return {**buffers, **self.parts_of(architecture, dict(self.named_parameters()))}

    def parts_of(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what an architecture's module would take of tensors that are named and shaped as those of the store.

        Args:
            architecture: Architecture of the space.
            tensors: Tensors by the name of a stored parameter; those left out are left out of the result.
        """
        chosen = dict(architecture.choices)
        frame = self._frames.of(chosen, self.device)
        return {
            own: frame.cut(name, tensors[_key(name)])
            for own, name in frame.own_names(chosen).items()
            if _key(name) in tensors
        }

    def owners(self) -> dict[str, list[tuple[str, frozenset[str]]]]:
        """Return the choices that every stored parameter belongs to, with the names of which one must be chosen.

        Parameters of no choice are left out, and those that are tied to one of no choice.
        """
        largest = {name: choice.largest for name, choice in self.space.choices.items()}
        frame = self._frames.of(largest, self.device)
        return {_key(name): users[0] for name, users in frame.users().items() if all(users)}


def _joined(name: str, stored: Tensor | None, tensor: Tensor) -> Tensor:
    """Return a tensor that is at least as large as both: what is stored, and the rest drawn like it."""
    if stored is None:
        return tensor.clone()
    if stored.ndim != tensor.ndim:
        raise ValueError(
            f"`choose` must leave a parameter its number of dimensions but {name!r} has shapes {tuple(stored.shape)} "
            f"and {tuple(tensor.shape)}; use `choose_op` for such a choice, or give layers names that do not shift."
        )
    shape = tuple(map(max, stored.shape, tensor.shape))
    if shape == tuple(stored.shape):
        return stored
    deviation = float(stored.float().std()) if stored.numel() > 1 else 0.0
    generator = torch.Generator().manual_seed(len(name))
    larger = torch.randn(shape, generator=generator, dtype=torch.float32).mul_(deviation or 0.02).to(stored)
    if is_channels_last(stored):
        larger = larger.contiguous(memory_format=torch.channels_last)
    for part in (tensor, stored):
        larger[tuple(map(slice, part.shape))] = part
    return larger


def _equal(outputs: Any, expected: Any) -> bool:
    """Return whether outputs of equal structure are nearly equal."""
    pairs = zip(tree_leaves(outputs), tree_leaves(expected), strict=True)
    return all(
        torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)
        for one, other in pairs
        if isinstance(one, Tensor) and one.is_floating_point()
    )


def _key(name: str) -> str:
    """Return the name of a stored tensor; names of parameters have no dots."""
    return name.replace(".", "/")
