"""How HM-NAS learns: the supernet and its edges and ops first, then the masks.

Equation and section numbers: Yan et al., arXiv 1909.00122. E edges (paths of the space).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from optuna_nas.data.splits import CHOICES, WEIGHTS, Data
from optuna_nas.modules import ModuleSpace
from optuna_nas.networks import use_batch_statistics
from optuna_nas.oneshot.base import OneShotModel
from optuna_nas.oneshot.fixed_parts import freeze
from optuna_nas.oneshot.hmnas.bilevel import gradients_ahead
from optuna_nas.oneshot.hmnas.choice_masks import ChoiceMasks
from optuna_nas.oneshot.hmnas.masks import BaseMasks, Masks
from optuna_nas.oneshot.hmnas.recipe import (
    MASK_DECAY,
    MASK_DECAY_AT,
    MOMENTUM,
    PAPER_LOGIT_RATE,
    PAPER_MASK_RATE,
    HMNASRecipe,
)
from optuna_nas.space import CellSpace
from optuna_nas.training.checkpoints import check_tensors, prefixed, without_prefix
from optuna_nas.training.device import autocast
from optuna_nas.training.finite_steps import fused, step_where
from optuna_nas.training.optimizers import cosine
from optuna_nas.training.rules import between
from optuna_nas.training.task import Calling, Task

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from optuna_nas.space import ModelSpace

WEIGHT_STEPS, LOGIT_STEPS, MASK_STEPS = "optimizers/weights", "optimizers/logits", "optimizers/masks"


class MaskRecord(NamedTuple):
    """State of a fit after a step.

    Args:
        step: Training step.
        metrics: Mean `loss` and the task's metric since the last record; `edges`, `ops` and `weights`, the
            shares that masks keep.
        edge_weights: Normalised weight of every edge, shape (E,).
    """

    step: int
    metrics: dict[str, float]
    edge_weights: NDArray[np.float64]


class MaskedSupernet(OneShotModel[MaskRecord]):
    """A supernet with masks, and how both learn; `HMNAS` adds what to ask of them.

    Args:
        space: Cells with ops on edges, in a skeleton; or a `ModuleSpace` with a choice of several.
        recipe: How to learn.
        task: Loss and metric; image classification by default.

    Raises:
        ValueError: The space is of blocks, or has no choice of several.
    """

    recipe: HMNASRecipe
    masks: BaseMasks
    supernet: Any

    def __init__(self, space: ModelSpace, recipe: HMNASRecipe | None = None, task: Task | None = None) -> None:
        cells = space.core
        if not isinstance(cells, CellSpace | ModuleSpace):
            raise ValueError(
                f"`space` must have ops on edges (CellSpace) or be a ModuleSpace but is a {type(cells).__name__}; its "
                "nodes have no edges to weigh."
            )
        super().__init__(space, recipe or HMNASRecipe(), task)
        self.supernet: Any = self.space.supernet(self.recipe.seed)
        self._fixed_kernels = self.space.fixed_kernels()
        use_batch_statistics(self.supernet)
        self.modules = {"supernet": self.supernet}
        if isinstance(cells, CellSpace):
            self.masks = Masks(cells, self.supernet, self.recipe)
        else:
            self.masks = ChoiceMasks(cells, self.supernet, self.recipe)
        self.paths = self.masks.paths
        self._mask_share = self.recipe.mask_fraction  # of the steps, which epochs of unequal splits make another
        self._choice: Any = None  # a batch for ops and edges, where this step lets them learn

    @property
    def mask_steps(self) -> int:
        """Steps of the fit that train masks, after those that train the supernet."""
        return round(self._mask_share * self.total_steps)

    @property
    def supernet_steps(self) -> int:
        """Steps of the fit that train the supernet."""
        return self.total_steps - self.mask_steps

    @property
    def masking(self) -> bool:
        """Whether masks have begun to learn."""
        return self.mask_steps > 0 and self.step > self.supernet_steps

    # -- learning -------------------------------------------------------------------------------------------------

    def begin(self, data: Data, budget: float, splits: Sequence[str]) -> None:
        for split in (WEIGHTS, CHOICES):
            if data.size([split]) == 0:
                raise ValueError(
                    f"`data` must have examples in the split {split!r} but {data.name!r} has none; weights learn from "
                    "one split, ops and edges from the other."
                )
        super().begin(data, budget, splits)
        self.recipe.check_masks_can_fall(self.mask_steps)

    def plan_epochs(self, data: Data, budget: float, splits: Sequence[str]) -> None:
        """Count epochs as the paper does: of the split for weights while they learn, of all `splits` for masks.

        Masks come last: once they learn, another budget is theirs alone.
        """
        of_masks = self.recipe.mask_fraction
        supernet_steps = round((1 - of_masks) * budget * self.steps_per_epoch(data, [WEIGHTS]))
        supernet_steps = self.supernet_steps if self.masking else max(supernet_steps, self.step)
        mask_steps = round(of_masks * budget * self.steps_per_epoch(data, splits))
        self.total_steps = max(1, supernet_steps + mask_steps, self.step)
        self._mask_share = (self.total_steps - supernet_steps) / self.total_steps

    def plan_steps(self, total_steps: int) -> None:
        """Set `total_steps`; once masks learn, what is more or less is theirs."""
        supernet_steps = self.supernet_steps if self.masking else None
        super().plan_steps(total_steps)
        if supernet_steps is not None:
            self._mask_share = (total_steps - supernet_steps) / total_steps

    def step_after(self, share: float) -> int:
        of_supernet = 1 - self.recipe.mask_fraction
        if share <= of_supernet:
            return round(share / of_supernet * self.supernet_steps)
        return self.total_steps - round((1 - share) / (1 - of_supernet) * self.mask_steps)

    @property
    def fraction(self) -> float:
        """Share of the budget done, in [0, 1]; 0 before a fit."""
        if not self.mask_steps:
            return super().fraction
        of_supernet = 1 - self.recipe.mask_fraction
        if self.step <= self.supernet_steps:
            return of_supernet * self.step / max(1, self.supernet_steps)
        return 1 - (1 - of_supernet) * (self.total_steps - self.step) / self.mask_steps

    def batches(self, data: Data, splits: Sequence[str], step: int, last: int) -> Iterator[Any]:
        """Yield batches of the split for weights, then of all; and let ops and edges have theirs."""
        for batch in super().batches(data, [WEIGHTS], step, min(last, self.supernet_steps)):
            self._choice = None
            if self.recipe.choices_learn(step, self.supernet_steps):
                batch_size, seed = self.recipe.batch_size, self.recipe.seed
                epoch, start = divmod(step, max(1, data.size([CHOICES]) // batch_size))
                choices = data.batches([CHOICES], batch_size, seed=seed + 1, epoch=epoch, start=start)
                self._choice = next(iter(choices))
            step += 1
            yield batch
        if last > self.supernet_steps:
            self._choice = None
            yield from super().batches(data, splits, max(0, step - self.supernet_steps), last - self.supernet_steps)

    def share_after(self, rounds: int, n_rounds: int) -> float:
        """Return the share of the budget to have spent: the first round trains the supernet, all share the masks."""
        supernet = 1 - self.recipe.mask_fraction
        return min(1.0, supernet + (1 - supernet) * rounds / n_rounds) if rounds else 0.0

    def train_step(self, batch: Any) -> MaskRecord | None:
        """Do one step: of the weights, and of edges and ops on another batch; in the last steps of the masks."""
        finite, loss, sums = (self._train_weights if self.step < self.supernet_steps else self._train_masks)(batch)
        return self.finish_step(finite, loss, self.step_metric(sums))

    def step_loss(self, batch: Any) -> Tensor:
        """Return the loss of weights, ops and edges, which all learn from this batch; in the last steps of the masks.

        A fit has another batch for ops and edges, and lets them learn ever less often; here they learn once the warm-up
        is over.
        """
        masking = self.step >= self.supernet_steps
        progress = self.step / max(1, self.supernet_steps)
        for logit in self.masks.logits:
            logit.requires_grad_(not masking and progress >= self.recipe.warmup_fraction)
        if masking:
            self.supernet.requires_grad_(False)  # for good: masks come last
            loss, _ = self.loss_of(batch, self.masks.masked_weights(), self.masks.mixing(masked=True))
            return loss + self._pressure()
        freeze(self.supernet, self._fixed_kernels, progress < self.recipe.freeze_fraction)
        return self.loss_of(batch, {})[0]

    def outputs(self, inputs: Any, weights: Mapping[str, Tensor], mixing: dict[str, Tensor]) -> Any:
        """Return the outputs of the supernet at other weights and mixing weights than its own."""
        return functional_call(self.supernet, dict(weights), (inputs, mixing))

    def loss_of(
        self, batch: Any, weights: Mapping[str, Tensor], mixing: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch and its sums (`Task.training_step`); by default at mixing weights without masks.

        Args:
            batch: What the data yield.
            weights: Weights by name that stand in for the supernet's.
            mixing: Weights of the ops, by path.
        """
        mixing = self.masks.mixing(False) if mixing is None else mixing
        with autocast(self.device, self.recipe.precision):
            return self.task.training_step(Calling(lambda inputs: self.outputs(inputs, weights, mixing)), batch)

    def _train_weights(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        recipe, optimizer = self.recipe, self.optimizers[WEIGHT_STEPS]
        rate = cosine(recipe.learning_rate, 0.0, self.step / max(1, self.supernet_steps))
        optimizer.param_groups[0]["lr"] = rate
        frozen = self.step < recipe.freeze_fraction * self.supernet_steps
        freeze(self.supernet, self._fixed_kernels, frozen)
        if self._choice is not None:
            self.train_choices(self._choice, batch, rate)
        optimizer.zero_grad(set_to_none=True)
        loss, sums = self.loss_of(batch, {})
        loss.backward()
        for logit in self.masks.logits:
            logit.grad = None
        parameters = [p for p in self.supernet.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, recipe.clip_norm or math.inf)
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        step_where(finite, optimizer)
        return finite, loss, sums

    def train_choices(self, choices: Any, train: Any, rate: float) -> None:
        """Do one step of ops and edges.

        Args:
            choices: Batch that they learn from.
            train: Batch of the weights' next step, for `second_order`.
            rate: Learning rate of that step.
        """
        optimizer = self.optimizers[LOGIT_STEPS]
        gradients = self.choice_gradients(choices, train, rate)
        optimizer.param_groups[0]["lr"] = self.recipe.logit_rate(self.supernet_steps)
        for logit, gradient in zip(self.masks.logits, gradients, strict=True):
            logit.grad = gradient
        step_where(torch.isfinite(nn.utils.get_total_norm(gradients)), optimizer)
        for logit in self.masks.logits:
            logit.grad = None

    def choice_gradients(self, choices: Any, train: Any, rate: float) -> list[Tensor]:
        """Return the gradient of the logits of ops and of edges; see `train_choices`."""
        if not self.recipe.second_order:
            found = torch.autograd.grad(self.loss_of(choices, {})[0], self.masks.logits, allow_unused=True)
            pairs = zip(found, self.masks.logits, strict=True)
            return [torch.zeros_like(logit) if gradient is None else gradient for gradient, logit in pairs]
        weights = {name: weight for name, weight in self.supernet.named_parameters() if weight.requires_grad}
        decay = self.recipe.weight_decay
        return gradients_ahead(
            lambda batch, values: self.loss_of(batch, values)[0],
            weights,
            self.masks.logits,
            choices,
            train,
            rate=rate,
            weight_decay=decay,
            velocity=self._velocity(weights) if self.recipe.second_order == MOMENTUM else None,
        )

    def _velocity(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the momentum times its buffer of every weight that has one."""
        states = self.optimizers[WEIGHT_STEPS].state
        buffers = {name: states[weight].get("momentum_buffer") for name, weight in weights.items() if weight in states}
        return {name: self.recipe.momentum * buffer for name, buffer in buffers.items() if buffer is not None}

    def _train_masks(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        optimizer = self.optimizers[MASK_STEPS]
        done = (self.step - self.supernet_steps) / self.mask_steps
        decay = 1.0 if done < MASK_DECAY_AT else MASK_DECAY
        for group, rate in zip(optimizer.param_groups, self.recipe.mask_rates(self.mask_steps), strict=False):
            group["lr"] = rate * decay
        mixing = self.masks.mixing(masked=True)
        loss, sums = self.loss_of(batch, self.masks.masked_weights(), mixing)
        gradients = torch.autograd.grad(loss + self._pressure(), self.masks.masks, allow_unused=True)
        for mask, gradient in zip(self.masks.masks, gradients, strict=True):
            mask.grad = gradient
        existing = [gradient for gradient in gradients if gradient is not None]
        finite = torch.isfinite(loss) & torch.isfinite(nn.utils.get_total_norm(existing))
        step_where(finite, optimizer)
        optimizer.zero_grad(set_to_none=True)
        return finite, loss, sums

    def _pressure(self) -> Tensor | float:
        """Return what the ops that masks keep add to the loss; 0 without a sparsity weight."""
        weight = self.recipe.sparsity_weight
        return weight * self.masks.kept_share() if weight else 0.0

    def make_record(self, metrics: dict[str, float], means: NDArray[np.float64]) -> MaskRecord:
        return MaskRecord(self.step, {**self.masks.shares(), **metrics}, np.array(self.masks.edge_weights().tolist()))

    # -- moving and checkpoints -----------------------------------------------------------------------------------

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        recipe, masks, weights = self.recipe, self.masks, list(self.supernet.parameters())
        rate, by_gpu = recipe.learning_rate, fused(weights)
        groups = [
            {"params": masks.choice_masks},
            {"params": list(masks.weight_masks.values())},
        ]
        return {
            WEIGHT_STEPS: torch.optim.SGD(
                weights, rate, recipe.momentum, weight_decay=recipe.weight_decay, fused=by_gpu
            ),
            LOGIT_STEPS: torch.optim.Adam(
                masks.logits, PAPER_LOGIT_RATE, weight_decay=recipe.logit_weight_decay, fused=by_gpu
            ),
            MASK_STEPS: torch.optim.Adam([group for group in groups if group["params"]], PAPER_MASK_RATE, fused=by_gpu),
        }

    def move(self, device: torch.device) -> None:
        self.masks.move(device)
        super().move(device)

    def tensors(self) -> dict[str, Tensor]:
        tensors = {**super().tensors(), **prefixed("learned/", self.masks.tensors())}
        if self.records:
            tensors["edge_weights"] = torch.from_numpy(np.stack([record.edge_weights for record in self.records]))
        return tensors

    def progress(self) -> dict[str, Any]:
        return {**super().progress(), "mask_share": self._mask_share}

    def restore(self, tensors: dict[str, Tensor], progress: Mapping[str, Any]) -> None:
        mask_share = between(0, 1, "[]")(
            "mask_share", progress.get("mask_share", self.recipe.mask_fraction)
        )  # of before: of steps
        described, learned = progress["records"], without_prefix("learned/", tensors)
        check_tensors(learned, self.masks.tensors(), "learned/")
        if described:
            like = torch.zeros(len(described), len(self.masks.paths), dtype=torch.float64)
            check_tensors({"edge_weights": tensors["edge_weights"]}, {"edge_weights": like})
        rows = list(tensors["edge_weights"].cpu().numpy()) if described else []
        super().restore(tensors, progress)
        self._mask_share = mask_share
        self.masks.restore(learned)
        self.records = [MaskRecord(s, m, row) for (s, m), row in zip(described, rows, strict=True)]
