"""What does the mirror in MLflow cost a trial, and does it lose any?

Command:   python studies/benchmarks/tracking.py               # 1,000 trials each into sqlite and over HTTP
           python studies/benchmarks/tracking.py --trials 5000 --stores sqlite
Cost:      a few minutes a store; nothing is trained
Expected:  a median below 5 ms on a trial's path; every trial in MLflow once

A trial of six edges reports three epochs and takes `--seconds`; measured are the calls of a tracker in the trial's own
thread, and the whole study beside the same one without tracking.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import optuna
from mlflow import MlflowClient
from optuna import Study, Trial
from optuna.trial import FrozenTrial

from optuna_nas import MLflowTracker, nasbench201_space

SPACE = nasbench201_space()
EPOCHS = 3
PORT = 5077


def study_with(tracker: MLflowTracker | None, n_trials: int, seconds: float) -> tuple[Study, list[float], float]:
    """Run a study; return it, the seconds of each trial spent in calls of the tracker, and the seconds of all."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    if tracker is not None:
        tracker.start(study, space=SPACE, metric="accuracy")
    on_path: dict[int, float] = {}

    def timed(number: int, begun: float) -> None:
        on_path[number] = on_path.get(number, 0.0) + time.perf_counter() - begun

    def objective(trial: Trial) -> float:
        SPACE.suggest(trial)
        if tracker is not None:
            begun = time.perf_counter()
            tracker.trial_started(trial, {"params": 1000.0})
            timed(trial.number, begun)
        for epoch in range(1, EPOCHS + 1):
            time.sleep(seconds / EPOCHS)
            trial.report(epoch / EPOCHS, epoch)
            if tracker is not None:
                begun = time.perf_counter()
                tracker.epoch(trial.number, epoch, {"accuracy": epoch / EPOCHS, "train_loss": 1.0})
                timed(trial.number, begun)
        return trial.number / n_trials

    def finished(study: Study, trial: FrozenTrial) -> None:
        if tracker is not None:
            begun = time.perf_counter()
            tracker.trial_finished(study, trial)
            timed(trial.number, begun)

    started = time.perf_counter()
    study.optimize(objective, n_trials=n_trials, callbacks=[finished])
    return study, list(on_path.values()), time.perf_counter() - started


@contextmanager
def address(store: str, folder: Path) -> Iterator[str]:
    """Give the address of a new store: an sqlite file, or a server of one."""
    database = f"sqlite:///{folder / 'mlflow.db'}"
    if store == "sqlite":
        yield database
        return
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--port", str(PORT)]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{PORT}"
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def main() -> None:
    """Measure every store, count what arrived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=0.05, help="of a trial")
    parser.add_argument("--stores", nargs="+", choices=("sqlite", "http"), default=("sqlite", "http"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    found = {}
    _, _, alone = study_with(None, options.trials, options.seconds)
    print(f"without tracking: {alone:.1f} s for {options.trials} trials", flush=True)
    for store in options.stores:
        with tempfile.TemporaryDirectory() as folder, address(store, Path(folder)) as uri:
            tracker = MLflowTracker(uri)
            study, on_path, seconds = study_with(tracker, options.trials, options.seconds)
            begun = time.perf_counter()
            tracker.finish(study)
            closing = time.perf_counter() - begun
            client = MlflowClient(uri)
            experiment = client.get_experiment_by_name(tracker.experiment)
            assert experiment is not None
            seen: list[str] = []
            token = None
            while True:
                page = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token)
                seen += [
                    run.data.tags["optuna.trial_number"]
                    for run in page
                    if run.info.status == "FINISHED" and "optuna.trial_number" in run.data.tags
                ]
                token = page.token
                if not token:
                    break
            row = {
                "median ms on a trial's path": 1000 * float(np.median(on_path)),
                "99 % ms": 1000 * float(np.quantile(on_path, 0.99)),
                "seconds, ratio to the study without": seconds / alone,
                "seconds to write the rest": closing,
                "trials in MLflow": float(len(set(seen))),
                "runs of trials": float(len(seen)),
            }
            found[store] = row
            print(store, {name: round(value, 3) for name, value in row.items()}, flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
