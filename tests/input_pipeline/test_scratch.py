"""The folder of temporary copies next to a dataset."""

import os

import pytest

from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.convert.scratch import scratch_folder, spool


def test_copies_can_be_read_at_their_offsets_and_are_removed(tmp_path):
    with spool(tmp_path / "deep" / "data") as copies:
        offsets = [copies.add(b"abc"), copies.add(memoryview(b"defg")[1:]), copies.add(b""), copies.add(b"h")]
        with open(copies.path, "rb") as file:
            assert (offsets, file.read()) == ([0, 3, 6, 6], b"abcefgh")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_conversion_left_is_removed(tmp_path):
    process = os.fork()
    if not process:
        with scratch_folder(tmp_path / "data", "images") as folder:
            (folder / "photos" / "more").mkdir(parents=True)
            (folder / "photos" / "more" / "1.png").touch()
            os._exit(0)  # without the end of the context
    os.waitpid(process, 0)
    assert (tmp_path / "data.images" / "photos").exists()
    with scratch_folder(tmp_path / "data", "images") as folder:
        assert not (folder / "photos").exists()
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_not_touched(tmp_path):
    (tmp_path / "data.images").mkdir()
    (tmp_path / "data.images" / "cat.jpg").touch()
    with pytest.raises(UsageError, match="data.images"), spool(tmp_path / "data"):
        pass
    assert (tmp_path / "data.images" / "cat.jpg").exists()
    (tmp_path / "file.images").touch()
    with pytest.raises(DataError, match="file.images"), spool(tmp_path / "file"):
        pass


def test_two_conversions_do_not_share_a_folder(tmp_path):
    with spool(tmp_path / "data") as copies:
        with pytest.raises(UsageError, match="another conversion"), spool(tmp_path / "data"):
            pass
        assert os.path.exists(copies.path)


def test_full_disk_is_an_error_with_the_folder(tmp_path):
    with spool(tmp_path / "data") as copies:
        os.dup2(os.open("/dev/full", os.O_WRONLY), copies._file.fileno())
        with pytest.raises(DataError, match="No space left.*--output"):
            copies.add(b"abc")
