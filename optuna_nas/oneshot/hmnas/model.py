"""HM-NAS: a supernet whose edges, ops and weights learn masks; what survives is fine-tuned, not trained again.

Yan, Fang, Zhang, Fang, Luo, Wang and Zeng, ICCV workshops 2019, arXiv 1909.00122; equation and section numbers are the
paper's. There is no public code; what the paper leaves open is said where it is decided.

E edges (paths of the space), O ops of an edge (`none` is not among them), B images.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from optuna_nas.data.splits import CHOICES, WEIGHTS, Batch, Data
from optuna_nas.networks import MixedNetwork, Supernet, recompute_statistics, use_batch_statistics
from optuna_nas.oneshot.base import OneShotModel
from optuna_nas.oneshot.hmnas.derived import Derived, Survival
from optuna_nas.oneshot.hmnas.recipe import HMNASRecipe
from optuna_nas.space import NONE, Architecture, CellSpace
from optuna_nas.space.ways import cheapest_way
from optuna_nas.training.checkpoints import prefixed, without_prefix
from optuna_nas.training.device import autocast
from optuna_nas.training.finite_steps import fused, step_where
from optuna_nas.training.optimizers import cosine, load_optimizer_tensors, optimizer_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from optuna_nas.space import Skeleton, Space

logger = logging.getLogger(__name__)

PAPER_LOGIT_RATE, PAPER_LOGIT_STEPS, HIGHEST_LOGIT_RATE = 3e-4, 28_000, 0.05
PAPER_MASK_RATE, WEIGHT_MASKS_FASTER, PAPER_DISTANCE, PAPER_MASK_STEPS = 1e-5, 10.0, 5e-3, 20 * 391
MASK_DECAY, MASK_DECAY_AT = 0.1, 0.5
DIFFERENCE = 0.01
"""How far, as a norm, the weights are moved to see how the logits' gradient changes (Liu et al. 2019, appendix)."""


class MaskRecord(NamedTuple):
    """How a fit stood after a step.

    Args:
        step: Training step.
        metrics: Mean `loss` (nats) and `accuracy` (a fraction) since the last record; `edges`, `ops` and `weights`, the
            shares that masks keep.
        edge_weights: Normalised weight of every edge, shape (E,).
    """

    step: int
    metrics: dict[str, float]
    edge_weights: NDArray[np.float64]


class HMNAS(OneShotModel[MaskRecord]):
    """A supernet with a weight for every edge and op, and masks on edges, ops and weights.

    `fit` trains the supernet first (bilevel: weights on the split `weights`, edges and ops on `choices`), then the
    masks on both splits, all else frozen. No penalty asks for zeros: a mask falls where the loss prefers it.

    Args:
        space: Of cells with ops on edges; `none` is left out, since masks do its work.
        skeleton: Frame around the cells, usually small and with `affine=False`.
        recipe: How to learn.

    Raises:
        ValueError: The space is of blocks.
    """

    name = "HMNAS"

    def __init__(self, space: Space, skeleton: Skeleton, recipe: HMNASRecipe | None = None) -> None:
        if not isinstance(space, CellSpace):
            raise ValueError(
                f"`space` must have ops on edges (CellSpace) but is a {type(space).__name__}; its nodes have no edges "
                "to weigh."
            )
        self.space, self.recipe = space, recipe or HMNASRecipe()
        super().__init__(space, skeleton, self.recipe)
        self.paths = space.paths
        self.ops = tuple(op for op in space.ops if op != NONE)
        self.supernet = Supernet(space, skeleton, self.recipe.seed)
        use_batch_statistics(self.supernet)
        n_edges, n_ops = len(self.paths), len(self.ops)
        # Which normalisation an edge takes part in: that of its node, or of its kind of cell.
        groups = [
            path.split("<-")[0] if self.recipe.edge_softmax == "node" else path.split("/")[0] for path in self.paths
        ]
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        self._groups_E = torch.tensor([numbers[group] for group in groups])
        names = self.supernet.names[self.paths[0]]
        self._columns = torch.tensor([names.index(op) for op in self.ops])
        draw = torch.Generator().manual_seed(self.recipe.seed)
        self._op_logits_EO = nn.Parameter(1e-3 * torch.randn(n_edges, n_ops, generator=draw))
        self._edge_logits_E = nn.Parameter(1e-3 * torch.randn(n_edges, generator=draw))
        start = self.recipe.mask_start
        self._op_masks_EO = nn.Parameter(torch.full((n_edges, n_ops), start))
        self._edge_masks_E = nn.Parameter(torch.full((n_edges,), start))
        self._weight_masks = {
            name: nn.Parameter(torch.full_like(weight, start, memory_format=torch.preserve_format))
            for name, weight in self.supernet.named_parameters()
            if weight.ndim == 4
        }
        self._make_optimizers()
        self._choice: Batch | None = None  # images for ops and edges, where this step lets them learn
        self._sums = torch.zeros(3, dtype=torch.float64)  # steps, loss, accuracy

    @property
    def device(self) -> torch.device:
        """Where it learns: the device of the data."""
        return self._sums.device

    # -- what was learned -----------------------------------------------------------------------------------------

    @property
    def mask_steps(self) -> int:
        """How many of the steps train masks."""
        return round(self.recipe.mask_fraction * self.total_steps)

    @property
    def masking(self) -> bool:
        """Whether masks have begun to learn."""
        return self.mask_steps > 0 and self.step > self.total_steps - self.mask_steps

    @property
    def edge_weights(self) -> dict[str, float]:
        """Normalised weight of every edge, masks aside; they sum to one over what `edge_softmax` says."""
        with self._lock, torch.no_grad():
            return dict(zip(self.paths, self._edge_weights().tolist(), strict=True))

    @property
    def op_weights(self) -> dict[str, dict[str, float]]:
        """Normalised weight of every op of every edge, masks aside; they sum to one over an edge (eq. 1)."""
        with self._lock, torch.no_grad():
            table = self._op_logits_EO.softmax(-1).tolist()
        return {path: dict(zip(self.ops, row, strict=True)) for path, row in zip(self.paths, table, strict=True)}

    def kept(self, threshold: float | None = None) -> dict[str, tuple[str, ...]]:
        """Return the ops that masks keep on every edge; none where the edge's own mask fell.

        Args:
            threshold: Another than the recipe's, for a family of smaller and larger networks.
        """
        edges_E, ops_EO = self._kept(threshold)
        return {
            path: tuple(op for op, stays in zip(self.ops, row, strict=True) if stays and edge)
            for path, edge, row in zip(self.paths, edges_E.tolist(), ops_EO.tolist(), strict=True)
        }

    def _kept(self, threshold: float | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        least = self.recipe.threshold if threshold is None else threshold
        with self._lock:
            masks = (self._edge_masks_E, self._op_masks_EO)
            edges, ops = ((mask.detach() > least).cpu().numpy() for mask in masks)
        return edges, ops

    def survival(self, architecture: Architecture) -> Survival:
        """Return what the masks keep of an architecture, see `survivals`."""
        return self.survivals([architecture])[0]

    def survivals(self, architectures: Sequence[Architecture]) -> list[Survival]:
        """Return what the masks keep of architectures; all zeros of one that does not reach its output.

        The paper has no rule for architectures; this one is ours: what an architecture has in the supernet, by weight,
        and how much of that the masks leave.
        """
        edges_E, ops_EO = self._kept(None)
        with self._lock, torch.no_grad():
            weight_E = self._edge_weights().cpu().double().numpy()
            worth_EO = weight_E[:, None] * self._op_logits_EO.softmax(-1).cpu().double().numpy()
            kept_EO, total_EO = self._weights_kept()
        found = []
        for architecture in architectures:
            self._check_architecture(architecture)
            if not architecture.connected:
                found.append(Survival(0.0, 0.0, 0.0, 0.0))
                continue
            chosen_EO = np.array([[op in architecture[path] for op in self.ops] for path in self.paths])
            used_E, own_EO, total = weight_E * chosen_EO.any(1), worth_EO * chosen_EO, (total_EO * chosen_EO).sum()
            found.append(
                Survival(
                    float((own_EO * ops_EO * edges_E[:, None]).sum() / own_EO.sum()),
                    float((used_E * edges_E).sum() / used_E.sum()),
                    float((own_EO * ops_EO).sum() / own_EO.sum()),
                    float((kept_EO * chosen_EO).sum() / total) if total else 1.0,
                )
            )
        return found

    def endurance(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return how long architectures survive while the threshold rises over all masks, shape (N,), in [0, 1].

        Of every edge the mean, over the ops kept there, of the share of thresholds that their masks and their edge's
        are above; an edge without an op survives nowhere. Where masks cut little, survival at the one threshold of the
        recipe is the same for nearly all; this is not. What edges and ops weigh is left out: on cells that were
        trained, it told less than nothing (`BENCHMARKS.md`).
        """
        lowest_EO = self._lowest_masks()
        from scipy.stats import rankdata  # learning does without it

        rank_EO = rankdata(lowest_EO).reshape(lowest_EO.shape) / lowest_EO.size
        found = []
        for architecture in architectures:
            self._check_architecture(architecture)
            ranks = [
                np.mean([rank_EO[e, self.ops.index(op)] for op in architecture[path]]) if architecture[path] else 0.0
                for e, path in enumerate(self.paths)
            ]
            found.append(float(np.mean(ranks)))
        return np.array(found, dtype=np.float64)

    def weakest(self, architecture: Architecture) -> list[tuple[str, str]]:
        """Return the (edge, op) of an architecture, those first whose masks, or their edge's, are the lowest."""
        self._check_architecture(architecture)
        lowest_EO = self._lowest_masks()
        places = [(path, op) for path, ops in architecture.choices for op in ops]
        return sorted(places, key=lambda place: float(lowest_EO[self.paths.index(place[0]), self.ops.index(place[1])]))

    def _lowest_masks(self) -> NDArray[np.float64]:
        """Return of every op the lower of its own mask and its edge's, shape (E, O)."""
        with self._lock:
            lowest_EO = torch.minimum(self._op_masks_EO.detach(), self._edge_masks_E.detach()[:, None])
        return lowest_EO.cpu().double().numpy()

    def _weights_kept(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return how many weights of convolutions the masks keep, and how many there are; both of shape (E, O)."""
        kept, total = (np.zeros((len(self.paths), len(self.ops)), dtype=np.int64) for _ in range(2))
        places = {(path, op): (e, o) for e, path in enumerate(self.paths) for o, op in enumerate(self.ops)}
        for name, mask in self._weight_masks.items():
            node = self.supernet.graph[name.split(".")[1]]
            if (node.path, node.op) in places:
                place = places[node.path, node.op]
                kept[place] += int((mask.detach() > self.recipe.threshold).sum())
                total[place] += mask.numel()
        return kept, total

    def cut(self, architecture: Architecture) -> tuple[list[str], list[tuple[str, str]]]:
        """Return the edges of an architecture whose masks fell, and its (edge, op) whose own masks did."""
        self._check_architecture(architecture)
        edges_E, ops_EO = self._kept(None)
        edges = [path for path, stays in zip(self.paths, edges_E, strict=True) if architecture[path] and not stays]
        ops = [
            (path, op)
            for path, row in zip(self.paths, ops_EO, strict=True)
            for op, stays in zip(self.ops, row, strict=True)
            if op in architecture[path] and not stays
        ]
        return edges, ops

    def score(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return the accuracy of architectures with inherited, masked weights, shape (N,), fractions.

        Each is the supernet without the other ops, at the weights that its own have there, on the scoring batch and by
        its statistics.

        Raises:
            ValueError: Neither `fit` nor `attach` has seen data with a report split.
        """
        images, labels = self._scoring_batch()
        accuracies = []
        with self._lock, torch.no_grad(), autocast(images.device, self.recipe.precision):
            masks = self.step >= self.total_steps - self.mask_steps
            for architecture in architectures:
                self._check_architecture(architecture)
                mixing = self._mixing(masks)
                for path in self.paths:
                    chosen = torch.tensor([float(name in architecture[path]) for name in self.supernet.names[path]])
                    mixing[path] = mixing[path] * chosen.to(self.device)
                scores = functional_call(self.supernet, self._masked_weights() if masks else {}, (images, mixing))
                accuracies.append(float((scores.argmax(1) == labels).double().mean()))
        return np.array(accuracies, dtype=np.float64)

    # -- what survives --------------------------------------------------------------------------------------------

    def derive(self, threshold: float | None = None) -> Derived:
        """Return what survives, ready to be built and fine-tuned (section 3.4).

        Where masks leave a cell without a way to its output, its heaviest way is kept, and a warning says so.

        Args:
            threshold: Of the masks of edges, ops and weights, another than the recipe's; see `family`.
        """
        threshold = self.recipe.threshold if threshold is None else threshold
        everything = self.space.everything()
        fallen = set(self.fallen(everything, threshold))
        kept = {path: tuple(op for op in self.ops if (path, op) not in fallen) for path in self.paths}
        architecture = self.space.architecture(kept)
        edges, ops = self.edge_weights, self.op_weights
        mixing = {path: {op: edges[path] * ops[path][op] for op in names} for path, names in kept.items()}
        with self._lock:
            state = {name: t.detach().clone() for name, t in self.supernet.weights_of(architecture).items()}
            masks = {name: mask for name, mask in self.weight_masks(threshold).items() if name in state}
            cut = sum(mask.numel() - int(mask.sum()) for mask in masks.values())
        params = architecture.cost(self.skeleton).params - cut
        weights = {name: tensor * masks[name] if name in masks else tensor for name, tensor in state.items()}
        return Derived(architecture, mixing, weights, masks, params, threshold)

    def fallen(self, architecture: Architecture, threshold: float | None = None) -> list[tuple[str, str]]:
        """Return the (edge, op) of an architecture that masks cut, the op's own or its edge's.

        Where that would leave a cell without a way to its output, its heaviest way stays, and a warning says so.

        Args:
            architecture: Of the space.
            threshold: Of the masks, another than the recipe's.
        """
        self._check_architecture(architecture)
        kept = self.kept(threshold)
        stays = {path: tuple(op for op in ops if op in kept[path]) for path, ops in architecture.choices}
        left = self.space.architecture(stays)
        if architecture.connected and not left.connected:
            score_EO = np.log([list(row.values()) for row in self.op_weights.values()])
            score_EO += np.log(list(self.edge_weights.values()))[:, None]
            score_EO[[[op not in architecture[path] for op in self.ops] for path in self.paths]] = -np.inf
            for path, op in heaviest_ways(self.space, self.ops, score_EO, left):
                stays[path] = (*stays[path], op)
            logger.warning("The masks cut every way through a cell; its heaviest way is kept.")
        return [(path, op) for path, ops in architecture.choices for op in ops if op not in stays[path]]

    def weight_masks(self, threshold: float | None = None) -> dict[str, Tensor]:
        """Return by the name of a parameter of the supernet ones where masks keep a weight, zeros where they cut it."""
        least = self.recipe.threshold if threshold is None else threshold
        with self._lock:
            return {name: (mask.detach() > least).to(mask.dtype) for name, mask in self._weight_masks.items()}

    def family(self, members: int = 8) -> list[Derived]:
        """Return networks of falling size: what survives at the recipe's threshold, and at higher ones.

        The thresholds are quantiles of the masks of ops, up to where a tenth of them would be left.

        Args:
            members: How many at most, at least 1; left out are those of equal size, and those without a way through a
                cell, unless it is the first.

        Raises:
            ValueError: Fewer than one is asked for.
        """
        if members < 1:
            raise ValueError(f"`members` must be at least 1 but got {members}.")
        shares = np.linspace(0, 0.9, members)[1:]
        thresholds = [self.recipe.threshold, *(float(t) for t in np.quantile(self._lowest_masks(), shares))]
        found: list[Derived] = []
        for threshold in sorted(t for t in thresholds if t >= self.recipe.threshold):
            if found and not self.space.architecture(self.kept(threshold)).connected:
                break
            derived = self.derive(threshold)
            if not found or derived.params < found[-1].params:
                found.append(derived)
        return found

    def compact(self, derived: Derived | None = None) -> MixedNetwork:
        """Return the network that holds only what survives: the masked supernet's outputs, without what masks cut.

        Its batch-normalisation statistics are those of the scoring batch, where there is one.
        """
        derived = derived or self.derive()
        network = derived.build(self.skeleton).to(self.device)
        if self._scoring is not None:
            recompute_statistics(network, self._scoring.images)
        return network

    def accuracy(self, derived: Derived | None = None) -> float:
        """Return the accuracy of `compact(derived)` before any fine-tuning, on the scoring batch, a fraction.

        Raises:
            ValueError: Neither `fit` nor `attach` has seen data with a report split.
        """
        images, labels = self._scoring_batch()
        network = self.compact(derived).eval()
        with torch.no_grad(), autocast(images.device, self.recipe.precision):
            return float((network(images).argmax(1) == labels).double().mean())

    def inherited(self, architecture: Architecture) -> MixedNetwork | None:
        """Return the network to fine-tune where an architecture is what survives; None for all others.

        For `TrainObjective(start=hmnas.inherited)` and an enqueued trial of `derive().architecture`: so that the
        paper's fine-tuning (section 3.4) is a trial like any other.
        """
        derived = self.derive()
        return self.compact(derived) if derived.architecture == architecture else None

    # -- weights of edges and ops ---------------------------------------------------------------------------------

    def _edge_weights(self) -> Tensor:
        """Return the softmax of the edges' logits over their node, or their kind of cell; shape (E,)."""
        raised_E = (self._edge_logits_E - self._edge_logits_E.detach().max()).exp()
        sums = raised_E.new_zeros(len(self.paths)).index_add(0, self._groups_E, raised_E)
        return raised_E / sums[self._groups_E]

    def _mixing(self, masked: bool) -> dict[str, Tensor]:
        """Return what the supernet mixes the ops of every edge with (eq. 1 and 2).

        Masks multiply the normalised weights: a masked logit would keep its share of the softmax.
        """
        edges_E, ops_EO = self._edge_weights(), self._op_logits_EO.softmax(-1)
        if masked:
            edges_E, ops_EO = edges_E * self._binary(self._edge_masks_E), ops_EO * self._binary(self._op_masks_EO)
        mixed_EO = edges_E[:, None] * ops_EO
        width = len(self.supernet.names[self.paths[0]])
        mixed_EN = mixed_EO.new_zeros(len(self.paths), width).index_copy(1, self._columns, mixed_EO)
        return dict(zip(self.paths, mixed_EN.unbind(), strict=True))

    def _masked_weights(self) -> dict[str, Tensor]:
        weights = dict(self.supernet.named_parameters())
        return {name: weights[name].detach() * self._binary(mask) for name, mask in self._weight_masks.items()}

    def _binary(self, mask: Tensor) -> Tensor:
        """Return ones and zeros whose gradient goes straight through to the real mask (section 3.3)."""
        return (mask.detach() > self.recipe.threshold).to(mask.dtype) + (mask - mask.detach())

    # -- learning -------------------------------------------------------------------------------------------------

    def _begin(self, data: Data, budget: float, splits: Sequence[str]) -> None:
        for split in (WEIGHTS, CHOICES):
            if data.size([split]) == 0:
                raise ValueError(
                    f"`data` must have images in the split {split!r} but {data.name!r} has none; weights learn from "
                    "one split, ops and edges from the other."
                )
        super()._begin(data, budget, splits)
        if not self.mask_steps:
            return
        rate, _ = self._mask_learning_rates()
        travel = rate * self.mask_steps * (MASK_DECAY_AT + MASK_DECAY * (1 - MASK_DECAY_AT))
        if travel < self.recipe.mask_start - self.recipe.threshold:
            raise ValueError(
                f"`mask_learning_rate` must let a mask fall within the budget but {rate:.3g} moves one by at most "
                f"{travel:.3g} in {self.mask_steps} steps; raise it or the budget, or leave it None."
            )

    def _batches(self, data: Data, splits: Sequence[str], step: int, last: int) -> Iterator[Batch]:
        """Yield batches of the split for weights, then of all; and let ops and edges have theirs."""
        masks_from = self.total_steps - self.mask_steps
        for batch in super()._batches(data, [WEIGHTS], step, min(last, masks_from)):
            self._choice = None
            if self._lets_choices_learn(step):
                batch_size, seed = self.recipe.batch_size, self.recipe.seed
                epoch, start = divmod(step, max(1, data.size([CHOICES]) // batch_size))
                choices = data.batches([CHOICES], batch_size, seed=seed + 1, epoch=epoch, start=start)
                self._choice = next(iter(choices))
            step += 1
            yield batch
        if last > masks_from:
            self._choice = None
            yield from super()._batches(data, splits, max(0, step - masks_from), last - masks_from)

    def _lets_choices_learn(self, step: int) -> bool:
        """Tell whether ops and edges learn in a step: with a probability that falls from 1 to 0 along half a cosine.

        It begins after the warm-up; the paper gives no form but that it falls from 1 and may end at 0 (section 3.2).
        """
        progress = step / max(1, self.total_steps - self.mask_steps)
        if progress < self.recipe.warmup_fraction:
            return False
        since = (progress - self.recipe.warmup_fraction) / (1 - self.recipe.warmup_fraction)
        draw = np.random.default_rng([self.recipe.seed, step, 4]).random()
        return bool(draw < cosine(1.0, 0.0, since))

    def _train_step(self, images: Tensor, labels: Tensor) -> MaskRecord | None:
        if self.step < self.total_steps - self.mask_steps:
            finite, loss, scores = self._supernet_step(images, labels)
        else:
            finite, loss, scores = self._mask_step(images, labels)
        self.step += 1
        accuracy = (scores.detach().argmax(1) == labels).double().mean()
        one = torch.ones((), dtype=torch.float64, device=self.device)
        self._sums += torch.where(finite, torch.stack([one, loss.detach().double(), accuracy]), 0.0)
        self._made(finite)
        return self._record() if self._recording() else None

    def _supernet_step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        recipe = self.recipe
        rate = cosine(recipe.learning_rate, 0.0, self.step / max(1, self.total_steps - self.mask_steps))
        self._weights_optimizer.param_groups[0]["lr"] = rate
        if self._choice is not None:
            self._logit_step(*self._choice, images, labels, rate)
        self._weights_optimizer.zero_grad(set_to_none=True)
        loss, scores = self._loss(images, labels, {}, self._mixing(masked=False))
        loss.backward()
        self._op_logits_EO.grad = self._edge_logits_E.grad = None
        parameters = [p for p in self.supernet.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, recipe.clip_norm or math.inf)
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        step_where(finite, self._weights_optimizer)
        return finite, loss, scores

    def _loss(
        self, images: Tensor, labels: Tensor, weights: Mapping[str, Tensor], mixing: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        with autocast(images.device, self.recipe.precision):
            scores = functional_call(self.supernet, dict(weights), (images, mixing))
            return F.cross_entropy(scores, labels), scores

    def _logit_step(
        self, images: Tensor, labels: Tensor, train_images: Tensor, train_labels: Tensor, rate: float
    ) -> None:
        """Move ops and edges by the loss on the split for choices; the batch of the weights serves the second order."""
        logits = [self._op_logits_EO, self._edge_logits_E]
        if self.recipe.second_order:
            gradients = self._looking_ahead(images, labels, train_images, train_labels, rate)
        else:
            loss, _ = self._loss(images, labels, {}, self._mixing(masked=False))
            gradients = list(torch.autograd.grad(loss, logits))
        self._logits_optimizer.param_groups[0]["lr"] = self._logit_learning_rate()
        for logit, gradient in zip(logits, gradients, strict=True):
            logit.grad = gradient
        step_where(torch.isfinite(nn.utils.get_total_norm(gradients)), self._logits_optimizer)
        self._op_logits_EO.grad = self._edge_logits_E.grad = None

    def _looking_ahead(
        self, images: Tensor, labels: Tensor, train_images: Tensor, train_labels: Tensor, rate: float
    ) -> list[Tensor]:
        """Return the logits' gradient at the weights after one step of them (Liu et al. 2019, eq. 7 and 8)."""
        logits = [self._op_logits_EO, self._edge_logits_E]
        weights = dict(self.supernet.named_parameters())

        def gradients(
            values: Mapping[str, Tensor], images: Tensor, labels: Tensor, wanted: Sequence[Tensor]
        ) -> list[Tensor]:
            loss, _ = self._loss(images, labels, values, self._mixing(masked=False))
            found = torch.autograd.grad(loss, wanted, allow_unused=True)
            return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]

        slope = gradients(weights, train_images, train_labels, list(weights.values()))
        decay = self.recipe.weight_decay
        ahead = {
            name: (weight - rate * (g + decay * weight)).detach().requires_grad_()
            for (name, weight), g in zip(weights.items(), slope, strict=True)
        }
        of_logits_and_weights = gradients(ahead, images, labels, [*logits, *ahead.values()])
        direct, of_weights = of_logits_and_weights[:2], of_logits_and_weights[2:]
        size = DIFFERENCE / nn.utils.get_total_norm(of_weights).clamp_min(1e-12)
        sides = []
        for sign in (1, -1):
            moved = {n: (w + sign * size * g).detach() for (n, w), g in zip(weights.items(), of_weights, strict=True)}
            sides.append(gradients(moved, train_images, train_labels, logits))
        return [d - rate * (up - down) / (2 * size) for d, up, down in zip(direct, *sides, strict=True)]

    def _mask_step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        done = (self.step - (self.total_steps - self.mask_steps)) / self.mask_steps
        decay = 1.0 if done < MASK_DECAY_AT else MASK_DECAY
        for group, rate in zip(self._masks_optimizer.param_groups, self._mask_learning_rates(), strict=True):
            group["lr"] = rate * decay
        masks = [self._op_masks_EO, self._edge_masks_E, *self._weight_masks.values()]
        mixing = self._mixing(masked=True)
        loss, scores = self._loss(images, labels, self._masked_weights(), mixing)
        gradients = torch.autograd.grad(loss, masks, allow_unused=True)
        for mask, gradient in zip(masks, gradients, strict=True):
            mask.grad = gradient
        found = [gradient for gradient in gradients if gradient is not None]
        finite = torch.isfinite(loss) & torch.isfinite(nn.utils.get_total_norm(found))
        step_where(finite, self._masks_optimizer)
        self._masks_optimizer.zero_grad(set_to_none=True)
        return finite, loss, scores

    def _logit_learning_rate(self) -> float:
        if self.recipe.logit_learning_rate is not None:
            return self.recipe.logit_learning_rate
        steps = max(1.0, (1 - self.recipe.warmup_fraction) * (self.total_steps - self.mask_steps))
        return min(HIGHEST_LOGIT_RATE, PAPER_LOGIT_RATE * max(1.0, PAPER_LOGIT_STEPS / steps))

    def _mask_learning_rates(self) -> tuple[float, float]:
        """Return the rates of the masks of ops and edges, and of weights.

        Fewer steps than the paper's are made up for: ops and edges, whose gradients have a direction, get as far (the
        rate goes with 1 / steps); weights, whose gradients are mostly noise, spread as wide (with 1 / sqrt(steps)).
        """
        if self.recipe.mask_learning_rate is not None:
            return self.recipe.mask_learning_rate, WEIGHT_MASKS_FASTER * self.recipe.mask_learning_rate
        rate = PAPER_MASK_RATE * (self.recipe.mask_start - self.recipe.threshold) / PAPER_DISTANCE
        shorter = max(1.0, PAPER_MASK_STEPS / max(1, self.mask_steps))
        return rate * shorter, WEIGHT_MASKS_FASTER * rate * math.sqrt(shorter)

    def _record(self) -> MaskRecord:
        edges_E, ops_EO = self._kept(None)
        kept = sum(int((mask.detach() > self.recipe.threshold).sum()) for mask in self._weight_masks.values())
        total = sum(mask.numel() for mask in self._weight_masks.values())
        metrics = {
            "edges": float((edges_E & ops_EO.any(1)).mean()),
            "ops": float((ops_EO & edges_E[:, None]).mean()),
            "weights": kept / max(1, total),
        }
        steps, loss, accuracy = self._sums.tolist()
        if steps:
            metrics |= {"loss": loss / steps, "accuracy": accuracy / steps}
        self._sums.zero_()
        record = MaskRecord(self.step, metrics, np.array(list(self.edge_weights.values())))
        self.records.append(record)
        return record

    # -- moving and checkpoints -----------------------------------------------------------------------------------

    def _make_optimizers(self) -> None:
        recipe = self.recipe
        weights, logits = list(self.supernet.parameters()), [self._op_logits_EO, self._edge_logits_E]
        by_gpu = fused(weights)
        self._weights_optimizer: torch.optim.Optimizer = torch.optim.SGD(
            weights, recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay, fused=by_gpu
        )
        self._logits_optimizer: torch.optim.Optimizer = torch.optim.Adam(
            logits, PAPER_LOGIT_RATE, weight_decay=recipe.logit_weight_decay, fused=by_gpu
        )
        groups = [{"params": [self._op_masks_EO, self._edge_masks_E]}, {"params": list(self._weight_masks.values())}]
        self._masks_optimizer: torch.optim.Optimizer = torch.optim.Adam(groups, PAPER_MASK_RATE, fused=by_gpu)

    @property
    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizers = (self._weights_optimizer, self._logits_optimizer, self._masks_optimizer)
        return dict(zip(("weights/", "logits/", "masks/"), optimizers, strict=True))

    @property
    def _learned(self) -> dict[str, Tensor]:
        """What is learned besides the supernet's weights."""
        return {
            "op_logits": self._op_logits_EO.data,
            "edge_logits": self._edge_logits_E.data,
            "op_masks": self._op_masks_EO.data,
            "edge_masks": self._edge_masks_E.data,
            **{f"weight_masks/{name}": mask.data for name, mask in self._weight_masks.items()},
        }

    def _move(self, device: torch.device) -> None:
        states = {name: optimizer_tensors(optimizer) for name, optimizer in self._optimizers.items()}
        self.supernet.to(device)
        learned = (self._op_logits_EO, self._edge_logits_E, self._op_masks_EO, self._edge_masks_E)
        for parameter in (*learned, *self._weight_masks.values()):
            parameter.data = parameter.data.to(device)
        self._groups_E, self._columns = self._groups_E.to(device), self._columns.to(device)
        self._sums = self._sums.to(device)
        self._make_optimizers()  # after a move the old ones hold other tensors than we do
        for name, optimizer in self._optimizers.items():
            load_optimizer_tensors(optimizer, states[name])

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {**prefixed("supernet/", self.supernet.state_dict()), **prefixed("learned/", self._learned)}
        for name, optimizer in self._optimizers.items():
            tensors |= prefixed(f"optimizers/{name}", optimizer_tensors(optimizer))
        if self.records:
            tensors["edge_weights"] = torch.from_numpy(np.stack([record.edge_weights for record in self.records]))
        return {**tensors, "sums": self._sums}

    def _progress(self) -> dict[str, Any]:
        return {"records": [[record.step, record.metrics] for record in self.records]}

    def _restore(self, tensors: dict[str, Tensor], progress: Mapping[str, Any]) -> None:
        self.supernet.load_state_dict(without_prefix("supernet/", tensors))
        for name, tensor in without_prefix("learned/", tensors).items():
            self._learned[name].copy_(tensor)
        for name, optimizer in self._optimizers.items():
            load_optimizer_tensors(optimizer, without_prefix(f"optimizers/{name}", tensors))
        self._sums.copy_(tensors["sums"])
        described = progress["records"]
        rows = list(tensors["edge_weights"].cpu().numpy()) if described else []
        self.records = [MaskRecord(s, m, row) for (s, m), row in zip(described, rows, strict=True)]


def heaviest_ways(
    space: CellSpace, ops: Sequence[str], score_EO: NDArray[np.float64], architecture: Architecture
) -> list[tuple[str, str]]:
    """Return the op of every edge on the way of the largest sum of scores, of the kinds of cells that have no way.

    Args:
        space: Of the architecture.
        ops: Names of the columns.
        score_EO: Score of every op of every edge, larger is better.
        architecture: What there is.
    """
    best_E = score_EO.max(axis=1)
    ways: list[tuple[str, str]] = []
    for number, kind in enumerate(space.kinds):
        if architecture.cells.outputs[number] not in architecture.cells.live:
            way = cheapest_way(space, kind, -best_E)
            ways += [(space.paths[edge], ops[int(score_EO[edge].argmax())]) for edge in way]
    return ways
