"""`convoy launch ray` on a real cluster of two nodes."""

import json
import os
import signal

import pytest

from tests.launch.conftest import exit_with, failing
from tests.trainer.run_files import events_of, result_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SECONDS = 300


def test_workers_run_on_their_nodes_with_all_addresses(machines, tmp_path):
    (tmp_path / "mine.py").write_text("")
    launch = machines.launch("--nodes=2", "--env=SECRET=x", command=[f"--config={tmp_path / 'mine.py'}"])
    assert launch.wait(SECONDS) == 0, launch.output
    workers = [launch.worker(rank) for rank in (0, 1)]
    hosts = {address.split(":")[0] for address in workers[0]["addresses"]}
    assert hosts == {machines.network.addresses[host] for host in ("a", "b")}
    for rank, worker in enumerate(workers):
        environment = worker["environment"]
        assert json.loads(environment["TF_CONFIG"])["task"] == {"type": "worker", "index": rank}
        assert (environment["SECRET"], environment["CUDA_VISIBLE_DEVICES"]) == ("x", "")
        assert os.path.exists(os.path.join(environment["CONVOY_CODE"], "files.json"))
    (key,) = {worker["environment"]["CONVOY_CLUSTER_KEY"] for worker in workers}
    files = [path.read_bytes() for path in machines.run.rglob("*") if path.is_file()]
    assert len(key) == 64 and key not in launch.output and not any(key.encode() in file for file in files)
    assert sorted(os.listdir(machines.run / "logs" / "attempt-1")) == ["worker-0.log", "worker-1.log"]
    summary = launch.summary()
    assert (summary["engine"], summary["processes"], summary["exit_code"]) == ("ray", 2, 0)


def test_killed_worker_then_actor_then_agent(machines):
    launch = machines.launch("--nodes=2", plan={"steps": 40, "hold_at": {"1": 3, "2": 5, "3": 7}})
    machines.reaches(launch, "[0] step 3\n", SECONDS)
    rank = 0 if machines.worker_pid("b", 0, 1) else 1
    os.kill(machines.worker_pid("b", rank, 1), signal.SIGKILL)
    machines.reaches(launch, "[0] step 5\n", SECONDS)
    os.kill(machines.actor("b"), signal.SIGKILL)
    machines.reaches(launch, "[0] step 7\n", SECONDS)
    os.kill(machines.agent("b"), signal.SIGKILL)
    assert launch.wait(SECONDS) == 0, launch.output
    killed, lost, without_agent, done = (attempt["cause"] for attempt in launch.summary()["attempts"])
    host = machines.network.addresses["b"]
    assert f"worker {rank}" in killed and "SIGKILL" in killed
    assert host in lost and "Ray" in lost
    assert host in without_agent and "agent" in without_agent
    assert done == "done"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 138), (signal.SIGINT, 130)])
def test_signals_stop_the_workers_after_saving(machines, number, code):
    launch = machines.launch("--nodes=2", plan={"hold_at": {"1": 3}})
    machines.reaches(launch, "[0] step 3\n", SECONDS)
    launch.process.send_signal(number)
    assert launch.wait(SECONDS) == code, launch.output
    if number == signal.SIGTERM:
        assert any(event["event"] == "preempted" and event["step"] == 3 for event in launch.events())
    machines.wait_until(lambda: not machines.everything(), "the exit of all processes", SECONDS)


def test_after_sigkill_of_the_launcher_workers_save_and_the_same_command_resumes(machines):
    launch = machines.launch("--nodes=2", plan={"hold_at": {"1": 3}})
    machines.reaches(launch, "[0] step 3\n", SECONDS)
    launch.process.kill()
    machines.wait_until(lambda: not machines.everything(), "the exit of all processes", SECONDS)
    assert any(event["event"] == "preempted" and event["step"] == 3 for event in launch.events())
    again = machines.launch("--nodes=2")
    assert again.wait(SECONDS) == 0, again.output
    assert [attempt["start_step"] for attempt in again.summary()["attempts"]] == [3]


def test_exception_of_the_trainer_is_the_cause_and_gives_its_exit_code(machines):
    launch = machines.launch("--nodes=2", plan=failing((1, exit_with(1)), attempts=(1, 2)))
    assert launch.wait(SECONDS) == 1, launch.output
    assert {attempt["cause"] for attempt in launch.summary()["attempts"]} == {"worker 1: ValueError: bad"}
    refused = machines.launch(
        "--nodes=2", plan=failing((0, exit_with(2, at=0)), (1, exit_with(2, at=0)), attempts=(3,))
    )
    assert refused.wait(SECONDS) == 2, refused.output


def test_missing_nodes_are_named_with_what_the_cluster_has(machines):
    launch = machines.launch("--nodes=3", "--cpus_per_node=2", "--node_timeout=3")
    assert launch.wait(SECONDS) == 138, launch.output
    last = launch.output.splitlines()[-1]
    assert "3 nodes with 2 CPU, 0 GPU each" in last
    assert all(f"{machines.network.addresses[host]} (2 CPU, 0 GPU)" in last for host in ("a", "b"))
    assert not machines.run.exists()


@pytest.fixture
def train(machines, dataset, reference_run):
    """Starts the reference run's training on both nodes, and returns after some steps."""

    def start(*flags):
        trainer = (*reference_run.flags, f"--data={dataset.data}", "--devices=cpu:1", "--heartbeat_timeout=10")
        launch = machines.launch("--nodes=2", "--grace_seconds=30", *flags, command=trainer, fake=False)
        checkpoints = machines.run / "checkpoints"
        machines.wait_until(
            lambda: (
                any(int(path.stem.split("-")[1]) >= 20 for path in checkpoints.glob("step-*.npz"))
                or launch.process.poll() is not None
            ),
            "a checkpoint of step 20",
            900,
        )
        assert launch.process.poll() is None, launch.output
        return launch

    return start


def test_run_waits_for_a_killed_node_and_ends_with_the_same_weights(machines, train, reference_run):
    launch = train("--node_timeout=1800")
    machines.network.kill_all("b")
    machines.reaches(launch, "waiting up to", SECONDS)
    machines.start_node("b")
    assert launch.wait(900) == 0, launch.output
    print(launch.output)
    assert machines.network.addresses["b"] in launch.summary()["attempts"][0]["cause"]
    assert len(events_of(machines.run, "restored")) == 1
    assert result_of(machines.run)["weights_sha256"] == result_of(reference_run.workdir)["weights_sha256"]


def test_run_continues_without_a_killed_node_and_ends_with_the_same_weights(machines, train, reference_run):
    launch = train("--min_nodes=1")
    machines.network.kill_all("b")
    assert launch.wait(900) == 0, launch.output
    print(launch.output)
    assert f"1 worker on {machines.network.addresses['a']} (a): R=1 for V=2" in launch.output
    assert result_of(machines.run)["weights_sha256"] == result_of(reference_run.workdir)["weights_sha256"]
