"""Does a long study stay as quick and as small as a short one?

Command:   python studies/benchmarks/endurance.py [--finished 10000] [--trials 500]
Cost:      five minutes on two cores, and half an hour to fill the study of 10,000; nothing is trained
Expected:  with 10,000 finished trials a search begins at most two seconds later than with none; memory (after the
           first 50 trials), threads and open files stay as they are, whatever the number of trials

The start is the time from `Search.run` to the first call of the objective, of a study in sqlite without MLflow. The
trials of one process are mirrored to MLflow's sqlite, with pictures.
"""

import argparse
import gc
import json
import os
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import psutil
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler

from optuna_nas import MLflowTracker, Search, nasbench201_space
from optuna_nas.search.opening import open_study

SPACE = nasbench201_space()
EVERY = 50


def seconds_to_start(finished: int, folder: Path) -> float:
    """Return the seconds until the first trial of a search in a study with so many finished ones."""
    begun: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        begun.append(time.monotonic())
        SPACE.suggest(trial)
        return 0.5

    search = Search(
        f"long-{finished}", SPACE, objective=objective, sampler=RandomSampler(0), pruner=NopPruner(),
        trials=finished + 1, folder=folder / str(finished), tracking=None, pictures=False,
    )  # fmt: skip
    study, draw = open_study(search), np.random.default_rng(0)
    for _ in range(finished):
        params = SPACE.encode(SPACE.sample(draw))
        attributes = {"optuna_nas:params": 1000, "optuna_nas:train_seconds": 1.5}
        study.add_trial(
            optuna.create_trial(
                value=draw.random(), params=params, distributions=SPACE.distributions(), user_attrs=attributes,
                intermediate_values={1: 0.1, 2: 0.2, 3: 0.3},
            )
        )  # fmt: skip
    del study
    started = time.monotonic()
    search.run()
    return begun[0] - started


def sizes() -> dict[str, float]:
    """Return memory in MiB, threads and open files of this process."""
    gc.collect()
    process = psutil.Process()
    return {
        "MiB": round(process.memory_info().rss / 2**20, 1),
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
    }


def one_process(trials: int, folder: Path) -> dict[int, dict[str, float]]:
    """Run so many trials in this process; return its sizes after every fiftieth."""
    seen: dict[int, dict[str, float]] = {}

    def objective(trial: optuna.Trial) -> float:
        if trial.number % EVERY == 0:
            seen[trial.number] = sizes()
            print(trial.number, seen[trial.number], flush=True)
        SPACE.suggest(trial)
        for step in range(1, 4):
            trial.report(step / 10, step)
        return trial.number % 97 / 100

    search = Search("endurance", SPACE, objective=objective, sampler=RandomSampler(0), pruner=NopPruner())
    tracker = MLflowTracker(f"sqlite:///{folder / 'mlflow.db'}")
    replace(search, trials=trials + 1, folder=folder / "run", tracking=tracker).run()
    return seen


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finished", type=int, default=10_000, help="finished trials of a study, 0 for none")
    parser.add_argument("--trials", type=int, default=500, help="trials of one process, 0 for none")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.finished:
            seconds_to_start(1, folder)  # imports
            found["start"] = {n: round(seconds_to_start(n, folder), 2) for n in (0, arguments.finished)}
            print("seconds to the first trial, by finished trials:", found["start"], flush=True)
        if arguments.trials:
            found["one process"] = one_process(arguments.trials, folder)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
