"""The exported winner where others use it: MLflow's model server over HTTP, `mlflow.models.evaluate`."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest
from servers import QUIET_MLFLOW, free_port
from sklearn.datasets import load_digits
from terminal import here

from optuna_nas import digits

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning"
    ),  # MLflow's evaluation leaves files open
]

SCRIPTS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
"""Where MLflow finds its server, also in an environment that is not activated."""
STUDY = """
name: served
data: digits
space: nasbench201_space
skeleton: {type: nasbench201_skeleton, repeats: 1, channels: 8}
recipe: {epochs: 4, batch_size: 32}
trials: 1
seed: 0
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The trained winner of a study as a registered model: its address, and the study's test accuracy."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "study.yaml").write_text(STUDY)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = here("run", "study.yaml", "--mlflow", uri)
        assert done.exit_code == 0, done.stderr
        accuracy = float(done.stdout.split("Test accuracy")[1].split()[0])
        exported = here("export", "study.yaml", "--format", "mlflow", "--mlflow", uri, "--register", "served")
        assert exported.exit_code == 0, exported.stderr
    return uri, accuracy


def test_images():
    """The raw images of the test split, and their labels."""
    data, loaded = digits(), load_digits()
    positions = data.splits["test"].numpy()
    return loaded.images[positions] / 16, loaded.target[positions]


test_images.__test__ = False


def test_the_served_model_has_the_accuracy_of_the_study(served, tmp_path):
    uri, accuracy = served
    images, labels = test_images()
    port = free_port()
    command = [
        "models",
        "serve",
        "-m",
        "models:/served/1",
        "--env-manager",
        "local",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    environment = os.environ | QUIET_MLFLOW | {"MLFLOW_TRACKING_URI": uri, "PATH": SCRIPTS}
    with open(tmp_path / "server.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
                time.sleep(0.2)

        def ask(**content):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations",
                json.dumps(content).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["predictions"]

        predicted = ask(inputs=images.tolist())
        assert (np.array(predicted) == labels).mean() == pytest.approx(accuracy, abs=1e-4)
        rows = ask(inputs=images[:3].reshape(3, -1).tolist(), params={"output": "probabilities"})
        assert [max(row, key=row.get) for row in rows] == [str(label) for label in predicted[:3]]
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def test_mlflow_evaluates_it_on_rows(served):
    uri, accuracy = served
    images, labels = test_images()
    mlflow.set_tracking_uri(uri)
    try:
        evaluated = mlflow.models.evaluate(
            "models:/served/1",
            images.reshape(len(images), -1),
            targets=labels,
            model_type="classifier",
            evaluator_config={"log_model_explainability": False},
        )
    finally:
        mlflow.set_tracking_uri(None)
    assert evaluated.metrics["accuracy_score"] == pytest.approx(accuracy, abs=1e-4)


def test_mlflow_run_of_the_project_is_the_parent_of_the_study(tmp_path):
    (tmp_path / "MLproject").write_text((Path(__file__).parents[2] / "MLproject").read_text())
    (tmp_path / "study.yaml").write_text(STUDY.replace("epochs: 4", "epochs: 1"))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mlflow",
            "run",
            ".",
            "--env-manager",
            "local",
            "-P",
            "study=study.yaml",
            "-P",
            "trials=1",
        ],
        cwd=tmp_path,
        env=os.environ | QUIET_MLFLOW | {"MLFLOW_TRACKING_URI": uri, "PATH": SCRIPTS},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (study,) = [run for run in runs if run.data.tags.get("optuna_nas.kind") == "study"]
    (project,) = [run for run in runs if "mlflow.project.entryPoint" in run.data.tags]
    assert study.data.tags["mlflow.parentRunId"] == project.info.run_id
    assert project.info.status == "FINISHED"


AUTOLOG = """
import mlflow
from sklearn.linear_model import LogisticRegression
mlflow.set_tracking_uri(ADDRESS)
mlflow.autolog(log_models=False, silent=True)
import optuna_nas
search = optuna_nas.Search.from_yaml("study.yaml", ["trials=2", "strategy=snas"])
with mlflow.start_run(run_name="mine"):
    LogisticRegression().fit([[0.0], [1.0]] * 4, [0, 1] * 4)
    result = search.run()
assert mlflow.active_run() is None
LogisticRegression().fit([[0.0], [1.0]] * 4, [0, 1] * 4)
print(result.best.value)
"""


def test_autolog_is_the_users_and_the_search_is_ours(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY.replace("epochs: 4", "epochs: 1"))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = subprocess.run(
        [sys.executable, "-c", AUTOLOG.replace("ADDRESS", repr(uri))],
        cwd=tmp_path,
        env=os.environ | QUIET_MLFLOW,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    ours = sorted(run.data.tags["optuna_nas.kind"] for run in runs if "optuna_nas.kind" in run.data.tags)
    assert ours == ["fit", "study", "trial", "trial"]
    theirs = [run for run in runs if "optuna_nas.kind" not in run.data.tags]
    assert all(run.data.tags["estimator_name"] == "LogisticRegression" for run in theirs)
    assert all("training_accuracy_score" in run.data.metrics and "loss" not in run.data.metrics for run in theirs)
    (mine,) = [run for run in theirs if run.info.run_name == "mine"]
    assert len(theirs) == 2
    (study,) = [run for run in runs if run.data.tags.get("optuna_nas.kind") == "study"]
    assert study.data.tags["mlflow.parentRunId"] == mine.info.run_id
    best = min(run.data.metrics["loss"] for run in runs if run.data.tags.get("optuna_nas.kind") == "trial")
    assert best == float(done.stdout.split()[-1])
