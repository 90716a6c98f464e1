"""Does a one-shot model train on one core while trials train on the other?

Command:   python studies/benchmarks/two_cores.py
Cost:      twelve minutes on two cores that nothing else uses
Expected:  two workers are twice as fast as one at random search, and 1.3 times by `snas` and `ghn`: see BENCHMARKS

NAS-Bench-201's cells in a network of 3 cells and 4 channels on scikit-learn's digits, 40 trials of five epochs, one
thread of PyTorch a worker, one PostgreSQL. Seconds are those of the clock from the first trial to the end of the last
one, so that starting does not count. Of a worker's seconds, those that it neither trained a network nor the model are
waiting, asking and scoring; a second of the model counts as covered while a trial of the other worker was running.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import optuna

from optuna_nas.storage.attributes import MODEL_SECONDS, TRAIN_SECONDS, WORKER, attribute
from optuna_nas.storage.own_postgres import own_database
from optuna_nas.workers import Job, run_workers

STUDY = """
from optuna_nas import NetworkSpace, Recipe, Search, digits, nasbench201_skeleton, nasbench201_space


def search(name: str = "digits", strategy: str = "snas", seed: int = 0) -> Search:
    data = digits(seed)
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, data.input_shape, data.classes))
    return Search(
        name, space, data, Recipe(epochs=5, learning_rate=0.1, seed=seed), strategy=strategy, trials=40,
        tracking=None, pictures=False, cpu_threads=1,
    )
"""


class Run(NamedTuple):
    """Seconds of a study by the clock, of its networks, of its models, of those that were covered; its lowest loss."""

    seconds: float
    networks: float
    model: float
    covered: float
    best: float


def ran(address: str, folder: Path, strategy: str, workers: int, seed: int) -> Run:
    """Run a study with some workers."""
    file = folder / "two_cores.py"
    file.write_text(STUDY)
    name = f"{strategy}-{workers}-{seed}"
    settings = (f"strategy={strategy}", f"name={name}", f"seed={seed}")
    study = run_workers(Job(str(file), settings, storage=address, folder=str(folder / name)), workers).study
    trials = [t for t in study.trials if t.datetime_start is not None and t.datetime_complete is not None]
    begun, ended = min(t.datetime_start for t in trials), max(t.datetime_complete for t in trials)
    spent = {key: [attribute(t.user_attrs, key, 0.0) for t in trials] for key in (TRAIN_SECONDS, MODEL_SECONDS)}
    covered = 0.0
    for trial, seconds in zip(trials, spent[MODEL_SECONDS], strict=True):
        if seconds:
            others = [t for t in trials if t.user_attrs.get(WORKER) != trial.user_attrs.get(WORKER)]
            share = overlap(trial, others) / (trial.datetime_complete - trial.datetime_start).total_seconds()
            covered += seconds * share
    return Run(
        (ended - begun).total_seconds(), sum(spent[TRAIN_SECONDS]), sum(spent[MODEL_SECONDS]), covered, study.best_value
    )


def overlap(trial: optuna.trial.FrozenTrial, others: list[optuna.trial.FrozenTrial]) -> float:
    """Return the seconds of a trial during which one of the others was running."""
    spans = sorted((t.datetime_start, t.datetime_complete) for t in others)
    reached, seconds = trial.datetime_start, 0.0
    for start, end in spans:
        start, end = max(start, reached), min(end, trial.datetime_complete)
        if end > start:
            seconds, reached = seconds + (end - start).total_seconds(), end
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", default=["random", "snas", "ghn", "hmnas", "auto"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        address = own_database(Path(name) / "data")
        print("seconds of the clock; of networks, of models (covered by other trials); lowest loss")
        for seed in range(arguments.seeds):
            for strategy in arguments.strategies:
                for workers in (1, 2):
                    run = ran(address, Path(name), strategy, workers, seed)
                    found[f"{strategy}, {workers}, {seed}"] = list(run)
                    print(
                        f"  {strategy:8} {workers} workers, seed {seed}: {run.seconds:6.1f};  {run.networks:6.1f}, "
                        f"{run.model:5.1f} ({run.covered:5.1f});  {run.best:.4f}",
                        flush=True,
                    )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
