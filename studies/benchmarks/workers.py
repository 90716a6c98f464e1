"""How many trials a second do several workers run on one PostgreSQL, and what does the database cost a trial?

Command:   python studies/benchmarks/workers.py
Cost:      ten minutes on two cores; nothing is trained
Expected:  trials of half a second scale with the workers; a trial of 28 parameters takes a third of Optuna's commits;
           a worker joins a study of 10,000 trials within two seconds more than an empty one, on sqlite as well

Trials choose a DARTS cell (28 parameters), report three times and sleep.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import optuna
import sqlalchemy
from optuna.trial import Trial

from optuna_nas import Search, darts_space, nasbench201_space
from optuna_nas.search.opening import open_study
from optuna_nas.storage import Heartbeat
from optuna_nas.storage.database import connect
from optuna_nas.storage.optuna_rdb import backend_of
from optuna_nas.storage.own_postgres import own_database
from optuna_nas.storage.quota import Quota
from optuna_nas.workers import Job, run_workers

STUDY = """
import time
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna_nas import Search, darts_space

SPACE = darts_space()


def search(seconds: float = 0.0, name: str = "throughput") -> Search:
    def objective(trial):
        SPACE.suggest(trial)
        for step in range(1, 4):
            time.sleep(seconds / 3)
            trial.report(step / 10, step)
        return trial.number / 1000

    return Search(
        name=name, space=SPACE, objective=objective, sampler=RandomSampler(), pruner=NopPruner(), tracking=None,
        pictures=False,
    )
"""
TRIALS = {0.0: 300, 0.05: 200, 0.5: 40}


def throughput(address: str, folder: Path, seconds: float, workers: int) -> float:
    """Return trials a second, from the first second in which all workers were there."""
    file = folder / "throughput.py"
    file.write_text(STUDY)
    name = f"{seconds}-{workers}-{time.time()}"
    job = Job(str(file), (f"seconds={seconds}", f"name={name}"), TRIALS[seconds], address)
    study = run_workers(job, workers).study
    ends = sorted(trial.datetime_complete for trial in study.trials if trial.datetime_complete)
    begun = TRIALS[seconds] // 4  # by then all have loaded
    return (len(ends) - 1 - begun) / (ends[-1] - ends[begun]).total_seconds()


def milliseconds(make: Callable[[], optuna.storages.BaseStorage | None], n_trials: int) -> tuple[float, float]:
    """Return the milliseconds of a trial that does nothing but choose and report, and its commits."""
    space, commits = darts_space(), []

    def objective(trial: Trial) -> float:
        if (backend := backend_of(trial.study)) is not None:
            backend.delay(trial._trial_id)  # as a search does
        space.suggest(trial)
        for name in range(5):
            trial.set_user_attr(f"note {name}", name)
        for step in range(1, 4):
            trial.report(step, step)
        return 1.0

    storage = make()
    pruner = optuna.pruners.NopPruner()
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(), pruner=pruner)
    study.optimize(objective, n_trials=3)
    if storage is not None:
        sqlalchemy.event.listen(storage._backend.engine, "commit", commits.append)
    times = []
    for _ in range(n_trials):
        begun = time.perf_counter()
        study.optimize(objective, n_trials=1)
        times.append(1000 * (time.perf_counter() - begun))
    return median(times), len(commits) / n_trials


def joining(address: str, folder: Path, name: str, n_trials: int) -> tuple[float, float]:
    """Return the seconds in which a worker joins a study of so many finished trials, and milliseconds to ask then."""
    space = nasbench201_space()
    search = Search(
        name,
        space,
        objective=lambda trial: 1.0,
        sampler=optuna.samplers.RandomSampler(),
        storage=address,
        tracking=None,
        folder=folder / name,
    )
    study = open_study(search)
    draw = optuna.samplers.RandomSampler(seed=0)
    source = optuna.create_study(sampler=draw)
    source.optimize(lambda trial: float(len(space.suggest(trial).summary)), n_trials=n_trials)
    if n_trials:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study.add_trials(source.trials)
    begun = time.perf_counter()
    joined = open_study(search, create=False)
    quota = Quota(joined, n_trials + 100)
    quota.room()
    seconds = time.perf_counter() - begun
    asks = []

    def objective(trial: Trial) -> float:
        asks.append(1000 * (time.perf_counter() - started))
        space.suggest(trial)
        return 1.0

    for _ in range(30):
        started = time.perf_counter()
        quota.room()
        joined.optimize(objective, n_trials=1)
    return seconds, median(asks)


def write(file: Path | None, found: dict[str, object]) -> None:
    """Write the figures to a file, if one is given."""
    if file is not None:
        file.write_text(json.dumps(found, indent=1))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--joining", action="store_true", help="measure joining a long study only")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        address = own_database(folder / "data")

        print("seconds to join, milliseconds to ask, by finished trials")
        for database, place in {"PostgreSQL": address, "sqlite": f"sqlite:///{folder / 'study.db'}"}.items():
            for n_trials in (0, 1000, 10_000):
                seconds, milliseconds_to_ask = joining(place, folder / database, f"joining {n_trials}", n_trials)
                found[f"{n_trials} trials, {database}"] = (seconds, milliseconds_to_ask)
                print(f"  {database:10} {n_trials:6} {seconds:8.2f} {milliseconds_to_ask:8.1f}", flush=True)
        if arguments.joining:
            write(arguments.json, found)
            return

        print("a trial of 28 parameters, 5 attributes and 3 reports: milliseconds, commits")
        makes = {
            "in memory": lambda: None,
            "Optuna's storage": lambda: optuna.storages.get_storage(address),
            "ours": lambda: connect(address),
            "ours, with heartbeat": lambda: connect(address, Heartbeat()),
        }
        for subject, make in makes.items():
            found[subject] = milliseconds(make, 60)
            print(f"  {subject:22}{found[subject][0]:8.1f} {found[subject][1]:6.1f}", flush=True)

        print("trials a second, by workers 1, 2, 4")
        for seconds in TRIALS:
            rates = [throughput(address, folder, seconds, workers) for workers in (1, 2, 4)]
            found[f"{1000 * seconds:.0f} ms"] = rates
            print(f"  trials of {1000 * seconds:3.0f} ms:", *(f"{rate:8.1f}" for rate in rates), flush=True)
    write(arguments.json, found)


if __name__ == "__main__":
    main()
