"""A graph hypernetwork: weights for any architecture of a space, and from them a score without training.

Zhang, Ren and Urtasun, ICLR 2019, arXiv 1810.05749; section numbers are the paper's. Choices of later work: Knyazev et
al. 2021 (GHN-2).
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from optuna_nas.data.batches import batch_length, tensors_of
from optuna_nas.data.splits import seeded_generator
from optuna_nas.networks import NetworkSpace, seeded_building
from optuna_nas.oneshot.base import OneShotModel
from optuna_nas.oneshot.ghn.decoder import Decoder, Slot
from optuna_nas.oneshot.ghn.graph import SHAPE_SIZES, GraphBatch, batch_graphs, scale_property
from optuna_nas.oneshot.ghn.networks import CellNetworks, networks_of
from optuna_nas.oneshot.ghn.propagation import Propagation
from optuna_nas.oneshot.ghn.recipe import NETWORK, NODE, GHNRecipe
from optuna_nas.oneshot.state import FitRecord
from optuna_nas.space import anytime_accuracy
from optuna_nas.training.device import autocast
from optuna_nas.training.finite_steps import fused, step_where
from optuna_nas.training.optimizers import cosine
from optuna_nas.training.task import Calling, Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from optuna_nas.space import Architecture, ComputationGraph, ModelSpace

GRAPHS_AT_ONCE = 32
"""Architectures whose weights are generated together: bounds the memory of scoring a pool."""
SMALLEST_VARIANCE = 1e-5
"""Added to the variance of a feature over a network before a division by its root."""
MAX_PATH = 50
"""Reach of virtual edges (GHN-2)."""


class HyperNetwork(nn.Module):
    """Embeds the nodes of many graphs and decodes their tensors.

    Args:
        recipe: Sizes and choices.
        n_modules: Modules of a network.
        slots: All tensors that it may have to generate.
    """

    def __init__(self, recipe: GHNRecipe, n_modules: int, slots: Sequence[Slot]) -> None:
        super().__init__()
        self.recipe = recipe
        n_propagations = 1 if recipe.share_parameters else n_modules
        self.propagations = nn.ModuleList(
            Propagation(recipe.hidden, recipe.phases, recipe.propagation, recipe.virtual_edges)
            for _ in range(n_propagations)
        )
        width = -(-recipe.hidden // 4)
        self.shapes = nn.ModuleList(nn.Embedding(SHAPE_SIZES, width) for _ in range(4 * recipe.shape_embedding))
        self.norm = nn.LayerNorm(recipe.hidden) if recipe.normalization == NODE else nn.Identity()
        self.decoder = Decoder(
            recipe.hidden,
            recipe.decoder_hidden,
            recipe.chunk,
            max(max(slot.kernel[2:]) for slot in slots),
            1 + max(slot.number for slot in slots),
            max(-(-slot.kernel[0] // recipe.chunk) for slot in slots),
            max(-(-slot.kernel[1] // recipe.chunk) for slot in slots),
            recipe.fan_in_normalization,
        )

    def forward(self, batch: GraphBatch) -> tuple[Tensor, Tensor]:
        """Return the embeddings of all nodes, in the order of `GraphBatch.rows`, and their mean for every graph.

        Shapes (nodes, hidden) and (graphs, hidden).
        """
        hidden = self.recipe.hidden
        outputs: list[Tensor] = []
        everything: list[Tensor] = []
        total = torch.zeros(batch.size, hidden, device=batch.sizes.device, dtype=torch.float32)
        for module in batch.modules:
            shared = self.recipe.share_parameters
            propagation = cast("Propagation", self.propagations[0 if shared else module.number])
            one_hot = total.new_zeros(len(module.properties), hidden + 1)  # as `F.one_hot`, which looks at its argument
            places = module.properties + 1
            nodes = one_hot.scatter_add(1, places, torch.ones_like(places, dtype=one_hot.dtype))[:, 1:]
            if self.shapes:
                columns = zip(self.shapes, module.features.unbind(1), strict=True)
                nodes = nodes + torch.cat([table(column) for table, column in columns], dim=1)[:, :hidden]
            if self.recipe.pass_embedding and outputs and len(module.readers):
                read = torch.stack(outputs).flatten(0, 1)[module.read]
                nodes = propagation.receive(nodes, module.readers, read)
            nodes = propagation.forward(nodes, module)
            summed = torch.zeros_like(total).index_add(0, module.graphs, nodes)
            counts = total.new_zeros(batch.size).index_add(0, module.graphs, total.new_ones(len(nodes)))
            outputs.append(summed / counts.clamp_min(1)[:, None])
            total = total + summed
            everything.append(nodes)
        means = total / batch.sizes[:, None]
        nodes = self.norm(torch.cat(everything))
        if self.recipe.normalization == NETWORK:
            nodes = _standardized(nodes, torch.cat([module.graphs for module in batch.modules]), means, batch.sizes)
        return nodes, means


def _standardized(nodes_NH: Tensor, owners_N: Tensor, means_GH: Tensor, sizes_G: Tensor) -> Tensor:
    """Return embeddings with mean 0 and variance 1 of every feature over the nodes of a network."""
    centred_NH = nodes_NH - means_GH[owners_N]
    squares_GH = torch.zeros_like(means_GH).index_add(0, owners_N, centred_NH.square())
    deviation_GH = (squares_GH / sizes_G[:, None] + SMALLEST_VARIANCE).sqrt()
    return centred_NH / deviation_GH[owners_N]


def _given(output: Any, inputs: Any) -> Any:
    return output


class GHN(OneShotModel[FitRecord]):
    """Generates the weights of any architecture of a space; trained on random ones, one after another.

    Train it on the space it is to rank: scores across unlike families of networks say nothing. A score is a surrogate,
    not what the architecture would reach.

    Args:
        space: Cells in a skeleton (with `affine=True` scale and shift of norms are generated too), or a `ModuleSpace`,
            whose modules are traced by `torch.fx`.
        recipe: What it is made of and how it learns.
        task: Loss and metric; image classification by default.
        training_space: Cells in a skeleton, to draw architectures from while training; the space itself by default.
            Smaller graphs suffice: the paper trains on 7 nodes and searches on 17 (section 5.4).

    Raises:
        ValueError: There are more ops than `hidden`, or the training space has an op that the space lacks.

    Example:
        >>> import numpy as np
        >>> from optuna_nas import GHN, GHNRecipe, digits
        >>> from optuna_nas import NetworkSpace, nasbench201_skeleton, nasbench201_space
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, (1, 8, 8), 10))
        >>> ghn = GHN(space, GHNRecipe(phases=1))
        >>> ghn.fit(digits(), budget=0.1, show_progress=False)
        >>> random = np.random.default_rng(0)
        >>> ghn.score([space.sample(random) for _ in range(5)]).shape
        (5,)
    """

    name = "GHN"
    recipe: GHNRecipe

    def __init__(
        self,
        space: ModelSpace,
        recipe: GHNRecipe | None = None,
        task: Task | None = None,
        *,
        training_space: NetworkSpace | None = None,
    ) -> None:
        super().__init__(space, recipe or GHNRecipe(), task)
        self.training_space = training_space or space
        frozen = bool(self.recipe.freeze_fraction)
        self.networks = networks_of(space, self.training_space, self.recipe.seed, frozen, self.recipe.hidden)
        nodes = [node for graph in self.networks.graphs for node in graph]
        names = {"input", "sum", "concat"} if isinstance(self.networks, CellNetworks) else set()
        scales = sorted({node.scale for node in nodes} - {1})
        # Where nodes choose a scale it is a property, as their op is (section 5.2).
        properties = [*sorted(names | {node.op for node in nodes}), *map(scale_property, scales)]
        self._op_numbers = {name: number for number, name in enumerate(properties)}
        if len(properties) > self.recipe.hidden:
            raise ValueError(
                f"`hidden` must be at least {len(properties)}, the number of ops, to hold their one-hot code but is "
                f"{self.recipe.hidden}; raise it."
            )
        n_modules = 2 + max(node.cell for node in nodes) + 1
        with seeded_building(self.recipe.seed):
            self.network = HyperNetwork(self.recipe, n_modules, self.networks.slots)
        self.modules = {"network": self.network, **self.networks.modules}

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        recipe, parameters = self.recipe, list(self.network.parameters())
        adam = torch.optim.Adam(
            parameters, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=fused(parameters)
        )
        return {"optimizer": adam}

    # -- generating -----------------------------------------------------------------------------------------------

    def batch(self, graphs: Sequence[ComputationGraph]) -> GraphBatch:
        """Return the graphs of networks as tensors on the device, for `network`."""
        reach = MAX_PATH if self.recipe.virtual_edges else 1
        return batch_graphs(graphs, self._op_numbers, self.device, reach)

    def generate(self, architectures: Sequence[Architecture]) -> list[dict[str, Tensor]]:
        """Return the weights of architectures by name, differentiable in the parameters of `network`.

        Names are those of the built network; ops that lead nowhere get none.
        """
        placed = [self.networks.placed(architecture) for architecture in architectures]
        graphs = [self.networks.graph(architecture) for architecture in placed]
        batch = self.batch(graphs)
        embeddings, _ = self.network(batch)
        owners, names, rows, slots = [], [], [], []
        weights: list[dict[str, Tensor]] = [{} for _ in graphs]
        for number, (graph, places) in enumerate(zip(graphs, batch.rows, strict=True)):
            fixed, slots_at = self.networks.fixed(placed[number]), self.networks.slots_of(placed[number], graph)
            for position, row in places.items():
                for name, slot in slots_at.get(position, {}).items():
                    if name in fixed:
                        weights[number][name] = fixed[name]
                        continue
                    owners.append(number)
                    names.append(name)
                    rows.append(row)
                    slots.append(slot)
        for owner, name, tensor in zip(owners, names, self.network.decoder(embeddings, rows, slots), strict=True):
            weights[owner][name] = tensor
        return weights

    def outputs(self, architecture: Architecture, weights: Mapping[str, Tensor], inputs: Any) -> list[Any]:
        """Return the outputs of each classifier of an architecture with these weights, the cheapest first.

        Norms use the statistics of the batch. Differentiable in the weights.
        """
        with autocast(self.device, self.recipe.precision):
            return self.networks.outputs(self.networks.placed(architecture), weights, inputs)

    # -- learning -------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "training_space": self.training_space.to_dict()}

    def train_step(self, batch: Any) -> FitRecord | None:
        """Do one step: generate the weights of `meta_batch` random architectures, and lower their mean loss."""
        recipe, optimizer = self.recipe, self.optimizers["optimizer"]
        optimizer.param_groups[0]["lr"] = cosine(recipe.learning_rate, 0.0, self.fraction)
        optimizer.zero_grad(set_to_none=True)
        loss, metric = self._descent(batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip_norm or math.inf)
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        step_where(finite, optimizer)
        return self.finish_step(finite, loss, metric)

    def step_loss(self, batch: Any) -> Tensor:
        return self._descent(batch)[0]

    def _descent(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the mean loss of the next random architectures with generated weights, and their mean metric."""
        random = np.random.default_rng([self.recipe.seed, self.step])
        architectures = [self.training_space.sample(random) for _ in range(self.recipe.meta_batch)]
        losses, metrics = [], []
        for architecture, weights in zip(architectures, self.generate(architectures), strict=True):
            steps = [self.task.training_step(one, batch) for one in self._classifiers(architecture, weights, batch)]
            losses.append(torch.stack([loss for loss, _ in steps]).mean())
            metrics.append(torch.stack([self.step_metric(sums) for _, sums in steps]).mean())
        return torch.stack(losses).mean(), torch.stack(metrics).mean()

    # -- asking ---------------------------------------------------------------------------------------------------

    def _classifiers(self, architecture: Architecture, weights: Mapping[str, Tensor], batch: Any) -> list[Calling]:
        """Return modules that stand for each classifier of an architecture, the cheapest first."""
        if not self._budget:
            return [Calling(lambda inputs: self.outputs(architecture, weights, inputs)[-1])]
        outputs = self.outputs(architecture, weights, next(tensors_of(batch)))  # of all exits at once
        return [Calling(partial(_given, output)) for output in outputs]

    @property
    def _budget(self) -> float:
        """Multiply-adds of a prediction of networks with early exits, 0 for others."""
        return self.space.skeleton.budget if isinstance(self.space, NetworkSpace) else 0.0

    def predict(self, architecture: Architecture, inputs: Any) -> Any:
        """Return the outputs of the last classifier of an architecture with generated weights."""
        (weights,) = self.generate([architecture])
        return self.outputs(architecture, weights, inputs)[-1]

    def scores_on(self, batch: Any, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return scores of architectures with generated weights on a batch, shape (N,).

        Negative losses (`Task.score`), by the statistics of that batch; minus infinity for an architecture that does
        not reach its output. With early exits instead the area under the curve of accuracy against multiply-adds, see
        `anytime_accuracy`: a loss has no natural value before the first exit.
        """
        if batch_length(batch) < 2:
            raise ValueError("`data` must have at least 2 examples in the report split, for statistics of a batch.")
        scores = np.full(len(architectures), -math.inf)
        able = [i for i, architecture in enumerate(architectures) if architecture.connected]
        for start in range(0, len(able), GRAPHS_AT_ONCE):
            chunk = able[start : start + GRAPHS_AT_ONCE]
            with self.lock, torch.no_grad():
                generated = self.generate([architectures[i] for i in chunk])
                for i, weights in zip(chunk, generated, strict=True):
                    scores[i] = self._score_of(architectures[i], weights, batch)
        return scores

    def variance_between(self, architectures: Sequence[Architecture]) -> float | None:
        """Return the share of the variance of generated kernels that is between architectures, in [0, 1].

        Of a kernel that several architectures have, the mean over its elements of their variance between architectures,
        over the variance of all elements; the mean over kernels. At 0 the hypernetwork generates the same weights
        whatever the architecture. None where no two architectures have a kernel in common.
        """
        able = [architecture for architecture in map(self.check_architecture, architectures) if architecture.connected]
        with self.lock, torch.no_grad():
            generated = self.generate(able)
        tensors: dict[tuple[str, torch.Size], list[Tensor]] = {}
        for architecture, weights in zip(able, generated, strict=True):
            fixed = self.networks.fixed(architecture)
            for name, tensor in weights.items():
                if tensor.ndim > 1 and name not in fixed:
                    tensors.setdefault((name, tensor.shape), []).append(tensor.double())
        shares = [
            float(stacked.var(0, correction=0).mean() / stacked.var(correction=0))
            for stacked in (torch.stack(several) for several in tensors.values() if len(several) > 1)
        ]
        return float(np.mean(shares)) if shares else None

    def _score_of(self, architecture: Architecture, weights: Mapping[str, Tensor], batch: Any) -> float:
        classifiers = self._classifiers(architecture, weights, batch)
        if not (budget := self._budget):
            return self.task.score(classifiers[-1], [batch])
        metrics = [self.task.evaluate(one, [batch]) for one in classifiers]
        return self.task.oriented(anytime_accuracy(architecture.graph().exit_costs, metrics, budget))

    def weights(self, architecture: Architecture, noise: float = 0.0) -> dict[str, Tensor]:
        """Return generated weights for `space.build(architecture, weights)`, with statistics of the scoring batch.

        Ops that lead nowhere, which the GHN does not see, keep a fresh initialisation.

        Args:
            architecture: An architecture of this space.
            noise: Standard deviation of noise on kernels, relative to theirs: a training that starts from filters too
                much alike learns less (Knyazev et al. 2023); the same noise for the same architecture and seed.
        """
        if not 0 <= noise < math.inf:
            raise ValueError(f"`noise` must not be negative but got {noise}; 0.1 is a tenth of the kernels' spread.")
        architecture = self.check_architecture(architecture)
        network = self.space.build(architecture, seed=self.recipe.seed).to(self.device)
        with self.lock, torch.no_grad():
            (generated,) = self.generate([architecture])
        for number, (name, tensor) in enumerate(generated.items()):
            if noise and tensor.ndim > 1:
                generator = seeded_generator(self.device, self.recipe.seed, number, 3)
                drawn = torch.randn(tensor.shape, generator=generator, device=self.device)
                generated[name] = tensor + noise * tensor.std(correction=0) * drawn
        own = network.state_dict()
        fitting = {name: tensor.reshape(own[name].shape) for name, tensor in generated.items()}
        network.load_state_dict(fitting, strict=False)
        with autocast(self.device, self.recipe.precision):
            self.settle(network)
        return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    def embed(self, architectures: Sequence[Architecture]) -> NDArray[np.float32]:
        """Return the mean embedding of the nodes of each architecture, shape (N, hidden).

        Raises:
            ValueError: An architecture does not reach its output: there is no network to embed.
        """
        architectures = list(map(self.check_architecture, architectures))
        for architecture in architectures:
            if not architecture.connected:
                raise ValueError(f"`architectures` must reach their outputs but one does not: {architecture}.")
        embeddings = [np.zeros((0, self.recipe.hidden), dtype=np.float32)]
        for start in range(0, len(architectures), GRAPHS_AT_ONCE):
            chunk = architectures[start : start + GRAPHS_AT_ONCE]
            with self.lock, torch.no_grad():
                _, means = self.network(self.batch([self.networks.graph(architecture) for architecture in chunk]))
            embeddings.append(means.cpu().numpy())
        return np.concatenate(embeddings)
