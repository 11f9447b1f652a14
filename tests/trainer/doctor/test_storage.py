"""RUN and DATA: real folders, and what is said of other workers' sight of them."""

import os
import threading

import pytest

from input_pipeline.dataset import open_dataset
from trainer.doctor import storage
from trainer.doctor.findings import FAILED, OK, WARNING

ADDRESSES = ("a:2222", "b:2222")


class TestRunDirectory:
    def test_that_is_not_there_can_be_made_and_is_not(self, tmp_path):
        with storage.written_token(str(tmp_path / "deep" / "run")) as (token, seconds, (finding,)):
            assert (token.parent, seconds > 0, finding.level) == (tmp_path, True, OK)
            assert storage.sees(str(token))
        assert os.listdir(tmp_path) == []

    def test_of_a_run_is_as_it_was(self, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        with storage.written_token(str(tmp_path)) as (token, _, (finding,)):
            assert (token.parent, finding.level) == (tmp_path, OK)
        assert os.listdir(tmp_path) == ["checkpoints"]

    @pytest.mark.parametrize(("name", "mend"), [("file", "is a file"), ("full", "is not empty and holds no run")])
    def test_that_no_run_can_lie_in_fails(self, tmp_path, name, mend):
        (tmp_path / "file").touch()
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thesis.tex").touch()
        with storage.written_token(str(tmp_path / name)) as (token, _, (finding,)):
            assert (token, finding.level, mend in finding.text) == (None, FAILED, True)

    def test_that_cannot_be_written_fails(self):
        with storage.written_token("/proc/run") as (token, _, (finding,)):
            assert (token, finding.level) == (None, FAILED)
            assert finding.text.startswith("--workdir=/proc/run cannot be made: /proc: ")

    def test_that_a_worker_does_not_share_names_it(self):
        assert storage.check_shared({0: True, 1: True}, "run", ADDRESSES) == []
        (finding,) = storage.check_shared({0: True, 1: False}, "run", ADDRESSES)
        assert finding.level == FAILED
        assert "worker 1 (b:2222) do not see there what worker 0 (a:2222) writes" in finding.text

    def test_that_shows_a_file_late_is_waited_for(self, tmp_path):
        late = tmp_path / "token"
        threading.Timer(0.3, late.touch).start()
        assert storage.sees(str(late), seconds=20)
        assert not storage.sees(str(tmp_path / "never"), seconds=0.2)


class TestDisk:
    def test_with_room_says_what_checkpoints_take(self, tmp_path):
        finding = storage.check_disk(tmp_path, 0.1, checkpoint_bytes=1000_000, kept=3)
        assert (finding.level, "5 checkpoints of 1.0 MB take 5.0 MB" in finding.text) == (OK, True)

    def test_without_room_fails(self, tmp_path):
        finding = storage.check_disk(tmp_path, 0.1, checkpoint_bytes=10**18, kept=3)
        assert (finding.level, "keep_checkpoints" in finding.mend) == (FAILED, True)

    def test_that_is_slow_is_a_warning(self, tmp_path):
        finding = storage.check_disk(tmp_path, 100.0, checkpoint_bytes=100_000_000, kept=3)
        assert (finding.level, "takes 1192 s" in finding.text) == (WARNING, True)


class TestData:
    def test_too_small_for_a_batch_is_a_warning(self, dataset):
        opened = open_dataset(dataset.data)
        assert storage.check_data(opened, num_workers=2, global_batch_size=64) == []
        (finding,) = storage.check_data(opened, num_workers=2, global_batch_size=100)
        assert finding.level == WARNING
        assert "82 training images do not fill a batch of 100" in finding.text

    def test_in_one_large_shard_for_several_workers_is_a_warning(self, dataset, monkeypatch):
        monkeypatch.setattr(storage, "_LARGE_SHARD_BYTES", 1000)
        opened = open_dataset(dataset.data)
        assert storage.check_data(opened, num_workers=1, global_batch_size=64) == []
        (finding,) = storage.check_data(opened, num_workers=2, global_batch_size=64)
        assert (finding.level, "2 workers read at once" in finding.text) == (WARNING, True)

    def test_that_is_the_same_everywhere_is_told_once(self, dataset):
        seen = storage.look_at(open_dataset(dataset.data))
        assert seen["bytes_per_second"] > 0
        (finding,) = storage.check_same_data({0: seen, 1: {**seen, "bytes_per_second": 5}}, ADDRESSES, "data")
        assert (finding.level, finding.of_all) == (OK, True)
        assert finding.text.startswith("82 training images, 7 classes")

    def test_that_differs_names_the_worker(self):
        seen = {"images": 9, "classes": 2, "shards": 1, "digest": "aa", "bytes_per_second": 1.0}
        (finding,) = storage.check_same_data({0: seen, 1: {**seen, "digest": "bb"}}, ADDRESSES, "data")
        assert finding.level == FAILED
        assert "worker 0 (a:2222) and worker 1 (b:2222): digest aa and bb" in finding.text
