"""How one-shot models learned, shown on the study's run and on runs of their own."""

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image
from strategies import few_digits
from tracked import SPACE, new_study, read, search

from optuna_nas import NetworkSpace
from optuna_nas.oneshot import GHN, GHNRecipe
from optuna_nas.samplers import GHNSampler, SNASSampler
from optuna_nas.space import Skeleton
from optuna_nas.storage.artifacts import folder_store
from optuna_nas.tracking import MLflowTracker
from optuna_nas.tracking.client import Client


def test_a_distribution_that_learns_is_shown_on_the_study_once(uri, tmp_path):
    tracker = MLflowTracker(uri)
    study = new_study(folder=tmp_path)
    study.sampler = SNASSampler(SPACE, seed=0)
    search(tracker, study, 11)
    tracker.start(study, space=SPACE)  # again, with nothing new
    tracker.finish(study)
    mirror = read(uri)
    run_id = mirror.parent.info.run_id
    entropy = mirror.client.get_metric_history(run_id, "distribution/entropy")
    assert [point.step for point in entropy] == [0, 5, 10]
    assert entropy[0].value == pytest.approx(np.log(5), rel=1e-4)
    assert entropy[-1].value < entropy[0].value
    names = {file.path for file in mirror.client.list_artifacts(run_id)}
    assert {"distribution.png", "most_likely_cells.png"} <= names
    picture = Image.open(mirror.client.download_artifacts(run_id, "distribution.png"))
    assert np.asarray(picture).std() > 10


@pytest.mark.parametrize("fails", [False, True])
def test_the_training_of_a_hypernetwork_is_shown_on_the_study_once(uri, tmp_path, fails, monkeypatch):
    history, failures = Client.history, ["once"] if fails else []

    def unreliable(self, run_id, metric):
        if metric == "ghn/loss" and failures:
            raise MlflowException(failures.pop())
        return history(self, run_id, metric)

    monkeypatch.setattr(Client, "history", unreliable)
    data = few_digits(64)
    space = NetworkSpace(SPACE, Skeleton(("cell",), 4, data.input_shape, data.classes))
    ghn = GHN(space, GHNRecipe(phases=1, batch_size=16))
    tracker = MLflowTracker(uri)
    study = new_study(folder=tmp_path)
    store = folder_store(tmp_path / "artifacts")
    study.sampler = GHNSampler(
        SPACE, ghn, data=data, budget=2, pool_size=10, trials_per_round=5, artifact_store=store, seed=0
    )
    search(tracker, study, 2)
    tracker.start(study, space=SPACE)  # again, with nothing new
    tracker.finish(study)
    mirror = read(uri)
    for name in ("loss", "accuracy"):
        curve = mirror.client.get_metric_history(mirror.parent.info.run_id, f"ghn/{name}")
        assert [point.step for point in curve] == [record.step for record in ghn.records]
        assert [point.value for point in curve] == pytest.approx([r.metrics[name] for r in ghn.records], rel=1e-4)
        own = mirror.client.get_metric_history(mirror.fits["GHN"].info.run_id, f"fit/{name}")
        assert [(point.step, point.value) for point in own] == [(point.step, point.value) for point in curve]
    assert mirror.fits["GHN"].info.status == "FINISHED"
    assert mirror.fits["GHN"].info.run_name == "GHN fit"
