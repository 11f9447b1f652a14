"""Runs on two hosts that lose workers, connections, the launcher or a host: the weights are those of a run without."""

import os
import re
import signal
import time

import pytest

from tests.trainer.run_files import events_of, result_of


def checkpoint_steps(run):
    return sorted(int(path.stem.split("-")[1]) for path in (run / "checkpoints").glob("step-*.npz"))


@pytest.fixture
def train(machines, dataset, reference_run, wait_until):
    """Starts the reference run's training on hosts a and b, and returns after some steps."""

    def start(*flags, after=0):
        trainer = (*reference_run.flags, f"--data={dataset.data}", "--devices=cpu:1", "--heartbeat_timeout=5")
        launch = machines.launch("--grace_seconds=20", *flags, command=trainer, fake=False)
        reaches(launch, after + 20)
        return launch

    def reaches(launch, step):
        wait_until(
            lambda: max(checkpoint_steps(machines.run), default=0) >= step or launch.process.poll() is not None,
            f"a checkpoint of step {step}",
            120,
        )
        assert launch.process.poll() is None, launch.output

    start.reaches = reaches
    return start


@pytest.mark.slow
def test_killed_worker_then_killed_connection(machines, train, recovery, reference_run, wait_until):
    launch = train()
    time_of_kill = time.time()
    os.kill(machines.worker_pid("b", rank=1, attempt=1), signal.SIGKILL)
    wait_until(lambda: len(events_of(machines.run, "first_step")) == 2, "the second attempt", 120)
    train.reaches(launch, max(checkpoint_steps(machines.run)) + 20)
    time_of_cut = time.time()
    (server,) = machines.connections("b")
    os.kill(server, signal.SIGKILL)
    assert launch.wait(240) == 0, launch.output
    print(launch.output)
    killed, lost = (attempt["cause"] for attempt in launch.summary()["attempts"][:2])
    assert "worker 1" in killed and "SIGKILL" in killed
    assert "worker 1" in lost and "host b" in lost and "ssh: " in lost
    assert result_of(machines.run)["weights_sha256"] == result_of(reference_run.workdir)["weights_sha256"]
    recovery("ssh: a worker killed", machines.run, time_of_kill)
    recovery("ssh: a connection killed on the server side", machines.run, time_of_cut)


@pytest.mark.slow
def test_killed_launcher_then_lost_host(machines, train, recovery, reference_run, wait_until):
    launch = train()
    before = max(checkpoint_steps(machines.run))
    time_of_kill = time.time()
    launch.process.kill()
    wait_until(lambda: not machines.everything(), "the exit of all workers", 20)
    (preempted,) = events_of(machines.run, "preempted")
    saved = checkpoint_steps(machines.run)[-1]
    assert saved == preempted["step"] > before
    launch = train("--min_hosts=1", after=saved)
    time_of_loss = time.time()
    machines.power_off("b")
    assert launch.wait(240) == 0, launch.output
    print(launch.output)
    assert re.search(r"left out: host b .*\(ssh: connect to host b port 22: ", launch.output)
    assert "1 worker on a: R=1 for V=2" in launch.output
    assert result_of(machines.run)["weights_sha256"] == result_of(reference_run.workdir)["weights_sha256"]
    recovery("ssh: the launcher killed and run again", machines.run, time_of_kill)
    recovery("ssh: a host lost permanently, --min_hosts=1", machines.run, time_of_loss)
