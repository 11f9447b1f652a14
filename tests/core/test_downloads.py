"""Downloads from a server on this machine: once, checked, and whole or not at all."""

import contextlib
import hashlib
import os
import re
import subprocess
import sys

import pytest

from convoy.core.downloads import RemoteFile, cache_folder, fetched
from convoy.core.errors import DataError
from tests.file_server import FileServer

CONTENT = bytes(range(256)) * 4096
MD5, SHA256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()
PROGRAM = """
import sys
from pathlib import Path
from convoy.core.downloads import RemoteFile, fetched
from convoy.core.logs import log_to_stderr
log_to_stderr()
fetched(RemoteFile(sys.argv[1], "w.h5", sys.argv[2]), Path(sys.argv[3]), needed_by="test", is_whole=Path.exists)
"""


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served/weights.h5").write_bytes(CONTENT)
    with FileServer(tmp_path / "served") as server:
        yield server


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def fetch(url, folder, digest=SHA256, is_whole=lambda path: path.stat().st_size == len(CONTENT), **options):
    return fetched(RemoteFile(url, "w.h5", digest), folder, needed_by="config.x", is_whole=is_whole, **options)


def refusal(url, folder, **options) -> str:
    """Returns the error, which says where the file is and where to put it, and leaves no part of it."""
    before = {path.name for path in folder.glob("*")}
    with pytest.raises(DataError) as caught:
        fetch(url, folder, **options)
    message = str(caught.value)
    assert "\n" not in message and url in message and str(folder / "w.h5") in message
    assert {path.name for path in folder.glob("*")} <= before | {"w.h5.lock"}
    return message


@pytest.mark.parametrize("digest", [SHA256, MD5, ""])
def test_a_file_is_downloaded_once(server, cache, digest):
    for _ in range(2):
        path = fetch(server.url("weights.h5"), cache, digest)
        assert path == cache / "w.h5" and path.read_bytes() == CONTENT
    assert server.requests == ["/weights.h5"]


def test_a_file_in_another_folder_is_used(server, cache, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/w.h5").write_bytes(CONTENT)
    assert fetch(server.url("weights.h5"), cache, also_in=[tmp_path / "other"]) == tmp_path / "other/w.h5"
    assert not server.requests and not cache.exists()


def test_a_file_of_other_content_is_refused(server, cache):
    message = refusal(server.url("weights.h5"), cache, digest="0" * 64)
    assert SHA256 in message and "0" * 64 in message
    assert server.url("weights.h5") in refusal(server.url("weights.h5"), cache, digest="", is_whole=lambda path: False)


@pytest.mark.parametrize("digest", [SHA256, ""])
def test_a_truncated_file_is_refused(server, cache, digest):
    server.sent_bytes = len(CONTENT) // 2
    assert re.search(r"0\.5 MB of 1\.0 MB", refusal(server.url("weights.h5"), cache, digest=digest))


def test_without_a_network_a_file_can_be_put_there_by_hand(server, cache, tmp_path):
    with FileServer(tmp_path) as gone:
        url = gone.url("weights.h5")
    refusal(url, cache)
    assert "404" in refusal(server.url("none.h5"), cache)
    (cache / "w.h5").write_bytes(CONTENT[:-1])
    assert "not that file" in refusal(url, cache)
    (cache / "w.h5").write_bytes(CONTENT)
    assert fetch(url, cache) == cache / "w.h5"


def test_a_wrong_file_in_the_cache_is_replaced(server, cache):
    cache.mkdir()
    (cache / "w.h5").write_bytes(b"of another version")
    assert fetch(server.url("weights.h5"), cache).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file.*CONVOY_CACHE"):
        fetch(server.url("weights.h5"), tmp_path / "file/weights")


@contextlib.contextmanager
def downloading(server, cache):
    """Starts a process that downloads the file."""
    command = [sys.executable, "-c", PROGRAM, server.url("weights.h5"), SHA256, str(cache)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_two_processes_download_once(server, cache):
    server.may_end.clear()
    with downloading(server, cache) as first:
        assert server.asked.wait(60)
        with downloading(server, cache) as second:
            assert "Waiting" in second.stderr.readline()
            assert not (cache / "w.h5").exists()
            server.may_end.set()
            assert [process.wait(60) for process in (first, second)] == [0, 0]
    assert (cache / "w.h5").read_bytes() == CONTENT and len(server.requests) == 1


def test_a_killed_download_leaves_nothing_wrong(server, cache):
    server.may_end.clear()
    with downloading(server, cache) as process:
        assert server.asked.wait(60) and process.stderr.readline()
    assert not (cache / "w.h5").exists()
    server.may_end.set()
    assert fetch(server.url("weights.h5"), cache).read_bytes() == CONTENT
    assert sorted(os.listdir(cache)) == ["w.h5", "w.h5.lock"]


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("CONVOY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/convoy"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/convoy"
    monkeypatch.setenv("CONVOY_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"
