"""Pictures in MLflow, and a search that goes on where files are refused."""

import logging

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image
from scipy.stats import kendalltau
from tracked import SPACE, new_study, read, search

from optuna_nas.plots import plot_architecture
from optuna_nas.plots.cells import draw_choices
from optuna_nas.space import Architecture, darts_space, nasbench201_space
from optuna_nas.tracking import MLflowTracker, pictures


def test_the_architecture_is_a_picture_a_tile_of_the_grid_and_a_value(finished):
    mirror, study, _ = finished
    run = mirror.children[0]
    architecture = SPACE.decode(study.trials[0].params)
    with open(mirror.file(run, "architecture.json")) as file:
        assert Architecture.from_json(file.read()) == architecture
    with Image.open(mirror.file(run, "architecture.png")) as picture:
        assert np.asarray(picture.convert("L")).std() > 5
    tiles = [item.path for item in mirror.client.list_artifacts(run.info.run_id, "images")]
    assert sum(path.startswith("images/architecture+step+0+") for path in tiles) == 2  # the picture and a small one
    assert run.data.tags["mlflow.loggedImages"] == "True"


def test_scores_against_truth_are_shown_while_trials_finish(uri, tmp_path):
    tracker, study = MLflowTracker(uri), new_study(folder=tmp_path)
    search(tracker, study, 12, during=lambda trial: trial.set_user_attr("surrogate_score", 0.1 * trial.number))
    mirror = read(uri)
    curve = dict(mirror.curve(mirror.parent, "surrogate/kendall_tau"))
    assert curve.keys() == set(range(12))
    values = [trial.value for trial in study.trials]
    assert curve[11] == pytest.approx(kendalltau(range(12), values).statistic)
    lower, upper = (dict(mirror.curve(mirror.parent, f"surrogate/kendall_tau_{end}"))[11] for end in ("lower", "upper"))
    assert lower < curve[11] < upper
    picture = Image.open(mirror.file(mirror.parent, "surrogate.png"))
    assert np.asarray(picture).std() > 10


def test_statuses_are_right_where_files_are_refused(uri, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise PermissionError("read-only bucket")

    monkeypatch.setattr(MlflowClient, "log_text", refuse)
    search(MLflowTracker(uri), new_study(), 2)
    mirror = read(uri)
    assert [run.info.status for run in (mirror.parent, *mirror.children.values())] == ["FINISHED"] * 3
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "MLflow could not store an architecture or a table (read-only bucket)."
    ]


def test_a_card_has_the_drawing_above_a_legible_table():
    short, long = nasbench201_space(), darts_space()
    for space, grows in ((short, True), (long, False)):
        architecture = space.sample(np.random.default_rng(0))
        drawing = pictures.pixels(plot_architecture(architecture))
        card = pictures.card_picture(architecture, drawing)
        height, width, _ = card.shape
        if grows:
            assert 0.5 < width / height < 2  # the tile is square
            table = card[-pictures.pixels(draw_choices(architecture)).shape[0] :]
            assert (table[..., :3].min(axis=(1, 2)) < 100).mean() > 0.3  # rows of letters
        else:
            assert np.array_equal(card, drawing)
