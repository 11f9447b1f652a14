"""`convoy launch ssh` with real ssh servers on two hosts, and a fake trainer."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import is_gone, write_foreign_packages


def kill_workers_at(step, *, rank=1, attempt=1):
    return {"attempts": {str(attempt): {str(rank): {"at": step, "do": "kill"}}}}


@pytest.fixture
def held(machines, wait_until):
    """Starts a launcher whose workers pause at step 3 of the first attempt."""

    def start(*flags, **options):
        launch = machines.launch(*flags, plan={"hold_at": {"1": 3}}, **options)
        wait_until(lambda: "[0] step 3\n" in launch.output or launch.process.poll() is not None, "step 3", 30)
        assert launch.process.poll() is None, launch.output
        return launch

    return start


@pytest.fixture
def silent_server(machines):
    """A server on host b that accepts connections but never responds, as named in a host file."""
    accept = "import socket; s = socket.create_server(('b', 2222)); print(flush=True); c = [s.accept()]; s.accept()"
    command = machines.network.command("b", sys.executable, "-c", accept)
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        process.stdout.readline()
        yield "b:2222"
        process.kill()


def begun(machines, virtual_replicas, step=0):
    """Makes the run directory look like that of a run that has started."""
    (machines.run / "checkpoints").mkdir(parents=True)
    (machines.run / "checkpoints" / f"step-{step:09d}.npz").write_text("")
    (machines.run / "config.json").write_text(json.dumps({"virtual_replicas": virtual_replicas}))


class TestWithoutFaults:
    def test_workers_run_on_their_hosts_with_all_addresses(self, machines):
        variables = {"NCCL_DEBUG": "WARN", "CUDA_VISIBLE_DEVICES": "3", "SECRET": "x", "TF_CONFIG": "{}"}
        hosts = f"a\nsecond slots=2 address={machines.network.addresses['b']}  # an alias in ssh's config\n"
        launch = machines.launch(hosts=hosts, environment=variables)
        assert launch.wait() == 0, launch.output
        assert "attempt 1: 3 workers on a, second (b, 2 workers)." in launch.output
        assert "\n  1  step 0 -> 6  done\n" in launch.output
        workers = [launch.worker(rank) for rank in range(3)]
        assert [address.split(":")[0] for address in workers[0]["addresses"]] == [
            "a",
            *[machines.network.addresses["b"]] * 2,
        ]
        assert len(set(workers[0]["addresses"])) == 3
        for rank, worker in enumerate(workers):
            environment = worker["environment"]
            assert json.loads(environment["TF_CONFIG"])["task"] == {"type": "worker", "index": rank}
            assert environment["NCCL_DEBUG"] == "WARN"
            assert not {"CUDA_VISIBLE_DEVICES", "SECRET"} & environment.keys()
            assert "SSH_CONNECTION" in environment
        (key,) = {worker["environment"]["CONVOY_CLUSTER_KEY"] for worker in workers}
        files = [path.read_bytes() for path in machines.run.rglob("*") if path.is_file()]
        assert len(key) == 64 and key not in launch.output and not any(key.encode() in file for file in files)
        logs = machines.run / "logs" / "attempt-1"
        assert sorted(os.listdir(logs)) == ["worker-0.log", "worker-1.log", "worker-2.log"]
        if len(cores := os.sched_getaffinity(0)) > 1:
            assert not set(workers[1]["cores"]) & set(workers[2]["cores"])
            assert set(workers[0]["cores"]) == cores
        summary = launch.summary()
        assert (summary["engine"], summary["hosts"], summary["exit_code"]) == ("ssh", ["a", "second"], 0)

    def test_workers_get_the_users_files_and_variables(self, machines, tmp_path):
        (tmp_path / "mine.py").write_text("import beside\n")
        (tmp_path / "beside.py").write_text("A = 1\n")
        recipe = str(tmp_path / "mine.py")
        launch = machines.launch(
            "--env=SECRET", "--env=B=x y", command=[f"--config={recipe}"], environment={"SECRET": "s"}
        )
        assert launch.wait() == 0, launch.output
        for rank in (0, 1):
            environment = launch.worker(rank)["environment"]
            assert (environment["SECRET"], environment["B"]) == ("s", "x y")
            sent = Path(environment["CONVOY_CODE"])
            assert sent.parent == machines.run / "logs"
            assert (sent / json.loads((sent / "files.json").read_text())[recipe]).read_text() == "import beside\n"
            assert (sent / "0" / "beside.py").read_text() == "A = 1\n"

    def test_doctor_starts_once_and_leaves_no_files(self, machines, tmp_path):
        leaves = {"attempts": {"1": {str(rank): {"at": 0, "do": "exit", "code": 0} for rank in (0, 1)}}}
        (machines.folder / "plan.json").write_text(json.dumps(leaves))
        (tmp_path / "mine.py").write_text("")
        launch = machines.launch(plan=leaves, verb="doctor", command=[f"--config={tmp_path / 'mine.py'}"])
        assert launch.wait() == 0, launch.output
        assert "attempt 1: 2 workers on a, b." in launch.output and "attempt 2" not in launch.output
        assert not machines.run.exists()


@pytest.mark.slow
class TestFaults:
    def test_killed_worker_then_agent_then_ssh_server(self, machines, wait_until):
        plan = {"steps": 40, "hold_at": {"1": 3, "2": 5, "3": 7}}
        launch = machines.launch(plan=plan)

        def reaches(step):
            wait_until(lambda: f"[0] step {step}\n" in launch.output, f"step {step}", 30)

        reaches(3)
        os.kill(machines.worker_pid("b", rank=1, attempt=1), signal.SIGKILL)
        reaches(5)
        worker = machines.worker_pid("b", rank=1, attempt=2)
        os.kill(parent_of(worker), signal.SIGKILL)
        reaches(7)
        for pid in machines.connections("b"):
            os.kill(pid, signal.SIGKILL)
        assert launch.wait() == 0, launch.output
        first, second, third, _ = (attempt["cause"] for attempt in launch.summary()["attempts"])
        assert "worker 1" in first and "SIGKILL" in first
        assert "worker 1" in second and "host b" in second
        assert "worker 1" in third and "host b" in third and "ssh: Connection " in third
        assert launch.output.count(": 2 workers on a, b.") == 4
        addresses = [set(launch.worker(0, attempt)["addresses"]) for attempt in (1, 2, 3, 4)]
        assert len(set.union(*addresses)) == 8

    def test_lost_host_is_left_out_until_it_is_back(self, machines, wait_until):
        begun(machines, virtual_replicas=2)
        plan = {"steps": 8, "hold_at": {"1": 3, "2": 5}}
        launch = machines.launch("--min_hosts=1", plan=plan)
        wait_until(lambda: "[0] step 3\n" in launch.output, "step 3", 30)
        assert "2 workers on a, b: R=2 for V=2" in launch.output
        machines.network.kill_all("b")
        wait_until(lambda: "[0] step 5\n" in launch.output, "step 5", 30)
        assert re.search(r"left out: host b .*\(ssh: connect to host b port 22: ", launch.output)
        assert "attempt 2: 1 worker on a: R=1 for V=2" in launch.output
        assert launch.worker(0, 2)["environment"].get("TF_CONFIG") is None
        machines.start_server("b")
        os.kill(machines.worker_pid("a", rank=0, attempt=2), signal.SIGKILL)
        assert launch.wait() == 0, launch.output
        assert "host b is back" in launch.output and "attempt 3: 2 workers on a, b: R=2 for V=2" in launch.output

    @pytest.mark.slow
    def test_after_a_network_failure_a_new_chief_waits_for_the_old_one_to_exit(self, machines, wait_until):
        begun(machines, virtual_replicas=2)
        stubborn = {"0": {"do": "ignore_signals"}}
        launch = machines.launch(
            "--min_hosts=1", "--grace_seconds=9", plan={"hold_at": {"1": 3}, "attempts": {"1": stubborn}}
        )
        wait_until(lambda: "[0] step 3\n" in launch.output, "step 3", 30)
        chief = machines.worker_pid("a", rank=0, attempt=1)
        os.kill(chief, signal.SIGSTOP)  # it hangs and does not notice that its peer is gone
        machines.network.unplug("a")
        wait_until(lambda: "attempt 2:" in launch.output or launch.process.poll() is not None, "another start", 60)
        assert is_gone(chief)
        assert launch.wait() == 0, launch.output
        cause = launch.summary()["attempts"][0]["cause"]
        assert "worker 0" in cause and "host a" in cause and "8 s" in cause
        assert "within 17 s (8 s + --grace_seconds=9)" in launch.output
        assert "attempt 2: 1 worker on b: R=1 for V=2" in launch.output
        machines.network.plug_in("a")  # so that its ssh server notices the end


@pytest.mark.slow
class TestLauncherEnds:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 138), (signal.SIGINT, 130)])
    def test_signals_are_forwarded_to_workers(self, machines, held, number, code):
        launch = held()
        launch.process.send_signal(number)
        assert launch.wait() == code, launch.output
        name = signal.Signals(number).name
        assert name in launch.output and "2 workers" in launch.output
        assert machines.everything() == []

    def test_after_sigkill_workers_save_and_the_same_command_resumes(self, machines, held, wait_until):
        launch = held()
        launch.process.kill()
        again = machines.launch()
        assert again.wait() == 0, again.output
        assert any(event["event"] == "preempted" and event["step"] == 3 for event in launch.events())
        assert "  2  step 3 -> 6  done\n" in again.output


@pytest.mark.slow
class TestUnusableHosts:
    def test_unreachable_host_is_retried_until_sigterm(self, machines, wait_until):
        machines.network.kill_all("b")
        launch = machines.launch("--min_hosts=1")
        text = "first start of a run needs all hosts"
        wait_until(lambda: text in launch.output or launch.process.poll() is not None, "the message", 30)
        assert re.search(r"host b .*\(ssh: connect to host b port 22: Connection refused\)", launch.output)
        launch.process.send_signal(signal.SIGTERM)
        assert launch.wait(10) == 143, launch.output
        assert "SIGTERM" in launch.output.splitlines()[-1]
        assert not machines.run.exists()

    def test_unknown_host_key(self, machines):
        machines.know("a")
        launch = machines.launch()
        assert launch.wait() == 2
        assert "key of host b" in launch.output and f"`ssh -F {machines.ssh_config} b`" in launch.output
        assert not machines.run.exists()

    @pytest.mark.parametrize(
        ("lines", "flags", "words"),
        [
            ("a\nnobody@b\n", (), "host nobody@b refuses the login (ssh: nobody@b: Permission denied (publickey"),
            ("a\nb\n", ("--python=/nowhere/python",), "host a cannot run /nowhere/python"),
            ("a\nb\n", ("--min_hosts=3",), "--min_hosts=3: --hosts={folder}/hosts.txt has 2."),
            ("a\na\n", (), "{folder}/hosts.txt:2: 'a'"),
        ],
    )
    def test_invalid_hosts_and_flags_are_named(self, machines, lines, flags, words):
        launch = machines.launch(*flags, hosts=lines)
        assert launch.wait() == 2, launch.output
        assert words.format(folder=machines.folder) in launch.output
        assert "Traceback" not in launch.output
        assert not machines.run.exists()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"version": "0.0.9"}, "host b has Convoy 0.0.9 in {python}"),
            ({"sees_run": False}, "host b does not share --workdir={run} ({run})"),
            ({"problem": "slots=2 does not divide the 3 GPUs"}, "convoy: host b: slots=2 does not divide the 3 GPUs."),
        ],
    )
    def test_problems_that_the_agent_reports_are_named(self, machines, change, words):
        from convoy import __version__

        python = machines.folder / "python"
        hello = {"version": __version__, "python": str(python), "sees_run": True, "problem": "", "ports": [1], **change}
        python.write_text(f"#!/bin/sh\necho 'Welcome!'\necho '{json.dumps({'hello': hello})}'\ncat >/dev/null\n")
        python.chmod(0o755)
        launch = machines.launch(f"--python={python}")
        assert launch.wait() == 2, launch.output
        assert words.format(python=python, run=machines.run) in launch.output

    def test_devices_that_do_not_divide_the_virtual_replicas(self, machines):
        begun(machines, virtual_replicas=3)
        launch = machines.launch(command=("--devices=cpu:2",))
        assert launch.wait() == 2, launch.output
        assert "R=4 devices (a 2, b 2)" in launch.output and "V=3 virtual replicas" in launch.output
        launch = machines.launch(command=("--devices=cpu:2", "--virtual_replicas=4"))
        assert launch.wait() == 0, launch.output
        assert "R=4 for V=4" in launch.output

    @pytest.mark.slow
    def test_silent_host_is_left_out(self, machines, silent_server):
        begun(machines, virtual_replicas=2)
        launch = machines.launch("--min_hosts=1", hosts=f"a\n{silent_server}\n")
        assert launch.wait(40) == 0, launch.output
        assert re.search(r"left out: host b:2222 .*\(ssh: .*timed out\)", launch.output)

    def test_silent_host_does_not_delay_a_signal(self, machines, silent_server, wait_until):
        launch = machines.launch(hosts=f"a\n{silent_server}\n")
        wait_until(lambda: "connecting" in launch.output, "the start of the connections", 20)
        launch.process.send_signal(signal.SIGTERM)
        assert launch.wait(8) == 143, launch.output
        assert "SIGTERM" in launch.output.splitlines()[-1]


def parent_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_doctor_checks_the_hosts_and_creates_no_run_directory(machines, dataset):
    path = write_foreign_packages(machines.folder / "foreign")  # goes to the hosts, like every PYTHONPATH
    command, environment = (f"--data={dataset.data}", "--devices=cpu:1"), {"PYTHONPATH": path}
    launch = machines.launch(verb="doctor", command=command, fake=False, environment=environment)
    assert launch.wait(120) == 0, launch.output
    assert re.search(r"\[0\] ok +ports +all 2 connections", launch.output)
    assert launch.output.endswith("[0] Nothing failed.\n")
    assert not machines.run.exists()
