"""Files in object stores: an S3 server on this machine, a faulty network, and errors in plain words."""

import os
import random
import threading

import pytest

from convoy.core import remote
from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.core.remote import RemotePath, download, download_folder, is_remote, upload
from convoy.input_pipeline.dataset.storage import dataset_path
from tests.object_stores import (
    FaultyProxy,
    azure_server,
    azure_variables,
    environment,
    gcs_server,
    gcs_variables,
    make_bucket,
    s3_server,
    s3_variables,
)

ROOT = RemotePath("s3://bucket")
CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(scope="module")
def bucket(server):
    with environment(s3_variables(server)):
        make_bucket("s3://bucket")
        yield RemotePath("s3://bucket")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.01)


def test_files_of_a_bucket(bucket, tmp_path):
    check_files(bucket / "files", tmp_path)


@pytest.mark.slow
def test_files_of_a_bucket_of_google(tmp_path):
    with gcs_server(tmp_path) as url, environment(gcs_variables(url)):
        make_bucket("gs://bucket")
        check_files(RemotePath("gs://bucket/files"), tmp_path)
        with pytest.raises(FileNotFoundError, match="gs://nobucket/a"):
            RemotePath("gs://nobucket/a").read_range(0, 1)


@pytest.mark.slow
def test_files_of_a_container_of_azure(tmp_path):
    with azure_server(tmp_path) as url, environment(azure_variables(url)):
        make_bucket("az://container")
        check_files(RemotePath("az://container/files"), tmp_path)
        missing = RemotePath("az://nocontainer/a")
        for call in (lambda: missing.read_range(0, 1), lambda: missing.write_bytes(b"1")):
            with pytest.raises(DataError, match="bucket 'nocontainer' does not exist"):
                call()


def check_files(folder, tmp_path):
    assert not folder.is_dir() and folder.files() == {}
    (folder / "a").write_bytes(CONTENT)
    (folder / "b/c").write_bytes(b"")
    assert folder.is_dir() and not folder.is_file() and (folder / "a").is_file() and not (folder / "none").is_file()
    assert [path.name for path in folder.iterdir()] == ["a", "b"]
    assert folder.files() == {"a": len(CONTENT), "b/c": 0}
    assert (folder / "a").stat().st_size == len(CONTENT)
    assert (folder / "a").read_range(7, 100) == CONTENT[7:107]
    assert (folder / "b/c").read_text() == ""
    (tmp_path / "own").write_bytes(CONTENT)
    upload(tmp_path / "own", folder / "d")
    download_folder(folder, tmp_path / "copy", folder.files())
    copied = {path.relative_to(tmp_path / "copy").as_posix(): path.read_bytes() for path in _files(tmp_path / "copy")}
    assert copied == {"a": CONTENT, "b/c": b"", "d": CONTENT}
    (folder / "a").unlink()
    (folder / "a").unlink()
    assert "a" not in folder.files()


def _files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_parts_of_a_download_are_put_together(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_PART_BYTES", 4_321)
    (bucket / "large").write_bytes(CONTENT)
    download(bucket / "large", tmp_path / "large")
    assert (tmp_path / "large").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["large"]


@pytest.mark.parametrize("kind", ["500", "503", "429", "reset", "truncated", "short", "slow"])
def test_faults_that_pass_are_retried(bucket, server, kind):
    (bucket / "faulty").write_bytes(CONTENT)
    with FaultyProxy(server, failing=0.4, kinds=[kind]) as proxy, environment(s3_variables(proxy.url)):
        for start in range(0, 60_000, 10_000):
            assert (bucket / "faulty").read_range(start, 10_000) == CONTENT[start : start + 10_000]
        (bucket / f"written-{kind}").write_bytes(CONTENT)
    assert proxy.faults[kind] > 1
    assert (bucket / f"written-{kind}").read_bytes() == CONTENT


def test_answers_that_stay_short_end_in_an_error(bucket, server, tmp_path):
    (bucket / "short").write_bytes(CONTENT)
    with (
        FaultyProxy(server, failing=1.0, kinds=["short"]) as proxy,
        environment(s3_variables(proxy.url)),
        pytest.raises(ConvoyError, match="s3://bucket/short.*150,000 of 300,000 bytes"),
    ):
        download_folder(bucket, tmp_path, {"short": len(CONTENT)})
    assert proxy.faults["short"] == remote._ATTEMPTS
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_store_that_stays_down_ends_in_a_retryable_error(bucket, server, monkeypatch):
    monkeypatch.setattr(remote, "_ATTEMPTS", 2)
    with FaultyProxy(server) as proxy, environment(s3_variables(proxy.url)):
        proxy.is_down = True
        with pytest.raises(ConvoyError, match="503") as caught:
            (bucket / "a").read_range(0, 1)
    assert caught.value.exit_code == 1  # a launcher restarts it


def test_missing_objects_and_buckets(bucket):
    with pytest.raises(FileNotFoundError, match="s3://bucket/none"):
        (bucket / "none").read_bytes()
    for call in (
        lambda path: path.is_dir(),
        lambda path: path.files(),
        lambda path: path.read_range(0, 1),
        lambda path: path.write_bytes(b"1"),
    ):
        with pytest.raises(DataError, match="bucket 'nobucket' does not exist at http://127.0.0.1"):
            call(RemotePath("s3://nobucket/data"))


def test_credentials_that_are_missing(server, monkeypatch):
    with environment(s3_variables(server)):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(UsageError, match="AWS_PROFILE"):
            ROOT.is_dir()


@pytest.mark.slow
def test_endpoint_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(remote, "_ATTEMPTS", 1)
    with (
        environment(s3_variables("http://127.0.0.1:9")),
        pytest.raises(ConvoyError, match="AWS_ENDPOINT_URL=http://127.0.0.1:9"),
    ):
        ROOT.is_dir()


@pytest.mark.parametrize(("url", "named"), [("nosuch://bucket", "s3://"), ("dask://host/data", "dask://")])
def test_scheme_without_a_file_system(url, named):
    with pytest.raises(UsageError, match=named):
        RemotePath(url).is_dir()


def test_missing_library_names_the_extra(monkeypatch):
    import fsspec

    def refuse(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", refuse)
    for scheme, extra in (("s3", "s3"), ("gs", "gcs"), ("az", "azure"), ("abfs", "azure")):
        with pytest.raises(UsageError, match=rf"convoy-train\[{extra}\]"):
            RemotePath(f"{scheme}://bucket").is_dir()


def test_process_that_was_forked_reads_too(bucket):
    (bucket / "forked").write_bytes(CONTENT)
    assert (bucket / "forked").read_range(0, 10) == CONTENT[:10]  # the event loop runs
    child = os.fork()
    if not child:
        code = 1
        try:
            code = int((bucket / "forked").read_range(10, 10) != CONTENT[10:20])
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threads_share_the_connections(bucket):
    (bucket / "shared").write_bytes(CONTENT)
    found, threads = {}, []
    for start in range(64):
        read = lambda start=start: found.update({start: (bucket / "shared").read_range(start, 50)})  # noqa: E731
        threads.append(threading.Thread(target=read))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {start: CONTENT[start : start + 50] for start in range(64)}


def test_paths_keep_the_double_slash():
    path = dataset_path("s3://bucket/data/")
    assert is_remote(path) and not is_remote("data") and not is_remote("/a//b")
    assert (str(path / "a"), path.name, str(path.parent)) == ("s3://bucket/data/a", "data", "s3://bucket")
