"""What a message says of an address and of other given values: no password, in whole or in pieces, and the way out."""

from types import SimpleNamespace

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError
from study_files import TINY
from terminal import here

from optuna_nas.cli.mlflow_server import mlflow_server
from optuna_nas.search.new_study import NewStudy
from optuna_nas.search.study_file import UsageError
from optuna_nas.storage.artifacts import artifact_store
from optuna_nas.storage.database import clear_errors, connect, shown_storage
from optuna_nas.storage.secrets import without_password
from optuna_nas.workers.on_ray import _connect

SECRETS = ("se@cr/et", "hunter2", "p%40ss", "to:ken")


@pytest.mark.parametrize("secret", SECRETS)
def test_an_address_is_shown_without_its_secrets(secret):
    for address in (
        f"postgresql://me:{secret}@host/studies",
        f"postgresql+psycopg://me:{secret}@host/studies?sslmode=require",
        f"https://me:{secret}@host/studies",
        f"postgresql://host/studies?user=me&password={secret}",
    ):
        assert without_password(address).endswith("://host/studies")
    assert shown_storage(f"mysql://me:{secret}@host/db") == "mysql://host/db"


@pytest.mark.parametrize("secret", SECRETS)
def test_what_a_driver_says_of_an_address_is_shown_without_its_secrets(secret):
    address = f"postgresql://me:{secret}@no-such-host.invalid:1/studies"
    with pytest.raises(ConnectionError) as raised, clear_errors(address):
        connect(address)
    message = str(raised.value)
    for piece in (secret, "cr/et", "cr", "hunter2", "p%40ss", "p@ss"):
        if piece in secret:
            assert piece not in message.replace("secret", "").replace("address", "")
    if "@" in secret:
        assert "@ is written %40" in message


@pytest.mark.parametrize(
    ("said", "way_out"),
    [
        ("database or disk is full", "make room on its disk"),
        ("attempt to write a readonly database", "give `storage` a place that can be written"),
        ("unable to open database file", "start the database, or correct the address"),
    ],
)
def test_a_database_that_does_not_answer_is_told_with_its_way_out(said, way_out):
    with pytest.raises(ConnectionError, match=f"{said}.*; {way_out}"), clear_errors("sqlite:///study.db"):
        raise StorageInternalError("failed") from OperationalError("insert", {}, Exception(said))


def test_a_question_mark_in_a_password_hides_it_no_less():
    address = "postgresql://me:ab?hunter2@no-such-host.invalid:1/db"
    assert without_password(address) == "postgresql://no-such-host.invalid:1/db"
    with pytest.raises(ConnectionError) as raised:
        connect(address)
    assert "hunter2" not in str(raised.value)
    assert "? %3F" in str(raised.value)


def test_a_port_that_is_none_is_told_without_the_password():
    with pytest.raises(
        ConnectionError, match=r"`storage` must be the address .*'postgresql.*://host:port/db' is none"
    ) as raised:
        connect("postgresql://me:hunter2@host:port/db")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("postgresql:/me:hunter2@host/s1", "postgresql:***@host/s1"),
        ("postgresql:me:hunter2@host/s1", "postgresql:***@host/s1"),
        ("postgresql:///me:hunter2@host/s1", "postgresql://host/s1"),
        ("me:hunter2@host/s1", "me:***@host/s1"),
        ("me:hun@ter2/@host/s1", "me:***@host/s1"),
        ("me:hunter2@host and http://other", "me:***@host and http://other"),
        ("storage=postgresql://me:hunter2@host/s1", "storage=postgresql://host/s1"),
        ("storage:postgresql://me:hunter2@host/s1", "storage:postgresql://host/s1"),
        ("two postgresql://me:hunter2@host/s1 http://you:hunter2@host/", "two postgresql://host/"),
        ("postgresql://me:hun@ter2?x@host/s1", "postgresql://host/s1"),
        ("postgresql:/host/s1?user=me&password=hunter2&x=1", "postgresql:/host/s1?user=me&password=***&x=1"),
        ("host=here user=me password=hunter2", "host=here user=me password=***"),
    ],
)
def test_a_password_is_hidden_in_mistyped_addresses_and_in_longer_texts(given, shown):
    assert without_password(given) == shown


@pytest.mark.parametrize(
    "text",
    [
        "digits",
        "me@host",
        "lr=0.1",
        "nasbench201:channels=8",
        "C:\\runs",
        "localhost:5000",
        "runs/me@corp/a.db",
        "sqlite:///C:/runs/me@corp.db",
        "sqlite:////runs/a:b@c.db",
        "file:///home/me@corp",
        "who? me@host, at 12:30",
    ],
)
def test_a_text_without_a_password_stays_as_it_is(text):
    assert without_password(text) == text


@pytest.mark.parametrize(
    "address",
    [
        "s3://KEY:hunter2@bucket/x",
        "https://me:hunter2@host/b",
        "gs://me:hunter2@b",
        "s3:/KEY:hunter2@bucket",
        "s3:/bucket",
        "KEY:hunter2@bucket",
    ],
)
def test_an_artifact_store_that_is_none_is_told_without_secrets(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="`artifacts` must be a folder or s3://BUCKET") as raised:
        artifact_store(address)
    assert "hunter2" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_the_servers_process_list_has_no_address(monkeypatch):
    started = []

    def start(words, env, **others):
        started.append((words, env))
        return SimpleNamespace(poll=lambda: 1, terminate=lambda: None)

    monkeypatch.setattr("subprocess.Popen", start)
    with (
        pytest.raises(UsageError, match="must be free for MLflow"),
        mlflow_server("postgresql://me:hunter2@host/db", 1),
    ):
        pytest.fail("there is no server")
    ((words, environment),) = started
    assert not any("hunter2" in word for word in words)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql://me:hunter2@host/db"


SECRET = "postgresql://me:hunter2@127.0.0.1:1/s1"
MISTYPED = {
    "a command": [SECRET],
    "study": ["run", SECRET],
    "study to mirror": ["mirror", SECRET],
    "new study": ["init", SECRET],
    "folder": ["list", SECRET],
    "one argument more": ["run", "tiny.py", "extra", SECRET],
    "option": ["run", "tiny.py", "--postgresql:/me:hunter2@host"],
    "trials": ["run", "tiny.py", "--trials", SECRET],
    "workers": ["run", "tiny.py", f"--workers={SECRET}"],
    "strategy": ["run", "tiny.py", "--strategy", SECRET],
    "name": ["run", "tiny.py", "--name", SECRET],
    "no such argument": ["run", "tiny.py", "--set", f"storage={SECRET}"],
    "value of an argument": ["run", "tiny.py", "--set", f"epochs={SECRET}"],
    "colon in place of the equals sign": ["run", "tiny.py", "--set", f"storage:{SECRET}"],
    "storage of one slash": ["run", "tiny.py", "--storage", "postgresql:/me:hunter2@host/s1"],
    "storage without a scheme": ["run", "tiny.py", "--storage", "me:hunter2@host/s1"],
    "MLflow of one slash": ["run", "tiny.py", "--mlflow", "http:/me:hunter2@host:5000"],
    "MLflow without a scheme": ["run", "tiny.py", "--mlflow", "me:hunter2@host:5000"],
    "artifacts of one slash": ["run", "tiny.py", "--artifacts", "s3:/KEY:hunter2@bucket"],
    "type": ["run", "study.yaml", "--set", "tracking=http://me:hunter2@host:5000"],
    "type in a mapping": ["run", "study.yaml", "--set", f"artifacts.type={SECRET}"],
    "plain value": ["run", "study.yaml", "--set", f"trials={SECRET}"],
    "key": ["run", "study.yaml", "--set", f"{SECRET}=3"],
    "key with a dot": ["run", "study.yaml", "--set", "me:hun.ter2@host=3"],
    "key of a file": ["run", "key.yaml"],
    "colon in place of the equals sign, YAML": ["run", "study.yaml", "--set", f"storage:{SECRET}"],
    "recipe": ["train", "tiny.py", "--architecture=DARTS_V2", "--skeleton=darts_cifar", f"--recipe=epochs={SECRET}"],
    "architecture": ["train", "tiny.py", "--architecture", SECRET],
}


@pytest.mark.parametrize("place", MISTYPED)
def test_whatever_is_typed_in_the_wrong_place_is_told_without_its_password(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "tiny.py").write_text(TINY)
    yaml = NewStudy("study", strategy="tpe").yaml("run")
    (tmp_path / "study.yaml").write_text(yaml)
    (tmp_path / "key.yaml").write_text(f"{yaml}\n{SECRET}: 3\n")
    done = here(*MISTYPED[place])
    assert done.exit_code == 2, done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert "hun" not in done.output
    assert "ter2" not in done.output


def test_a_cluster_that_does_not_answer_is_told_without_its_password():
    def refuse(**options):
        raise ConnectionError(f"nothing at {options['address']}")

    ray = SimpleNamespace(init=refuse)
    with pytest.raises(ConnectionError, match="`--ray` must be the address of a cluster") as raised:
        _connect(ray, "ray://me:hunter2@127.0.0.1:10001", 1)
    assert "hunter2" not in str(raised.value)
