"""Atomic files, appended lines, and locks."""

import errno
import fcntl
import json
import os
import resource

import pytest

from convoy.core.errors import UsageError
from convoy.core.files import (
    LockHeldError,
    acquire_lock,
    append_json_line,
    check_output_file,
    locked,
    replace,
    sync_folder,
    write_whole,
    written_whole,
)


def test_write_replaces_the_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "file.json"
    write_whole(path, b"before")
    write_whole(path, b"after")
    assert path.read_bytes() == b"after"
    assert os.listdir(tmp_path) == ["file.json"]


def test_open_readers_keep_the_old_content(tmp_path):
    path = tmp_path / "file.json"
    write_whole(path, b"before")
    with path.open("rb") as reader:
        write_whole(path, b"after")
        assert reader.read() == b"before"


def test_leftovers_of_a_crash_are_replaced(tmp_path):
    (tmp_path / "file.json.tmp").write_bytes(b"a long partial file of a crash")
    write_whole(tmp_path / "file.json", b"whole")
    assert (tmp_path / "file.json").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["file.json"]


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b"before")
    (tmp_path / "file.json.tmp").mkdir()
    with pytest.raises(OSError):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"


def test_exception_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_whole(path, b"before")
    with pytest.raises(RuntimeError), written_whole(path) as file:
        file.write(b"partial")
        raise RuntimeError
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file.json"]


def test_one_line_per_json_object(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        append_json_line(path, {"step": step, "text": "two\nlines"})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "text": "two\nlines"},
        {"step": 2, "text": "two\nlines"},
    ]


def test_append_after_a_truncated_line_starts_a_new_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "quali')
    append_json_line(path, {"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 2, "quali\n{"step": 3}\n'


def test_append_to_a_full_disk_changes_nothing(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_json_line(path, {"step": 1})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, hard))  # within the next line, as on a full disk
    try:
        with pytest.raises(OSError):
            append_json_line(path, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    append_json_line(path, {"step": 3})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]


def refusing(function, number, when):
    """Returns a function that raises an error where `when(*arguments)`, as some file systems do."""

    def call(*arguments):
        if when(*arguments):
            raise OSError(number, os.strerror(number))
        return function(*arguments)

    return call


class TestOtherFileSystems:
    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
    def test_without_fsync(self, tmp_path, monkeypatch, number):
        monkeypatch.setattr(os, "fsync", refusing(os.fsync, number, lambda _: True))
        write_whole(tmp_path / "file", b"content")
        sync_folder(tmp_path)
        assert (tmp_path / "file").read_bytes() == b"content"

    def test_failed_fsync_is_an_error(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "fsync", refusing(os.fsync, errno.EIO, lambda _: True))
        with pytest.raises(OSError):
            sync_folder(tmp_path)
        with pytest.raises(OSError):
            write_whole(tmp_path / "file", b"content")
        assert os.listdir(tmp_path) == []

    def test_folders_that_cannot_be_opened_are_not_synced(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "open", refusing(os.open, errno.EACCES, lambda *_: True))
        sync_folder(tmp_path)

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EBUSY, errno.EEXIST])
    def test_without_renaming_over_what_exists(self, tmp_path, monkeypatch, number):
        monkeypatch.setattr(os, "replace", refusing(os.replace, number, lambda _, target: os.path.lexists(target)))
        write_whole(tmp_path / "file", b"before")
        write_whole(tmp_path / "file", b"after")
        assert (tmp_path / "file").read_bytes() == b"after"
        for name in ("new", "empty", "full"):
            (tmp_path / name).mkdir()
        (tmp_path / "full" / "file").touch()
        replace(tmp_path / "new", tmp_path / "empty")
        with pytest.raises(OSError):
            replace(tmp_path / "empty", tmp_path / "full")
        assert sorted(os.listdir(tmp_path)) == ["empty", "file", "full"]

    def test_refused_rename_keeps_a_file_that_is_not_in_the_way(self, tmp_path, monkeypatch):
        write_whole(tmp_path / "file", b"before")
        monkeypatch.setattr(os, "replace", refusing(os.replace, errno.EROFS, lambda *_: True))
        with pytest.raises(OSError):
            write_whole(tmp_path / "file", b"after")
        assert (tmp_path / "file").read_bytes() == b"before"

    @pytest.mark.parametrize("length", [251, 252, 255])
    def test_longest_names(self, tmp_path, length):
        write_whole(tmp_path / ("x" * length), b"content")
        assert os.listdir(tmp_path) == ["x" * length]

    def test_refused_permission_to_lock_means_that_it_is_held(self, tmp_path, monkeypatch):
        monkeypatch.setattr(fcntl, "flock", refusing(fcntl.flock, errno.EACCES, lambda *_: True))
        with open(tmp_path / "lock", "wb") as file, pytest.raises(LockHeldError):
            acquire_lock(file.fileno())


class TestLock:
    def test_second_holder_is_refused_until_the_first_ends(self, tmp_path):
        first, second = locked(tmp_path / "lock", "busy"), locked(tmp_path / "lock", "busy")
        with first, pytest.raises(UsageError, match="busy"), second:
            pass
        with locked(tmp_path / "lock", "busy"):
            pass

    def test_waits_for_the_holder_and_reports_it_once(self, tmp_path, monkeypatch):
        waits = []
        with open(tmp_path / "lock", "wb") as first, open(tmp_path / "lock", "wb") as second:
            assert acquire_lock(first.fileno()) is None
            with pytest.raises(LockHeldError):
                acquire_lock(second.fileno(), wait_seconds=0.3, on_wait=lambda: waits.append(True))
            assert waits == [True]
            monkeypatch.setattr("time.sleep", lambda _: first.close())
            assert acquire_lock(second.fileno(), wait_seconds=60) is None

    @pytest.mark.parametrize("number", [errno.ENOLCK, errno.EBADF])
    def test_errors_of_the_file_system(self, tmp_path, monkeypatch, number):
        def fail(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", fail)
        with locked(tmp_path / "lock", "busy"):
            pass
        with open(tmp_path / "lock", "wb") as file:
            if number == errno.ENOLCK:
                assert acquire_lock(file.fileno()).errno == number
            else:
                with pytest.raises(OSError):
                    acquire_lock(file.fileno())


def test_output_must_be_a_file_in_an_existing_folder(tmp_path):
    check_output_file(tmp_path / "page.html")
    (tmp_path / "page.html").write_text("")
    check_output_file(tmp_path / "page.html")
    for path in (tmp_path, tmp_path / "missing" / "page.html"):
        with pytest.raises(UsageError, match=f"--output={path}"):
            check_output_file(path)
