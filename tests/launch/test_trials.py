"""Trials as processes of this machine: started side by side, watched, stopped, and never left behind."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from convoy.launch.screen import Screen
from convoy.launch.trials import Trial, run_trials
from tests.processes import is_running, wait_until

# The process of a trial: writes what it got, and does what its flag says.
_TRAINER = """
import json, os, signal, sys
from pathlib import Path
flags = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[2:])
run = Path(flags["workdir"])
def write(name, text):
    (run / f"{name}.tmp").write_text(text)
    (run / f"{name}.tmp").rename(run / name)
def save(*_):
    write("saved", "")
    sys.exit(138)
signal.signal(signal.SIGTERM, save)
kept = {name: os.environ.get(name) for name in ("MINE", "TF_CONFIG", "CUDA_VISIBLE_DEVICES", "CONVOY_ATTEMPT")}
write("started", json.dumps({"pid": os.getpid(), "words": sys.argv[1:], **kept}))
do = flags["do"]
if do == "wait":
    signal.pause()
elif do == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()
elif do == "meet":
    other = run.parent / flags["other"] / "started"
    while not other.exists():
        pass
elif do == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
elif do == "fail":
    error = {"rank": 0, "time": 1.0, "step": None, "exit_code": 2, "error": "the first line\\nthe second"}
    Path(os.environ["CONVOY_ERROR_FILE"]).write_text(json.dumps(error))
    sys.exit(2)
"""

# A process that runs the trials of its argument.
_SWEEP = """
import json, sys
from pathlib import Path
from tests.launch.test_trials import Source, trials
folder, flags = Path(sys.argv[1]), json.loads(sys.argv[2])
sys.exit(trials(folder, Source(folder, flags), parallel=2, grace_seconds=float(sys.argv[3])))
"""


class Source:
    """Gives trials with flags, and keeps how they ended, by number."""

    def __init__(self, folder, flags):
        self._folder = folder
        self._left = list(enumerate(flags))
        self.ends = {}

    def take(self):
        if not self._left:
            return None
        number, flags = self._left.pop(0)
        return Trial(number, self._folder / str(number), flags, {"MINE": str(number)})

    def ended(self, trial, end):
        self.ends[trial.number] = end


def trials(folder, source, *, parallel=1, grace_seconds=20.0):
    """Runs the trials of a source with the trainer of these tests."""
    trainer = folder / "trainer.py"
    trainer.write_text(_TRAINER)
    return run_trials(
        source,
        ["train", "--devices=cpu"],
        parallel=parallel,
        grace_seconds=grace_seconds,
        screen=Screen(None),
        trainer=(sys.executable, str(trainer)),
    )


def started(folder, number):
    return json.loads((folder / str(number) / "started").read_text())


def test_each_trial_is_a_process_with_its_flags_variables_and_log(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    source = Source(tmp_path, [["--do=end"], ["--do=fail"], ["--do=kill"], ["--do=end"]])
    assert trials(tmp_path, source) == 0
    ends = {number: (end.exit_code, end.error) for number, end in source.ends.items()}
    assert ends == {0: (0, ""), 1: (2, "the first line"), 2: (137, "killed by SIGKILL"), 3: (0, "")}
    process = started(tmp_path, 1)
    assert process["words"] == ["train", "--devices=cpu", "--do=fail", f"--workdir={tmp_path / '1'}"]
    assert (process["MINE"], process["TF_CONFIG"], process["CONVOY_ATTEMPT"]) == ("1", None, "1")
    assert (tmp_path / "1/logs/attempt-1/worker-0.log").exists()


def test_parallel_trials_run_at_the_same_time(tmp_path):
    source = Source(tmp_path, [("--do=meet", "--other=1"), ("--do=meet", "--other=0")])
    assert trials(tmp_path, source, parallel=2) == 0
    assert [source.ends[number].exit_code for number in (0, 1)] == [0, 0]


@pytest.fixture
def sweep(tmp_path):
    """Starts a process that runs two trials at a time; kills it after the test."""
    processes = []

    def start(*flags, grace_seconds=20.0):
        arguments = [str(tmp_path), json.dumps([[flag] for flag in flags]), str(grace_seconds)]
        root = str(Path(__file__).parents[2])
        process = subprocess.Popen([sys.executable, "-c", _SWEEP, *arguments], cwd=root)
        processes.append(process)
        wait_until(lambda: all((tmp_path / str(number) / "started").exists() for number in (0, 1)), "two trials")
        return process, [started(tmp_path, number)["pid"] for number in (0, 1)]

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 138), (signal.SIGUSR1, 138)])
def test_a_signal_makes_all_trials_save_and_starts_no_more(sweep, tmp_path, number, code):
    process, _ = sweep("--do=wait", "--do=wait", "--do=end")
    process.send_signal(number)
    assert process.wait(20) == code
    assert all((tmp_path / str(trial) / "saved").exists() for trial in (0, 1))
    assert not (tmp_path / "2").exists()


def test_a_trial_that_does_not_stop_is_killed(sweep, tmp_path):
    process, pids = sweep("--do=wait", "--do=stubborn", grace_seconds=0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert (tmp_path / "0/saved").exists()
    assert not any(map(is_running, pids))


def test_trials_end_with_the_process_that_started_them(sweep):
    process, pids = sweep("--do=wait", "--do=stubborn")
    process.kill()
    wait_until(lambda: not any(map(is_running, pids)), "the end of the trials")
