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

ADDRESSES = ("a:2222", "b:2222")


def no_permission(*_, **__):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


class TestRunDirectory:
    def test_that_is_not_there_can_be_made_and_is_not(self, tmp_path):
        with storage.written_token(str(tmp_path / "deep" / "run")) as (token, seconds, (finding,)):
            assert (token.parent, seconds > 0, finding.severity) == (tmp_path, True, Severity.OK)
            assert storage.place_of(token, str(tmp_path / "deep" / "run")) == (token.name, ["deep", "run"])
            assert storage.sees((token.name, ["deep", "run"]), str(tmp_path / "deep" / "run"))
        assert os.listdir(tmp_path) == []

    def test_of_a_run_is_as_it_was(self, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        with storage.written_token(str(tmp_path)) as (token, _, (finding,)):
            assert (token.parent, finding.severity) == (tmp_path, Severity.OK)
        assert os.listdir(tmp_path) == ["checkpoints"]

    @pytest.mark.parametrize(("name", "fix"), [("file", "is a file"), ("full", "is not empty and holds no run")])
    def test_that_no_run_can_lie_in_fails(self, tmp_path, name, fix):
        (tmp_path / "file").touch()
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thesis.tex").touch()
        with storage.written_token(str(tmp_path / name)) as (token, _, (finding,)):
            assert (token, finding.severity, fix in finding.text) == (None, Severity.ERROR, True)

    def test_that_cannot_be_written_fails(self):
        with storage.written_token("/proc/run") as (token, _, (finding,)):
            assert (token, finding.severity) == (None, Severity.ERROR)
            assert finding.text.startswith("--workdir=/proc/run cannot be made: /proc: ")

    def test_that_may_not_be_looked_at_fails(self, monkeypatch):
        monkeypatch.setattr(Path, "exists", no_permission)
        with storage.written_token("run") as (token, _, (finding,)):
            assert (token, finding.severity) == (None, Severity.ERROR)
            assert finding.text.startswith("--workdir=run: cannot be read (Permission denied)")

    def test_that_a_worker_does_not_share_names_it(self):
        given = {0: "run", 1: "other"}
        assert storage.check_shared({0: True, 1: True}, given, ADDRESSES) == []
        (finding,) = storage.check_shared({0: True, 1: False}, given, ADDRESSES)
        assert finding.severity == Severity.ERROR
        assert finding.text == (
            "what worker 0 (a:2222) writes in --workdir=run does not show on worker 1 (b:2222) in --workdir=other."
        )

    @pytest.mark.parametrize("folder", ["", "there"])
    def test_that_a_worker_has_by_another_way_is_the_same_and_one_of_another_name_is_not(self, tmp_path, folder):
        (tmp_path / "home" / "there" / "checkpoints").mkdir(parents=True)
        (tmp_path / "home" / "other").mkdir()
        (tmp_path / "mount").symlink_to(tmp_path / "home")
        run = str(tmp_path / "home" / (folder or "run"))
        with storage.written_token(run) as (token, _, _):
            place = storage.place_of(token, run)
            assert storage.sees(place, str(tmp_path / "mount" / (folder or "run")), seconds=0)
            assert not storage.sees(place, str(tmp_path / "home" / "other"), seconds=0)
            assert not storage.sees(place, str(tmp_path / "home" / "another"), seconds=0)

    def test_that_shows_a_file_late_is_waited_for(self, tmp_path):
        threading.Timer(0.3, (tmp_path / "token").touch).start()
        assert storage.sees(("token", []), str(tmp_path), seconds=20)
        assert not storage.sees(("never", []), str(tmp_path), seconds=0.2)


class TestDisk:
    def test_with_room_says_what_checkpoints_take(self, tmp_path):
        finding = storage.check_disk(tmp_path, 0.1, checkpoint_bytes=1000_000, kept=3)
        assert (finding.severity, "5 checkpoints of 1.0 MB take 5.0 MB" in finding.text) == (Severity.OK, True)

    def test_without_room_fails(self, tmp_path):
        finding = storage.check_disk(tmp_path, 0.1, checkpoint_bytes=10**18, kept=3)
        assert (finding.severity, "keep_checkpoints" in finding.fix) == (Severity.ERROR, True)

    def test_that_is_slow_is_a_warning(self, tmp_path):
        finding = storage.check_disk(tmp_path, 100.0, checkpoint_bytes=100_000_000, kept=3)
        assert (finding.severity, "takes 1192 s" in finding.text) == (Severity.WARNING, True)


class TestData:
    def test_too_small_for_a_batch_is_a_warning(self, dataset):
        opened = open_dataset(dataset.data)
        assert storage.check_data(opened, num_workers=2, global_batch_size=64) == []
        (finding,) = storage.check_data(opened, num_workers=2, global_batch_size=100)
        assert finding.severity == Severity.WARNING
        assert "82 training images do not fill a batch of 100" in finding.text

    def test_in_one_large_shard_for_several_workers_is_a_warning(self, dataset, monkeypatch):
        monkeypatch.setattr(storage, "_LARGE_SHARD_BYTES", 1000)
        opened = open_dataset(dataset.data)
        assert storage.check_data(opened, num_workers=1, global_batch_size=64) == []
        (finding,) = storage.check_data(opened, num_workers=2, global_batch_size=64)
        assert (finding.severity, "2 workers read at once" in finding.text) == (Severity.WARNING, True)

    def test_that_is_the_same_everywhere_is_told_once(self, dataset):
        seen = storage.look_at(open_dataset(dataset.data))
        assert seen["bytes_per_second"] > 0
        (finding,) = storage.check_same_data({0: seen, 1: {**seen, "bytes_per_second": 5}}, ADDRESSES, "data")
        assert (finding.severity, finding.of_all) == (Severity.OK, True)
        assert finding.text.startswith("82 training images, 7 classes")

    def test_that_differs_names_the_worker(self):
        seen = {"images": 9, "classes": 2, "shards": 1, "digest": "aa", "bytes_per_second": 1.0}
        (finding,) = storage.check_same_data({0: seen, 1: {**seen, "digest": "bb"}}, ADDRESSES, "data")
        assert finding.severity == Severity.ERROR
        assert "worker 0 (a:2222) and worker 1 (b:2222): digest aa and bb" in finding.text

    def test_of_other_bytes_behind_the_same_manifest_differs(self, dataset, tmp_path):
        other = shutil.copytree(dataset.data, tmp_path / "other")
        shard = open_dataset(other).split("train").shard_paths[0]
        content = bytearray(shard.read_bytes())
        content[100] ^= 1
        shard.write_bytes(content)
        seen = {rank: storage.look_at(open_dataset(data)) for rank, data in enumerate((dataset.data, other))}
        (finding,) = storage.check_same_data(seen, ADDRESSES, "data")
        assert (finding.severity, "worker 1 (b:2222): checksum " in finding.text) == (Severity.ERROR, True)

    def test_that_there_was_no_time_to_read_is_compared_by_the_rest(self, dataset, monkeypatch):
        whole = storage.look_at(open_dataset(dataset.data))
        monkeypatch.setattr(storage, "_READ_SECONDS", 0.0)
        short = storage.look_at(open_dataset(dataset.data))
        assert short["checksum"] is None
        (finding,) = storage.check_same_data({0: whole, 1: short}, ADDRESSES, "data")
        assert finding.severity == Severity.OK

    def test_with_a_shard_that_cannot_be_read_names_it(self, dataset, monkeypatch):
        opened = open_dataset(dataset.data)
        monkeypatch.setattr("builtins.open", no_permission)
        with pytest.raises(DataError, match=r"shard .*train.* cannot be read \(Permission denied\)"):
            storage.look_at(opened)


def test_a_flag_that_not_all_workers_have_fails_and_one_that_nobody_has_is_skipped():
    assert storage.check_given("--data", "data", {0: "x", 1: "y"}, ADDRESSES) == []
    (finding,) = storage.check_given("--data", "data", {0: "x", 1: ""}, ADDRESSES)
    assert (finding.severity, finding.text) == (Severity.ERROR, "started without --data: worker 1 (b:2222).")
    (finding,) = storage.check_given("--data", "data", {0: "", 1: ""}, ADDRESSES)
    assert (finding.severity, finding.text) == (Severity.SKIPPED, "no --data given")
