"""`convoy runs` on run directories made by hand and by training."""

import fcntl
import json
import os
import platform
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import time

import pytest

from convoy.trainer.config import default_config, to_json
from convoy.trainer.run.listing import list_runs

_HOLD_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "wb")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def make_run(tmp_path):
    """Makes a run of 100 steps that is at step 60."""

    def make(name, *, top1=None, events=("start", "first_step"), host=None, **changed):
        run = tmp_path / "runs" / name
        (run / "checkpoints").mkdir(parents=True)
        config = default_config()
        config.steps = 100
        config.update(changed)
        write_json(run / "config.json", to_json(config))
        write_json(run / "dataset.json", {"name": "photos", "train_images": 640, "train_digest": "abc"})
        write_json(run / "environment.json", {"host": host or platform.node()})
        lines = [{"event": event, "time": time.time() - 10, "step": 0} for event in events]
        (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        speeds = [{"step": step, "split": "train", "perf/images_per_s": 5.0 * step} for step in (20, 40, 60)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in speeds) + '{"step": 8')
        if top1 is not None:
            rows = f"t,20,validation,1,{top1}\nt,40,validation,1,{top1 - 0.1}\nt,40,test,1,0.99\nt,60,valid"
            (run / "results.csv").write_text(f"time,step,split,loss,top1\n{rows}")
        (run / ".lock").touch()
        return run

    return make


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def runs_by_name(tmp_path):
    return {run.name: run for run in list_runs(tmp_path / "runs")}


def test_runs_are_sorted_by_best_validation_top1(make_run, tmp_path):
    for name, top1 in (("middling", 0.5), ("none", None), ("best", 0.7), ("deep/er/worst", 0.2)):
        make_run(name, top1=top1)
    runs = list_runs(tmp_path / "runs")
    assert [run.name for run in runs] == ["best", "middling", "deep/er/worst", "none"]
    assert (runs[0].best_step, runs[0].best_top1) == (20, 0.7)
    assert (runs[-1].best_step, runs[-1].best_top1) == (None, None)


def test_shows_only_differing_fields_that_affect_the_result(make_run, tmp_path):
    make_run("one", optimizer={"learning_rate": 0.1}, log_every_steps=3)
    make_run("two", optimizer={"learning_rate": 0.2}, batch_size=32)
    runs = runs_by_name(tmp_path)
    assert runs["one"].differences == {"batch_size": 64, "optimizer.learning_rate": 0.1}
    assert runs["two"].differences == {"batch_size": 32, "optimizer.learning_rate": 0.2}


def test_field_missing_in_an_older_run_counts_with_its_default(make_run, tmp_path):
    make_run("new")
    old = make_run("old")
    config = json.loads((old / "config.json").read_text())
    del config["reduce_in_bfloat16"]
    write_json(old / "config.json", config)
    assert runs_by_name(tmp_path)["old"].differences == {}


def test_shows_differing_datasets(make_run, tmp_path):
    make_run("one")
    renamed = make_run("two") / "dataset.json"
    write_json(renamed, {"name": "pictures", "train_images": 640, "train_digest": "abc"})
    assert all(not run.differences for run in runs_by_name(tmp_path).values())
    write_json(renamed, {"name": "photos", "train_images": 640, "train_digest": "def"})
    assert [run.differences for run in runs_by_name(tmp_path).values()] == [
        {"data": "photos (abc)"},
        {"data": "photos (def)"},
    ]


class TestCrossValidation:
    @pytest.fixture
    def folder(self, make_run, tmp_path):
        """A cross-validation of three folds, of which two have begun, next to another run."""
        make_run("other", top1=0.65)
        for fold, top1, events in ((1, 0.8, ("start", "done")), (2, 0.6, ("start",))):
            run = make_run(f"folds/fold-{fold}", top1=top1, events=events)
            dataset = json.loads((run / "dataset.json").read_text())
            write_json(run / "dataset.json", {**dataset, "fold": fold, "folds": 3})
        for name in ("config", "dataset"):
            shutil.copy(run / f"{name}.json", run.parent)
        write_json(run.parent / "launch.json", {})
        return run.parent

    def test_is_one_run_with_the_mean_of_its_folds(self, folder, tmp_path):
        folds, other = list_runs(tmp_path / "runs")
        assert (folds.name, other.name) == ("folds", "other")
        assert folds.best_top1 == pytest.approx(0.7)
        assert folds.state_text == "stopped at step 60 of 100 in fold 2 of 3"
        write_json(folder / "result.json", {"mean": {}})
        assert runs_by_name(tmp_path)["folds"].state_text == "done, 3 folds"

    def test_its_folds_are_listed_in_its_folder(self, folder):
        assert [run.name for run in list_runs(folder)] == ["fold-1", "fold-2"]


def test_unlocked_run_is_stopped(make_run, tmp_path):
    make_run("run")
    run = runs_by_name(tmp_path)["run"]
    assert (run.state, run.state_text) == ("stopped", "stopped at step 60 of 100")
    assert run.images_per_second == 200.0


def test_run_that_a_callback_stopped_for_good_shows_the_reason(make_run, tmp_path):
    run = make_run("run", events=("start", "done"))
    stop = {"reason": "pruned: poor", "by": "TrialReporter", "resumable": False}
    write_json(run / "result.json", {"step": 60, "stop": stop})
    listed = runs_by_name(tmp_path)["run"]
    assert (listed.state, listed.stop_reason) == ("done", "pruned: poor")
    assert listed.state_text == "stopped early at step 60 of 100: pruned: poor"


def test_locked_run_is_running(make_run, tmp_path):
    run = make_run("run")
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD_LOCK, str(run / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            assert runs_by_name(tmp_path)["run"].state_text == "running at step 60 of 100"
        finally:
            process.stdin.close()
            process.wait(10)
    assert runs_by_name(tmp_path)["run"].state == "stopped"


def test_run_on_another_host_is_running_while_it_writes(make_run, tmp_path):
    run = make_run("run", host="elsewhere")
    assert runs_by_name(tmp_path)["run"].state == "running"
    for name in ("metrics.jsonl", "events.jsonl"):  # the clock of one of the hosts was set back
        os.utime(run / name, (time.time() + 3600,) * 2)
    assert runs_by_name(tmp_path)["run"].state == "stopped"


def test_failed_run_shows_the_earliest_error_of_its_latest_attempt(make_run, tmp_path):
    run = make_run("run")
    now = time.time()
    for attempt, rank, when, error in (
        (1, 0, now - 5000, "the first attempt's"),
        (2, 0, now - 1, "a secondary failure"),
        (2, 1, now - 2, "a disk is full\nand more"),
    ):
        write_json(run / f"logs/attempt-{attempt}/error-{rank}.json", {"time": when, "error": error})
    found = runs_by_name(tmp_path)["run"]
    assert (found.state, found.error_file) == ("failed", "logs/attempt-2/error-1.json")
    assert found.state_text == "failed at step 60 of 100: a disk is full (logs/attempt-2/error-1.json)"


def test_error_before_the_last_start_is_ignored(make_run, tmp_path):
    run = make_run("run")
    write_json(run / "logs/attempt-1/error-0.json", {"time": time.time() - 5000, "error": "long ago"})
    assert runs_by_name(tmp_path)["run"].state == "stopped"


def test_errors_are_ordered_by_attempt_if_the_clock_was_set_back(make_run, tmp_path):
    run = make_run("run")
    start = {"event": "start", "time": time.time(), "step": 0, "attempt": 2}
    (run / "events.jsonl").write_text(json.dumps(start) + "\n")
    write_json(run / "logs/attempt-1/error-0.json", {"time": time.time() + 5000, "error": "before"})
    assert runs_by_name(tmp_path)["run"].state == "stopped"
    write_json(run / "logs/attempt-2/error-0.json", {"time": time.time() - 5000, "error": "now"})
    assert runs_by_name(tmp_path)["run"].error == "now"


def test_run_that_failed_before_its_first_step_is_listed(tmp_path):
    run = tmp_path / "runs" / "refused"
    write_json(run / "launch.json", {})
    write_json(run / "logs/attempt-1/error-0.json", {"time": time.time(), "error": "no such dataset"})
    found = runs_by_name(tmp_path)["refused"]
    assert (found.state, found.step, found.error) == ("failed", None, "no such dataset")
    assert found.error in found.state_text


def test_error_without_a_time_is_listed(tmp_path):
    run = tmp_path / "runs" / "refused"
    write_json(run / "launch.json", {})
    write_json(run / "logs/attempt-1/error-0.json", {"error": "no such dataset"})
    assert runs_by_name(tmp_path)["refused"].error == "no such dataset"


def test_damaged_files_are_skipped(make_run, tmp_path):
    run = make_run("run", top1=0.5)
    for path in run.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xff\x00{")
    assert runs_by_name(tmp_path)["run"].state == "stopped"


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root to change a folder's owner")
def test_unreadable_folder_is_skipped(make_run, tmp_path):
    make_run("mine", top1=0.5)
    locked = tmp_path / "runs" / "lost+found"
    locked.mkdir(mode=0o700)
    os.chown(locked, 65534, 65534)
    rights = "-dac_override,-dac_read_search"  # without these, root is subject to permissions
    command = ("setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", sys.executable, "-m", "convoy", "runs")
    done = subprocess.run([*command, tmp_path / "runs"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 run in" in done.stdout and "mine" in done.stdout


class TestCommand:
    def test_lists_a_trained_run(self, convoy_in_process, finished_run, tmp_path):
        code, out, _ = convoy_in_process("runs", finished_run.workdir.parent, f"--json={tmp_path / 'runs.json'}")
        assert code == 0
        title, header, row = out.splitlines()
        result = json.loads((finished_run.workdir / "result.json").read_text())
        assert "1 run " in title and str(finished_run.workdir.parent) in title
        assert header.split("  ")[0] == "run"
        assert "done, 40 steps" in row
        assert f"{result['best']['top1']:.2%}" in row
        (found,) = json.loads((tmp_path / "runs.json").read_text())["runs"]
        assert found["best_step"] == result["best"]["step"]
        assert found["images_per_second"] == result["images_per_second"]
        assert found["config"]["virtual_replicas"] == 4

    def test_has_a_column_for_each_field_that_differs(self, convoy_in_process, make_run, tmp_path):
        ops = "crop(scale=0.7..1) | flip | "
        make_run("a", top1=0.9, optimizer={"learning_rate": 0.003}, augment={"ops": f"{ops}hue(0.5)"})
        make_run("b", top1=0.8, batch_size=32, augment={"ops": f"{ops}saturation(0.7)"})
        make_run("c", top1=0.7, augment={"ops": ""})
        code, out, _ = convoy_in_process("runs", tmp_path / "runs")
        header, *rows = [re.split(" {2,}", line) for line in out.splitlines()[1:]]
        fields = ["augment.ops", "batch_size", "optimizer.learning_rate"]
        assert (code, header[4:-1]) == (0, fields)
        default = f"{default_config().optimizer.learning_rate:g}"
        assert [row[4:-1] for row in rows] == [
            ["…hue(0.5)", "64", "0.003"],
            ["…saturation(0.7)", "32", default],
            ["''", "64", default],
        ]

    def test_names_the_fields_that_a_terminal_has_no_room_for(self, make_run, tmp_path):
        make_run("a", optimizer={"learning_rate": 0.003}, batch_size=32)
        make_run("b", model={"name": "x" * 500})
        command = [sys.executable, "-m", "convoy", "runs", str(tmp_path / "runs")]
        terminal, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 90, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        subprocess.run(command, stdout=other, env=environment, check=True)
        _, header, *_, last = os.read(terminal, 2**16).decode().splitlines()
        assert "batch_size" in header and "learning_rate" not in header
        assert "model.name" in last and "optimizer.learning_rate" in last and "--json" in last

    def test_accepts_a_run_directory(self, convoy_in_process, finished_run):
        code, out, _ = convoy_in_process("runs", finished_run.workdir)
        assert code == 0 and "done, 40 steps" in out

    def test_folder_without_runs_is_an_error(self, convoy_in_process, tmp_path):
        (tmp_path / "empty").mkdir()
        code, out, error = convoy_in_process("runs", tmp_path / "empty")
        assert (code, out) == (3, "")
        assert f"{tmp_path / 'empty'}:" in error
        assert "convoy train" in error

    def test_missing_folder_suggests_the_nearest(self, convoy_in_process, tmp_path):
        (tmp_path / "runs").mkdir()
        code, _, error = convoy_in_process("runs", tmp_path / "rnus")
        assert code == 2 and "did you mean 'runs'?" in error

    @pytest.mark.parametrize("arguments", [(), ("a", "b")])
    def test_expects_exactly_one_folder(self, convoy_in_process, arguments):
        code, out, error = convoy_in_process("runs", *arguments)
        assert (code, out) == (2, "")
        assert "folder" in error and " ".join(arguments) in error

    def test_lists_runs_without_tensorflow(self, make_run, tmp_path):
        make_run("run", top1=0.5)
        code = (
            "import sys; from convoy.cli import main; "
            "assert main(sys.argv) == 0; assert 'tensorflow' not in sys.modules"
        )
        command = [sys.executable, "-c", code, "runs", str(tmp_path / "runs")]
        subprocess.run(command, capture_output=True, check=True)


@pytest.fixture
def convoy_in_process(capsys):
    """Runs a command in this process; returns exit code, stdout and stderr."""
    from convoy.cli import main

    def run(*arguments):
        code = main(["convoy", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
