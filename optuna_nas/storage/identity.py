"""Identity of a study: an id of its own, also for a copy, and which study a folder's files belong to."""

from __future__ import annotations

import json
import logging
import sqlite3
import uuid
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import URL, make_url

from optuna_nas.space.reading import named_file, read_json_file
from optuna_nas.storage.attributes import HOME, RULES, UID_ATTRIBUTE, attribute, has_attribute, user_attributes
from optuna_nas.storage.database import is_server, sqlite_file
from optuna_nas.storage.optuna_rdb import database_address
from optuna_nas.storage.own_postgres import users_at
from optuna_nas.storage.presence import has_ended, this_worker
from optuna_nas.storage.secrets import without_password
from optuna_nas.training.disk import whole_file
from optuna_nas.training.rules import checked, text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study

logger = logging.getLogger(__name__)

LEFT = "left-by-"
"""First letters of folders to which files of other studies are moved."""
OWNER_FILE = ".study.json"
"""File in a folder that names the study whose files it holds."""
SQLITE, OWN_SERVER, MEMORY = "sqlite", "own server ", "memory of "
SERVER_QUERY = ("host", "port", "unix_socket")
"""Parts of the query of a URL that say which server it is."""
DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


class Home(NamedTuple):
    """Where a study is.

    Args:
        name: Name of the study.
        place: Its storage: the path of an sqlite or journal file, the URL of a server without secrets, the file of
            the users of a server of one's own, or the class of an object.
    """

    name: str
    place: str


def home_of(study: Study) -> Home:
    """Return where a study is.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.identity import home_of
        >>> home_of(optuna.create_study(study_name="mine", storage="sqlite:///study.db")).place.endswith("study.db")
        True
    """
    backend: Any = getattr(study._storage, "_backend", study._storage)
    address = getattr(backend, "url", None)
    if isinstance(file := getattr(backend, "_file_path", None), str):  # a journal
        return Home(study.study_name, str(Path(file).resolve()))
    if type(backend).__name__ == "GrpcStorageProxy":
        return Home(study.study_name, f"grpc://{backend._host}:{backend._port}")
    if isinstance(url := getattr(backend, "_url", None), str):  # a journal in Redis
        return Home(study.study_name, without_password(url))
    if not isinstance(address, str):
        forgets = type(backend).__name__ == "InMemoryStorage"  # ends with the process
        return Home(study.study_name, _memory(backend) if forgets else type(backend).__name__)
    url = make_url(address)
    if url.get_backend_name() == SQLITE:
        file = sqlite_file(address)
        return Home(study.study_name, _memory(backend) if file is None else str(file.resolve()))
    return Home(study.study_name, _server(url))


def _memory(storage: object) -> str:
    """Return the place of a storage in the memory of this process."""
    return f"{MEMORY}{this_worker()} {id(storage)}"


def _server(url: URL) -> str:
    """Return the place of a database server: what tells it from others on the same machine, without secrets."""
    kind, asked = url.get_backend_name(), {name: value for name, value in url.query.items() if name in SERVER_QUERY}
    if isinstance(host := asked.get("host"), str) and (users := users_at(host)) is not None:
        return f"{OWN_SERVER}{users}"  # the folder of its socket changes
    port = "" if url.port in (None, DEFAULT_PORTS.get(kind)) else f":{url.port}"
    return f"{_server_before(url, port)}{'?' if asked else ''}{urlencode(sorted(asked.items()), doseq=True)}"


def _server_before(url: URL, port: str = "") -> str:
    """Return the place of a server as studies of before noted it."""
    return f"{url.get_backend_name()}://{url.host or ''}{port}/{url.database}"


def _places_of(study: Study) -> tuple[str, ...]:
    """Return the place of a study, and the one that it may have noted before."""
    address, place = database_address(study._storage), home_of(study).place
    return (place, _server_before(make_url(address))) if address is not None and is_server(address) else (place,)


def study_uid(study: Study) -> str:
    """Return the unique id of a study, which is created and stored in it at the first call.

    A copy (`optuna.copy_study`) has the attributes of its original; it gets an id of its own. A study that was moved or
    renamed keeps its id.

    Args:
        study: Study; gets user attributes.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.identity import study_uid
        >>> study = optuna.create_study(study_name="first", storage="sqlite:///studies.db")
        >>> uid = study_uid(study)
        >>> place = {"from_storage": "sqlite:///studies.db", "to_storage": "sqlite:///studies.db"}
        >>> optuna.copy_study(from_study_name="first", to_study_name="second", **place)
        >>> copy = optuna.load_study(study_name="second", storage="sqlite:///studies.db")
        >>> study_uid(copy) != uid == study_uid(study)
        True
    """
    attributes, home = user_attributes(study), home_of(study)
    noted = attribute(attributes, HOME)
    if (uid := _known_uid(study, attributes, home)) is None:
        uid = uuid.uuid4().hex[:16]
        study.set_user_attr(UID_ATTRIBUTE, uid)
        uid = user_attributes(study)[UID_ATTRIBUTE]  # another process may have been faster
    if noted is None or Home(*noted) != home:
        study.set_user_attr(HOME, list(home))
    return str(uid)


def _known_uid(study: Study, attributes: Mapping[str, Any], home: Home) -> str | None:
    """Return the id that a study has; None if it has none yet, or that of the original that it is a copy of."""
    uid, noted = attribute(attributes, UID_ATTRIBUTE), attribute(attributes, HOME)
    is_here = noted is None or (noted[0] == home.name and noted[1] in _places_of(study))
    if uid is not None and not is_here and _is_there(study, Home(*noted), str(uid)):
        logger.info("Study %r is a copy of %r and has an identity of its own.", study.study_name, noted[0])
        return None
    return None if uid is None else str(uid)


def keep_identity(study: Study) -> None:
    """Note that a study was moved here on purpose: the copy keeps the id, and the original is not used any more."""
    if has_attribute(user_attributes(study), UID_ATTRIBUTE):
        study.set_user_attr(HOME, list(home_of(study)))


def _is_there(study: Study, home: Home, uid: str) -> bool:
    """Return whether the study of an id is still where it was; True where that can't be seen."""
    if home.place in _places_of(study):
        try:
            other = study._storage.get_study_id_from_name(home.name)
        except KeyError:
            return home.place.isidentifier()  # the name of a class: it may be in another storage of that kind
        return bool(study._storage.get_study_user_attrs(other).get(UID_ATTRIBUTE) == uid)
    if not home.place.startswith(("/", "\\")) and not Path(home.place).is_absolute():
        if home.place.startswith(MEMORY):
            return has_ended(home.place.removeprefix(MEMORY).split(" ")[0]) is not True
        users = home.place.removeprefix(OWN_SERVER)
        return users == home.place or Path(users).exists()  # another server, or the memory of a process, can't be seen
    file = Path(home.place)
    return sqlite_holds(file, home.name, uid) or _journal_holds(file, home.name, uid)


def _journal_holds(file: Path, name: str, uid: str) -> bool:
    """Return whether a journal file holds the study of a name and an id."""
    if not file.exists():
        return False
    try:
        storage = JournalStorage(JournalFileBackend(str(file)))
        return bool(storage.get_study_user_attrs(storage.get_study_id_from_name(name)).get(UID_ATTRIBUTE) == uid)
    except (KeyError, TypeError, ValueError):  # no such study; no journal
        return False


def sqlite_holds(file: Path, name: str, uid: str) -> bool:
    """Return whether an sqlite file holds the study of a name and an id."""
    query = (
        "SELECT value_json FROM study_user_attributes JOIN studies USING (study_id) WHERE study_name = ? AND key = ?"
    )
    if not file.exists():
        return False
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute(query, (name, UID_ATTRIBUTE)).fetchall()
    except sqlite3.Error as error:  # a locked file is there, one without these tables is not
        return "no such table" not in str(error) and "not a database" not in str(error)
    return any(value == json.dumps(uid) for (value,) in rows)


def claim_folder(folder: Path, study: Study) -> None:
    """Note that a folder holds the files of a study; move aside what a study left that is no more.

    Args:
        folder: Existing folder.
        study: Study whose files it is to hold.

    Raises:
        ValueError: It holds the files of another study.
    """
    owner = check_folder(folder, study, claims=True)  # a copy that is refused here has no id of its own yet
    file, uid, home = folder / OWNER_FILE, study_uid(study), home_of(study)
    if owner is None and not file.exists() and not study.get_trials(deepcopy=False):
        _move_aside(folder, "unknown")
    elif owner not in (None, uid):
        _move_aside(folder, str(owner))
    described = json.dumps({"uid": uid, "name": home.name, "storage": home.place})
    if not file.exists() or file.read_bytes() != described.encode():
        with whole_file(file) as new:
            new.write_text(described)


def check_folder(folder: Path, study: Study, claims: bool = False) -> str | None:
    """Return the id of the study whose files a folder holds: this one, or one that is no more; None if it says none.

    Args:
        folder: Folder, which need not exist.
        study: Study that reads or writes there.
        claims: Whether the study takes the folder. A note that can't be read is then believed only if it has trials,
            whose files those are.

    Raises:
        ValueError: It holds the files of another study, or says so in a way that can't be read.
    """
    file = folder / OWNER_FILE
    try:
        with named_file("a note of optuna_nas", file):
            noted = checked(read_json_file(file), dict.fromkeys(("uid", "name", "storage"), text()))
        owner, owner_home = str(noted["uid"]), Home(noted["name"], noted["storage"])
        RULES[UID_ATTRIBUTE]("uid", owner)  # a folder is named after it
    except ValueError:
        if not claims or not file.exists() or study.get_trials(deepcopy=False):
            return None
        raise ValueError(
            f"`folder` must say whose files it holds but its note {file} can't be read; give this search another "
            "`folder`, or remove that note, which sets the other files aside."
        ) from None
    known = _known_uid(study, user_attributes(study), home_of(study))  # writes nothing: a report may ask
    if owner != known and _is_there(study, owner_home, owner):
        raise ValueError(
            f"`folder` must belong to one study but {folder} holds the files of {owner_home.name!r} in "
            f"{owner_home.place}; give this search another `folder` or another `name` (`--set name=...`)."
        )
    return owner


def _files_in(folder: Path) -> list[Path]:
    """Return what a folder holds, but for what was moved aside there and what a file system keeps for itself."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if path.name != "lost+found" and not path.name.startswith(LEFT)]


def _move_aside(folder: Path, owner: str) -> None:
    """Move the files of a study that is no more to a folder of their own, so that nothing of them is believed.

    Mounted and linked folders stay where they are; what is in them is moved to a folder in them.
    """
    names = (
        "networks", "checkpoints", "artifacts", "outputs", "report", "final", "exported", "best_architecture.png",
    )  # fmt: skip
    paths = [folder / name for name in names] + sorted(folder.glob("*.safetensors"))
    staying = [path for path in paths if path.is_mount() or (path.is_symlink() and path.is_dir())]
    found = {folder: [path for path in paths if path not in staying and (path.is_file() or _files_in(path))]}
    found |= {path: _files_in(path) for path in staying}
    for place, files in found.items():
        if not files:
            continue
        left = place / f"{LEFT}{owner}"
        for number in count(2):
            if not left.exists():
                break
            left = place / f"{LEFT}{owner}-{number}"
        left.mkdir()
        for path in files:
            if path.is_symlink():  # a relative one would lead elsewhere from there
                (left / path.name).symlink_to(path.resolve())
                path.unlink()
            else:
                path.replace(left / path.name)
        whose = "an unknown study" if owner == "unknown" else "a study that is no more"
        logger.warning("Files of %s are in %s.", whose, left)
