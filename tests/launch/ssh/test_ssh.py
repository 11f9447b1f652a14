"""`convoy launch ssh` with real ssh servers on two hosts, and a small program in place of the trainer."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from tests.processes import is_gone


def kill_workers_at(step, *, rank=1, attempt=1):
    return {"attempts": {str(attempt): {str(rank): {"at": step, "do": "kill"}}}}


@pytest.fixture
def held(machines, wait_until):
    """Starts a launcher whose workers hold at step 3 of their first attempt."""

    def start(*flags, **options):
        launch = machines.launch(*flags, plan={"hold_at": {"1": 3}}, **options)
        wait_until(lambda: "[0] step 3\n" in launch.output or launch.process.poll() is not None, "step 3", 30)
        assert launch.process.poll() is None, launch.output
        return launch

    return start


@pytest.fixture
def silent_server(machines):
    """A server on host b that accepts connections and says nothing: its name in a host file."""
    accept = "import socket; s = socket.create_server(('b', 2222)); print(flush=True); c = [s.accept()]; s.accept()"
    command = machines.network.command("b", sys.executable, "-c", accept)
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        process.stdout.readline()
        yield "b:2222"
        process.kill()


def begun(machines, virtual_replicas, step=0):
    """Makes RUN that of a run that has begun."""
    (machines.run / "checkpoints").mkdir(parents=True)
    (machines.run / "checkpoints" / f"step-{step:09d}.npz").write_text("")
    (machines.run / "config.json").write_text(json.dumps({"virtual_replicas": virtual_replicas}))


class TestAllGoesWell:
    def test_workers_run_on_their_hosts_and_know_each_other_by_address(self, machines):
        variables = {"NCCL_DEBUG": "WARN", "CUDA_VISIBLE_DEVICES": "3", "SECRET": "x", "TF_CONFIG": "{}"}
        hosts = f"a\nsecond slots=2 address={machines.network.addresses['b']}  # an alias in ssh's config\n"
        launch = machines.launch(hosts=hosts, environment=variables)
        assert launch.wait() == 0, launch.output
        assert launch.output.startswith(
            "convoy: connecting to a, second.\nconvoy: attempt 1: 3 workers on a, second (b, 2 workers).\n[0] "
        )
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
        logs = machines.run / "logs" / "attempt-1"
        assert sorted(os.listdir(logs)) == ["worker-0.log", "worker-1.log", "worker-2.log"]
        if len(cores := os.sched_getaffinity(0)) > 1:
            assert not set(workers[1]["cores"]) & set(workers[2]["cores"])
            assert set(workers[0]["cores"]) == cores
        summary = launch.summary()
        assert (summary["engine"], summary["hosts"], summary["exit_code"]) == ("ssh", ["a", "second"], 0)

    def test_doctor_looks_once_and_leaves_nothing(self, machines):
        leaves = {"attempts": {"1": {str(rank): {"at": 0, "do": "exit", "code": 0} for rank in (0, 1)}}}
        (machines.folder / "plan.json").write_text(json.dumps(leaves))
        launch = machines.launch(plan=leaves, verb="doctor")
        assert launch.wait() == 0, launch.output
        assert launch.output == "convoy: connecting to a, b.\nconvoy: attempt 1: 2 workers on a, b.\n"
        assert not machines.run.exists()


class TestSomethingDies:
    def test_a_worker_its_agent_and_its_ssh_server_one_after_another(self, machines, wait_until):
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
        first, second, third = (line for line in launch.output.splitlines() if " Restarting from step " in line)
        assert first.startswith("convoy: attempt 1 ended at step 2: worker 1 was killed (SIGKILL). Restarting")
        assert "worker 1 is lost: host b does not answer any more (" in second
        assert "worker 1 is lost: host b does not answer any more (ssh: " in third
        assert "Connection " in third
        assert launch.output.count(": 2 workers on a, b.") == 4
        addresses = [set(launch.worker(0, attempt)["addresses"]) for attempt in (1, 2, 3, 4)]
        assert len(set.union(*addresses)) == 8

    def test_a_host_for_good_and_the_run_goes_on_with_the_others_until_it_is_back(self, machines, wait_until):
        begun(machines, virtual_replicas=2)
        plan = {"steps": 8, "hold_at": {"1": 3, "2": 5}}
        launch = machines.launch("--min_hosts=1", plan=plan)
        wait_until(lambda: "[0] step 3\n" in launch.output, "step 3", 30)
        assert "2 workers on a, b: R=2 for V=2 virtual replicas.\n" in launch.output
        machines.network.kill_all("b")
        wait_until(lambda: "[0] step 5\n" in launch.output, "step 5", 30)
        assert "convoy: left out: host b does not answer (ssh: connect to host b port 22: " in launch.output
        assert "convoy: attempt 2: 1 worker on a: R=1 for V=2 virtual replicas.\n" in launch.output
        assert launch.worker(0, 2)["environment"].get("TF_CONFIG") is None
        machines.start_server("b")
        os.kill(machines.worker_pid("a", rank=0, attempt=2), signal.SIGKILL)
        assert launch.wait() == 0, launch.output
        assert "convoy: host b is back.\nconvoy: attempt 3: 2 workers on a, b: R=2 for V=2" in launch.output

    @pytest.mark.slow
    def test_the_chiefs_cable_and_another_chief_starts_only_when_that_one_has_surely_ended(self, machines, wait_until):
        begun(machines, virtual_replicas=2)
        stubborn = {"0": {"do": "ignore_signals"}}
        launch = machines.launch(
            "--min_hosts=1", "--grace_seconds=9", plan={"hold_at": {"1": 3}, "attempts": {"1": stubborn}}
        )
        wait_until(lambda: "[0] step 3\n" in launch.output, "step 3", 30)
        chief = machines.worker_pid("a", rank=0, attempt=1)
        os.kill(chief, signal.SIGSTOP)  # it hangs, and would not even notice that its peer is gone
        machines.network.unplug("a")
        wait_until(lambda: "attempt 2:" in launch.output or launch.process.poll() is not None, "another start", 60)
        assert is_gone(chief)
        assert launch.wait() == 0, launch.output
        assert "worker 0 is lost: host a does not answer any more (ssh: nothing for 8 s). Restarting" in launch.output
        assert (
            "Worker 0 ran there and may still save: it ends by itself within 17 s (8 s and --grace_seconds). Trying"
        ) in launch.output
        assert "convoy: attempt 2: 1 worker on b: R=1 for V=2 virtual replicas.\n" in launch.output
        machines.network.plug_in("a")  # so that its ssh server hears of the end


class TestTheLauncherEnds:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 138), (signal.SIGINT, 130)])
    def test_by_a_signal_and_passes_it_on(self, machines, held, number, code):
        launch = held()
        launch.process.send_signal(number)
        assert launch.wait() == code, launch.output
        name = signal.Signals(number).name
        assert f"convoy: {name}: forwarded to 2 workers." in launch.output
        assert machines.everything() == []

    def test_by_kill_and_the_workers_save_and_the_same_command_goes_on(self, machines, held, wait_until):
        launch = held()
        launch.process.kill()
        again = machines.launch()
        assert again.wait() == 0, again.output
        assert any(event["event"] == "preempted" and event["step"] == 3 for event in launch.events())
        assert "  2  step 3 -> 6  done\n" in again.output


class TestAHostThatCannot:
    def test_be_reached_is_tried_again_till_somebody_ends_it(self, machines, wait_until):
        machines.network.kill_all("b")
        launch = machines.launch("--min_hosts=1")
        text = "Connection refused). A run's first start wants all hosts. Retrying for "
        wait_until(lambda: text in launch.output or launch.process.poll() is not None, "the word", 30)
        assert "convoy: host b does not answer (ssh: connect to host b port 22: " in launch.output
        launch.process.send_signal(signal.SIGTERM)
        assert launch.wait(10) == 143, launch.output
        assert "convoy: ended by SIGTERM." in launch.output.splitlines()[-1]
        assert not machines.run.exists()

    def test_be_trusted_is_refused_with_the_mend(self, machines):
        machines.know("a")
        launch = machines.launch()
        assert launch.wait() == 2
        assert launch.output.splitlines() == [
            "convoy: connecting to a, b.",
            "convoy: the key of host b is not known here (ssh: Host key verification failed). Connect once by hand, "
            f"compare the key, and confirm it: `ssh -F {machines.ssh_config} b`.",
        ]
        assert not machines.run.exists()

    @pytest.mark.parametrize(
        ("lines", "flags", "words"),
        [
            (
                "a\nnobody@b\n",
                (),
                "host nobody@b does not let this user in (ssh: nobody@b: Permission denied (publickey",
            ),
            ("a\nb\n", ("--python=/nowhere/python",), "host a has no /nowhere/python (its shell: "),
            ("a\nb\n", ("--min_hosts=3",), "--min_hosts=3 and {folder}/hosts.txt names 2 of them. Give fewer."),
            ("a\na\n", (), "{folder}/hosts.txt:2: 'a' names a again, after line 1."),
        ],
    )
    def test_take_part_is_named(self, machines, lines, flags, words):
        launch = machines.launch(*flags, hosts=lines)
        assert launch.wait() == 2, launch.output
        assert words.format(folder=machines.folder) in launch.output
        assert "Traceback" not in launch.output
        assert not machines.run.exists()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"version": "0.0.9"}, "convoy: host b has Convoy 0.0.9 in {python}, and this machine "),
            (
                {"sees_run": False},
                "convoy: host b does not see --workdir={run} ({run}) of this machine. Give a folder that ",
            ),
            ({"problem": "slots=2 does not divide the 3 GPUs"}, "convoy: host b: slots=2 does not divide the 3 GPUs."),
        ],
    )
    def test_do_what_is_asked_is_named(self, machines, change, words):
        from convoy import __version__

        hello = {"version": __version__, "sees_run": True, "problem": "", "gpus": [], "ports": [1], **change}
        python = machines.folder / "python"
        python.write_text(f"#!/bin/sh\necho 'Welcome!'\necho '{json.dumps({'hello': hello})}'\ncat >/dev/null\n")
        python.chmod(0o755)
        launch = machines.launch(f"--python={python}")
        assert launch.wait() == 2, launch.output
        assert words.format(python=python, run=machines.run) in launch.output

    def test_fit_the_virtual_replicas_is_told_both_numbers(self, machines):
        begun(machines, virtual_replicas=3)
        launch = machines.launch(command=("--devices=cpu:2",))
        assert launch.wait() == 2, launch.output
        assert (
            "convoy: the hosts that answer have R=4 devices (a 2, b 2), and neither R nor that of any 2 hosts or more "
            "of them divides the run's V=3 virtual replicas. Change slots in "
        ) in launch.output

    @pytest.mark.slow
    def test_say_a_word_is_left_out_in_time(self, machines, silent_server):
        begun(machines, virtual_replicas=2)
        launch = machines.launch("--min_hosts=1", hosts=f"a\n{silent_server}\n")
        assert launch.wait(40) == 0, launch.output
        assert re.search(r"convoy: left out: host b:2222 does not answer \(ssh: .*timed out\)\.\n", launch.output)

    def test_say_a_word_does_not_hold_up_a_signal(self, machines, silent_server, wait_until):
        launch = machines.launch(hosts=f"a\n{silent_server}\n")
        wait_until(lambda: "connecting" in launch.output, "the connecting", 20)
        launch.process.send_signal(signal.SIGTERM)
        assert launch.wait(8) == 143, launch.output
        assert launch.output.startswith("convoy: connecting to a, b:2222.\nconvoy: ended by SIGTERM.")


def parent_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_doctor_examines_the_hosts_and_leaves_the_run_directory_as_it_was(machines, dataset):
    launch = machines.launch(verb="doctor", command=(f"--data={dataset.data}", "--devices=cpu:1"), fake=False)
    assert launch.wait(120) == 0, launch.output
    assert re.search(r"\[0\] ok +ports +all 2 ways between workers are open", launch.output)
    assert launch.output.endswith("[0] Nothing failed.\n")
    assert not machines.run.exists()
