"""Does the same command go on after a kill at any moment, and what do many kills cost a study of many workers?

Command:   python studies/benchmarks/kills.py [--moments 40] [--trials 300] [--every-seconds 5]
Cost:      half an hour on two cores; nothing is trained
Expected:  all moments go on; 300 counted trials, none running, none waiting, none given up that advanced, each once in
           MLflow

First: `optuna-nas run` is killed (SIGKILL) at random moments of its first ten seconds, while it imports, creates the
study, makes MLflow's tables or runs its first trials; the same command then has to finish.

Second: four workers on a PostgreSQL of the study's own. Whenever four more trials have succeeded, a worker is killed
(at most one a second), some are paused beyond their grace, the database is killed twice and the supervisor five times.
With `--every-seconds`, blows come by the clock instead, from the first success on, whether there is progress or not;
where workers take longer to start than four such periods, nothing can progress.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import optuna
import psutil
from mlflow import MlflowClient
from optuna.trial import TrialState
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from optuna_nas.storage.database import connect
from optuna_nas.storage.own_postgres import own_database
from optuna_nas.storage.quota import counted_trials
from optuna_nas.storage.retries import is_given_up, replaced_by

STUDY = """
import time
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna_nas import Search, nasbench201_space
from optuna_nas.storage import Heartbeat

SPACE = nasbench201_space()


def search(trials: int = 3) -> Search:
    def objective(trial):
        SPACE.suggest(trial)
        for step in range(1, 4):
            time.sleep(0.02)
            trial.report(step / 10, step)
        return trial.number % 97 / 100

    return Search(
        name="kills", space=SPACE, objective=objective, sampler=RandomSampler(0), pruner=NopPruner(), trials=trials,
        heartbeat=Heartbeat(1, 3), pictures=False,
    )
"""
FIRST_SECONDS = 10.0
EVERY = 4
"""Trials that succeed between two blows."""
DEAD_SUPERVISORS, DATABASE_RESTARTS = 5, 2


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start the command in a process group of its own."""
    command = [sys.executable, "-m", "optuna_nas.cli", "run", "kills.py", *options]
    with open(folder / "output.txt", "a") as output:
        return subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, start_new_session=True, text=True)


def kept(folder: Path, address: str, total: int) -> dict[str, int | bool]:
    """Return what study and MLflow hold in the end."""
    study = optuna.load_study(study_name="kills", storage=connect(address))
    trials = study.trials
    states = Counter(trial.state for trial in trials)
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("optuna_nas")
    runs = client.search_runs([experiment.experiment_id], "tags.`optuna_nas.kind` = 'trial'", max_results=50_000)
    shown = Counter(int(run.data.tags["optuna.trial_number"]) for run in runs)
    finished = {trial.number for trial in trials if trial.state.is_finished()}
    retried = {number for trial in trials for number in replaced_by(trial)}
    given_up = [trial for trial in trials if trial.state == TrialState.FAIL and trial.number not in retried]
    return {
        "counted": counted_trials(study),
        "total": total,
        "running": states[TrialState.RUNNING],
        "waiting": states[TrialState.WAITING],
        "given up": len(given_up),
        "given up that advanced": sum(not is_given_up(trial) for trial in given_up),
        "each once in MLflow": shown == Counter(finished),
    }


def is_whole(found: dict[str, int | bool]) -> bool:
    """Return whether a study holds all of its trials, each once."""
    left = [found[name] for name in ("running", "waiting", "given up that advanced")]
    return bool(found["counted"] == found["total"] and not any(left) and found["each once in MLflow"])


def killed_at(moment: float) -> bool:
    """Kill a first run after so many seconds; return whether the same command then finishes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kills.py").write_text(STUDY)
        process = start(folder)
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code = start(folder).wait(600)
        goes_on = code == 0 and is_whole(kept(folder, f"sqlite:///{folder / 'runs/kills/study.db'}", 3))
        if not goes_on:
            print((folder / "output.txt").read_text()[-2000:])
        return goes_on


class Blows:
    """Blows at a study of many workers, paced by its progress, or by the clock.

    Args:
        folder: Where to run the study.
        total: Its trials.
        seconds: Seconds from one blow to the next; 0 waits for progress.
    """

    def __init__(self, folder: Path, total: int, seconds: float = 0.0) -> None:
        self._folder, self._total, self._seconds, self._draw = folder, total, seconds, random.Random(0)
        self.did: Counter[str] = Counter()
        self.first_success = 0.0
        self._last_blow = self._started = time.monotonic()

    def run(self) -> str:
        """Run the study to its end; return the address of its database."""
        options = ("--workers", "4", "--trials", str(self._total))
        process, seen, address = start(self._folder, *options), 0, ""
        data = self._folder / "runs/kills/postgresql"
        while process.poll() is None:
            time.sleep(1)
            if not address:
                if not (data / "postmaster.pid").exists():
                    continue
                address = own_database(data)  # which also keeps it running while the supervisor is dead
            done = self._succeeded(address)
            if done and not self.first_success:
                self._last_blow = time.monotonic()
                self.first_success = self._last_blow - self._started
            if not self._is_due(done, seen):
                continue
            seen = done
            if done > (self.did["dead supervisors"] + 1) * self._total // (DEAD_SUPERVISORS + 1):
                process.kill()
                process.wait()
                self.did["dead supervisors"] += 1
                process = start(self._folder, *options)
            elif done > (self.did["restarted databases"] + 1) * self._total // (DATABASE_RESTARTS + 1):
                with suppress(OSError, ValueError, psutil.Error):
                    psutil.Process(int((data / "postmaster.pid").read_text().split()[0])).kill()
                    self.did["restarted databases"] += 1
            else:
                self._strike(process)
        if process.returncode != 0:
            print((self._folder / "output.txt").read_text()[-3000:])
        return address

    def _is_due(self, done: int, seen: int) -> bool:
        """Return whether it is time for the next blow."""
        if not self._seconds:
            return done >= seen + EVERY
        now = time.monotonic()
        due = bool(self.first_success) and now >= self._last_blow + self._seconds
        self._last_blow = now if due else self._last_blow
        return due

    def _strike(self, process: subprocess.Popen[str]) -> None:
        with suppress(psutil.Error):
            below = psutil.Process(process.pid).children(recursive=True)
            servers = [child for child in below if "forkserver" in " ".join(child.cmdline())]
            workers = [child for child in servers if child.ppid() in {other.pid for other in servers}]
            if not workers:
                return
            victim = self._draw.choice(workers)
            if self.did["killed"] % 5 == 4 and self.did["paused"] < self.did["killed"] // 5:
                victim.suspend()
                time.sleep(5)
                victim.resume()
                self.did["paused"] += 1
            else:
                victim.kill()
                self.did["killed"] += 1

    def _succeeded(self, address: str) -> int:
        engine = create_engine(address)
        try:
            with engine.connect() as connection:
                return int(connection.scalar(text("SELECT count(*) FROM trials WHERE state = 'COMPLETE'")) or 0)
        except SQLAlchemyError:
            return 0
        finally:
            engine.dispose()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=40, help="kills of a first run, 0 for none")
    parser.add_argument("--trials", type=int, default=300, help="trials of the study of many workers, 0 for none")
    parser.add_argument("--every-seconds", type=float, default=0.0, help="blows by the clock, not by progress")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    found: dict[str, object] = {}
    draw = random.Random(0)
    moments = [round(draw.uniform(0, FIRST_SECONDS), 2) for _ in range(arguments.moments)]
    went_on: list[float] = []
    for moment in moments:
        if killed_at(moment):
            went_on.append(moment)
        print(f"killed after {moment:5.2f} s: {'goes on' if moment in went_on else 'FAILS'}", flush=True)
    found["moments"] = {"killed": len(moments), "went on": len(went_on)}
    print(f"first runs killed: {len(moments)}, went on: {len(went_on)}", flush=True)
    if arguments.trials:
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "kills.py").write_text(STUDY)
            blows = Blows(Path(name), arguments.trials, arguments.every_seconds)
            started = time.monotonic()
            held = kept(Path(name), blows.run(), arguments.trials)
            times = {"seconds": time.monotonic() - started, "seconds to the first success": blows.first_success}
            figures = {**blows.did, **held, **{name: round(value, 1) for name, value in times.items()}}
        found["workers"] = figures
        print(", ".join(f"{name}: {value}" for name, value in figures.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
