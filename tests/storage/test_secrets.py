"""What a message says of a database that does not answer: no password, in whole or in pieces, and the way out."""

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

from optuna_nas.storage.database import clear_errors, connect, shown_storage, without_password

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
