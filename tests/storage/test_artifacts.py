"""Files that workers share arrive as they were published, from the store's own folder, or not at all."""

import optuna
import pytest

from optuna_nas.storage.artifacts import artifact_store, fetch_file, store_file
from optuna_nas.storage.attributes import Unreachable, Unverified


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a/b", "a\\b"])
def test_a_name_of_an_artifact_cannot_lead_out_of_its_folder(name, tmp_path):
    (tmp_path / "secret").write_text("secret")
    store = artifact_store(str(tmp_path / "store"))
    with pytest.raises(Unverified, match="is no name of an artifact"):
        fetch_file(store, {"artifact": name, "sha256": ""}, tmp_path / "taken")
    assert not (tmp_path / "taken").exists()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("s3://bucket/folder", "must be a folder or s3://BUCKET"),
        ("gopher://place", "must be a folder or s3://BUCKET"),
        ("{file}/store", "must be a place to write to"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_sentence(address, sentence, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises((ValueError, ConnectionError), match=sentence):
        artifact_store(address.format(file=tmp_path / "file"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_bucket_is_a_store(tmp_path, monkeypatch):
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        with pytest.raises(ConnectionError, match="must be a place to write to"):
            artifact_store("s3://absent")
        boto3.client("s3").create_bucket(Bucket="searches")
        store = artifact_store("s3://searches")
        (tmp_path / "files").mkdir()
        (tmp_path / "files" / "file").write_bytes(b"weights")
        fetch_file(store, store_file(optuna.create_study(), store, tmp_path / "files" / "file"), tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == b"weights"
        with pytest.raises(Unreachable):
            fetch_file(store, {"artifact": "gone", "sha256": ""}, tmp_path / "copy")
    finally:
        server.stop()
