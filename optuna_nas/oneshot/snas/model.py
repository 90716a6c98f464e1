"""SNAS: a distribution over architectures, learned by back-propagation together with the weights of a supernet.

Xie, Zheng, Liu and Lin, ICLR 2019, arXiv 1812.09926v2; equation and section numbers are the paper's. The method is
single-level: weights and logits learn from the same backward pass on the same batch.

E edges (paths of the space), O options of an edge (ops, `none` included), B images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optuna_nas.data.splits import REPORT, Data, seeded_generator
from optuna_nas.networks import DiscreteNetwork, Supernet, one_hot, recompute_statistics, use_batch_statistics
from optuna_nas.oneshot.base import OneShotModel
from optuna_nas.oneshot.snas.costs import EdgeCosts, most_likely
from optuna_nas.oneshot.snas.distribution import (
    DistributionRecord,
    architecture_of,
    concrete_sample,
    connected_argmax,
    draw,
    edge_options,
    entropies,
    one_path_sample,
    softmax,
)
from optuna_nas.oneshot.snas.recipe import RESOURCE_WEIGHTS, SNASRecipe
from optuna_nas.space import Architecture, CellSpace
from optuna_nas.space.cost import COSTS
from optuna_nas.training.checkpoints import prefixed, without_prefix
from optuna_nas.training.device import autocast
from optuna_nas.training.finite_steps import fused, step_where
from optuna_nas.training.optimizers import cosine, load_optimizer_tensors, optimizer_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from optuna_nas.space import Skeleton, Space


PAPER_LOGIT_RATE, PAPER_STEPS = 3e-4, 117_150  # 150 epochs of 781 batches
HIGHEST_LOGIT_RATE = 0.05
LOGIT_CLIP_NORM = 10.0  # as the authors' code


class SNAS(OneShotModel[DistributionRecord]):
    """A supernet and a factorised distribution over its ops, shared by the cells of a kind, separate for kinds.

    `fit` learns both; `most_likely()` is the architecture it is about. Methods may be called from several threads; a
    second `fit` or `load` waits for the first to end, all else only for a step.

    Args:
        space: Of cells with ops on edges. Where an edge may keep several ops, an option is a set of them.
        skeleton: Frame around the cells, usually small and with `affine=False`.
        recipe: How to learn.

    Raises:
        ValueError: The space leaves nothing to choose or is of blocks, or no architecture keeps the upper bounds.
    """

    name = "SNAS"
    _uncopied = (*OneShotModel._uncopied, "_compiled")
    _compiled: Callable[..., Tensor] | None = None

    def __init__(self, space: Space, skeleton: Skeleton, recipe: SNASRecipe | None = None) -> None:
        if not isinstance(space, CellSpace):
            raise ValueError(
                f"`space` must have ops on edges (CellSpace) but is a {type(space).__name__}; its costs do not add up."
            )
        self.space, self.recipe = space, recipe or SNASRecipe()
        super().__init__(space, skeleton, self.recipe)
        self.paths = space.paths
        self.options = tuple(edge_options(space))
        if len(self.options) < 2:
            raise ValueError(f"`space` must leave a choice but has the one op {space.ops}; add another, or 'none'.")
        self._costs = EdgeCosts(space, skeleton)
        self.bounds: Mapping[str, float] = self.recipe.resource if isinstance(self.recipe.resource, Mapping) else {}
        for name, bound in self.bounds.items():
            if bound < (cheapest := self._costs.cheapest(name)):
                raise ValueError(
                    f"`resource` must be within reach but no architecture has at most {bound:.6g} {name}; the cheapest "
                    f"in this skeleton has {cheapest:.6g}. Raise the bound or use a smaller skeleton."
                )
        # All bounds at once; edges of equal cost must differ in probability, or all of them change together.
        most_likely(space, np.random.default_rng(0).normal(size=self._costs.table.shape[:2]), self._costs, self.bounds)
        self.supernet = Supernet(space, skeleton, self.recipe.seed)
        use_batch_statistics(self.supernet)
        names = self.supernet.names[self.paths[0]]
        self._kept_by_option = list(edge_options(space).values())
        self._members_ON = torch.tensor([[float(name in kept) for name in names] for kept in self._kept_by_option])
        self._costs_EOC = torch.tensor(self._costs.table, dtype=torch.float32)
        self._single = space.max_ops == 1
        self._logits_EO = nn.Parameter(torch.zeros(len(self.paths), len(self.options)))
        self._make_optimizers()
        self._prices: dict[str, Tensor | float] = dict.fromkeys(self.bounds, 0.0)  # Lagrange multipliers
        self._credit_E = torch.zeros(len(self.paths))
        self._sums = torch.zeros(3 + len(self.paths), dtype=torch.float64)  # steps, loss, accuracy, credits

    # -- the distribution -----------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where it learns: the device of the data."""
        return self._logits_EO.device

    @property
    def logits(self) -> NDArray[np.float32]:
        """Log alpha, shape (E, O), in the order of `paths` and `options`; a copy."""
        with self._lock:
            return self._logits_EO.detach().cpu().numpy().copy()

    @property
    def _probabilities_EO(self) -> NDArray[np.float64]:
        return softmax(self.logits.astype(np.float64))

    @property
    def probabilities(self) -> dict[str, dict[str, float]]:
        """Probability of every option of every path."""
        table = self._probabilities_EO
        return {
            path: dict(zip(self.options, map(float, row), strict=True))
            for path, row in zip(self.paths, table, strict=True)
        }

    def entropy(self) -> dict[str, float]:
        """Return the entropy of every path's distribution in nats, from 0 to log(number of options)."""
        return dict(zip(self.paths, map(float, entropies(self._probabilities_EO)), strict=True))

    def expected_cost(self) -> dict[str, float]:
        """Return expected parameters, multiply-adds and memory access of the network, in closed form (section 2.4)."""
        return dict(zip(COSTS, map(float, self._costs.expected(self._probabilities_EO)), strict=True))

    def sample(self, generator: np.random.Generator, connected: bool = True) -> Architecture:
        """Return an architecture drawn from the distribution.

        Args:
            generator: Source of randomness.
            connected: Draw again (up to 100 times) until every kind of cell reaches its output; then mend the draw.
        """
        table = self._probabilities_EO
        for _ in range(100):
            chosen = draw(table, generator)
            architecture = architecture_of(self.space, chosen)
            if not connected or architecture.connected:
                return architecture
        score = np.log(table + 1e-12)
        score[np.arange(len(table)), chosen] += 100.0
        return architecture_of(self.space, connected_argmax(self.space, score))

    def most_likely(self) -> Architecture:
        """Return the most probable architecture that reaches its output and keeps the upper bounds, if there are any.

        On every edge the argmax, `none` included (section 3.1), unless these two rules ask for another.
        """
        return most_likely(self.space, np.log(self._probabilities_EO + 1e-300), self._costs, self.bounds)

    def edge_credit(self) -> dict[str, float]:
        """Return the credit of every edge in the last step: by how much its output lowered the loss, to first order.

        `R = -dL/dx_j . O~_ij(x_i)`, summed over the cells of the kind (section 2.3); read off the backward pass as
        `-sum_k Z_k dL/dZ_k`.
        """
        with self._lock:
            return dict(zip(self.paths, self._credit_E.tolist(), strict=True))

    def temperature(self, fraction: float) -> float:
        """Return the temperature when a share of the budget is done; the first one until the warm-up ends."""
        recipe = self.recipe
        progress = max(0.0, fraction - recipe.warmup_fraction) / (1 - recipe.warmup_fraction)
        first, last = recipe.first_temperature, recipe.last_temperature
        if recipe.schedule == "exponential":
            return float(first * (last / first) ** progress)
        return first + (last - first) * progress

    # -- learning -------------------------------------------------------------------------------------------------

    def _move(self, device: torch.device) -> None:
        self.supernet.to(device)
        self._logits_EO.data = self._logits_EO.data.to(device)
        self._members_ON, self._costs_EOC = self._members_ON.to(device), self._costs_EOC.to(device)
        self._credit_E, self._sums = self._credit_E.to(device), self._sums.to(device)
        self._supersede_optimizers()

    def _train_step(self, images: Tensor, labels: Tensor) -> DistributionRecord | None:
        """Do one step: one backward pass for weights and logits; return a record when it is time for one."""
        recipe = self.recipe
        fraction = self.step / self.total_steps
        learning = fraction >= recipe.warmup_fraction
        self._weights_optimizer.param_groups[0]["lr"] = cosine(
            recipe.learning_rate, recipe.final_learning_rate, fraction
        )
        self._logits_optimizer.param_groups[0]["lr"] = self._logit_learning_rate()
        self._weights_optimizer.zero_grad(set_to_none=True)
        self._logits_optimizer.zero_grad(set_to_none=True)
        generator = seeded_generator(images.device, recipe.seed, self.step, 1)
        mixing_EO, weights, active = self._mix(fraction, generator)
        mixing_EO.retain_grad()
        with autocast(images.device, recipe.precision):
            if recipe.compile and active is None:
                if self._compiled is None:
                    self._compiled = torch.compile(self.supernet)
                scores = self._compiled(images, weights)
            else:
                scores = self.supernet(images, weights, active, ones=active is not None)
            loss = F.cross_entropy(scores, labels)
        total = loss
        if learning:
            total = loss + self._penalty()
        total.backward()
        parameters = [p for p in self.supernet.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, recipe.clip_norm or math.inf)
        if not learning:
            self._logits_EO.grad = None
        logit_norm = nn.utils.clip_grad_norm_([self._logits_EO], LOGIT_CLIP_NORM)
        self.step += 1
        with torch.no_grad():
            finite = torch.isfinite(loss) & torch.isfinite(norm) & torch.isfinite(logit_norm)
            step_where(finite, self._weights_optimizer, self._logits_optimizer)
            credit_E = torch.zeros_like(self._credit_E)  # on a path on which nothing reaches the output
            if mixing_EO.grad is not None:
                credit_E = -(mixing_EO * mixing_EO.grad).sum(1)
            self._credit_E = torch.where(finite, credit_E, self._credit_E)
            accuracy = (scores.argmax(1) == labels).double().mean()
            ones = torch.ones(1, dtype=torch.float64, device=images.device)
            sums = torch.cat([ones, loss.double()[None], accuracy[None], self._credit_E.double()])
            self._sums += torch.where(finite, sums, 0.0)
            self._made(finite)
        return self._record() if self._recording() else None

    def _mix(
        self, fraction: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, set[str]] | None]:
        """Return the mixing weights of the options, of every path's names, and the names to compute."""
        recipe, active = self.recipe, None
        warming_up = fraction < recipe.warmup_fraction
        relaxation = (warming_up and recipe.warmup_relaxation) or recipe.relaxation
        if relaxation == "concrete":
            mixing_EO = concrete_sample(self._logits_EO, self.temperature(fraction), generator)
        elif relaxation == "one_path":
            mixing_EO, chosen_E = one_path_sample(self._logits_EO, generator)
            active = {
                path: set(self._kept_by_option[option])
                for path, option in zip(self.paths, chosen_E.tolist(), strict=True)
            }
        else:
            mixing_EO = self._logits_EO.softmax(dim=-1)
        weights_EN = mixing_EO if self._single else mixing_EO @ self._members_ON
        return mixing_EO, dict(zip(self.paths, weights_EN.unbind(), strict=True)), active

    def _penalty(self) -> Tensor:
        """Return what the expected cost adds to the loss, and move the Lagrange multipliers (section 2.4)."""
        resource = self.recipe.resource
        if not isinstance(resource, Mapping) and not resource:
            return self._logits_EO.new_zeros(())
        variable_C = (self._logits_EO.softmax(-1)[..., None] * self._costs_EOC).sum((0, 1))
        if not isinstance(resource, Mapping):
            weight = RESOURCE_WEIGHTS[resource] if isinstance(resource, str) else resource
            uniform_C = self._costs_EOC.mean(1).sum(0)
            return weight * (variable_C / uniform_C.clamp_min(1.0)).mean()
        penalty = self._logits_EO.new_zeros(())
        learning_steps = (1 - self.recipe.warmup_fraction) * self.total_steps
        for name, bound in resource.items():
            column = COSTS.index(name)
            # Relative to what the choices may cost, or what is fixed would hide the excess.
            allowed = max(bound - self._costs.fixed[column], 0.01 * self._costs.uniform[column], 1.0)
            excess = variable_C[column] / allowed - 1
            penalty = penalty + self._prices[name] * excess
            # An excess of 10 % over a tenth of the budget makes a price of 1 nat.
            self._prices[name] = (self._prices[name] + excess.detach() * 100 / learning_steps).clamp_min(0.0)
        return penalty

    def _logit_learning_rate(self) -> float:
        if self.recipe.logit_learning_rate is not None:
            return self.recipe.logit_learning_rate
        learning_steps = max(1.0, (1 - self.recipe.warmup_fraction) * self.total_steps)
        return min(HIGHEST_LOGIT_RATE, PAPER_LOGIT_RATE * max(1.0, PAPER_STEPS / learning_steps))

    def _record(self) -> DistributionRecord:
        probabilities = self._probabilities_EO
        sums = self._sums.cpu().numpy()
        means = sums[1:] / max(sums[0], 1.0)
        fraction = self.step / self.total_steps
        metrics = {
            "entropy": float(entropies(probabilities).mean()),
            **dict(zip(COSTS, map(float, self._costs.expected(probabilities)), strict=True)),
            "temperature": self.temperature(fraction),
        }
        if sums[0]:
            metrics |= {"loss": float(means[0]), "accuracy": float(means[1])}
        record = DistributionRecord(self.step, metrics, probabilities, means[2:].copy())
        self.records.append(record)
        self._sums.zero_()
        return record

    # -- inherited weights ----------------------------------------------------------------------------------------

    def score(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return the accuracy of architectures with inherited weights, shape (N,), fractions.

        Measured on the scoring batch, with batch-normalisation statistics of that batch.

        Raises:
            ValueError: Neither `fit` nor `attach` has seen data with a report split.
        """
        images, labels = self._scoring_batch()
        accuracies = []
        for architecture in architectures:
            with self._lock, torch.no_grad(), autocast(images.device, self.recipe.precision):
                scores = self._child_scores(architecture, images)
                accuracies.append(float((scores.argmax(1) == labels).double().mean()))
        return np.array(accuracies, dtype=np.float64)

    def evaluate(self, data: Data, split: str = REPORT, architecture: Architecture | None = None) -> float:
        """Return the accuracy on a split, with batch statistics: of the search network, or of an architecture in it.

        The search network draws a new relaxed sample for every batch, at the temperature where the fit stands.
        """
        if data.size([split]) == 0:
            raise ValueError(f"`split` must hold images but {split!r} of {data.name!r} is empty.")
        correct = n_images = 0
        fraction = self.step / max(1, self.total_steps)
        for number, batch in enumerate(data.batches([split], self.recipe.scoring_images)):
            images, labels = (tensor.to(self.device) for tensor in batch)
            with self._lock, torch.no_grad(), autocast(self.device, self.recipe.precision):
                if architecture is None:
                    generator = seeded_generator(self.device, self.recipe.seed, number, 2)
                    _, weights, active = self._mix(fraction, generator)
                    scores = self.supernet(images, weights, active, ones=active is not None)
                else:
                    scores = self._child_scores(architecture, images)
            correct += int((scores.argmax(1) == labels).sum())
            n_images += len(labels)
        return correct / n_images

    def weights(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the weights that an architecture inherits, for `DiscreteNetwork(..., weights=...)`.

        Copies; batch-normalisation statistics are recomputed for this architecture on the scoring batch.
        """
        images, _ = self._scoring_batch()
        with self._lock:
            self._check_architecture(architecture)
            child = DiscreteNetwork(architecture, self.skeleton, self.supernet.weights_of(architecture), seed=0)
        recompute_statistics(child.to(images.device), images)
        return {name: tensor.detach().clone() for name, tensor in child.state_dict().items()}

    def _child_scores(self, architecture: Architecture, images: Tensor) -> Tensor:
        self._check_architecture(architecture)
        return cast("Tensor", self.supernet(images, one_hot(architecture)))

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **prefixed("supernet/", self.supernet.state_dict()),
            **prefixed("weights/", optimizer_tensors(self._weights_optimizer)),
            **prefixed("logits/", optimizer_tensors(self._logits_optimizer)),
            "logits": self._logits_EO.detach(),
            "sums": self._sums,
            "credit": self._credit_E,
            **prefixed("records/", _record_tensors(self.records)),
        }

    def _progress(self) -> dict[str, Any]:
        prices = {name: float(price) for name, price in self._prices.items()}
        return {"prices": prices, "records": [[record.step, record.metrics] for record in self.records]}

    def _restore(self, tensors: dict[str, Tensor], progress: Mapping[str, Any]) -> None:
        self.supernet.load_state_dict(without_prefix("supernet/", tensors))
        self._logits_EO.data.copy_(tensors["logits"])
        load_optimizer_tensors(self._weights_optimizer, without_prefix("weights/", tensors))
        load_optimizer_tensors(self._logits_optimizer, without_prefix("logits/", tensors))
        self._sums.copy_(tensors["sums"])
        self._credit_E = tensors["credit"]
        self.records = _records(progress["records"], without_prefix("records/", tensors))
        self._prices = progress["prices"]

    def _make_optimizers(self) -> None:
        recipe = self.recipe
        weights, logits = list(self.supernet.parameters()), [self._logits_EO]
        rate, decay, own_decay = recipe.learning_rate, recipe.weight_decay, recipe.logit_weight_decay
        self._weights_optimizer: torch.optim.Optimizer = torch.optim.SGD(
            weights, rate, recipe.momentum, weight_decay=decay, fused=fused(weights)
        )
        self._logits_optimizer: torch.optim.Optimizer = torch.optim.Adam(
            logits, PAPER_LOGIT_RATE, (0.5, 0.999), weight_decay=own_decay, fused=fused(logits)
        )

    def _supersede_optimizers(self) -> None:
        """Make the optimizers anew with their state: after a move they hold other tensors than we do."""
        states = [optimizer_tensors(optimizer) for optimizer in (self._weights_optimizer, self._logits_optimizer)]
        self._make_optimizers()
        for optimizer, state in zip((self._weights_optimizer, self._logits_optimizer), states, strict=True):
            load_optimizer_tensors(optimizer, state)


def _record_tensors(records: Sequence[DistributionRecord]) -> dict[str, Tensor]:
    if not records:
        return {}
    return {
        "probabilities": torch.from_numpy(np.stack([record.probabilities for record in records])),
        "credit": torch.from_numpy(np.stack([cast("NDArray[np.float64]", record.credit) for record in records])),
    }


def _records(described: Sequence[list[Any]], tensors: Mapping[str, Tensor]) -> list[DistributionRecord]:
    if not described:
        return []
    arrays = zip(tensors["probabilities"].cpu().numpy(), tensors["credit"].cpu().numpy(), strict=True)
    return [
        DistributionRecord(step, metrics, probabilities, credit)
        for (step, metrics), (probabilities, credit) in zip(described, arrays, strict=True)
    ]
