"""RUN and DATA: real folders, and what is said of other workers' sight of them."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from convoy.core.errors import DataError
from convoy.core.finding import Severity
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.trainer.doctor import storage

NAMES = ("worker 0 (a:2222)", "worker 1 (b:2222)")


def no_permission(*_, **__):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


class TestRunDirectory:
    def test_missing_directory_is_not_created(self, tmp_path):
        with storage.written_token(str(tmp_path / "deep" / "run")) as (token, seconds, (finding,)):
            assert (token.parent, seconds > 0, finding.severity) == (tmp_path, True, Severity.OK)
            assert storage.place_of(token, str(tmp_path / "deep" / "run")) == (token.name, ["deep", "run"])
            assert storage.sees((token.name, ["deep", "run"]), str(tmp_path / "deep" / "run"))
        assert os.listdir(tmp_path) == []

    def test_existing_run_is_unchanged(self, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        with storage.written_token(str(tmp_path)) as (token, _, (finding,)):
            assert (token.parent, finding.severity) == (tmp_path, Severity.OK)
        assert os.listdir(tmp_path) == ["checkpoints"]

    @pytest.mark.parametrize(("name", "problem"), [("file", "is a file"), ("full", "not empty")])
    def test_unusable_directory(self, tmp_path, name, problem):
        (tmp_path / "file").touch()
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thesis.tex").touch()
        with storage.written_token(str(tmp_path / name)) as (token, _, (finding,)):
            assert (token, finding.severity, problem in finding.text) == (None, Severity.ERROR, True)

    def test_unwritable_directory(self):
        with storage.written_token("/proc/run") as (token, _, (finding,)):
            assert (token, finding.severity) == (None, Severity.ERROR)
            assert finding.code == "workdir-not-writable"
            assert "--workdir=/proc/run" in finding.text

    def test_unreadable_directory(self, monkeypatch):
        monkeypatch.setattr(Path, "exists", no_permission)
        with storage.written_token("run") as (token, _, (finding,)):
            assert (token, finding.severity) == (None, Severity.ERROR)
            assert finding.text.startswith("--workdir=run: cannot be read (Permission denied)")

    def test_unshared_directory_names_worker(self):
        given = {0: "run", 1: "other"}
        assert storage.check_shared({0: True, 1: True}, given, NAMES) == []
        (finding,) = storage.check_shared({0: True, 1: False}, given, NAMES)
        assert (finding.severity, finding.code) == (Severity.ERROR, "workdir-not-shared")
        for text in ("worker 0 (a:2222)", "--workdir=run", "worker 1 (b:2222) in --workdir=other"):
            assert text in finding.text

    @pytest.mark.parametrize("folder", ["", "there"])
    def test_same_directory_under_another_mount_point(self, tmp_path, folder):
        (tmp_path / "home" / "there" / "checkpoints").mkdir(parents=True)
        (tmp_path / "home" / "other").mkdir()
        (tmp_path / "mount").symlink_to(tmp_path / "home")
        run = str(tmp_path / "home" / (folder or "run"))
        with storage.written_token(run) as (token, _, _):
            place = storage.place_of(token, run)
            assert storage.sees(place, str(tmp_path / "mount" / (folder or "run")), seconds=0)
            assert not storage.sees(place, str(tmp_path / "home" / "other"), seconds=0)
            assert not storage.sees(place, str(tmp_path / "home" / "another"), seconds=0)

    def test_late_file_is_awaited(self, tmp_path):
        threading.Timer(0.3, (tmp_path / "token").touch).start()
        assert storage.sees(("token", []), str(tmp_path), seconds=20)
        assert not storage.sees(("never", []), str(tmp_path), seconds=0.2)


class TestDisk:
    def test_enough_space(self, tmp_path):
        finding = storage.check_disk(tmp_path, 0.1, checkpoint_bytes=1000_000, kept=3)
        assert (finding.severity, "5 checkpoints of 1.0 MB take 5.0 MB" in finding.text) == (Severity.OK, True)

    def test_too_little_space(self, tmp_path):
        finding = storage.check_disk(tmp_path, 0.1, checkpoint_bytes=10**18, kept=3)
        assert (finding.severity, "keep_checkpoints" in finding.fix) == (Severity.ERROR, True)

    def test_slow_disk(self, tmp_path):
        finding = storage.check_disk(tmp_path, 100.0, checkpoint_bytes=100_000_000, kept=3)
        assert (finding.severity, "takes 1192 s" in finding.text) == (Severity.WARNING, True)


class TestData:
    def test_dataset_smaller_than_batch(self, dataset):
        opened = open_dataset(dataset.data)
        assert storage.check_data(opened, num_workers=2, global_batch_size=64) == []
        (finding,) = storage.check_data(opened, num_workers=2, global_batch_size=100)
        assert finding.severity == Severity.WARNING
        assert "a batch of 100" in finding.text and "82 training images" in finding.text

    def test_single_large_shard(self, dataset, monkeypatch):
        monkeypatch.setattr(storage, "_LARGE_SHARD_BYTES", 1000)
        opened = open_dataset(dataset.data)
        assert storage.check_data(opened, num_workers=1, global_batch_size=64) == []
        (finding,) = storage.check_data(opened, num_workers=2, global_batch_size=64)
        assert (finding.severity, finding.code) == (Severity.WARNING, "single-large-shard")
        assert "2 workers" in finding.text

    def test_same_data_everywhere(self, dataset):
        seen = storage.look_at(open_dataset(dataset.data))
        assert seen["bytes_per_second"] > 0
        (finding,) = storage.check_same_data({0: seen, 1: {**seen, "bytes_per_second": 5}}, NAMES, "data")
        assert (finding.severity, finding.of_all) == (Severity.OK, True)
        assert finding.text.startswith("82 training images, 7 classes")

    def test_different_data_names_workers(self):
        seen = {"images": 9, "classes": 2, "shards": 1, "digest": "aa", "bytes_per_second": 1.0}
        (finding,) = storage.check_same_data({0: seen, 1: {**seen, "digest": "bb"}}, NAMES, "data")
        assert finding.severity == Severity.ERROR
        assert "worker 0 (a:2222) and worker 1 (b:2222): digest aa and bb" in finding.text

    def test_different_bytes_with_same_manifest(self, dataset, tmp_path):
        other = shutil.copytree(dataset.data, tmp_path / "other")
        shard = open_dataset(other).split("train").shard_paths[0]
        content = bytearray(shard.read_bytes())
        content[100] ^= 1
        shard.write_bytes(content)
        seen = {rank: storage.look_at(open_dataset(data)) for rank, data in enumerate((dataset.data, other))}
        (finding,) = storage.check_same_data(seen, NAMES, "data")
        assert (finding.severity, "worker 1 (b:2222): checksum " in finding.text) == (Severity.ERROR, True)

    def test_missing_checksum_is_not_compared(self, dataset, monkeypatch):
        whole = storage.look_at(open_dataset(dataset.data))
        monkeypatch.setattr(storage, "_READ_SECONDS", 0.0)
        short = storage.look_at(open_dataset(dataset.data))
        assert short["checksum"] is None
        (finding,) = storage.check_same_data({0: whole, 1: short}, NAMES, "data")
        assert finding.severity == Severity.OK

    def test_unreadable_shard_is_named(self, dataset, monkeypatch):
        opened = open_dataset(dataset.data)
        monkeypatch.setattr("builtins.open", no_permission)
        with pytest.raises(DataError, match=r"shard .*train.* cannot be read \(Permission denied\)"):
            storage.look_at(opened)


def test_flag_missing_on_some_or_all_workers():
    assert storage.check_given("--data", "data", {0: "x", 1: "y"}, NAMES) == []
    (finding,) = storage.check_given("--data", "data", {0: "x", 1: ""}, NAMES)
    assert (finding.severity, finding.code) == (Severity.ERROR, "flag-missing-on-worker")
    assert "--data" in finding.text and "worker 1 (b:2222)" in finding.text
    (finding,) = storage.check_given("--data", "data", {0: "", 1: ""}, NAMES)
    assert (finding.severity, finding.code) == (Severity.SKIPPED, "flag-not-given")
