import json
import os
import resource

import pytest

from convoy.core.files import append_json_line, write_whole, written_whole


def test_a_file_is_replaced_as_a_whole_and_nothing_else_stays(tmp_path):
    path = tmp_path / "file.json"
    write_whole(path, b"before")
    write_whole(path, b"after")
    assert path.read_bytes() == b"after"
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_reader_that_has_the_old_file_open_keeps_reading_it(tmp_path):
    path = tmp_path / "file.json"
    write_whole(path, b"before")
    with path.open("rb") as reader:
        write_whole(path, b"after")
        assert reader.read() == b"before"


def test_what_a_crash_left_half_written_is_replaced(tmp_path):
    (tmp_path / "file.json.tmp").write_bytes(b"a long half-written leftover of a crash")
    write_whole(tmp_path / "file.json", b"whole")
    assert (tmp_path / "file.json").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b"before")
    (tmp_path / "file.json.tmp").mkdir()
    with pytest.raises(OSError):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"


def test_an_exception_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.json"
    write_whole(path, b"before")
    with pytest.raises(RuntimeError), written_whole(path) as file:
        file.write(b"half of what")
        raise RuntimeError
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file.json"]


def test_each_json_object_is_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        append_json_line(path, {"step": step, "text": "two\nlines"})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "text": "two\nlines"},
        {"step": 2, "text": "two\nlines"},
    ]


def test_a_json_line_that_a_crash_cut_short_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "quali')
    append_json_line(path, {"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 2, "quali\n{"step": 3}\n'


def test_a_line_that_the_disk_has_no_room_for_leaves_no_part_of_it(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_json_line(path, {"step": 1})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, hard))  # ends within the line, as a full disk does
    try:
        with pytest.raises(OSError):
            append_json_line(path, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    append_json_line(path, {"step": 3})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]
