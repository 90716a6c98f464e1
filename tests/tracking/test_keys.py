"""Keys and values in the form that MLflow accepts."""

import numpy as np
import optuna
from tracked import read

from optuna_nas.tracking import MLflowTracker, mlflow_keys
from optuna_nas.tracking.keys import is_mlflow_key


def test_mlflow_keys_read_well_and_stay_different():
    names = ["normal_0_2", "normal/2<-0", "a[0]", "a(0)", "lr", "block/5/inputs", "x" * 300, "/a", "a//b", "a/../b"]
    keys = mlflow_keys(names)
    assert keys["normal_0_2"] == "normal_0_2"
    assert keys["lr"] == "lr"
    assert keys["block/5/inputs"] == "block/5/inputs"
    assert keys["a[0]"].startswith("a_0_.")
    assert len(set(keys.values())) == len(names)
    assert all(is_mlflow_key(key) for key in keys.values())
    assert mlflow_keys(["a[0]"])["a[0]"] == keys["a[0]"]


def test_what_mlflow_does_not_take_leaves_a_trace(tmp_path):
    study = optuna.create_study(direction="maximize")
    study.add_trial(
        optuna.trial.create_trial(
            value=1.0,
            params={"long": "x" * 7000},
            distributions={"long": optuna.distributions.CategoricalDistribution(["x" * 7000, "y"])},
            user_attrs={"note": "z" * 9000, "endless": float("inf"), "unknown": float("nan")},
        )
    )
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MLflowTracker(uri).rebuild(study)
    children = read(uri).children
    run = children[0]
    assert run.data.params["long"].startswith("xxx")
    assert run.data.params["long"].endswith(" ... (cut; 7000 characters in Optuna)")
    assert run.data.tags["note"].endswith(" ... (cut; 9000 characters in Optuna)")
    assert run.data.tags["infinite.endless"] == "inf at step 0"
    assert np.isnan(run.data.metrics["endless"]), "the last in an order, and a gap in a curve"
    assert np.isnan(run.data.metrics["unknown"])
