"""Scores of a one-shot model on the whole report split, instead of its scoring batch."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from optuna_nas.data.batches import batch_length, to_device
from optuna_nas.data.splits import REPORT, Data

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from optuna_nas.oneshot.base import OneShotModel
    from optuna_nas.space import Architecture


class SplitScore:
    """Score architectures by a one-shot model on all examples of the report split, as the GHN paper does.

    The split is read in batches of about `scoring_images` examples, each with statistics of its own; the score is the
    mean over the examples. It costs as many times the model's own score as there are batches.

    Args:
        model: Model, which may learn later.
        data: Data with at least 2 examples in the report split.

    Raises:
        ValueError: The report split is too small.

    Example:
        >>> import numpy as np
        >>> from optuna_nas import GHN, GHNRecipe, NetworkSpace, SplitScore, digits
        >>> from optuna_nas import nasbench201_skeleton, nasbench201_space
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, (1, 8, 8), 10))
        >>> ghn = GHN(space, GHNRecipe(phases=1, scoring_images=64))
        >>> score = SplitScore(ghn, digits())
        >>> score.batch_size, score([space.sample(np.random.default_rng(0))]).shape
        (60, (1,))
    """

    def __init__(self, model: OneShotModel[Any], data: Data) -> None:
        self.model, self.data = model, data
        n_examples = data.size([REPORT])
        if n_examples < 2:
            raise ValueError(
                f"`data` must have at least 2 examples in the report split to score on but has {n_examples}; split it "
                "otherwise."
            )
        size = ceil(n_examples / ceil(n_examples / model.recipe.scoring_images))
        while n_examples % size == 1:  # one example alone has no statistics
            size += 1
        self.batch_size = size

    def __call__(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return scores, larger is better, shape (len(architectures),)."""
        adopted = list(map(self.model.check_architecture, architectures))
        totals, n_examples = np.zeros(len(adopted)), 0
        for batch in self.data.batches([REPORT], self.batch_size):
            length = batch_length(batch)
            totals += length * self.model.scores_on(to_device(batch, self.model.device), adopted)
            n_examples += length
        return totals / n_examples
