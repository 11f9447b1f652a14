import csv
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from convoy.core.errors import DataError, UsageError
from convoy.core.files import append_json_line
from convoy.trainer.evaluation.results import append_result, truncate_results
from convoy.trainer.run.directory import RunDirectory, truncate_json_lines
from convoy.trainer.run.records import read_evaluations, read_json_lines, read_json_object
from tests.trainer.run_files import fingerprints

QUALITY = ("loss", "top1", "top5", "macro_f1", "ece")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestFolderOfFolds:
    @pytest.fixture
    def run(self, tmp_path):
        fold = tmp_path / "run" / "fold-1"
        (fold / "checkpoints").mkdir(parents=True)
        (fold / "dataset.json").write_text('{"fold": 1, "folds": 5}')
        return RunDirectory(tmp_path / "run")

    def test_number_of_folds_is_known_from_the_first_on(self, run):
        assert (run.folds, RunDirectory(run.fold(1)).folds) == (5, 0)
        run.check(folds=5)

    @pytest.mark.parametrize("damaged", ['"5"', "-1", "1", "10000000000", "null"])
    def test_damaged_number_of_folds_is_refused(self, run, damaged):
        fold = RunDirectory(run.fold(1))
        fold.dataset.write_text(f'{{"class_names": ["a"], "fold": 1, "folds": {damaged}}}')
        assert run.folds == 0
        with pytest.raises(DataError, match="folds"):
            fold.read_dataset()

    @pytest.mark.parametrize("folds", [0, 4])
    def test_another_number_of_folds_is_refused(self, run, folds):
        with pytest.raises(UsageError, match="--folds=5"):
            run.check(folds=folds)

    def test_a_fold_in_a_run_and_in_a_folder_of_something_else_is_refused(self, run, tmp_path):
        for folder in (run.fold(1), tmp_path):
            with pytest.raises(UsageError, match=f"--workdir={folder}"):
                RunDirectory(folder).check(folds=2)


class TestJsonLines:
    def test_truncation_keeps_earlier_lines_byte_for_byte(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        kept = '{"step": 1,  "split":"train"}\n{"step": 2, "split": "train"}\n{"step": 2, "split": "validation"}\n'
        path.write_text(kept + '{"step": 3, "split": "train"}\n')
        truncate_json_lines(path, last_step=2)
        assert path.read_text() == kept

    def test_truncation_drops_damaged_lines_and_lines_without_a_step(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 1}\n{"step": 1, "x": \n[1]\n{"other": 1}\n{"step": null}\n{"step": 2}\n{"st')
        truncate_json_lines(path, last_step=9)
        assert lines(path) == [{"step": 1}, {"step": 2}]

    def test_truncation_at_step_0_empties_the_file(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 1}\n')
        truncate_json_lines(path, last_step=0)
        assert path.read_text() == ""

    def test_truncation_does_not_create_a_missing_file(self, tmp_path):
        truncate_json_lines(tmp_path / "metrics.jsonl", last_step=3)
        assert os.listdir(tmp_path) == []

    def test_invalid_utf8_affects_only_its_line(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(b'{"step": 1}\n{"step": 2, "x": "\xff"}\n{"step": 3}\n')
        truncate_json_lines(path, last_step=9)
        assert [line["step"] for line in lines(path)] == [1, 3]


class TestResultsTable:
    @pytest.fixture
    def run(self, tmp_path):
        run = RunDirectory(tmp_path)
        for step in (8, 16, 24):
            append_result(run, step=step, split="validation", quality=dict.fromkeys(QUALITY, step / 100))
        return run

    def test_has_a_header_and_one_row_per_evaluation(self, run):
        header, *rows = run.results_table.read_text().splitlines()
        assert header == "time,step,split,loss,top1,top5,macro_f1,ece"
        assert [row.split(",", 1)[1] for row in rows] == [
            f"{step},validation" + f",{step / 100:.6f}" * 5 for step in (8, 16, 24)
        ]

    def test_truncation_drops_later_rows(self, run):
        before = run.results_table.read_text().splitlines()
        truncate_results(run, last_step=16)
        assert run.results_table.read_text().splitlines() == before[:3]

    def test_partial_row_is_dropped_and_the_next_row_is_complete(self, run):
        before = run.results_table.read_text()
        run.results_table.write_text(before[: before.rindex(",0.24")])
        truncate_results(run, last_step=99)
        append_result(run, step=32, split="test", quality=dict.fromkeys(QUALITY, 0.5))
        rows = run.results_table.read_text().splitlines()
        assert len(rows) == 4
        assert rows[-1].split(",")[1:4] == ["32", "test", "0.500000"]

    def test_other_metrics_become_columns_that_are_empty_before(self, run):
        quality = dict.fromkeys(QUALITY, 0.5)
        append_result(run, step=32, split="validation", quality={**quality, "mcc": 0.25})
        append_result(run, step=40, split="validation", quality=quality)
        truncate_results(run, last_step=40)
        with open(run.results_table, newline="") as file:
            assert [row["mcc"] for row in csv.DictReader(file)] == ["", "", "", "0.250000", ""]
        assert [row.quality.get("mcc") for row in read_evaluations(run.results_table)] == [None] * 3 + [0.25, None]

    def test_truncation_does_not_create_a_missing_table(self, tmp_path):
        truncate_results(RunDirectory(tmp_path), last_step=3)
        assert os.listdir(tmp_path) == []


class TestRunDirectory:
    def test_create_makes_parents_and_accepts_an_existing_folder(self, tmp_path):
        run = RunDirectory(tmp_path / "runs" / "first")
        run.create()
        run.create()
        assert run.checkpoints.is_dir()

    def test_path_of_a_file_is_refused(self, tmp_path):
        (tmp_path / "run").write_text("")
        with pytest.raises(UsageError, match="--workdir=.*run: is a file"):
            RunDirectory(tmp_path / "run").create()

    def test_unreadable_path_is_refused(self, tmp_path, monkeypatch):
        def refuse(*_):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "stat", refuse)
        with pytest.raises(DataError, match="--workdir=.*run: .*Permission denied"):
            RunDirectory(tmp_path / "run").create()

    def test_folder_with_other_files_is_refused_and_unchanged(self, tmp_path):
        (tmp_path / "photo.jpg").write_text("")
        with pytest.raises(UsageError, match="--workdir=.*not empty"):
            RunDirectory(tmp_path).create()
        assert os.listdir(tmp_path) == ["photo.jpg"]

    def test_folder_with_files_of_a_launcher_is_accepted(self, tmp_path):
        (tmp_path / "logs" / "attempt-1").mkdir(parents=True)
        (tmp_path / "launch.json").write_text("{}")
        RunDirectory(tmp_path).create()
        assert (tmp_path / "checkpoints").is_dir()

    def test_read_only_folder_is_found_by_trying(self, tmp_path):
        assert RunDirectory(tmp_path).write_error() is None
        assert os.listdir(tmp_path) == []
        assert RunDirectory("/proc").write_error().errno in (errno.EROFS, errno.EACCES, errno.ENOENT, errno.EPERM)
        RunDirectory(tmp_path).results_table.mkdir()
        assert RunDirectory(tmp_path).write_error().errno == errno.EISDIR

    def test_json_round_trip(self, tmp_path):
        run = RunDirectory(tmp_path)
        value = {"text": "Käse", "list": [1, 2.5, None]}
        run.write_json(run.result, value)
        assert run.read_json(run.result) == value

    def test_missing_file_is_named(self, tmp_path):
        run = RunDirectory(tmp_path)
        with pytest.raises(DataError, match=r"config\.json: .*not a run directory"):
            run.read_json(run.config)

    @pytest.mark.parametrize("content", [b'{"seed": 0', b"", b"\xff\xfe"])
    def test_damaged_file_is_named(self, tmp_path, content):
        run = RunDirectory(tmp_path)
        run.config.write_bytes(content)
        with pytest.raises(DataError, match=r"config\.json: damaged"):
            run.read_json(run.config)

    def test_events_are_appended_with_their_time(self, tmp_path):
        run = RunDirectory(tmp_path)
        run.append_event("start", step=0)
        run.append_event("done", step=7)
        first, last = lines(run.events)
        assert (first["event"], first["step"]) == ("start", 0)
        assert (last["event"], last["step"]) == ("done", 7)
        assert first["time"] <= last["time"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root to change a folder's owner")
def test_training_in_an_inaccessible_folder_is_refused(convoy_started, dataset, tmp_path):
    locked = tmp_path / "locked"
    (locked / "run").mkdir(parents=True)
    os.chown(locked, 65534, 65534)
    locked.chmod(0o700)
    rights = "-dac_override,-dac_read_search"  # without these, root is subject to permissions
    prefix = ("setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}")
    command = ("train", f"--data={dataset.data}", f"--workdir={locked / 'run'}")
    with convoy_started(*command, output=tmp_path / "output", prefix=prefix) as process:
        assert process.wait(120) == 3, (tmp_path / "output").read_text()
    (line,) = (tmp_path / "output").read_text().splitlines()
    assert line.startswith(f"convoy: --workdir={locked / 'run'}: ") and "Permission denied" in line


class TestLock:
    def test_folder_locked_by_another_process_is_refused_or_waited_for(self, tmp_path):
        code = """
import sys
from convoy.trainer.run.directory import RunDirectory
run = RunDirectory(sys.argv[1])
run.create()
print("locked", flush=True)
sys.stdin.read()
"""
        command = [sys.executable, "-c", code, str(tmp_path / "run")]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        try:
            assert holder.stdout.readline() == b"locked\n"
            with pytest.raises(DataError, match="--workdir=.*another process"):
                RunDirectory(tmp_path / "run").create()
            threading.Timer(0.3, holder.kill).start()
            RunDirectory(tmp_path / "run").create(wait_seconds=60)
        finally:
            holder.kill()
            holder.communicate()

    def test_file_system_without_locks_logs_a_warning(self, tmp_path, monkeypatch, caplog):
        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
        RunDirectory(tmp_path / "run").create()
        assert "No locks available" in caplog.text

    def test_refused_start_leaves_nothing_that_it_made(self, tmp_path):
        (tmp_path / "launched" / "logs").mkdir(parents=True)
        (tmp_path / "kept" / "checkpoints").mkdir(parents=True)
        for name in ("new/run", "launched", "kept", "trained"):
            run = RunDirectory(tmp_path / name)
            with pytest.raises(UsageError), run.removed_on_refusal():
                run.create()
                if name == "trained":
                    (run.checkpoints / "step-000000001.npz").touch()
                raise UsageError
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
        assert left == {
            *("launched", "launched/logs", "kept", "kept/.lock", "kept/checkpoints"),
            *("trained", "trained/.lock", "trained/checkpoints", "trained/checkpoints/step-000000001.npz"),
        }

    def test_start_that_waits_for_a_refused_one_locks_the_new_folder(self, tmp_path, monkeypatch):
        first, second, waits = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run"), threading.Event()
        monkeypatch.setattr("time.sleep", lambda _: waits.set())
        waiting = threading.Thread(target=second.create, kwargs={"wait_seconds": 60})
        with pytest.raises(UsageError), first.removed_on_refusal():
            first.create()
            waiting.start()
            assert waits.wait(60)
            raise UsageError
        waiting.join(60)
        with pytest.raises(DataError, match="another process"):
            RunDirectory(tmp_path / "run").create()


class TestJson:
    def test_non_finite_numbers_become_null(self, tmp_path):
        run = RunDirectory(tmp_path)
        run.write_json(run.result, {"metrics": {"loss": float("nan"), "top1": [1.0, float("inf")]}})
        assert run.read_json(run.result) == {"metrics": {"loss": None, "top1": [1.0, None]}}


class TestRecords:
    def test_missing_or_damaged_files_are_empty(self, tmp_path):
        path = tmp_path / "file"
        for content in (None, b"", b"\xff\x00{", b"[1]"):
            if content is not None:
                path.write_bytes(content)
            assert read_json_object(path) == {}
            assert read_json_lines(path) == []
            assert read_evaluations(path) == []

    def test_json_lines_skip_damaged_lines(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(b'{"step": 1}\n{"step": \n[2]\n{"x": "\xff"}\n{"step": 3}\n{"step": 4')
        assert read_json_lines(path) == [{"step": 1}, {"step": 3}]
        assert read_json_lines(path, last_bytes=25) == [{"step": 3}]

    def test_evaluations_skip_partial_rows(self, tmp_path):
        run = RunDirectory(tmp_path)
        append_result(run, step=8, split="validation", quality=dict.fromkeys(QUALITY, 0.5))
        with open(run.results_table, "a") as file:
            file.write("2026-01-01T00:00:00,16,validation,0.1,0.2")
        (row,) = read_evaluations(run.results_table)
        assert (row.step, row.split, row.quality) == (8, "validation", dict.fromkeys(QUALITY, 0.5))


class TestLinksThatOthersMayHavePlaced:
    @pytest.mark.parametrize(
        "name", [".lock", "metrics.jsonl", "checkpoints", "tensorboard/train", "code/model", "logs", "order"]
    )
    def test_nothing_is_written_through_them(self, tmp_path, name, monkeypatch):
        monkeypatch.setattr(os, "getuid", lambda: 54321)  # this user's link belongs to another one
        run = RunDirectory(tmp_path / "run")
        run.checkpoints.mkdir(parents=True)
        outside = tmp_path / "outside"
        if "." in name:
            outside.write_text("mine")
        else:
            outside.mkdir()
            (outside / "step-000000001.npz").write_text("mine")
        link = run.path / name
        shutil.rmtree(link, ignore_errors=True)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(outside)
        before = fingerprints(tmp_path)
        with pytest.raises(DataError, match=str(link)):
            run.create()
        assert fingerprints(tmp_path) == before

    def test_links_to_the_run_directory_and_of_other_names_are_not_refused(self, tmp_path):
        (tmp_path / "large_disk").mkdir()
        (tmp_path / "run").symlink_to(tmp_path / "large_disk")
        (tmp_path / "large_disk" / "checkpoints").mkdir()
        (tmp_path / "large_disk" / "notes").symlink_to(tmp_path)
        (tmp_path / "larger_disk").mkdir()
        (tmp_path / "large_disk" / "logs").symlink_to(tmp_path / "larger_disk")
        RunDirectory(tmp_path / "run").create()
        assert (tmp_path / "large_disk" / ".lock").exists()

    def test_a_line_is_not_appended_through_a_link_or_to_a_pipe(self, tmp_path):
        (tmp_path / "outside").write_text("mine\n")
        (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "outside")
        os.mkfifo(tmp_path / "events.jsonl")
        for name in ("metrics.jsonl", "events.jsonl"):
            with pytest.raises(OSError):
                append_json_line(tmp_path / name, {"step": 1})
        assert (tmp_path / "outside").read_text() == "mine\n"
