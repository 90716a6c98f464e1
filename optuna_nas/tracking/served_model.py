"""Model that MLflow loads and serves: raw inputs in, labels or probabilities out.

MLflow copies this file into the model and runs it when the model is loaded, so it needs nothing of optuna_nas but
`arranging`, which is copied beside it. Nothing is unpickled: the network is a program of `torch.export`.
"""

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch

try:  # where the model is logged
    from optuna_nas.data.arranging import arranged
except ModuleNotFoundError:  # where it is served: the copy beside this file
    from arranging import arranged  # type: ignore[import-not-found,no-redef]

AT_ONCE = 256
LABEL, PROBABILITIES, OUTPUTS = "label", "probabilities", "outputs"


class Network(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # MLflow has no types
    """A trained network: `predict` returns labels, or probabilities with `params={"output": "probabilities"}`."""

    def load_context(self, context: Any) -> None:
        """Load the program and what its inputs and outputs are."""
        self.program = torch.export.load(context.artifacts["program"]).module()
        self.about = json.loads(Path(context.artifacts["about"]).read_text())

    # Without annotations, which MLflow would take for those of a request.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Return labels, probabilities of classes (a table), or the outputs of the network.

        Args:
            context: Of MLflow.
            model_input: Raw inputs: an array of shape (N, ...), or a table with a row an input.
            params: `output`: `label`, `probabilities` or `outputs`.

        Raises:
            ValueError: `output` is none of them, or the inputs do not fit.
        """
        output = (params or {}).get("output") or LABEL
        if output not in (LABEL, PROBABILITIES, OUTPUTS):
            raise ValueError(f"`output` must be one of {(LABEL, PROBABILITIES, OUTPUTS)} but got {output!r}.")
        raw = torch.from_numpy(np.array(arranged(model_input, self.about["shape"], self.about["dtype"])))
        with torch.no_grad():
            outputs = torch.cat([self.program(part).float() for part in raw.split(AT_ONCE)])
        classes = self.about["classes"]
        if output == OUTPUTS or not classes:
            return outputs.numpy()
        if output == PROBABILITIES:
            import pandas as pd

            return pd.DataFrame(outputs.softmax(1).numpy(), columns=[str(name) for name in classes])
        return np.array(classes)[outputs.argmax(1).numpy()]


mlflow.models.set_model(Network())
