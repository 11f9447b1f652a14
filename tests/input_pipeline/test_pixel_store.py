"""Decoded images on a disk: shared, bounded, and never wrong, whatever happens to processes and files."""

import json
import logging
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from convoy.core.errors import UsageError
from convoy.input_pipeline.reading.pixel_store import DiskSpace, PixelStore, chosen_space
from tests.input_pipeline.pixel_writer import IMAGES, LARGE, add_all, image, right, store_in
from tests.processes import run
from tests.small_disk import small_disk

ALL = list(range(IMAGES))
BYTES = sum(image(number).nbytes for number in ALL)
WRITER = [sys.executable, "-m", "tests.input_pipeline.pixel_writer"]


def bytes_in(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def flip(path, place):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def full(tmp_path):
    """A store with all images."""
    store = store_in(tmp_path)
    add_all(store)
    assert right(store) == ALL
    return store


def test_images_are_there_for_every_store_of_the_key(tmp_path):
    store, other = store_in(tmp_path), store_in(tmp_path)
    assert right(store) == []
    add_all(store, ALL[:20])
    add_all(other, ALL[10:])
    assert right(store) == right(other) == right(store_in(tmp_path)) == ALL
    assert store.path.stat().st_size == BYTES  # none twice
    assert right(store_in(tmp_path, "another key")) == []


def test_several_images_are_added_at_once_and_read_into_an_array(tmp_path):
    store, images = store_in(tmp_path), np.stack([image(number) for number in (7, 14, 21)])
    store.add(np.array([7]), images[:1])
    store.add(np.array([7, 14, 21]), images)
    out = np.zeros_like(images)
    for number, place in zip((21, 7), out, strict=False):
        assert store.read(number, place) is not None
    np.testing.assert_array_equal(out, [images[2], images[0], np.zeros_like(images[1])])
    assert right(store) == [7, 14, 21] and store.path.stat().st_size == images.nbytes


def test_processes_write_and_read_at_the_same_time(tmp_path):
    folder = tmp_path / "cache"
    writers = [
        subprocess.Popen([*WRITER, str(folder), str(order)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for order in range(3)
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline() == "open\n"
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        for writer in writers:
            answer = json.loads(writer.communicate(timeout=300)[0])
            assert answer == {"takes_more": True, "have": ALL}
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert right(store_in(folder)) == ALL


@pytest.mark.parametrize("write", [0, 1, 2, 3, 20, 21])  # pixels and entry in turn
def test_a_process_killed_in_the_middle_of_a_write_leaves_nothing_wrong(tmp_path, write):
    folder = tmp_path / "cache"
    killed = run([*WRITER, str(folder), "0", f"--killed_in_write={write}"], text="\n")
    assert killed.returncode == -signal.SIGKILL
    written = np.random.default_rng(0).permutation(IMAGES)[: write // 2]
    store = store_in(folder)
    assert right(store) == sorted(written)
    add_all(store)
    assert right(store) == ALL


def test_a_flipped_bit_of_the_pixels_is_found(full):
    flip(full.path, BYTES // 2)
    other = store_in(full.path.parent)
    (damaged,) = {*ALL} - {*right(other)}
    assert full.has(damaged) is False
    add_all(full)
    assert right(other) == ALL and full.path.stat().st_size == BYTES + image(damaged).nbytes


def test_a_flipped_bit_of_an_entry_is_found(full):
    index = full.path.with_suffix(".index")
    size = index.stat().st_size // IMAGES
    for place in range(size):
        flip(index, 5 * size + place)
        assert right(full) == [number for number in ALL if number != 5]
        flip(index, 5 * size + place)
        add_all(full, [5])
    assert right(full) == ALL


def test_entries_in_the_place_of_others_are_found(full):
    index = full.path.with_suffix(".index")
    entries = np.fromfile(index, np.uint8).reshape(IMAGES, -1)
    np.roll(entries, 7, axis=0).tofile(index)  # the images of a number and of the seventh after it have the same sides
    assert right(full) == []


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize(("suffix", "share"), [(".pixels", 0), (".pixels", 0.5), (".index", 0), (".index", 0.5)])
def test_a_truncated_file_is_found(full, suffix, share, is_open):
    path = full.path.with_suffix(suffix)
    os.truncate(path, int(share * path.stat().st_size) + 1)
    store = full if is_open else store_in(full.path.parent)
    left = right(store)
    assert len(left) < IMAGES
    for _ in range(2):
        add_all(store)
        assert right(store) == ALL


def test_no_more_than_the_limit_is_used_and_one_line_says_so(tmp_path, caplog):
    limit = BYTES // 2
    store = store_in(tmp_path, limit_bytes=limit)
    with caplog.at_level(logging.WARNING, "convoy"):
        add_all(store)
    kept = right(store)
    assert 0 < len(kept) < IMAGES and not store.takes_more
    assert limit - image(0).nbytes * 2 < bytes_in(tmp_path) <= limit
    assert len(caplog.records) == 1 and "--cache_gib" in caplog.text
    add_all(store_in(tmp_path, limit_bytes=LARGE))  # a later run with more space
    assert right(store) == ALL


def test_unused_images_of_other_keys_make_room(tmp_path):
    add_all(store_in(tmp_path, "unused"))
    used = store_in(tmp_path, "used")
    add_all(used)
    store = store_in(tmp_path, "new", limit_bytes=bytes_in(tmp_path) + 2000)
    add_all(store)
    assert right(store) == right(used) == ALL
    assert {path.stem for path in tmp_path.iterdir()} == {"lock", "decoded-used", "decoded-new"}
    assert right(store_in(tmp_path, "unused")) == []


def test_the_default_limit_leaves_half_of_the_free_space(tmp_path):
    (tmp_path / "decoded-old.pixels").write_bytes(bytes(1000))
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    limit = PixelStore(DiskSpace(tmp_path), "key", IMAGES)._limit_bytes
    assert limit == pytest.approx(free / 2, rel=0.1)


def test_a_failing_write_ends_the_writing_only(tmp_path):
    folder = tmp_path / "cache"
    largest = BYTES // 2
    limited = run([*WRITER, str(folder), "0", f"--largest_file={largest}"], text="\n")
    assert limited.returncode == 0, limited.stderr
    answer = json.loads(limited.stdout.splitlines()[-1])
    assert not answer["takes_more"] and 0 < len(answer["have"]) < IMAGES
    assert limited.stderr.count("cannot be written") == 1
    assert right(store_in(folder)) == answer["have"]


@pytest.mark.parametrize("spare", [(), ("--spare_nothing",)])
def test_a_full_disk_ends_the_writing_only(tmp_path, spare):
    size = 2**16
    with small_disk(tmp_path / "disk", size) as disk:
        command = [*disk.prefix, *WRITER, str(disk.folder / "cache"), "0", *spare]
        full = run(command, text="\n")
        assert full.returncode == 0, full.stderr
        answer = json.loads(full.stdout.splitlines()[-1])
        assert not answer["takes_more"] and 0 < len(answer["have"]) < IMAGES
        assert ("cannot be written (No space left" in full.stderr) == bool(spare)
        free = os.statvfs(disk.seen).f_bavail * os.statvfs(disk.seen).f_frsize
        assert spare or free >= 0.05 * size
        assert right(store_in(disk.seen / "cache")) == answer["have"]


def test_the_space_is_that_of_the_flags(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVOY_CACHE", str(tmp_path / "own"))
    assert chosen_space("disk") == DiskSpace(tmp_path / "own/decoded", 0)
    assert chosen_space("disk", str(tmp_path), 1.5) == DiskSpace(tmp_path, 3 * 2**29)
    (tmp_path / "file").touch()
    for flags, named in (
        (("none", str(tmp_path), 0.0), f"--cache_dir={tmp_path}"),
        (("memory", "", 1.5), "--cache_gib=1.5"),
        (("disk", "", -1.0), "--cache_gib=-1.0"),
        (("disk", "", float("inf")), "--cache_gib=inf"),
        (("disk", "", float("nan")), "--cache_gib=nan"),
        (("disk", str(tmp_path / "file"), 0.0), f"--cache_dir={tmp_path / 'file'}"),
        (("disk", "gs://bucket/cache", 0.0), "--cache_dir=gs://bucket/cache"),
    ):
        with pytest.raises(UsageError, match=f"^{named}: "):
            chosen_space(*flags)
