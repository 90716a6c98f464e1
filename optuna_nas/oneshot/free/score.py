"""Scores that cost no training, and sums of scores by ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from optuna_nas.data.splits import WEIGHTS
from optuna_nas.oneshot.free.indicators import INDICATORS, Untrained
from optuna_nas.oneshot.random_architectures import connected_architectures
from optuna_nas.space import Architecture, ModelSpace
from optuna_nas.training.task import ImageClassification

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from optuna_nas.data.splits import Data
    from optuna_nas.oneshot.base import Score
    from optuna_nas.space import Space
    from optuna_nas.training.task import Task

DEFAULT_INDICATORS = ("multiply_adds", "jacobian", "flow", "expressivity", "progressivity")


class ByRanks(ABC):
    """Base class of scores that are a weighted mean of parts, each by ranks among random reference architectures.

    Args:
        space: Search space, to draw the reference architectures from.
        weights: Weights of the parts, at least 0.
        reference: Number of reference architectures, at least 2.
        seed: Seed of the reference architectures.

    Raises:
        ValueError: An argument is out of range.
    """

    meaning: ClassVar[str] = "share of random architectures that it beats"
    """What a score is, for the axes of plots."""

    def __init__(self, space: Space, weights: Sequence[float], reference: int, seed: int) -> None:
        given = [float(weight) for weight in weights]
        if not given or min(given) < 0 or not sum(given) > 0:
            raise ValueError(f"`weights` must be numbers from 0 and not all 0 but are {given}.")
        if reference < 2:
            raise ValueError(f"`reference` must be at least 2 but got {reference}; 100 suits most spaces.")
        self.space, self._weights = space, np.array(given) / sum(given)
        self._n_reference, self._seed = reference, seed
        self._reference_PR: NDArray[np.float64] | None = None

    @abstractmethod
    def parts(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return the parts of connected architectures, larger is better, shape (parts, N)."""

    def reference_architectures(self) -> list[Architecture]:
        """Return the random connected architectures that others are compared with."""
        random, distinct = np.random.default_rng([self._seed, 5]), dict[Architecture, None]()
        for architecture in connected_architectures(self.space, random, self._n_reference):
            distinct[architecture] = None
            if len(distinct) == self._n_reference:
                break
        return list(distinct)

    def __call__(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return scores in [0, 1], shape (N,); 0 for an architecture that does not reach its output."""
        if self._reference_PR is None:
            self._reference_PR = np.sort(self.parts(self.reference_architectures()), axis=1)
        scores = np.zeros(len(architectures))
        able = [i for i, architecture in enumerate(architectures) if architecture.connected]
        if able:
            values_PN = self.parts([architectures[i] for i in able])
            shares_PN = [beaten(values, row) for values, row in zip(values_PN, self._reference_PR, strict=True)]
            scores[able] = self._weights @ np.stack(shares_PN)
        return scores


class RankScore(ByRanks):
    """Weighted mean of several scores, each as the share of random reference architectures that it beats.

    In this form scores of any scale add up, and the score of an architecture depends on no other that is asked for.

    Args:
        space: Search space, to draw the reference architectures from.
        scores: Functions that score architectures; larger is better.
        weights: Weights of the scores, at least 0; equal by default.
        reference: Number of reference architectures, at least 2.
        seed: Seed of the reference architectures.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import numpy as np
        >>> from optuna_nas import nasbench201_space
        >>> from optuna_nas.oneshot import RankScore
        >>> def n_convolutions(architectures):
        ...     return np.array([float(str(architecture).count("conv")) for architecture in architectures])
        >>> def n_skips(architectures):
        ...     return np.array([float(str(architecture).count("skip")) for architecture in architectures])
        >>> space = nasbench201_space()
        >>> score = RankScore(space, [n_convolutions, n_skips], weights=[2, 1], reference=50)
        >>> best = space.architecture(dict.fromkeys(space.paths, ["nor_conv_3x3"]))
        >>> bool(0.6 < score([best])[0] < 1)
        True
    """

    def __init__(
        self,
        space: Space,
        scores: Sequence[Score],
        weights: Sequence[float] | None = None,
        *,
        reference: int = 100,
        seed: int = 0,
    ) -> None:
        self.scores = tuple(scores)
        weights = [1.0] * len(self.scores) if weights is None else weights
        if len(weights) != len(self.scores):
            raise ValueError(f"`weights` must be one for each of {len(self.scores)} scores but are {list(weights)}.")
        super().__init__(space, weights, reference, seed)

    def parts(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        return np.stack([np.asarray(score(architectures), dtype=np.float64) for score in self.scores])


def beaten(values_N: NDArray[np.float64], sorted_R: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of reference values that values beat, in [0, 1]; equal ones count a half."""
    low, high = (np.searchsorted(sorted_R, values_N, side) for side in ("left", "right"))
    return np.asarray((low + high) / 2 / len(sorted_R))


class FreeScore(ByRanks):
    """Score that costs no training: indicators of the untrained network, by ranks.

    Use it as `score` of `GHNSampler` and `GHNPruner`, before the score of a model (`GHNSampler(prefilter=...)`), as
    a prior (`SNAS(prior=...)`), or together with other scores in a `RankScore`. Some 0.03 CPU seconds an architecture
    for small images. It finds the better tenth of a space, not the best architecture, and on some spaces it says
    nothing: `BENCHMARKS.md` has what was measured.

    Args:
        space: Space whose architectures can be built.
        data: Data, of which it reads the first `examples` training examples.
        task: Task that calls the network; image classification by default.
        indicators: Names of indicators, or weights by name. `multiply_adds`, `params`; `codes` (NASWOT, Mellor et al.
            2021), `jacobian` (Mellor et al. 2020), `flow` (Tanaka et al. 2020), `patterns` (SWAP, Peng et al. 2024),
            `responses` (WRCor, Jing et al. 2025), `expressivity`, `progressivity`, `trainability` (AZ-NAS, Lee and Ham
            2024).
        examples: Number of training examples, at least 2.
        reference: Number of random architectures that an indicator is compared with, at least 2.
        seed: Seed of initial weights, examples and reference architectures.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> from optuna_nas import FreeScore, NetworkSpace, digits, nasbench201_skeleton, nasbench201_space
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, (1, 8, 8), 10))
        >>> score = FreeScore(space, digits(), reference=10)
        >>> cells = [space.architecture({"cell_0_3": [op]}) for op in ("avg_pool_3x3", "nor_conv_3x3")]
        >>> pooled, convolved = score(cells)
        >>> bool(pooled < convolved)
        True
    """

    def __init__(
        self,
        space: ModelSpace,
        data: Data,
        task: Task | None = None,
        *,
        indicators: Sequence[str] | Mapping[str, float] = DEFAULT_INDICATORS,
        examples: int = 32,
        reference: int = 100,
        seed: int = 0,
    ) -> None:
        if not isinstance(space, ModelSpace):
            raise ValueError(
                f"`space` must be one whose architectures can be built but is a {type(space).__name__}; use "
                "`NetworkSpace(space, skeleton)`."
            )
        weights = indicators if isinstance(indicators, Mapping) else dict.fromkeys(indicators, 1.0)
        for name in weights:
            if name not in INDICATORS:
                raise ValueError(f"`indicators` must be among {tuple(INDICATORS)} but got {name!r}.")
        if examples < 2:
            raise ValueError(f"`examples` must be at least 2, which are compared, but got {examples}.")
        space.check_data(data)
        self.indicators = tuple(weights)
        self.data, self.task = data, task or ImageClassification()
        self._batch = next(iter(data.batches((WEIGHTS,), min(examples, data.size([WEIGHTS])), seed=seed, epoch=0)))
        super().__init__(space, list(weights.values()), reference, seed)

    def parts(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        columns = [self._indicators(architecture) for architecture in architectures]
        return np.array(columns, dtype=np.float64).reshape(-1, len(self.indicators)).T

    def _indicators(self, architecture: Architecture) -> list[float]:
        network = Untrained(self.space.adopt(architecture), self._batch, self.task, self._seed)
        return [INDICATORS[name](network) for name in self.indicators]
