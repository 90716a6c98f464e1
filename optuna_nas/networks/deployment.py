"""What a trained network needs to be used on raw inputs: preprocessing before it, labels of its outputs after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from optuna_nas.data.preprocessing import DTYPES, Preprocessing
from optuna_nas.space.reading import MAX_SIZE, checked_integer, reading
from optuna_nas.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    from optuna_nas.data.splits import Data
    from optuna_nas.training.task import Task

PREDICTED_AT_ONCE = 256
"""Number of inputs of a batch of predictions."""


@dataclass(frozen=True, eq=False)
class Deployment:
    """What a trained network needs to be used on raw inputs. It is kept in the network's file and in every export.

    Args:
        preprocessing: How raw inputs become inputs of the network; None if the data do not tell, and inputs are taken
            as they are.
        classes: Label of every class, where outputs are class scores: names, or numbers from 0; otherwise empty.
        task: Description of the task, as JSON values.
        version: Version of optuna_nas that trained the network.

    Example:
        >>> from optuna_nas import ImageClassification, digits
        >>> from optuna_nas.networks.deployment import Deployment
        >>> Deployment.of(digits(), ImageClassification()).classes
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    """

    preprocessing: Preprocessing | None
    classes: tuple[str | int, ...]
    task: Mapping[str, Any]
    version: str

    @staticmethod
    def of(data: Data, task: Task) -> Deployment:
        """Return the deployment of networks that are trained on data for a task."""
        preprocessing: Preprocessing | None = getattr(data, "preprocessing", None)
        classes: tuple[str | int, ...] = ()
        if task.scores_classes:
            classes = getattr(data, "class_names", ()) or tuple(range(getattr(data, "outputs", None) or 0))
        return Deployment(preprocessing and preprocessing.to("cpu"), classes, task.describe(), __version__)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values without the tensors of the preprocessing."""
        described: dict[str, Any] = {"classes": list(self.classes), "task": dict(self.task), "version": self.version}
        if (raw := self.preprocessing) is not None:
            described["preprocessing"] = {"shape": list(raw.shape), "dtype": raw.dtype, "divisor": raw.divisor}
        return described

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the preprocessing."""
        if self.preprocessing is None or self.preprocessing.mean is None or self.preprocessing.std is None:
            return {}
        return {"mean": self.preprocessing.mean, "std": self.preprocessing.std}

    @staticmethod
    def from_parts(description: Any, tensors: Mapping[str, Tensor]) -> Deployment:
        """Return the deployment that `to_dict` and `tensors` describe.

        Raises:
            ValueError: They do not belong together.
        """
        with reading("deployment", description):
            raw, preprocessing = description.get("preprocessing"), None
            if raw is not None:
                shape = tuple(checked_integer("shape", size, 1, MAX_SIZE) for size in raw["shape"])
                dtype, divisor = raw["dtype"], float(raw["divisor"])
                if dtype not in DTYPES or divisor <= 0:
                    raise ValueError(f"`preprocessing` must have one of {DTYPES} but got {dtype!r} / {divisor}.")
                mean, std = tensors.get("mean"), tensors.get("std")
                _check_fits(mean, std, shape)
                preprocessing = Preprocessing(shape, dtype, divisor, mean, std)
            classes = tuple(name if isinstance(name, int) else str(name) for name in description["classes"])
            if len(set(classes)) != len(classes):
                raise ValueError("`classes` must be different but are not.")
            return Deployment(preprocessing, classes, dict(description["task"]), str(description["version"]))


def _check_fits(mean: Tensor | None, std: Tensor | None, shape: tuple[int, ...]) -> None:
    if mean is None and std is None:
        return
    if mean is None or std is None or mean.shape != std.shape or not bool((std > 0).all()):
        raise ValueError("`preprocessing` must have a mean and a positive deviation of one shape but has not.")
    sizes = zip(reversed(mean.shape), reversed(shape), strict=False)
    if mean.ndim > len(shape) or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(f"`preprocessing` must fit inputs of shape {shape} but has shape {tuple(mean.shape)}.")


class RawNetwork(nn.Module):
    """A network that takes raw inputs: the preprocessing is part of it, as in exported programs.

    Args:
        network: Trained network of one tensor.
        preprocessing: How raw inputs become its inputs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from optuna_nas.data.preprocessing import Preprocessing
        >>> from optuna_nas.networks.deployment import RawNetwork
        >>> RawNetwork(nn.Flatten(), Preprocessing((1, 1, 2), "uint8", 255))(torch.tensor([[[[0, 255]]]]))
        tensor([[0., 1.]])
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor | None
        self.std: Tensor | None
        self.register_buffer("mean", preprocessing.mean)
        self.register_buffer("std", preprocessing.std)
        self._raw = preprocessing

    def forward(self, raw: Tensor) -> Any:
        """Return the outputs of the network for raw inputs, shape (B, *shape)."""
        raw_inputs = Preprocessing(self._raw.shape, self._raw.dtype, self._raw.divisor, self.mean, self.std)
        return self.network(raw_inputs(raw))


class Predictor:
    """Predictions of a network for raw inputs. `load_network` gives networks `predict` and `predict_proba` of one.

    Args:
        network: Trained network of one tensor, in evaluation mode.
        deployment: What it needs; None for a network of a file that does not tell.

    Example:
        >>> import numpy as np
        >>> from torch import nn
        >>> from optuna_nas.data.preprocessing import Preprocessing
        >>> from optuna_nas.networks.deployment import Deployment, Predictor
        >>> deployment = Deployment(Preprocessing((2,)), ("cat", "dog"), {}, "")
        >>> Predictor(nn.Flatten(), deployment).predict([[0.2, 0.8], [3.0, 1.0]]).tolist()
        ['dog', 'cat']
    """

    def __init__(self, network: nn.Module, deployment: Deployment | None) -> None:
        self._network, self._deployment = network, deployment

    def predict(self, raw: ArrayLike) -> NDArray[Any]:
        """Return the most likely label of every raw input, shape (N,); the outputs, for tasks without classes.

        Args:
            raw: Inputs as the data had them before normalisation: N images with channels first or last, or rows.

        Raises:
            ValueError: The inputs do not fit, or the file does not tell how they were normalised.
        """
        outputs = self._outputs(raw)
        if not self._known().classes:
            return outputs
        labels: NDArray[Any] = np.array(self._known().classes)[outputs.argmax(1)]
        return labels

    def predict_proba(self, raw: ArrayLike) -> NDArray[np.float32]:
        """Return the probability of every class, shape (N, classes).

        Raises:
            ValueError: The inputs do not fit, or the outputs are no class scores.
        """
        if not self._known().classes:
            raise ValueError("`predict_proba` needs class scores but the task has none; use `predict`.")
        return torch.from_numpy(self._outputs(raw)).softmax(1).numpy()

    def _known(self) -> Deployment:
        if self._deployment is None:
            raise ValueError(
                "`predict` needs to know how inputs were normalised but the network's file does not tell; train it "
                "again, or call the network on normalised inputs."
            )
        return self._deployment

    @torch.no_grad()
    def _outputs(self, raw: ArrayLike) -> NDArray[np.float32]:
        preprocessing = self._known().preprocessing
        inputs = torch.as_tensor(raw) if preprocessing is None else preprocessing.tensor(raw)
        device = next((parameter.device for parameter in self._network.parameters()), torch.device("cpu"))
        prepare = (lambda part: part) if preprocessing is None else preprocessing.to(device)
        parts = [self._network(prepare(part.to(device))) for part in inputs.split(PREDICTED_AT_ONCE)]
        outputs: NDArray[np.float32] = torch.cat(parts).float().cpu().numpy()
        return outputs
