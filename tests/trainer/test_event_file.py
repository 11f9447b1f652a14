"""Event files as TensorBoard's loader reads them, before and after they are cut back."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from convoy.trainer.callbacks.tensorboard import summaries
from convoy.trainer.callbacks.tensorboard.event_file import EventFile, cut_back
from convoy.trainer.callbacks.writers import MetricWriters
from convoy.trainer.run.directory import RunDirectory
from tests.small_disk import small_disk

PERF = [f"perf/a_tag_about_as_long_as_the_longest_{k}" for k in range(12)]
OTHERS = [f"quality/{name}" for name in ("loss", "top1", "top5", "macro_f1", "ece")] + ["run/epoch", "optim/grad_norm"]


def points(folder):
    """Returns (step, tag, value) of all event files, in the order in which TensorBoard reads them."""
    return [
        (event.step, value.tag, make_ndarray(value.tensor).tolist())
        for path in sorted(folder.glob("*tfevents*"))
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]


def scalars(**values):
    return [summaries.scalar(tag, value) for tag, value in values.items()]


class TestWriting:
    def test_tensorboard_reads_values_and_metadata(self, tmp_path):
        events = EventFile(tmp_path / "train", first_step=1)
        events.write(1, scalars(loss=2.5, top1=0.25))
        events.write(2, scalars(loss=2.0))
        assert points(tmp_path / "train") == [(1, "loss", 2.5), (1, "top1", 0.25), (2, "loss", 2.0)]
        (path,) = (tmp_path / "train").iterdir()
        version, start, first, second = EventFileLoader(str(path)).Load()
        assert version.file_version == "brain.Event:2"
        assert (start.step, start.session_log.status) == (1, start.session_log.START)
        assert first.summary.value[0].metadata.plugin_data.plugin_name == "scalars"
        assert not second.summary.value[0].HasField("metadata")

    def test_file_is_created_with_the_first_value(self, tmp_path):
        EventFile(tmp_path / "train", first_step=1)
        assert not list(tmp_path.iterdir())

    def test_files_of_the_same_second_keep_their_order(self, tmp_path):
        for step in range(1, 13):
            EventFile(tmp_path, first_step=step).write(step, scalars(loss=step))
        assert [step for step, *_ in points(tmp_path)] == list(range(1, 13))

    def test_clock_set_back_does_not_change_their_order(self, tmp_path, monkeypatch):
        for start, now in enumerate((2e9, 1.9e9, 1.8e9)):
            monkeypatch.setattr("time.time", lambda now=now: now)
            EventFile(tmp_path, first_step=start + 1).write(start + 1, scalars(loss=start))
        shown = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
        assert [event.step for event in shown.Tensors("loss")] == [1, 2, 3]

    def test_cleared_folder_gets_a_new_file(self, tmp_path):
        events = EventFile(tmp_path / "train", first_step=1)
        events.write(1, scalars(loss=2.5))
        shutil.rmtree(tmp_path / "train")
        events.write(2, scalars(loss=2.0))
        (path,) = (tmp_path / "train").iterdir()
        version, _, event = EventFileLoader(str(path)).Load()
        assert version.file_version == "brain.Event:2"
        assert event.summary.value[0].metadata.plugin_data.plugin_name == "scalars"

    def test_full_disk_leaves_whole_records(self, tmp_path):
        with small_disk(tmp_path / "disk", 2**20) as disk:
            folder, written = disk.seen / "train", 0
            events = EventFile(folder, first_step=1)
            with pytest.raises(OSError) as caught:
                for written in range(10_000):  # noqa: B007 (used after the loop)
                    events.write(written, scalars(**dict.fromkeys(PERF, 1.0)))
            assert caught.value.errno == errno.ENOSPC
            assert len(points(folder)) == written * len(PERF)


class TestCuttingBack:
    @pytest.fixture
    def folder(self, tmp_path):
        events = EventFile(tmp_path, first_step=1)
        events.write(0, [summaries.text("run/config", "first")])
        for step in (10, 20, 30):
            events.write(step, scalars(loss=step, top1=step))
        return tmp_path

    def test_drops_later_steps_only(self, folder):
        before = points(folder)
        cut_back(folder, last_step=20)
        assert points(folder) == [point for point in before if point[0] <= 20]

    def test_drops_tags_that_are_written_again(self, folder):
        cut_back(folder, last_step=20, without={"run/config"})
        assert [tag for _, tag, _ in points(folder)] == ["loss", "top1"] * 2

    def test_removes_a_file_without_values(self, folder):
        cut_back(folder, last_step=-1)
        assert not list(folder.iterdir())

    def test_leaves_a_file_without_later_steps_unchanged(self, folder):
        (path,) = folder.iterdir()
        before = path.stat()
        cut_back(folder, last_step=30)
        assert path.stat().st_ino == before.st_ino

    @pytest.mark.parametrize("truncated", [1, 5, 20])
    def test_drops_a_truncated_record(self, folder, truncated):
        (path,) = folder.iterdir()
        before = points(folder)
        path.write_bytes(path.read_bytes()[:-truncated])
        cut_back(folder, last_step=30)
        assert points(folder) == before[:-2]
        EventFile(folder, first_step=31).write(40, scalars(loss=40.0))
        assert points(folder)[-1] == (40, "loss", 40.0)

    def test_open_reader_continues(self, folder):
        (path,) = folder.iterdir()
        loader = EventFileLoader(str(path))
        assert [event.step for event in loader.Load()][-1] == 30
        cut_back(folder, last_step=20)
        assert not list(loader.Load())

    def test_file_that_cannot_be_removed_is_emptied(self, folder, monkeypatch):
        def busy(*_, **__):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

        monkeypatch.setattr(Path, "unlink", busy)
        cut_back(folder, last_step=-1)
        assert points(folder) == []
        cut_back(folder, last_step=-1)

    def test_folder_without_files(self, tmp_path):
        cut_back(tmp_path / "nothing", last_step=0)


class TestMetricWriters:
    def test_going_back_drops_later_steps_in_both_files(self, tmp_path):
        run = RunDirectory(tmp_path)
        first = MetricWriters(run, total_steps=100)
        for step in (10, 20, 30):
            first.write("train", step, {"quality/loss": step})
            first.write("validation", step, {"quality/loss": step})
        second = MetricWriters(run, total_steps=100)
        second.go_back(20)
        second.write("train", 25, {"quality/loss": 25})
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        assert [line["step"] for line in lines if line["split"] == "train"] == [10, 20, 25]
        assert [step for step, *_ in points(run.tensorboard / "train")] == [10, 20, 25]
        assert [step for step, *_ in points(run.tensorboard / "validation")] == [10, 20]

    def test_open_tensorboard_shows_a_run_resumed_after_the_clock_was_set_back(self, tmp_path, monkeypatch):
        run = RunDirectory(tmp_path)
        shown = EventAccumulator(str(run.tensorboard / "train"), size_guidance={"tensors": 0})
        for now, resumed, steps in ((2e9, 0, (1, 2)), (1.9e9, 2, (3, 4)), (1.8e9, 2, (3, 4)), (1.7e9, 2, (3, 4, 5))):
            monkeypatch.setattr("time.time", lambda now=now: now)
            writers = MetricWriters(run, total_steps=100)
            writers.go_back(resumed)  # removes the file that TensorBoard reads
            for step in steps:
                writers.write("train", step, {"quality/loss": step})
            shown.Reload()
        assert [event.step for event in shown.Tensors("quality/loss")] == [1, 2, 3, 4, 5]

    def test_values_that_are_not_finite_become_null_in_metrics_jsonl(self, tmp_path):
        run = RunDirectory(tmp_path)
        MetricWriters(run, total_steps=100).write("train", 10, {"quality/loss": float("nan"), "quality/top1": 0.5})
        assert json.loads(run.metrics.read_text())["quality/loss"] is None
        assert np.isnan(points(run.tensorboard / "train")[0][2])

    def test_all_points_of_an_ordinary_run_are_written(self, tmp_path):
        run = RunDirectory(tmp_path)
        writers = MetricWriters(run, total_steps=20_000)
        for step in range(1, 101):
            writers.write("train", step, {"quality/loss": step})
        assert len(points(run.tensorboard / "train")) == 100

    def test_event_files_of_a_long_run_stay_below_50_megabytes(self, tmp_path):
        steps_per_second, log_every, lines = 500, 20, 4000
        total = 24 * 3600 * steps_per_second
        run = RunDirectory(tmp_path)
        writers = MetricWriters(run, total_steps=total)
        values = dict.fromkeys([*OTHERS, *PERF], 1.234)
        for step in range(log_every, (lines + 1) * log_every, log_every):
            writers.write("train", step, values)
            writers.write("validation", step, values)  # as if evaluated at every log line
            writers.show_scalars("", step, {"best/top1": 0.5})
        size = sum(path.stat().st_size for path in run.tensorboard.rglob("*tfevents*"))
        assert len(run.metrics.read_text().splitlines()) == 2 * lines
        assert size * total / (lines * log_every) < 50e6
