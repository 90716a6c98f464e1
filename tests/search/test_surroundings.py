"""A search where things are missing that a developer's machine has: shared memory, git, a home, a usual `TMPDIR`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from study_files import TINY
from terminal import command

import optuna_nas

pytestmark = pytest.mark.process

READ_ONLY = 'mount -t tmpfs -o ro,size=4k tmpfs /dev/shm && exec "$@"'


def bare(folder, **changes):
    """Return an environment without a home, without programs but Python, and with temporary files elsewhere."""
    (folder / "temporary").mkdir()
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HOME", "USER", "LOGNAME"))
    }
    return {**kept, "PATH": str(folder / "nothing"), "TMPDIR": str(folder / "temporary"), **changes}


def run(folder, words, environment):
    (folder / "tiny.py").write_text(TINY)
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "tiny: the best of 1 trials" in done.stdout
    assert "Error" not in done.stderr


@pytest.mark.parametrize("home", [None, "/proc/none"])
def test_a_search_needs_neither_git_nor_a_home(home, tmp_path):
    environment = bare(tmp_path, **({} if home is None else {"HOME": home}))
    run(tmp_path, command("run", "tiny.py", "--trials", "1"), environment)


def test_a_search_needs_no_right_to_write_to_the_package(tmp_path):
    """The package is a read-only mount, as in an image of a container."""
    package = tmp_path / "installed" / "optuna_nas"
    shutil.copytree(Path(optuna_nas.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mine").mkdir()
    tmp_path.chmod(0o755)
    script = f'mount --bind -o ro {package.parent} {package.parent} && ! touch {package}/file 2>/dev/null && exec "$@"'
    private = [shutil.which("unshare") or "unshare", "--mount", shutil.which("sh"), "-c", script, "sh"]
    if os.geteuid() != 0 or subprocess.run([*private, shutil.which("true")], capture_output=True).returncode != 0:
        pytest.skip("only root, with the right to mount, can make a folder read-only for itself")
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "HOME": str(tmp_path / "mine")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    find = "from importlib.util import find_spec; print(find_spec('optuna_nas').origin)"
    found = subprocess.run(
        [sys.executable, "-c", find], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(package / "__init__.py")
    words = command("run", "tiny.py", "--trials", "1")
    run(tmp_path / "mine", [*private, *words], environment)
    assert not list(package.rglob("__pycache__"))


def test_a_search_needs_no_shared_memory(tmp_path):
    private = [shutil.which("unshare") or "unshare", "--mount", shutil.which("sh"), "-c", READ_ONLY, "sh"]
    if os.geteuid() != 0 or subprocess.run([*private, shutil.which("true")], capture_output=True).returncode != 0:
        pytest.skip("only root, with the right to mount, can take /dev/shm away")
    words = command("run", "tiny.py", "--trials", "1", "--workers", "1", "--no-mlflow")
    run(tmp_path, [*private, *words], {**os.environ, "HOME": str(tmp_path)})
