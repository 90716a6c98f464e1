"""Pictures in MLflow, and a search that goes on where files are refused."""

import logging
import re
from itertools import combinations

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image
from scipy.stats import kendalltau
from tracked import SPACE, new_study, read, search

from optuna_nas.plots import cell_drawing, plot_architecture
from optuna_nas.plots.cells import draw_card
from optuna_nas.space import Architecture, darts_space, ghn_space, hmnas_space, nasbench201_space
from optuna_nas.tracking import MLflowTracker, pictures
from optuna_nas.tracking.client import log_picture


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


@pytest.mark.parametrize(
    ("space", "drawn"),
    [(nasbench201_space(), True), (darts_space(), False), (hmnas_space(), False), (ghn_space(), False)],
)
def test_a_card_is_legible_at_the_size_of_mlflows_tiles(space, drawn):
    architecture = space.sample(np.random.default_rng(0))
    drawing = plot_architecture(architecture, names=space.writes_names)
    card, table = pictures.card_picture(architecture, drawing), draw_card(architecture)
    height, width, _ = card.shape
    assert width == 480
    assert height <= width  # tiles are square
    assert (height > pictures.pixels(table).shape[0]) == drawn
    words = [text.get_text() for text in table.texts]
    assert dict(zip(words[::2], words[1::2], strict=True)) == space.encode(architecture)  # as on the parallel axes
    boxes = [text.get_window_extent() for text in table.texts]
    assert all(box.height > 8 and 0 <= box.x0 < box.x1 <= 480 for box in boxes)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_a_drawing_in_mlflow_has_the_words_of_the_parameters():
    cells = nasbench201_space().sample(np.random.default_rng(0)).cells
    written = {edge.label for edge in cell_drawing(cells, 0, names=True).edges if edge.label}
    assert written <= set(nasbench201_space().ops)
    assert written.isdisjoint(edge.label for edge in cell_drawing(cells, 0).edges)


def test_a_picture_is_shown_in_its_own_size(uri):
    client = MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    log_picture(client, run_id, np.zeros((300, 500, 4), np.uint8), "one key")
    preview, picture = sorted(file.path for file in client.list_artifacts(run_id, "images"))
    assert re.fullmatch(r"images/one key\+step\+0\+timestamp\+\d+\+[0-9a-f-]+\+compressed\.webp", preview)
    assert picture == preview.replace("+compressed.webp", ".png")
    for file in (preview, picture):
        with Image.open(client.download_artifacts(run_id, file)) as image:
            assert image.size == (500, 500), "the grid centres what is no square"
            assert image.convert("RGB").getpixel((0, 0)) != image.convert("RGB").getpixel((0, 499)) == (255, 255, 255)
    assert client.get_run(run_id).data.tags["mlflow.loggedImages"] == "True"
