"""Keeper of a study's PostgreSQL: makes it, starts it, starts it again, and stops it when nobody uses it any more.

This is a program of its own, of the standard library alone (`python -I -S postgres_keeper.py DATA INSTALLED`), which
`own_postgres` starts. It outlives the process that started it: whoever uses the database holds a shared lock on a file,
which the system releases however a process ends. When the keeper gets the exclusive lock, nobody is left.

PostgreSQL refuses to run as root; there it runs as a system user. It reaches its data as its working folder and not by
their path, so that nobody has to open the folders above.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

ROLE, DATABASE, PORT = "optuna_nas", "postgres", 5432
"""Role of the search, which is no superuser, its database, and the number in the name of the socket."""
SYSTEM_USER = "pgserver"
"""User as which the server of root runs; that of the package with the programs."""
PRIVATE = 0o700
MAX_SOCKET_BYTES = 100
"""Longest path of a socket; systems allow 103 to 107 bytes."""
LOOK_SECONDS = 0.2
"""Seconds between two checks whether anybody uses the server, and whether it runs."""
START_SECONDS, STOP_SECONDS = 300.0, 60.0
"""Seconds to wait for a server that starts, perhaps after a crash, and for one that stops."""
MAX_RESTARTS = 5
"""Starts in a row after which a server that ends on its own is given up."""
STEADY_SECONDS = 60.0
"""Seconds after which a server counts as running, and its restarts as successful."""
PEER = f"local all {ROLE} peer map=owner\n"
"""Who may connect: the user whose study it is, by the socket, as the search's role."""
SECURED = "optuna_nas.secured"
"""File in the data that says that they belong to the role and that nobody else may connect."""
USERS = "users"
"""Link beside the socket to the file that users lock."""
OWN_ROLE = f"""
DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') THEN CREATE ROLE {ROLE} LOGIN; END IF; END $$;
ALTER DATABASE {DATABASE} OWNER TO {ROLE};
DO $$ DECLARE it record; BEGIN FOR it IN SELECT relname AS name FROM pg_class WHERE relkind = 'r' AND relnamespace = \
'public'::regnamespace LOOP EXECUTE format('ALTER TABLE public.%I OWNER TO {ROLE}', it.name); END LOOP; END $$;
DO $$ DECLARE it record; BEGIN FOR it IN SELECT typname AS name FROM pg_type WHERE typtype = 'e' AND typnamespace = \
'public'::regnamespace LOOP EXECUTE format('ALTER TYPE public.%I OWNER TO {ROLE}', it.name); END LOOP; END $$;
"""
"""Statements, one a line, that give the database, with the tables of earlier versions, to the search's role."""


class Failed(Exception):
    """Raised with one sentence if the server cannot be made or started."""


def beside(data: Path, name: str) -> Path:
    """Return the path of a file of the keeper beside the data, which are replaced as a whole.

    Example:
        >>> from pathlib import Path
        >>> from optuna_nas.storage.postgres_keeper import beside
        >>> beside(Path("runs/digits/postgresql"), "users")
        PosixPath('runs/digits/.postgresql.users')
    """
    return data.with_name(f".{data.name}.{name}")


class Server:
    """PostgreSQL with its data in a folder.

    Args:
        data: Folder of the data; made if there is none.
        installed: Folder of the package with PostgreSQL's programs.
    """

    def __init__(self, data: Path, installed: Path) -> None:
        self._data = data
        self._process: subprocess.Popen[bytes] | None = None
        self._made: list[Path] = []  # temporary folders
        self._user = _unprivileged() if os.geteuid() == 0 else None
        home = _home_of(data, installed)
        self._programs = (home if self._user is None else self._reachable(home)) / "bin"

    def start(self) -> Path:
        """Make the data if there are none, start the server, and return the folder of its socket."""
        self._stop_left_over()
        if not (self._data / "PG_VERSION").exists():
            self._make()
        if self._user is not None:
            _give(self._data, self._user)
        self._secure(self._data)
        socket_folder = self._socket_folder()
        self.start_again(socket_folder)
        return socket_folder

    def start_again(self, socket_folder: Path) -> None:
        """Start the server, and wait until it answers."""
        within = socket_folder == self._data
        options = {
            "listen_addresses": "",
            "unix_socket_directories": "." if within else str(socket_folder),
            "unix_socket_permissions": "0700",
            "port": str(PORT),
        }
        if not os.access("/dev/shm", os.W_OK):
            options["dynamic_shared_memory_type"] = "mmap"
        arguments = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with open(self._data / "log", "ab") as log:
            begin = log.tell()
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self._process = self._begin(self._data, "postgres", *arguments, **streams)
        end = time.monotonic() + START_SECONDS
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > end:
                raise Failed(_reason((self._data / "log").read_bytes()[begin:].decode(errors="replace")))
            time.sleep(0.02)
        users = socket_folder / USERS
        users.unlink(missing_ok=True)  # of before the folder was moved or copied
        users.symlink_to(beside(self._data, USERS))

    def runs(self) -> bool:
        """Return whether the server runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop the server, and remove what was made for it outside of its data."""
        if self._process is not None:
            for number in (signal.SIGINT, signal.SIGQUIT):  # cut all connections; without a last checkpoint
                if self._process.poll() is None:
                    self._process.send_signal(number)
                    with suppress(subprocess.TimeoutExpired):
                        self._process.wait(STOP_SECONDS)
        for folder in self._made:
            shutil.rmtree(folder, ignore_errors=True)

    # -- data -----------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        """Make the data in a folder of another name, so that a kill leaves none that are incomplete.

        Every attempt has its own: `initdb` outlives a keeper that is killed.
        """
        if self._data.exists():
            self._data.rename(beside(self._data, f"incomplete-{time.time_ns()}"))
        new = beside(self._data, f"new-{time.time_ns()}")
        for left in self._data.parent.iterdir():
            if left.name.startswith(beside(self._data, "new").name):
                shutil.rmtree(left, ignore_errors=True)
        new.mkdir(PRIVATE)
        options = ("-U", "postgres", "--auth=reject", "--encoding=UTF8", "--locale=C", "--no-instructions")
        try:
            if self._user is not None:
                os.chown(new, self._user.pw_uid, self._user.pw_gid)
            self._run(new, "initdb", *options)
            self._secure(new)
            new.rename(self._data)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise

    def _secure(self, data: Path) -> None:
        """Let one user connect, as the search's role; also to data of earlier versions, which trusted everybody."""
        data.chmod(PRIVATE)
        me = pwd.getpwuid(os.geteuid()).pw_name.replace('"', '""')
        for name, text in (("pg_hba.conf", PEER), ("pg_ident.conf", f'owner "{me}" {ROLE}\n')):
            (data / name).write_text(text)
        if not (data / SECURED).exists():
            self._run(data, "postgres", "--single", DATABASE, given=OWN_ROLE.lstrip())
            (data / SECURED).touch()

    def _stop_left_over(self) -> None:
        """Stop a server of these data that no keeper keeps: of an earlier version, or because its keeper was killed."""
        with suppress(OSError, ValueError, IndexError):
            process = int((self._data / "postmaster.pid").read_text().split()[0])
            program = Path(f"/proc/{process}/exe")
            if program.parent.exists() and Path(os.readlink(program)).name != "postgres":
                return  # the number is another program's by now
            os.kill(process, signal.SIGINT)
            end = time.monotonic() + STOP_SECONDS
            while time.monotonic() < end:
                os.kill(process, 0)  # raises once it has ended
                time.sleep(0.05)

    # -- surroundings ---------------------------------------------------------------------------------------------

    def _socket_folder(self) -> Path:
        """Return the folder of the socket: the data's, or a private one where its path is too long."""
        if _takes_socket(self._data):
            return self._data
        mine = [os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir()] if self._user is None else ["/run"]
        for place in (*mine, "/tmp"):
            with suppress(OSError):
                folder = self._temporary(place or "")
                if _takes_socket(folder):
                    if self._user is not None:
                        os.chown(folder, self._user.pw_uid, self._user.pw_gid)
                    return folder
        raise Failed("its path is too long for a socket, and no temporary folder can be written to")

    def _temporary(self, place: str) -> Path:
        if not place:
            raise FileNotFoundError
        self._made.append(Path(tempfile.mkdtemp(prefix="optuna_nas-", dir=place)).resolve())
        return self._made[-1]

    def _reachable(self, home: Path) -> Path:
        """Return a folder with PostgreSQL's programs from which the system user may start them."""
        try:
            command = [str(home / "bin" / "postgres"), "--version"]
            subprocess.run(command, check=True, capture_output=True, cwd="/", **self._as_user())
        except (OSError, subprocess.CalledProcessError):
            copy = self._temporary("/tmp")
            shutil.copytree(home, copy / "installed", symlinks=True, ignore=shutil.ignore_patterns("include", "pg_*"))
            for path in (copy, *copy.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755)
            return copy / "installed"
        return home

    # -- programs -------------------------------------------------------------------------------------------------

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def _begin(self, data: Path, program: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program on the data, in an environment without PostgreSQL's variables and in English."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        place = str(data) if self._user is None else "/proc/self/cwd"  # needs no rights on the folders above
        first = arguments[:1] if arguments[:1] == ("--single",) else ()  # which must come first
        command = [str(self._programs / program), *first, "-D", place, *arguments[len(first) :]]
        return subprocess.Popen(command, cwd=data, env=environment | {"LC_ALL": "C"}, **self._as_user(), **options)

    def _run(self, data: Path, program: str, *arguments: str, given: str = "") -> None:
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with self._begin(data, program, *arguments, **streams) as process:
            _, errors = process.communicate(given.encode())
        text = errors.decode(errors="replace")
        if process.returncode != 0 or "ERROR:" in text:  # single-user mode goes on after an error
            raise Failed(_reason(text))

    def _ready(self) -> bool:
        with suppress(OSError, IndexError):  # absent, or empty so far
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            return self._process is not None and lines[0] == str(self._process.pid) and lines[-1].strip() == "ready"
        return False


def _home_of(data: Path, installed: Path) -> Path:
    """Return the folder of the PostgreSQL that the data are of, the newest for new data."""
    homes = sorted(installed.glob("pginstall*"))
    with suppress(FileNotFoundError):
        version = (data / "PG_VERSION").read_text().strip()
        exact = [home for home in homes if home.name == f"pginstall{version}"]
        homes = exact or [home for home in homes if home.name == "pginstall"]  # without a number: an earlier one
    if not homes or not (homes[-1] / "bin" / "postgres").exists():
        raise Failed(f"there is no PostgreSQL for it in {installed}")
    return homes[-1]


def _takes_socket(folder: Path) -> bool:
    """Return whether a socket in a folder has a path that systems allow and that PostgreSQL takes as one."""
    return len(os.fsencode(folder / f".s.PGSQL.{PORT}")) <= MAX_SOCKET_BYTES and not set(str(folder)) & set(',"')


def _unprivileged() -> pwd.struct_passwd:
    """Return the system user as which the server of root runs; made if there is none."""
    with suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    options = ("--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin")
    try:
        subprocess.run(["useradd", *options, SYSTEM_USER], check=True, capture_output=True, text=True)
        return pwd.getpwnam(SYSTEM_USER)
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        reason = _reason(getattr(error, "stderr", "") or str(error))
        raise Failed(
            f"PostgreSQL does not run as root, and no user {SYSTEM_USER!r} can be made ({reason}); run as another user"
        ) from None


def _give(data: Path, user: pwd.struct_passwd) -> None:
    """Give the data to a user, where root or a container of before has left them to another."""
    for folder, _, files in os.walk(data):
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            if os.lstat(path).st_uid != user.pw_uid:
                os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def _reason(text: str) -> str:
    """Return the line of PostgreSQL's messages that says why it does not start."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if re.search("could not|unrecognized|invalid|FATAL|PANIC|ERROR|error:", line)]
    line = (told or lines[-1:] or ["it ends without a word"])[0]
    return re.sub(r"^.*?(LOG|FATAL|PANIC|ERROR|error): +", "", line)


def keep(server: Server, socket_folder: Path, users: IO[str]) -> None:
    """Keep a server running until nobody holds a lock on `users` any more."""
    since, restarts = time.monotonic(), 0
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(LOOK_SECONDS)
        if server.runs():
            continue
        if time.monotonic() - since > STEADY_SECONDS:
            restarts = 0
        restarts += 1
        if restarts > MAX_RESTARTS:
            return
        time.sleep(LOOK_SECONDS * restarts)  # processes of the one before may still end
        since = time.monotonic()
        with suppress(Failed):
            server.start_again(socket_folder)


def main(data: Path, installed: Path) -> None:
    """Start a server, write a line that says how it went, and keep it; see the module."""
    if os.fork():
        return  # whoever has started this does not wait for the keeper itself
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    os.umask(0o077)
    os.chdir("/")
    server = None
    with open(beside(data, "keeper"), "a+") as kept, open(beside(data, USERS), "a") as users:
        try:
            fcntl.flock(kept, fcntl.LOCK_EX | fcntl.LOCK_NB)
            server = Server(data, installed)
            socket_folder = server.start()
            kept.truncate(0)
            kept.write(str(socket_folder))
            kept.flush()
            _answer("ready")
            keep(server, socket_folder, users)
        except Exception as error:
            _answer(f"failed {' '.join(str(error).split())}")
        finally:
            if server is not None:
                server.stop()
            fcntl.flock(kept, fcntl.LOCK_UN)  # before `users` is free for others: they ask whether there is a keeper


def _answer(text: str) -> None:
    """Write a line to whoever has started this, and let go of its streams."""
    with suppress(OSError):
        os.write(1, f"{text}\n".encode())
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
