"""The parts of a launcher by themselves: its clock, its output, cores, GPUs, ports, its side of the run directory."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from convoy.cli import main
from convoy.core.errors import UsageError
from convoy.launch.devices import cores_by_worker, gpus_by_worker, visible_gpus
from convoy.launch.ports import reserved_ports
from convoy.launch.run_files import RunFiles
from convoy.launch.screen import Follower, Screen
from convoy.launch.shutdown import ShutdownPolicy
from convoy.launch.trainer_command import flag_value


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


class TestEnding:
    def test_nothing_is_due_while_nothing_has_happened(self, clock):
        ending = ShutdownPolicy(60, clock)
        clock.now += 1e6
        assert not (ending.in_progress or ending.term_is_due() or ending.kill_is_due())

    def test_after_a_failure_the_others_have_45_s_then_sigterm_then_the_grace_time(self, clock):
        ending = ShutdownPolicy(60, clock)
        ending.worker_failed()
        clock.now += 44
        ending.worker_failed()  # a later failure gives no more time
        assert not ending.term_is_due()
        clock.now += 1
        assert (ending.term_is_due(), ending.term_is_due(), ending.kill_is_due()) == (True, False, False)
        clock.now += 60
        assert ending.kill_is_due()

    def test_before_training_has_begun_they_have_3_s(self, clock):
        ending = ShutdownPolicy(60, clock)
        ending.worker_failed(in_startup=True)
        clock.now += 3
        assert ending.term_is_due()

    def test_a_short_grace_time_shortens_the_first_wait_too(self, clock):
        ending = ShutdownPolicy(5, clock)
        ending.worker_failed()
        clock.now += 5
        assert ending.term_is_due()

    def test_after_a_signal_only_the_kill_is_due(self, clock):
        ending = ShutdownPolicy(60, clock)
        ending.worker_failed()
        assert not ending.signal_received(signal.SIGTERM)
        clock.now += 59
        assert not (ending.term_is_due() or ending.kill_is_due())
        clock.now += 1
        assert ending.kill_is_due()

    def test_the_second_signal_kills_at_once(self, clock):
        ending = ShutdownPolicy(60, clock)
        ending.signal_received(signal.SIGINT)
        clock.now += 1
        ending.signal_received(signal.SIGTERM)
        assert ending.kill_is_due()

    def test_one_that_arrives_twice_is_one(self, clock):
        ending = ShutdownPolicy(60, clock)
        ending.signal_received(signal.SIGTERM)
        clock.now += 0.1
        assert ending.signal_received(signal.SIGTERM)
        assert not ending.kill_is_due()
        assert ending.signals == [signal.SIGTERM]

    def test_sigterm_after_a_schedulers_warning_is_the_first(self, clock):
        ending = ShutdownPolicy(60, clock)
        ending.signal_received(signal.SIGUSR1)
        clock.now += 30
        ending.signal_received(signal.SIGTERM)
        clock.now += 59
        assert not ending.kill_is_due()


class TestFollower:
    def test_gives_whole_lines_with_a_prefix_and_in_the_end_the_rest(self, tmp_path):
        path = tmp_path / "log"
        follower = Follower(path, "[0] ")
        assert follower.lines(1000) == b""
        path.write_bytes(b"one\n\ntw")
        assert follower.lines(1000) == b"[0] one\n[0] \n"
        assert follower.lines(1000) == b""
        path.write_bytes(b"one\n\ntwo\nthree")
        assert follower.rest() == b"[0] two\n[0] three\n"
        assert follower.rest() == b""

    def test_a_line_without_an_end_is_shown_in_pieces(self, tmp_path):
        path = tmp_path / "log"
        path.write_bytes(b"x" * 100_000)
        follower = Follower(path, "")
        assert len(follower.lines(1)) + len(follower.rest()) == 100_002

    def test_of_a_very_long_rest_the_end_is_shown(self, tmp_path):
        path = tmp_path / "log"
        path.write_bytes(b"line\n" * 200_000 + b"last\n")
        rest = Follower(path, "").rest()
        assert rest.startswith(b"... 737861 bytes are left out here; ")
        assert rest.endswith(b"line\nlast\n")


class TestScreen:
    def test_writes_what_the_reader_is_ready_for_and_the_rest_later(self):
        reader, writer = os.pipe()
        screen = Screen(writer)
        lines = "".join(f"{number}\n" for number in range(50_000))
        screen.say(lines)  # more than a pipe holds, and nobody reads yet
        received = os.read(reader, 2**20)
        while len(received) < len(lines) + 1:
            screen.pump()
            received += os.read(reader, 2**20)
        assert received.decode() == lines + "\n"
        screen.drain()
        os.close(reader)
        screen.say("nobody hears this")
        screen.drain()
        os.close(writer)

    def test_without_an_output_it_does_nothing(self):
        screen = Screen(None)
        screen.say("x")
        screen.drain()


class TestCores:
    @pytest.mark.parametrize(
        ("usable", "processes", "expected"),
        [
            ({3, 5, 7, 9}, 2, [{3, 5}, {7, 9}]),
            ({0, 1, 2, 3, 4}, 2, [{0, 1}, {2, 3}]),
            ({0, 1}, 2, [{0}, {1}]),
            ({0, 1}, 3, [set()] * 3),
            ({0, 1}, 1, [set()]),
        ],
    )
    def test_each_worker_gets_as_many_and_none_is_shared(self, monkeypatch, usable, processes, expected):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: usable, raising=False)
        assert cores_by_worker(processes) == expected


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Puts an `nvidia-smi` that lists that many GPUs first on the path, or takes it away."""

    def install(count):
        program = tmp_path / "nvidia-smi"
        lines = "".join(
            f"echo 'GPU {number}: NVIDIA (UUID: GPU-{number})'; echo '  MIG 1g'\n" for number in range(count)
        )
        program.write_text(f'#!/bin/sh\ntest "$1" = --list-gpus || exit 1\n{lines}')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


class TestGpus:
    def test_are_shared_out_evenly(self, gpus):
        gpus(4)
        assert gpus_by_worker(2, ["train"], {}) == ["0,1", "2,3"]

    def test_of_those_that_the_environment_names(self, gpus):
        gpus(4)
        assert gpus_by_worker(2, ["train"], {"CUDA_VISIBLE_DEVICES": "3, GPU-1"}) == ["3", "GPU-1"]
        assert visible_gpus("2,-1,0") == ["2"]

    def test_a_number_that_does_not_divide_is_refused(self, gpus):
        gpus(3)
        with pytest.raises(UsageError, match=r"--processes=2 does not divide the 3 GPUs of this machine \(0,1,2\)\."):
            gpus_by_worker(2, ["train"], {})

    @pytest.mark.parametrize("devices", [["--devices=cpu"], ["--devices", "cpu:2"]])
    def test_are_left_alone_where_the_cpu_is_asked_for(self, gpus, devices):
        gpus(3)
        assert gpus_by_worker(2, ["train", *devices], {}) is None

    @pytest.mark.parametrize("variable", ["", "-1"])
    def test_are_left_alone_where_the_environment_hides_them(self, gpus, variable):
        gpus(3)
        assert gpus_by_worker(2, ["train"], {"CUDA_VISIBLE_DEVICES": variable}) is None

    def test_one_worker_keeps_all(self, gpus):
        gpus(3)
        assert gpus_by_worker(1, ["train"], {}) is None

    def test_without_the_driver_there_are_none(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        assert visible_gpus(None) == visible_gpus("0,1") == []


class TestPorts:
    def test_are_different_free_and_held(self):
        with reserved_ports(5) as ports:
            assert len(set(ports)) == 5
            with socket.socket() as other, pytest.raises(OSError):
                other.bind(("127.0.0.1", ports[0]))
        with socket.socket() as other:
            other.bind(("127.0.0.1", ports[0]))

    def test_lie_outside_what_the_system_hands_out(self):
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        if first > 20000:
            with reserved_ports(20) as ports:
                assert not [port for port in ports if first <= port <= last]


class TestRunFiles:
    def test_attempts_are_counted_over_the_life_of_the_run(self, tmp_path):
        (tmp_path / "logs" / "attempt-7").mkdir(parents=True)
        (tmp_path / "logs" / "other").mkdir()
        run = RunFiles(tmp_path)
        assert [run.new_attempt().number for _ in range(2)] == [8, 9]

    def test_only_complete_checkpoints_are_seen(self, tmp_path):
        run = RunFiles(tmp_path)
        assert run.checkpoint_step() is None
        (tmp_path / "checkpoints").mkdir()
        for name in ("step-000000004.npz", "step-000000012.npz", "step-000000020.npz.tmp", "other"):
            (tmp_path / "checkpoints" / name).write_text("")
        assert run.checkpoint_step() == 12

    def test_events_of_an_attempt_are_those_after_its_beginning_without_damaged_lines(self, tmp_path):
        run = RunFiles(tmp_path)
        assert (run.events_end(), run.events(0)) == (0, [])
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "events.jsonl").write_text('{"event": "start", "time": 1.0}\n{"event": "first_st')
        run.append_restart(2, "killed")
        end = run.events_end()
        with open(tmp_path / "events.jsonl", "a") as file:
            file.write('[1]\n{"event": "x"}\nnull\n{"event": "restored", "time": 3.0, "step": 4}\n')
        assert [event["event"] for event in run.events(0)] == ["start", "restart", "restored"]
        assert run.events(end) == [{"event": "restored", "time": 3.0, "step": 4}]

    def test_a_restart_is_not_noted_in_a_folder_that_the_trainer_would_then_refuse(self, tmp_path):
        RunFiles(tmp_path).append_restart(2, "killed")
        assert os.listdir(tmp_path) == []

    def test_the_last_logged_step_is_read_behind_a_line_that_was_cut_short(self, tmp_path):
        run = RunFiles(tmp_path)
        assert run.logged_step() is None
        (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n{"step": 6}\n{"step": 7, "spl')
        assert run.logged_step() == 6

    def test_a_workers_error_is_read_and_a_damaged_one_still_is_one(self, tmp_path):
        files = RunFiles(tmp_path).new_attempt()
        assert files.error(0) is None
        content = {"rank": 0, "time": 12.5, "step": 3, "exit_code": 1, "error": "ValueError: x", "traceback": "..."}
        files.error_file(0).write_text(json.dumps(content))
        files.error_file(1).write_text('{"rank": 1, "ti')
        assert (files.error(0).time, files.error(0).step, files.error(0).error) == (12.5, 3, "ValueError: x")
        assert files.error(1).exit_code == 1

    def test_traces_are_removed_only_where_the_trainer_never_was(self, tmp_path):
        run = RunFiles(tmp_path / "deep" / "run")
        run.new_attempt().log(0).write_text("no")
        run.write_summary({})
        run.remove_traces()
        assert os.listdir(tmp_path) == []
        run = RunFiles(tmp_path / "run")
        run.new_attempt()
        (tmp_path / "run" / "checkpoints").mkdir()
        run.remove_traces()
        assert sorted(os.listdir(tmp_path / "run")) == ["checkpoints", "logs"]


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("", "which engine? Engines: local, "),
            ("lcal --processes=2", "unknown engine 'lcal' (did you mean 'local'?)"),
            ("local -- train --workdir=w", "--processes must be given."),
            ("local --processes=0 -- train --workdir=w", "--processes=0"),
            ("local --processes=65 -- train --workdir=w", "--processes=65"),
            ("local --processes=2", "no command to launch: `train` and its flags stand after --."),
            ("local --processes=2 train --workdir=w", "`--` is missing before 'train'"),
            ("local --processes=2 -- --workdir=w", "no command to launch"),
            ("local --processes=2 -- trian --workdir=w", "'trian' cannot be launched (did you mean 'train'?)"),
            ("local --processes=2 -- evaluate --workdir=w", "'evaluate' cannot be launched"),
            ("local --processes=2 -- train --data=d", "--workdir must be given after `-- train`"),
            ("local --processes=2 -- train --workdir=", "--workdir must be given after `-- train`"),
            ("local --proceses=2 -- train --workdir=w", "Did you mean: processes?"),
            ("local --processes=2 --max_restarts=-1 -- train --workdir=w", "--max_restarts=-1"),
        ],
    )
    def test_slips_are_named_with_their_mend(self, capsys, arguments, message):
        assert main(["convoy", "launch", *arguments.split()]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert (captured.out, len(captured.err.splitlines())) == ("", 1)

    def test_help_shows_the_flags_of_the_launcher_not_of_the_trainer(self, capsys):
        assert main(["convoy", "launch", "local", "--help", "--", "train", "--help"]) == 0
        out = capsys.readouterr().out
        assert "  --max_restarts\n" in out
        assert "  --workdir\n" not in out

    def test_the_last_of_several_values_counts_as_for_the_trainer(self):
        assert flag_value(["train", "--workdir=a", "--workdir", "b", "--other", "c"], "workdir") == "b"
        assert flag_value(["train", "--workdir"], "workdir") is None
