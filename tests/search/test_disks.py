"""Disks that are full or read-only, for each kind of file alone: named, nothing lost, and the same command goes on."""

import os
import subprocess
import sys
from contextlib import suppress

import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState
from terminal import here

from optuna_nas.storage.quota import counted_trials
from optuna_nas.training import train

pytestmark = pytest.mark.process  # mounts, and takes as long as those
BREAKS = ["full", "read-only"]


def mounted(*words):
    return subprocess.run(["mount", *words], capture_output=True, text=True)


class Disk:
    """A small disk of its own at a folder."""

    def __init__(self, folder, size="4m"):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        words = ("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
        if sys.platform != "linux" or os.geteuid() != 0 or mounted(*words).returncode:
            pytest.skip("only root, with the right to mount, can fill a disk")

    def breaks(self, how):
        """Fill the disk to the last block, or let nobody write to it."""
        if how == "full":
            with suppress(OSError), open(self.folder / "filler", "wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
        else:  # a second mount at the same place, since files of the first may be open
            mounted("--bind", self.folder, self.folder)
            assert mounted("-o", "remount,bind,ro", self.folder).returncode == 0

    def heals(self):
        """Undo that."""
        with suppress(OSError):
            (self.folder / "filler").unlink(missing_ok=True)
            return
        subprocess.run(["umount", "-l", self.folder], check=True)

    def close(self):
        while subprocess.run(["umount", "-l", self.folder], capture_output=True).returncode == 0:
            pass


def names_the_disk(said, how):
    """Return whether one sentence, and nothing else, says what is wrong with the disk, or with a file on it."""
    reasons = ("No space left on device", "Read-only file system", "make room", "can be written", "is not: ")
    told = any(reason in said for reason in (f"is {how}", *reasons))
    return told and said.count("Error: ") == 1 and "Traceback" not in said and "Failed" not in said


@pytest.fixture
def disk_at(folder):
    disks = []

    def make(place, **size):
        disks.append(Disk(folder / place, **size))
        return disks[-1]

    yield make
    for disk in disks:
        disk.close()


SEARCHES = {  # where the disk is, what is given, and whether the search goes on without
    "database": ("disk", ("--storage", "sqlite:///disk/study.db", "--no-mlflow"), False),
    "folder": ("runs/tiny", ("--storage", "sqlite:///study.db", "--no-mlflow"), False),
    "checkpoints": ("runs/tiny/checkpoints", ("--storage", "sqlite:///study.db", "--no-mlflow"), False),
    "networks": ("runs/tiny/networks", ("--storage", "sqlite:///study.db", "--no-mlflow"), False),
    "pictures": ("runs/tiny/artifacts", ("--storage", "sqlite:///study.db", "--no-mlflow"), True),
    "mlflow": ("disk", ("--storage", "sqlite:///study.db", "--mlflow", "sqlite:///{folder}/disk/mlflow.db"), False),
}


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("kind", SEARCHES)
def test_a_search_names_the_disk_loses_nothing_and_goes_on(kind, how, folder, disk_at, monkeypatch):
    monkeypatch.setitem(train.__kwdefaults__, "checkpoint_seconds", 0.0)  # after every step
    place, given, goes_on = SEARCHES[kind]
    given = [word.format(folder=folder) for word in given]  # whole, since MLflow keeps a database open by its address
    disk = disk_at(place)

    def run(trials):
        return here("run", "tiny.py", "--trials", trials, *given)

    def trials():
        study = optuna.load_study(study_name="tiny", storage="sqlite:///" + given[1].removeprefix("sqlite:///"))
        return study, study.trials

    assert run(1).exit_code == 0
    before = trials()[1]
    disk.breaks(how)
    for _ in range(4):  # more often than attempts that may fail
        broken = run(3)
        assert broken.exit_code == (0 if goes_on else 2), broken.stderr
        if not goes_on:
            said = " ".join(broken.stderr.split())
            assert names_the_disk(said, how)
    disk.heals()
    whole = run(3)
    assert whole.exit_code == 0, whole.stderr
    study, found = trials()
    assert counted_trials(study) == 3
    states = [trial.state for trial in found]
    assert states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED) == 3
    assert not {TrialState.RUNNING, TrialState.WAITING} & set(states)
    assert found[0] == before[0]
    if kind == "mlflow":
        client = MlflowClient(given[-1])
        experiment = client.get_experiment_by_name("optuna_nas").experiment_id
        runs = client.search_runs([experiment], "tags.`optuna_nas.kind` = 'trial'")
        assert sorted(int(run.data.tags["optuna.trial_number"]) for run in runs) == [0, 1, 2]
        assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}  # complete, pruned


def test_files_of_nobody_on_a_volume_are_set_aside_there(folder, disk_at):
    disk = disk_at("runs/tiny/networks")
    (disk.folder / "0.safetensors").write_bytes(b"of nobody knows whom")
    (disk.folder / "lost+found").mkdir()
    words = ("run", "tiny.py", "--trials", 1, "--storage", "sqlite:///study.db", "--no-mlflow")
    disk.breaks("read-only")
    broken = here(*words)
    assert broken.exit_code == 2
    assert "`folder` must be one to write to" in " ".join(broken.stderr.split())
    disk.heals()
    assert here(*words).exit_code == 0
    assert (disk.folder / "left-by-unknown" / "0.safetensors").exists()
    assert (disk.folder / "lost+found").exists()


@pytest.mark.parametrize("how", BREAKS)
def test_a_model_that_cannot_be_published_names_the_disk_and_costs_no_trial(how, folder, disk_at):
    disk = disk_at("disk")
    (folder / "disk" / "artifacts").mkdir()
    (folder / "runs" / "tiny").mkdir(parents=True)
    (folder / "runs" / "tiny" / "artifacts").symlink_to(folder / "disk" / "artifacts")
    words = ("run", "tiny.py", "--strategy", "snas", "--trials", "2", "--storage", "sqlite:///study.db", "--no-mlflow")
    disk.breaks(how)
    for _ in range(4):
        broken = here(*words)
        said = " ".join(broken.stderr.split())
        assert broken.exit_code == 2
        assert names_the_disk(said, how)
    disk.heals()
    whole = here(*words)
    assert whole.exit_code == 0, whole.stderr
    study = optuna.load_study(study_name="tiny", storage="sqlite:///study.db")
    assert counted_trials(study) == 2
    assert [trial.state for trial in study.trials].count(TrialState.COMPLETE) == 2
    assert not {TrialState.RUNNING, TrialState.WAITING} & {trial.state for trial in study.trials}


@pytest.mark.parametrize("how", BREAKS)
def test_a_comparison_names_the_disk_and_goes_on(how, folder, disk_at):
    seeded = (folder / "tiny.py").read_text().replace("def search(", "def search(seed: int = 0, ")
    (folder / "seeded.py").write_text(seeded)
    disk = disk_at("runs/compare-tiny", size="8m")

    def compare(seeds):
        return here("compare", "seeded.py", "--budget", "trials=1", "--seeds", seeds, "--no-mlflow")

    assert compare(1).exit_code == 0
    kept = {file: file.read_bytes() for file in disk.folder.glob("comparison.*")}
    assert len(kept) == 2
    disk.breaks(how)
    for _ in range(2):
        broken = compare(2)
        said = " ".join(broken.stderr.split())
        assert broken.exit_code == 2
        assert names_the_disk(said, how)
    assert {file: file.read_bytes() for file in kept} == kept
    disk.heals()
    assert compare(2).exit_code == 0
    assert {file: file.read_bytes() for file in kept} != kept


COMMANDS = {
    "report": ("disk", ("report", "tiny.py", "--output", "disk")),
    "pt2": ("disk", ("export", "tiny.py", "--format", "pt2", "--output", "disk/network")),
    "onnx": ("disk", ("export", "tiny.py", "--format", "onnx", "--output", "disk/network")),
    "state-dict": ("disk", ("export", "tiny.py", "--format", "state-dict", "--output", "disk/network")),
    "init": ("disk", ("init", "disk/study.yaml", "--force")),
    "final network": ("runs/tiny/final", ("train", "tiny.py", "--recipe", "epochs=1")),
    "picture": ("runs/tiny", ("run", "tiny.py", "--storage", "sqlite:///study.db", "--no-mlflow", "--trials", "1")),
}


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("kind", COMMANDS)
def test_a_command_names_the_disk_and_leaves_what_was_there(kind, how, folder, disk_at):
    place, words = COMMANDS[kind]
    if words[0] not in ("init", "run"):
        assert here("run", "tiny.py", "--trials", "1", "--no-mlflow").exit_code == 0
    disk = disk_at(place)
    if kind != "final network":  # which is trained once
        assert here(*words).exit_code == 0

    def files():
        found = [file for file in disk.folder.rglob("*") if file.is_file()]
        return {file: file.read_bytes() for file in found if file.name not in ("filler", ".running")}

    before = files()
    assert kind == "final network" or before
    disk.breaks(how)
    broken = here(*words)
    said = " ".join(broken.stderr.split())
    assert broken.exit_code == 2
    assert names_the_disk(said, how)
    after = files()
    assert {file: after.get(file) for file in before} == before
    if kind != "final network":
        assert set(after) == set(before)
    disk.heals()
    assert here(*words).exit_code == 0
