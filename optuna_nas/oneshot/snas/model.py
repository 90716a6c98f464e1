"""SNAS: a distribution over architectures, learned by back-propagation together with the weights of a supernet.

Xie, Zheng, Liu and Lin, ICLR 2019, arXiv 1812.09926v2; equation and section numbers are the paper's. The method is
single-level: weights and logits learn from the same backward pass on the same batch.

E edges (paths of the space), O options of an edge (ops, `none` included; shorter rows are padded), B images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from optuna_nas.data.batches import to_device
from optuna_nas.data.splits import REPORT, Data, seeded_generator
from optuna_nas.networks import one_hot, use_batch_statistics
from optuna_nas.oneshot.base import OneShotModel
from optuna_nas.oneshot.fixed_parts import freeze
from optuna_nas.oneshot.free.prior import main_effects
from optuna_nas.oneshot.snas.costs import CostPenalty, EdgeCosts, most_likely
from optuna_nas.oneshot.snas.distribution import (
    DistributionRecord,
    architecture_of,
    concrete_sample,
    draw,
    entropies,
    one_path_sample,
    record_tensors,
    records_from,
    softmax,
)
from optuna_nas.oneshot.snas.options import OptionTable, best_of
from optuna_nas.oneshot.snas.recipe import LOSS, ONE_PATH, PAPER_LOGIT_RATE, SNASRecipe
from optuna_nas.oneshot.snas.sampled_costs import SampledCosts, SampledPenalty
from optuna_nas.space import CellSpace
from optuna_nas.space.cellular import CellularSpace
from optuna_nas.training.checkpoints import check_tensors, prefixed, without_prefix
from optuna_nas.training.device import autocast
from optuna_nas.training.finite_steps import fused, step_where
from optuna_nas.training.optimizers import cosine
from optuna_nas.training.rules import mapping, not_negative, number
from optuna_nas.training.task import Calling, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import NDArray

    from optuna_nas.networks import LatencyTable, NetworkSpace
    from optuna_nas.oneshot.base import Score
    from optuna_nas.space import Architecture, ModelSpace, PredictedCost


LOGIT_CLIP_NORM = 10.0  # as the authors' code
BASELINE_DECAY = 0.9
"""Decay of the moving mean with which the loss of a drawn value is compared."""


class Mix(NamedTuple):
    """How a step mixes the options of every path.

    Args:
        options: Weights of the options, shape (E, O), differentiable in the logits.
        weights: Weights of the names by path.
        active: Names to compute by path; None for all.
        log_p: Logarithms of the probabilities of one drawn option a path, shape (E,), differentiable; None where
            nothing is learned from a draw.
        drawn: Numbers of these options.
    """

    options: Tensor
    weights: dict[str, Tensor]
    active: dict[str, Collection[str]] | None
    log_p: Tensor | None = None
    drawn: tuple[int, ...] = ()


class SNAS(OneShotModel[DistributionRecord]):
    """A supernet and a factorised distribution over its options, shared by the cells of a kind, separate for kinds.

    `fit` learns both; `most_likely()` is the architecture it is about. Methods may be called from several threads; a
    second `fit` or `load` waits for the first to end, all else only for a step.

    What can be mixed (ops, inputs, depths) learns by the gradient through the mixture. Values of a `ModuleSpace`, such
    as widths, are drawn; they learn by the score function of the same losses (REINFORCE with a moving mean as the
    baseline), and so do costs that do not add up over the choices.

    Args:
        space: Cells with ops on edges, in a skeleton that is usually small and has `affine=False`, or a `ModuleSpace`.
            Where several ops may be chosen, an option is a set of them.
        recipe: How to learn.
        task: Loss and metric; image classification by default.
        costs: Latencies that count besides parameters, multiply-adds and memory access, each a table of the same cells,
            in whatever skeleton (any `PredictedCost` for a `ModuleSpace`): `recipe.resource` bounds them by their
            names, or weighs all costs.
        prior: Function that scores architectures, such as a `FreeScore`, from whose main effects the logits start;
            larger is better.
        prior_strength: Logits per standard deviation of the score that an option is worth, at least 0.

    Raises:
        ValueError: The space leaves nothing to choose or is of blocks, no architecture keeps the upper bounds, or they
            are of a cost that no table has.

    Example:
        >>> from optuna_nas import SNAS, SNASRecipe, digits
        >>> from optuna_nas import NetworkSpace, nasbench201_skeleton, nasbench201_space
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, (1, 8, 8), 10, affine=False))
        >>> snas = SNAS(space, SNASRecipe(relaxation="one_path"))
        >>> snas.fit(digits(), budget=0.1, show_progress=False)
        >>> snas.most_likely().connected
        True
    """

    name = "SNAS"
    recipe: SNASRecipe
    uncopied = (*OneShotModel.uncopied, "_compiled")
    _compiled: Callable[..., Tensor] | None = None

    def __init__(
        self,
        space: ModelSpace,
        recipe: SNASRecipe | None = None,
        task: Task | None = None,
        *,
        costs: Sequence[PredictedCost] = (),
        prior: Score | None = None,
        prior_strength: float = 2.0,
    ) -> None:
        not_negative()("prior_strength", prior_strength)
        if isinstance(space.core, CellularSpace) and not isinstance(space.core, CellSpace):
            raise ValueError(
                f"`space` must have ops on edges (CellSpace) but is a {type(space.core).__name__}; its costs do not "
                "add up."
            )
        super().__init__(space, recipe or SNASRecipe(), task, n_metrics=len(space.options()))
        self.table = OptionTable(space)
        self.paths = self.table.paths
        self.predicted = tuple(costs)
        self._prior, self._prior_strength = prior, prior_strength
        self.bounds: Mapping[str, float] = self.recipe.resource if isinstance(self.recipe.resource, Mapping) else {}
        self.costs: EdgeCosts | SampledCosts
        if isinstance(space.core, CellSpace):
            self.costs = EdgeCosts(cast("NetworkSpace", space), cast("Sequence[LatencyTable]", costs))
        else:
            self.costs = SampledCosts(space, costs)
        self._check_bounds()
        self.supernet: Any = space.supernet(self.recipe.seed)
        self.modules = {"supernet": self.supernet}
        self._fixed_kernels = space.fixed_kernels()
        use_batch_statistics(self.supernet)
        self.logits_EO = nn.Parameter(torch.zeros(self.table.shape, dtype=torch.float32))
        self.penalty = (
            CostPenalty(self.costs, self.recipe)
            if isinstance(self.costs, EdgeCosts)
            else SampledPenalty(self.costs, self.recipe)
        )
        self.credit_E = torch.zeros(len(self.paths), dtype=torch.float32)
        drawn = space.drawn_paths()
        self._drawn = tuple(number for number, path in enumerate(self.paths) if path in drawn)
        self._whole_path = self.recipe.relaxation == ONE_PATH and self.recipe.path_credit == LOSS
        self._draws = bool(drawn) or (isinstance(self.penalty, SampledPenalty) and self.penalty.counts)
        self._by_loss = self._draws or self._whole_path
        self._baselines = torch.full((2,), math.nan, dtype=torch.float32)
        """Moving means of the loss and of the cost of drawn options."""
        if self.recipe.compile and self._draws:
            raise ValueError("`compile` must be False where values are drawn, which make a new module each; unset it.")

    def _check_bounds(self) -> None:
        for name, bound in self.bounds.items():
            if name not in self.costs.names:
                raise ValueError(
                    f"`resource` must bound one of {self.costs.names} but got {name!r}; pass the table that predicts "
                    "it, `SNAS(..., costs=(table,))`."
                )
            if isinstance(self.costs, EdgeCosts) and bound < (cheapest := self.costs.cheapest(name)):
                raise ValueError(
                    f"`resource` must be within reach but no architecture has at most {bound:.6g} {name}; the cheapest "
                    f"in this skeleton has {cheapest:.6g}. Raise the bound or use a smaller skeleton."
                )
        # All bounds at once; edges of equal cost must differ in probability, or all of them change together.
        self._within_bounds(np.random.default_rng(0).normal(size=self.table.shape))

    def _within_bounds(self, log_p_EO: NDArray[np.float64]) -> Architecture:
        """Return the most probable architecture that keeps the upper bounds."""
        if isinstance(self.costs, EdgeCosts):
            return most_likely(cast("NetworkSpace", self.space), log_p_EO, self.costs, self.bounds)
        return self.costs.within(log_p_EO, self.bounds)

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        if self.predicted:  # within the recipe, so that neither with nor without them goes on as the other
            described["recipe"]["costs"] = {cost.name: getattr(cost, "digest", cost.name) for cost in self.predicted}
        if self._prior is not None:
            described["recipe"]["prior"] = [type(self._prior).__name__, self._prior_strength]
        return described

    # -- the distribution -----------------------------------------------------------------------------------------

    @property
    def logits(self) -> NDArray[np.float32]:
        """Log alpha, shape (E, O), in the order of `paths` and their options; minus infinity for padding; a copy."""
        with self.lock:
            return self.table.padded(self.logits_EO.detach()).cpu().numpy().copy()

    @property
    def probabilities_EO(self) -> NDArray[np.float64]:
        """Probability of every option of every path, shape (E, O); rows sum to 1."""
        return softmax(self.logits.astype(np.float64))

    @property
    def probabilities(self) -> dict[str, dict[str, float]]:
        """Probability of every option of every path."""
        return self.table.by_path(self.probabilities_EO)

    def entropy(self) -> dict[str, float]:
        """Return the entropy of every path's distribution in nats, from 0 to log(number of options)."""
        return dict(zip(self.paths, map(float, entropies(self.probabilities_EO)), strict=True))

    def expected_cost(self) -> dict[str, float]:
        """Return expected parameters, multiply-adds, memory access and latencies.

        Of cells in closed form (section 2.4), where options that nothing reads count as well; of modules as a mean over
        50 draws.
        """
        return dict(zip(self.costs.names, map(float, self.costs.expected(self.probabilities_EO)), strict=True))

    def sample(self, generator: np.random.Generator, connected: bool = True) -> Architecture:
        """Return an architecture drawn from the distribution.

        Args:
            generator: Source of randomness.
            connected: Draw again (up to 100 times) until every kind of cell reaches its output; then mend the draw.
        """
        table = self.probabilities_EO
        for _ in range(100):
            chosen = draw(table, generator)
            architecture = architecture_of(self.space, chosen)
            if not connected or architecture.connected:
                return architecture
        score = np.log(table + 1e-12)
        score[np.arange(len(table)), chosen] += 100.0
        return architecture_of(self.space, best_of(self.space, score))

    def most_likely(self) -> Architecture:
        """Return the most probable architecture that reaches its output and keeps the upper bounds, if there are any.

        On every edge the argmax, `none` included (section 3.1), unless these two rules ask for another.
        """
        return self._within_bounds(np.log(self.probabilities_EO + 1e-300))

    def edge_credit(self) -> dict[str, float]:
        """Return the credit of every edge in the last step: by how much its output lowered the loss, to first order.

        `R = -dL/dx_j . O~_ij(x_i)`, summed over the cells of the kind (section 2.3); read off the backward pass as
        `-sum_k Z_k dL/dZ_k`.
        """
        with self.lock:
            return dict(zip(self.paths, self.credit_E.tolist(), strict=True))

    def temperature(self, fraction: float) -> float:
        """Return the temperature when a share of the budget is done; the first one until the warm-up ends."""
        return self.recipe.temperature(fraction)

    # -- learning -------------------------------------------------------------------------------------------------

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        recipe, weights, logits = self.recipe, list(self.supernet.parameters()), [self.logits_EO]
        rate, decay, own_decay = recipe.learning_rate, recipe.weight_decay, recipe.logit_weight_decay
        return {
            "weights": torch.optim.SGD(weights, rate, recipe.momentum, weight_decay=decay, fused=fused(weights)),
            "logits": torch.optim.Adam(
                logits, PAPER_LOGIT_RATE, (0.5, 0.999), weight_decay=own_decay, fused=fused(logits)
            ),
        }

    def train_step(self, batch: Any) -> DistributionRecord | None:
        """Do one step: one backward pass for weights and logits; return a record when it is time for one."""
        recipe, fraction = self.recipe, self.fraction
        by_weights, by_logits = self.optimizers["weights"], self.optimizers["logits"]
        by_weights.param_groups[0]["lr"] = cosine(recipe.learning_rate, recipe.final_learning_rate, fraction)
        by_logits.param_groups[0]["lr"] = recipe.logit_rate(self.total_steps)
        by_weights.zero_grad(set_to_none=True)
        by_logits.zero_grad(set_to_none=True)
        total, loss, sums, mix, values = self._descent(batch)
        mixing_EO = mix.options
        mixing_EO.retain_grad()
        total.backward()
        parameters = [p for p in self.supernet.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, recipe.clip_norm or math.inf)
        logit_norm = nn.utils.clip_grad_norm_([self.logits_EO], LOGIT_CLIP_NORM)
        with torch.no_grad():
            finite = torch.isfinite(loss) & torch.isfinite(norm) & torch.isfinite(logit_norm)
            step_where(finite, by_weights, by_logits)
            credit_E = torch.zeros_like(self.credit_E)  # on a path on which nothing reaches the output
            if mixing_EO.grad is not None:
                credit_E = -(mixing_EO * mixing_EO.grad).sum(1)
            self.credit_E = torch.where(finite, credit_E, self.credit_E)
            self._move_baselines(values, finite)
        return self.finish_step(finite, loss, self.step_metric(sums), self.credit_E)

    def step_loss(self, batch: Any) -> Tensor:
        """Return the loss of weights and logits, costs included; logits have no part in it during the warm-up."""
        total, loss, _, _, values = self._descent(batch)
        self._move_baselines(values, torch.isfinite(loss.detach()))
        return total

    def _descent(self, batch: Any) -> tuple[Tensor, Tensor, Tensor, Mix, Tensor | None]:
        """Return what a step lowers, the task's loss and sums, the draw, and what the baselines follow."""
        recipe, fraction = self.recipe, self.fraction
        if self.step == 0 and self._prior is not None:
            effects_EO = self._prior_strength * main_effects(self.space, self._prior, seed=recipe.seed)
            self.logits_EO.data.copy_(torch.from_numpy(effects_EO))
        learning = fraction >= recipe.warmup_fraction
        freeze(self.supernet, self._fixed_kernels, fraction < recipe.freeze_fraction)
        mix = self.mix(fraction, self.generator())
        with autocast(self.device, recipe.precision):
            mixture = Calling(lambda inputs: self._outputs(inputs, mix))
            loss, sums = self.task.training_step(mixture, batch)
        total, values = loss, None
        if learning and isinstance(self.penalty, CostPenalty):
            total = loss + self.penalty(self.logits_EO, self.total_steps)
        if mix.log_p is not None:
            credited, values = self._credit_of_draw(mix, loss.detach(), learning)
            total = total + credited
        return total, loss, sums, mix, values

    def _move_baselines(self, values: Tensor | None, finite: Tensor) -> None:
        """Let the baselines follow the loss and the cost of what was drawn, if they are finite."""
        if values is not None:
            before = torch.where(self._baselines.isnan(), values, self._baselines)
            moved = BASELINE_DECAY * before + (1 - BASELINE_DECAY) * values
            self._baselines = torch.where(finite, moved, self._baselines)

    def _credit_of_draw(self, mix: Mix, loss: Tensor, learning: bool) -> tuple[Tensor, Tensor]:
        """Return a term whose gradient is the score function of what was drawn, and the loss and cost of that.

        `(loss - baseline) * log p` of the values, and `(cost - baseline) * log p` of all choices, of those that the
        module asked for: what it did not ask for had no part in either.
        """
        assert mix.log_p is not None
        architecture = architecture_of(self.space, np.array(mix.drawn))
        asked = self.space.asked(architecture)
        values = torch.stack([loss, torch.zeros_like(loss)]).float()
        if learning and isinstance(self.penalty, SampledPenalty) and self.penalty.counts:
            values[1] = self.penalty(architecture, self.total_steps)
        advantages = (values - torch.where(self._baselines.isnan(), values, self._baselines)).nan_to_num()
        counting = [number for number, path in enumerate(self.paths) if path in asked]
        # Where all ops are computed, so are the values inside of those that this draw did not choose.
        by_loss = counting if self._whole_path and mix.active is not None else self._drawn
        drawn = [n for n in by_loss if mix.active is None or self.paths[n] in asked]
        return advantages[0] * mix.log_p[drawn].sum() + advantages[1] * mix.log_p[counting].sum(), values

    def _outputs(self, inputs: Any, mix: Mix) -> Any:
        """Return the outputs of the supernet in a training step, compiled if the recipe asks for it."""
        if not self.recipe.compile or mix.active is not None:
            return self.supernet(inputs, mix.weights, mix.active, ones=mix.active is not None)
        if self._compiled is None:
            self._compiled = torch.compile(self.supernet)
        return self._compiled(inputs, mix.weights)

    def mix(self, fraction: float, generator: torch.Generator) -> Mix:
        """Draw how a step mixes the options of every path.

        Args:
            fraction: Share of the budget done, which sets the temperature.
            generator: Source of randomness.
        """
        recipe, logits_EO = self.recipe, self.table.padded(self.logits_EO)
        warming_up = fraction < recipe.warmup_fraction
        if warming_up:  # the logits do not learn yet; the mixture still tells the credit of its parts
            logits_EO = logits_EO.detach().requires_grad_()
        relaxation = (warming_up and recipe.warmup_relaxation) or recipe.relaxation
        log_p: Tensor | None = None
        drawn: tuple[int, ...] = ()
        active: dict[str, Collection[str]] | None = None
        if relaxation == ONE_PATH or self._draws:
            path_EO, chosen_E = one_path_sample(logits_EO, generator)
            drawn = tuple(chosen_E.tolist())
            if self._by_loss:
                log_p = logits_EO.log_softmax(dim=-1).gather(1, chosen_E[:, None])[:, 0]
        if relaxation == ONE_PATH:
            # A leaf where the whole path learns by its loss: then the backward pass only tells the credit of its parts.
            mixing_EO = path_EO.detach().requires_grad_() if self._whole_path else path_EO
            active = {path: set(names) for path, names in self.table.chosen(drawn).items()}
        elif relaxation == "concrete":
            mixing_EO = concrete_sample(logits_EO, self.temperature(fraction), generator)
        else:
            mixing_EO = logits_EO.softmax(dim=-1)
        weights = self.table.weights(mixing_EO)
        for place in self._drawn:
            weights[self.paths[place]] = nn.functional.one_hot(
                torch.tensor(drawn[place]), len(weights[self.paths[place]])
            ).float()
        return Mix(mixing_EO, weights, active, log_p, drawn)

    def make_record(self, metrics: dict[str, float], means: NDArray[np.float64]) -> DistributionRecord:
        probabilities = self.probabilities_EO
        costs = {}
        if isinstance(self.costs, EdgeCosts):  # others take too long
            costs = dict(zip(self.costs.names, map(float, self.costs.expected(probabilities)), strict=True))
        state = {
            "entropy": float(entropies(probabilities).mean()),
            **costs,
            "temperature": self.temperature(self.fraction),
        }
        return DistributionRecord(self.step, {**state, **metrics}, probabilities, means)

    # -- inherited weights ----------------------------------------------------------------------------------------

    def predict(self, architecture: Architecture, inputs: Any) -> Any:
        """Return the outputs of an architecture with inherited weights, by the statistics of the batch."""
        return self.supernet(inputs, one_hot(self.check_architecture(architecture)))

    def evaluate(self, data: Data, split: str = REPORT, architecture: Architecture | None = None) -> float:
        """Return the task's metric on a split, with batch statistics: of the search network, or of an architecture.

        The search network draws a new relaxed sample for every batch, at the temperature where the fit stands.
        """
        if data.size([split]) == 0:
            raise ValueError(f"`split` must hold examples but {split!r} of {data.name!r} is empty.")
        numbers = count()

        def outputs(inputs: Any) -> Any:
            if architecture is not None:
                return self.predict(architecture, inputs)
            mix = self.mix(self.fraction, seeded_generator(self.device, self.recipe.seed, next(numbers), 2))
            return self.supernet(inputs, mix.weights, mix.active, ones=mix.active is not None)

        batches = (to_device(batch, self.device) for batch in data.batches([split], self.recipe.scoring_images))
        with self.lock, torch.no_grad(), autocast(self.device, self.recipe.precision):
            return self.task.evaluate(Calling(outputs), batches)

    def weights(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the weights that an architecture inherits, for `space.build(architecture, weights)`.

        Copies; batch-normalisation statistics are recomputed for this architecture on the scoring batch.
        """
        with self.lock:
            architecture = self.check_architecture(architecture)
            child = self.space.build(architecture, self.supernet.weights_of(architecture), seed=0).to(self.device)
        self.settle(child)
        return {name: tensor.detach().clone() for name, tensor in child.state_dict().items()}

    # -- moving and checkpoints ---------------------------------------------------------------------------------------

    def move(self, device: torch.device) -> None:
        self.logits_EO.data = self.logits_EO.data.to(device)
        self.table.move(device)
        self.credit_E, self._baselines = self.credit_E.to(device), self._baselines.to(device)
        if isinstance(self.penalty, CostPenalty):
            self.penalty.move(device)
        super().move(device)

    def tensors(self) -> dict[str, Tensor]:
        own = {"logits": self.logits_EO.detach(), "credit": self.credit_E}
        if self._by_loss:
            own["baselines"] = self._baselines
        return {**super().tensors(), **own, **prefixed("records/", record_tensors(self.records))}

    def progress(self) -> dict[str, Any]:
        return {**super().progress(), "prices": {name: float(price) for name, price in self.penalty.prices.items()}}

    def restore(self, tensors: dict[str, Tensor], progress: Mapping[str, Any]) -> None:
        own = {"logits": self.logits_EO.detach(), "credit": self.credit_E}
        if self._by_loss:
            own["baselines"] = torch.full_like(self._baselines, math.nan)  # before the first step they are none
        check_tensors({name: tensors[name] for name in own}, own)
        prices = mapping(number(finite=True))("prices", progress["prices"])
        if prices.keys() != self.penalty.prices.keys():
            raise ValueError(f"`prices` must be of {sorted(self.penalty.prices)} but are of {sorted(prices)}")
        shape = (len(self.paths), max(map(len, self.space.options().values())))
        records = records_from(progress["records"], without_prefix("records/", tensors), shape)
        super().restore(tensors, progress)
        self.logits_EO.data.copy_(tensors["logits"])
        self.credit_E = tensors["credit"]
        if self._by_loss:
            self._baselines = tensors["baselines"]
        self.penalty.prices = prices
        self.records = records
