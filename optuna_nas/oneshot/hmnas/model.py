"""HM-NAS: a supernet whose edges, ops and weights learn masks; what survives is fine-tuned, not trained again.

Yan, Fang, Zhang, Fang, Luo, Wang and Zeng, ICCV workshops 2019, arXiv 1909.00122; equation and section numbers are the
paper's. There is no public code; what the paper leaves open is said where it is decided.

E edges (paths of the space), O ops of an edge (`none` is not among them), B images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from optuna_nas.oneshot.hmnas import derived as surviving
from optuna_nas.oneshot.hmnas.learning import MaskedSupernet
from optuna_nas.space import CellSpace
from optuna_nas.training.device import autocast

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from optuna_nas.oneshot.hmnas.derived import Derived, Survival
    from optuna_nas.space import Architecture


class HMNAS(MaskedSupernet):
    """A supernet with a weight for every edge and op, and masks on edges, ops and weights.

    `fit` trains the supernet first (bilevel: weights on the split `weights`, edges and ops on `choices`), then the
    masks on both splits, all else frozen. Its `budget` counts epochs as the paper does: passes over the split `weights`
    while the supernet learns, over both splits while masks do; `budget=120` is 100 and 20 of them. No penalty asks for
    zeros, unless `sparsity_weight` does: a mask falls where the loss prefers it.

    Args:
        space: Cells with ops on edges, in a skeleton that is usually small and has `affine=False`; `none` is left out,
            since masks do its work. Or a `ModuleSpace` with `choose_ops` or `choose_inputs`, which are masked;
            `choose_op` and `choose_depth` are weighed and decided by the largest weight once masks learn, values are
            the largest.
        recipe: How to learn.
        task: Loss and metric; image classification by default.

    Raises:
        ValueError: The space is of blocks, or has no choice of several.

    Example:
        >>> from optuna_nas import HMNAS, NetworkSpace, Skeleton, hmnas_space
        >>> space = NetworkSpace(hmnas_space(), Skeleton(("normal", "reduction"), 4, (1, 8, 8), 10, affine=False))
        >>> hmnas = HMNAS(space)
        >>> hmnas.survival(space.full_architecture()).share  # before the fit, masks keep everything
        1.0
    """

    name = "HMNAS"

    # -- what was learned -----------------------------------------------------------------------------------------

    @property
    def edge_weights(self) -> dict[str, float]:
        """Normalised weight of every edge, masks aside; they sum to one over what `edge_softmax` says."""
        with self.lock:
            return surviving.weights_by_name(self.masks)[0]

    @property
    def op_weights(self) -> dict[str, dict[str, float]]:
        """Normalised weight of every op of every edge, masks aside; they sum to one over an edge (eq. 1)."""
        with self.lock:
            return surviving.weights_by_name(self.masks)[1]

    def predict(self, architecture: Architecture, inputs: Any) -> Any:
        """Return the outputs of an architecture with inherited weights, masked once masks learn.

        It is the supernet without the other ops, at the weights that its own have there, by the statistics of the
        batch.
        """
        masked = self.step >= self.supernet_steps
        mixing = self.masks.only(dict(architecture.choices), self.masks.mixing(masked))
        return self.outputs(inputs, self.masks.masked_weights() if masked else {}, mixing)

    # -- what survives, of an architecture ------------------------------------------------------------------------

    def kept(self, threshold: float | None = None) -> dict[str, tuple[str, ...]]:
        """Return the ops that masks keep on every edge; none where the edge's own mask fell.

        Args:
            threshold: Another than the recipe's, for a family of smaller and larger networks.
        """
        with self.lock:
            return surviving.kept_ops(self.masks, threshold)

    def survival(self, architecture: Architecture) -> Survival:
        """Return what the masks keep of an architecture, see `survivals`."""
        return self.survivals([architecture])[0]

    def survivals(self, architectures: Sequence[Architecture]) -> list[Survival]:
        """Return what the masks keep of architectures; all zeros of one that does not reach its output.

        The paper has no rule for architectures; this package takes what an architecture has in the supernet, by weight,
        and how much of that the masks leave.
        """
        self._check(*architectures)
        with self.lock:
            return surviving.survivals(self.masks, architectures)

    def endurance(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return how long architectures survive while the threshold rises over all masks, shape (N,), in [0, 1].

        `mean over edges e of mean over ops o kept at e of rank(min(mask_o, mask_e)) / (number of masks)`; an edge
        without an op counts 0. Where masks cut little, survival at the one threshold of the recipe is the same for
        nearly all; this is not. The weights of edges and ops are left out: on cells that were trained, they made the
        ranking worse than chance (`BENCHMARKS.md`).
        """
        self._check(*architectures)
        with self.lock:
            return surviving.endurance(self.masks, architectures)

    def weakest(self, architecture: Architecture) -> list[tuple[str, str]]:
        """Return the (edge, op) of an architecture, those first whose masks, or their edge's, are the lowest."""
        self._check(architecture)
        with self.lock:
            return surviving.weakest(self.masks, architecture)

    def cut(self, architecture: Architecture) -> tuple[list[str], list[tuple[str, str]]]:
        """Return the edges of an architecture whose masks fell, and its (edge, op) whose own masks did."""
        self._check(architecture)
        with self.lock:
            return surviving.cut(self.masks, architecture)

    def fallen(self, architecture: Architecture, threshold: float | None = None) -> list[tuple[str, str]]:
        """Return the (edge, op) of an architecture that masks cut, the op's own or its edge's.

        Where that would leave a cell without a way to its output, its heaviest way stays, and a warning says so.

        Args:
            architecture: An architecture of the space.
            threshold: Threshold of the masks, another than the recipe's.
        """
        self._check(architecture)
        with self.lock:
            return surviving.fallen(self.space, self.masks, architecture, threshold)

    def weight_masks(self, threshold: float | None = None) -> dict[str, Tensor]:
        """Return by the name of a parameter of the supernet ones where masks keep a weight, zeros where they cut it."""
        with self.lock:
            return self.masks.kept_weights(threshold)

    def _check(self, *architectures: Architecture) -> None:
        for architecture in architectures:
            self.check_architecture(architecture)

    # -- what survives, of the supernet ---------------------------------------------------------------------------

    def derive(self, threshold: float | None = None) -> Derived:
        """Return what survives, ready to be built and fine-tuned (section 3.4).

        Where masks leave a cell without a way to its output, its heaviest way is kept, and a warning says so.

        Args:
            threshold: Threshold of the masks of edges, ops and weights, another than the recipe's; see `family`.
        """
        threshold = self.recipe.threshold if threshold is None else threshold
        with self.lock:
            return surviving.derive(self.space, self.supernet, self.masks, threshold)

    def family(self, members: int = 8) -> list[Derived]:
        """Return networks of falling size: what survives at the recipe's threshold, and at higher ones.

        The thresholds are quantiles of the masks of ops, up to where a tenth of them would be left.

        Args:
            members: Largest number of networks, at least 1; left out are those of equal size, and those without a way
                through a cell, unless it is the first.

        Raises:
            ValueError: Fewer than one is asked for.
        """
        if members < 1:
            raise ValueError(f"`members` must be at least 1 but got {members}.")
        with self.lock:
            lowest = self.masks.lowest()[self.masks.valid_EO]
        shares = np.linspace(0, 0.9, members)[1:]
        thresholds = [self.recipe.threshold, *(float(t) for t in np.quantile(lowest, shares))]
        networks: list[Derived] = []
        for threshold in sorted(t for t in thresholds if t >= self.recipe.threshold):
            if networks and not self._connects(self.kept(threshold)):
                break
            derived = self.derive(threshold)
            if not networks or derived.params < networks[-1].params:
                networks.append(derived)
        return networks

    def _connects(self, kept: Mapping[str, tuple[str, ...]]) -> bool:
        """Return whether what masks keep reaches the output; of a module, whether every choice keeps something."""
        if isinstance(self.space.core, CellSpace):
            return self.space.architecture(kept).connected
        return all(kept.values())

    def compact(self, derived: Derived | None = None) -> nn.Module:
        """Return the network that holds only what survives: the masked supernet's outputs, without what masks cut.

        Its batch-normalisation statistics are those of the scoring batch, where there is one.
        """
        derived = derived or self.derive()
        network = derived.build().to(self.device)
        if self._scoring is not None:
            self.settle(network)
        return network

    def metric_of(self, derived: Derived | None = None) -> float:
        """Return the task's metric of `compact(derived)` before any fine-tuning, on the scoring batch.

        Raises:
            ValueError: Neither `fit` nor `attach` has seen data with a report split.
        """
        batch = self.scoring_batch()
        network = self.compact(derived).eval()
        with torch.no_grad(), autocast(self.device, self.recipe.precision):
            return self.task.evaluate(network, [batch])

    def inherited(self, architecture: Architecture) -> nn.Module | None:
        """Return the network to fine-tune where an architecture is what survives; None for all others.

        For `TrainObjective(initial_weights=hmnas.inherited)` and an enqueued trial of `derive().architecture`: so that
        the paper's fine-tuning (section 3.4) is a trial like any other.
        """
        derived = self.derive()
        return self.compact(derived) if derived.architecture == self.space.adopt(architecture) else None
