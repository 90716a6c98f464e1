"""Does a search end well, and is MLflow whole in the end, whatever becomes of the MLflow server meanwhile?

Command:   python studies/benchmarks/outages.py [--only slow deleted ...]
Cost:      twenty minutes on two cores; nothing is trained
Expected:  every search ends with exit code 0; after the same command again every trial is there once, ended, with its
           whole curve, under the right parent; 300 quick epochs become about 30 requests with metrics

`optuna-nas run` writes to a proxy in front of a real MLflow server. When the first trials have finished, the server is
killed, the proxy answers slowly, wrongly or not at all, the server's disk is full (a tmpfs, for which the script needs
root), or its database, experiment or runs are deleted. Then all is well again, and the same command runs once more.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import optuna
from mlflow import MlflowClient

STUDY = """
import time
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna_nas import MLflowTracker, Search, nasbench201_space

SPACE = nasbench201_space()


def search(name: str, mlflow: str, epochs: int = 3, seconds: float = 0.3, trials: int = 8) -> Search:
    def objective(trial):
        SPACE.suggest(trial)
        for step in range(1, epochs + 1):
            time.sleep(seconds)
            trial.report(step / 1000, step)
            tracker.epoch(trial.number, step, {"accuracy": step / 1000})
        return epochs / 1000 + trial.number / 10_000

    tracker = MLflowTracker(mlflow, experiment=name, metric="accuracy")
    return Search(
        name=name, space=SPACE, objective=objective, sampler=RandomSampler(0), pruner=NopPruner(), trials=trials,
        tracking=tracker,
    )
"""
TRIALS, BEFORE = 8, 3
"""Trials of a study, and how many of them finish before something happens."""
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class Proxy:
    """A server in front of MLflow: `answer` is None to pass requests on, or a status and a text; `delay` in seconds."""

    def __init__(self, port: int) -> None:
        self.behind, self.answer, self.delay, self.requests = f"http://127.0.0.1:{port}", None, 0.0, Counter[str]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.requests[self.path.split("?")[0].rsplit("/", 1)[-1]] += 1
                time.sleep(outer.delay)
                status, text, kind = *(outer.answer or outer.passed_on(self, body)), "application/json"
                with suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *unused: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    def passed_on(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        """Return MLflow's answer; 502 while it is away, as proxies answer."""
        headers = {key: value for key, value in request.headers.items() if key.lower() in ("content-type", "accept")}
        asked = urllib.request.Request(
            self.behind + request.path, data=body or None, headers=headers, method=request.command
        )
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 502, b"Bad Gateway"


class Server:
    """A real MLflow server in a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.start()

    @property
    def database(self) -> Path:
        """File of the runs."""
        return self.folder / "mlflow.db"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = ["--backend-store-uri", f"sqlite:///{self.database}", "--host", "127.0.0.1", "--workers", "1"]
        options += ["--artifacts-destination", str(self.folder / "artifacts"), "--port", str(self.port)]
        with open(self.folder.parent / "server.log", "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options],
                env=os.environ | QUIET,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1):
                return
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill the server at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Case:
    """One way to go wrong: a study, what happens to it in the middle, and what makes it good again."""

    def __init__(self, name: str, folder: Path, proxy: Proxy, server: Server) -> None:
        self.name, self.folder, self.proxy, self.server = name, folder / name, proxy, server
        self.client = MlflowClient(f"http://127.0.0.1:{server.port}")
        self.folder.mkdir()
        (self.folder / "study.py").write_text(STUDY)
        self.seconds: list[float] = []

    def command(self, *settings: str) -> subprocess.Popen[bytes]:
        """Start the search."""
        given = [f"name={self.name}", f"mlflow={self.proxy.uri}", *settings]
        command = [sys.executable, "-m", "optuna_nas.cli", "run", "study.py"]
        command += [text for setting in given for text in ("--set", setting)]
        output = open(self.folder / "output.txt", "ab")  # noqa: SIM115 # closed with the process' copy
        with output:
            return subprocess.Popen(command, cwd=self.folder, stdout=output, stderr=output, env=os.environ | QUIET)

    def study(self) -> optuna.Study:
        """Return the study."""
        return optuna.load_study(study_name=self.name, storage=f"sqlite:///{self.folder}/runs/{self.name}/study.db")

    def run(self, happens: Callable[[], None], heals: Callable[[], None]) -> dict[str, object]:
        """Run the search twice; return what came of it."""
        first = self.timed(happens)
        heals()
        return {"first exit code": first, "second exit code": self.timed(), **self.shown(), "seconds": self.seconds}

    def timed(self, happens: Callable[[], None] | None = None) -> int:
        """Run the search to its end; return its exit code."""
        started, process = time.monotonic(), self.command()
        while happens is not None and process.poll() is None:
            time.sleep(0.1)
            with suppress(Exception):  # the study may not be there yet
                if sum(trial.state.is_finished() for trial in self.study().get_trials(deepcopy=False)) >= BEFORE:
                    happens()
                    break
        code = process.wait(900)
        self.seconds.append(round(time.monotonic() - started))
        return code

    def shown(self) -> dict[str, object]:
        """Return how MLflow shows the study."""
        trials = self.study().trials
        experiment = self.client.get_experiment_by_name(self.name).experiment_id
        runs = list(self.client.search_runs([experiment], max_results=1000))
        parents = [run for run in runs if run.data.tags["optuna_nas.kind"] == "study"]
        children = [run for run in runs if run.data.tags["optuna_nas.kind"] == "trial"]
        numbers = Counter(int(run.data.tags["optuna.trial_number"]) for run in children)
        curves = {
            run.data.tags["optuna.trial_number"]: sorted(
                {point.step for point in self.client.get_metric_history(run.info.run_id, "accuracy")}
            )
            for run in children
        }
        return {
            "trials": len(trials),
            "parents": len(parents),
            "each trial once": numbers == Counter(range(TRIALS)),
            "under the right parent": {run.data.tags.get("mlflow.parentRunId") for run in children}
            == {run.info.run_id for run in parents},
            "ended": {run.info.status for run in runs} == {"FINISHED"},
            "whole curves": all(curve == [1, 2, 3] for curve in curves.values()),
        }


def is_whole(found: dict[str, object]) -> bool:
    """Return whether both searches ended well, and MLflow shows every trial once under its parent."""
    counts = (found["first exit code"], found["second exit code"], found["trials"], found["parents"])
    return counts == (0, 0, TRIALS, 1) and all(value for value in found.values() if isinstance(value, bool))


def outage(case: Case) -> dict[str, object]:
    """Let a case go wrong in its way."""
    proxy, server, client = case.proxy, case.server, case.client

    def answers(status: int, text: str) -> Callable[[], None]:
        return lambda: setattr(proxy, "answer", (status, text.encode()))

    def well() -> None:
        proxy.answer, proxy.delay = None, 0.0

    def restarted() -> None:
        server.kill()
        server.start()

    def deleted() -> None:
        server.database.unlink()

    def experiment() -> str:
        return client.get_experiment_by_name(case.name).experiment_id

    def runs_deleted() -> None:
        for run in client.search_runs([experiment()]):
            client.delete_run(run.info.run_id)

    def parent_deleted() -> None:
        kind = "tags.`optuna_nas.kind` = 'study'"
        client.delete_run(client.search_runs([experiment()], kind)[0].info.run_id)

    def filled() -> None:
        with suppress(OSError), open(server.folder / "filler", "wb") as filler:
            while True:
                filler.write(bytes(4096))
                filler.flush()

    cases: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "killed": (server.kill, server.start),
        "slow": (lambda: setattr(proxy, "delay", 2.0), well),
        "500": (answers(500, "Internal Server Error"), well),
        "403": (answers(403, "Forbidden"), well),
        "garbage": (answers(200, "\x00<html>\xff{"), well),
        "full_disk": (filled, (server.folder / "filler").unlink),
        "database_deleted": (deleted, restarted),
        "experiment_deleted": (
            lambda: client.delete_experiment(experiment()),
            lambda: client.restore_experiment(experiment()),
        ),
        "runs_deleted": (runs_deleted, lambda: None),
        "parent_deleted": (parent_deleted, lambda: None),
    }
    return case.run(*cases[case.name])


NAMES = (
    "killed", "slow", "500", "403", "garbage", "full_disk", "database_deleted", "experiment_deleted", "runs_deleted",
    "parent_deleted",
)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[*NAMES, "burst"], choices=[*NAMES, "burst"])
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found: dict[str, dict[str, object]] = {}
    folder = Path(tempfile.mkdtemp())
    disk = folder / "disk"
    disk.mkdir()
    on_disk = "full_disk" in arguments.only
    if on_disk:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    server = Server(disk)
    proxy = Proxy(server.port)
    try:
        for name in arguments.only:
            case = Case(name, folder, proxy, server)
            if name == "burst":
                proxy.requests.clear()
                code = case.command("epochs=100", "seconds=0.005", "trials=3").wait(300)
                found[name] = {"exit code": code, "epochs": 300, "requests with metrics": proxy.requests["log-batch"]}
                print(f"burst: {found[name]}", flush=True)
                continue
            found[name] = outage(case)
            print(f"{name}: {'whole' if is_whole(found[name]) else 'NOT WHOLE'} {found[name]}", flush=True)
            if not is_whole(found[name]):
                print((case.folder / "output.txt").read_text()[-2000:], flush=True)
        whole = sum(is_whole(result) for name, result in found.items() if name != "burst")
        print(f"{whole} of {sum(name != 'burst' for name in found)} whole")
    finally:
        server.kill()
        if on_disk:
            subprocess.run(["umount", str(disk)], check=True)
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
