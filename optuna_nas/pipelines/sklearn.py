"""scikit-learn: a search as an estimator, whose `fit` searches, trains the winner on all data, and predicts with it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from optuna.storages import InMemoryStorage
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from optuna_nas.data import TensorData
from optuna_nas.data.splits import CHOICES, REPORT, WEIGHTS
from optuna_nas.modules import ModuleSpace, choose, choose_depth, choose_op
from optuna_nas.networks import NetworkSpace
from optuna_nas.search import Search
from optuna_nas.search.results import architecture_of
from optuna_nas.space import ModelSpace, nasbench201_skeleton, nasbench201_space
from optuna_nas.space.reading import checked_integer, named_file, read_json_file
from optuna_nas.storage.attributes import hash_of
from optuna_nas.training import ImageClassification, Recipe, Regression, train
from optuna_nas.training.disk import whole_file
from optuna_nas.training.rules import between, checked

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from optuna_nas.training.task import Task

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
MIN_EXAMPLES = 8
"""Examples without which nothing can be split off for validation."""
PREDICTED_AT_ONCE = 1024
"""Examples of a batch of predictions."""
SEED_FILE = "seed.json"
"""File in the folder of a study that keeps a drawn seed."""
MAX_SEED = 2**31 - 2


class Perceptron(nn.Module):
    """Network for tables: its width, depth, activation, norm and dropout are choices.

    Args:
        n_features: Number of columns.
        n_outputs: Number of classes, or of values to predict.
    """

    def __init__(self, n_features: int, n_outputs: int) -> None:
        super().__init__()
        width = choose("width", [64, 32, 128])
        activation = ACTIVATIONS[choose("activation", ["relu", "gelu", "tanh"])]
        rate = choose("dropout", [0.0, 0.1, 0.3])
        self.stem = nn.Linear(n_features, width)
        self.norm = choose_op("norm", {"none": nn.Identity, "layer": lambda: nn.LayerNorm(width)})

        def block(number: int) -> nn.Module:
            return nn.Sequential(nn.Linear(width, width), activation(), nn.Dropout(rate))

        self.activation = activation()
        self.blocks = choose_depth("depth", block, 0, 3)
        self.head = nn.Linear(width, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores or values, shape (B, outputs)."""
        return self.head(self.blocks(self.activation(self.norm(self.stem(x)))))  # type: ignore[no-any-return]


class _Estimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What classifier and regressor have in common."""

    def __init__(
        self,
        space: ModelSpace | Callable[[tuple[int, ...], int], ModelSpace] | None = None,
        *,
        image_shape: tuple[int, int, int] | None = None,
        n_trials: int | None = 10,
        timeout: float | None = None,
        strategy: str = "auto",
        epochs: int = 20,
        batch_size: int = 32,
        learning_rate: float = 0.003,
        channels: int = 16,
        validation_fraction: float = 0.25,
        folder: str | Path | None = None,
        random_state: Any = None,
    ) -> None:
        self.space = space
        self.image_shape = image_shape
        self.n_trials = n_trials
        self.timeout = timeout
        self.strategy = strategy
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.channels = channels
        self.validation_fraction = validation_fraction
        self.folder = folder
        self.random_state = random_state

    def _search(self, x: NDArray[np.float32], y: NDArray[Any], n_outputs: int, task: Task) -> None:
        """Search, and train the best architecture on all examples."""
        if len(x) < MIN_EXAMPLES:
            raise ValueError(f"`X` must have at least {MIN_EXAMPLES} examples but has n_samples={len(x)}; add some.")
        if self.n_trials is not None:
            checked_integer("n_trials", self.n_trials, 1)
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"`timeout` must be a positive number of seconds but got {self.timeout}; None sets none.")
        drawn = int(check_random_state(self.random_state).randint(MAX_SEED + 1))
        axes = (0,) if x.ndim == 2 else (0, *range(2, x.ndim))
        self.mean_ = x.mean(axis=axes, keepdims=True)[0]
        deviation = x.std(axis=axes, keepdims=True)[0]
        self.scale_ = np.where(deviation > 0, deviation, 1).astype(np.float32)
        space = self._space(x.shape[1:], n_outputs)
        fractions = {"test": 0.0, "choices": 0.0, "report": self.validation_fraction}
        if self.strategy in ("hmnas",):  # whose ops and edges learn from examples of their own
            fractions["choices"] = 0.2
        scaled = ((x - self.mean_) / self.scale_).astype(np.float32)

        def made(seed: int, folder: Path) -> Search:
            data = TensorData.from_arrays(
                scaled, y, name="array", normalize=False, fractions=fractions, seed=seed % 1000
            )
            recipe = Recipe(
                epochs=self.epochs,
                batch_size=min(self.batch_size, max(2, len(x) // 4)),
                optimizer="adamw",
                learning_rate=self.learning_rate,
                seed=seed,
            )
            return Search(
                name="sklearn",
                space=space,
                data=data,
                recipe=recipe,
                task=task,
                strategy=self.strategy,
                trials=self.n_trials,
                seconds=self.timeout,
                storage=InMemoryStorage() if self.folder is None else None,
                tracking=None,
                pictures=False,
                folder=folder,
            )

        with TemporaryDirectory() as temporary:
            if self.folder is None:
                search = made(drawn, Path(temporary))
            else:
                search = made(*self._place(made(0, Path(self.folder)).setting(), drawn, Path(self.folder)))
            result = search.run()
        if result.best is None:
            raise ValueError("`n_trials` or `timeout` must leave room for one trial but none was completed; raise it.")
        self.n_trials_ = len(result.study.trials)
        self.best_params_ = {name: value for name, value in result.best.params.items() if name in space.options()}
        self.best_value_ = float(result.best.values[0])
        self.architecture_ = architecture_of(search, result.best)
        assert self.architecture_ is not None
        assert search.data is not None
        self.network_ = space.build(self.architecture_, seed=search.recipe.seed)
        whole = replace(search.recipe, epochs=int(result.best.params.get("epochs", self.epochs)))
        train(self.network_, search.data, whole, task, splits=(WEIGHTS, CHOICES, REPORT))
        self.network_.eval()

    def _place(self, setting: dict[str, Any], drawn: int, folder: Path) -> tuple[int, Path]:
        """Return seed and folder of the study of these data and settings, which an earlier `fit` may have begun.

        Args:
            setting: Setting of the search with seed 0.
            drawn: Seed of a new study.
            folder: Folder of all studies.
        """
        if (folder / "study.db").exists():  # of a version that kept one study in a folder
            return drawn, folder
        given = int(self.random_state) if isinstance(self.random_state, Integral) else None
        described = json.dumps([setting, self.strategy, given], sort_keys=True)
        folder /= f"fit-{hash_of(described):016x}"
        if given is not None:
            return drawn, folder
        note = folder / SEED_FILE
        with named_file("a note of optuna_nas", note):
            if not note.exists():
                folder.mkdir(parents=True, exist_ok=True)
                with whole_file(note) as file:
                    file.write_text(json.dumps({"seed": drawn}))
            return int(checked(read_json_file(note), {"seed": between(0, MAX_SEED, kind=int)})["seed"]), folder

    def _space(self, shape: tuple[int, ...], n_outputs: int) -> ModelSpace:
        """Return the space: the given one, what a function makes for these shapes, or a plain default."""
        if isinstance(self.space, ModelSpace):
            return self.space
        if self.space is not None:
            return self.space(shape, n_outputs)
        if len(shape) == 3:
            channels, height, width = shape
            skeleton = nasbench201_skeleton(1, self.channels, (channels, height, width), n_outputs)
            return NetworkSpace(nasbench201_space(), skeleton)
        make = partial(Perceptron, shape[0], n_outputs)
        example = torch.zeros(1, shape[0], dtype=torch.float32, device="cpu")
        return ModuleSpace(make, example, f"perceptron_{shape[0]}_{n_outputs}")

    def _shaped(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return rows as images where an image shape is given."""
        if self.image_shape is None:
            return x
        size = int(np.prod(self.image_shape))
        if x.reshape(len(x), -1).shape[1] != size:
            raise ValueError(
                f"`image_shape` must have as many pixels as a row of X has columns but {self.image_shape} has {size} "
                f"and X has {x.reshape(len(x), -1).shape[1]}."
            )
        return x.reshape(len(x), *self.image_shape)

    def _validated(self, x: ArrayLike, reset: bool) -> NDArray[np.float32]:
        array = validate_data(self, x, dtype=np.float32, allow_nd=True, reset=reset)
        return self._shaped(array)

    def _outputs(self, x: ArrayLike) -> NDArray[np.float32]:
        """Return what the network returns, shape (N, outputs)."""
        check_is_fitted(self)
        array = self._validated(x, reset=False)
        scaled = torch.from_numpy(((array - self.mean_) / self.scale_).astype(np.float32))
        device = next(self.network_.parameters()).device
        with torch.no_grad():
            parts = [self.network_(part.to(device)).float().cpu() for part in scaled.split(PREDICTED_AT_ONCE)]
        return torch.cat(parts).numpy()


class NASClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """Classifier whose architecture is searched in `fit`, for tables and images.

    `fit` splits off examples for validation, searches, and trains the best architecture on all of them. Columns (or
    channels) are scaled to mean 0 and standard deviation 1; predictions do the same.

    Args:
        space: Space of networks with one output a class; or a function of the shape of an example and the number of
            classes that returns one. None: a perceptron for tables, NAS-Bench-201's cells for images.
        image_shape: Shape (channels, height, width) of the image in a row; None for tables, and for arrays that have
            the shape of images.
        n_trials: Number of trials; None for as many as fit in `timeout`.
        timeout: Seconds of all trials; None for no limit.
        strategy: One of `optuna_nas.search.strategy.STRATEGIES`.
        epochs: Epochs of a trial.
        batch_size: Examples a step; at most a quarter of the data.
        learning_rate: Learning rate of AdamW.
        channels: Channels of the first cell of the default space for images.
        validation_fraction: Fraction of the examples by which architectures are chosen.
        folder: Folder in which every training set and setting has a study of its own, `fit-...`, which a later `fit`
            resumes, also with other `n_trials` and `timeout`; None for a temporary one.
        random_state: Seed of splits, weights and proposals. Unless it is an integer, one is drawn, and kept in the
            study's folder.

    Attributes:
        classes_: Labels.
        network_: Trained network, which returns a score a class for scaled inputs.
        architecture_: Its architecture.
        best_params_: Its choices.
        best_value_: Validation loss of the best trial.
        n_trials_: Number of trials.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from optuna_nas.pipelines import NASClassifier
        >>> x, y = load_iris(return_X_y=True)
        >>> NASClassifier(n_trials=2, epochs=20, random_state=0).fit(x, y).score(x, y) > 0.8
        True
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Search and train.

        Args:
            X: Shape (N, features), or (N, C, H, W).
            y: Labels of any type, shape (N,).

        Raises:
            ValueError: There are fewer than two classes, or too few examples of one.
        """
        x, y = validate_data(self, X, y, dtype=np.float32, allow_nd=True)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"`y` must have at least two classes but has 1 class: {self.classes_.tolist()[0]!r}.")
        self._search(self._shaped(x), numbers.astype(np.int64), len(self.classes_), ImageClassification())
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of every class, shape (N, classes)."""
        scores = self._outputs(X).astype(np.float64)
        raised = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
        return probabilities

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most likely label of every example, shape (N,)."""
        chosen = self._outputs(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[chosen]
        return labels


class NASRegressor(RegressorMixin, _Estimator):  # type: ignore[misc]
    """Regressor whose architecture is searched in `fit`; see `NASClassifier` for its arguments and attributes.

    Targets are scaled to mean 0 and standard deviation 1 for the training, and predictions back.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> from optuna_nas.pipelines import NASRegressor
        >>> x, y = load_diabetes(return_X_y=True)
        >>> NASRegressor(n_trials=2, epochs=20, random_state=0).fit(x, y).score(x, y) > 0.3
        True
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Search and train.

        Args:
            X: Shape (N, features), or (N, C, H, W).
            y: Values to predict, shape (N,) or (N, outputs).
        """
        x, y = validate_data(self, X, y, dtype=np.float32, allow_nd=True, multi_output=True, y_numeric=True)
        targets = np.asarray(y, dtype=np.float32)
        self._is_flat = targets.ndim == 1
        targets = targets.reshape(len(targets), -1)
        self.target_mean_, deviation = targets.mean(axis=0), targets.std(axis=0)
        self.target_scale_ = np.where(deviation > 0, deviation, 1)
        scaled = ((targets - self.target_mean_) / self.target_scale_).astype(np.float32)
        self._search(self._shaped(x), scaled, scaled.shape[1], Regression())
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return predictions, shape (N,) or (N, outputs) as those that were learned from."""
        outputs = self._outputs(X).astype(np.float64)
        values: NDArray[np.float64] = outputs.reshape(len(outputs), -1) * self.target_scale_ + self.target_mean_
        return values[:, 0] if self._is_flat else values
