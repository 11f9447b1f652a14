"""Runs of the command line on GPUs: killed and resumed, out of memory, on several devices and in several processes."""

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from convoy.launch.ports import reserved_ports
from tests.processes import REPOSITORY
from tests.trainer.run_files import result_of

MODELS = REPOSITORY / "tests/trainer/user_models.py"
FLAGS = (
    *("train", "--config=smoke", f"--config.model.name={MODELS}:normalized", "--config.precision=float32"),
    *("--deterministic", "--config.virtual_replicas=2", "--config.eval_every_steps=1000"),
    *("--config.checkpoint_every_steps=10", "--config.log_every_steps=10"),
)
STEPS = 200  # a killed run is not to end before


@pytest.fixture(scope="module")
def uninterrupted(place, dataset, tmp_path_factory):
    """The result of a run on one device."""
    run = tmp_path_factory.mktemp("whole") / "run"
    where = (f"--data={dataset.data}", f"--workdir={run}", place.devices(1), f"--config.steps={STEPS}")
    result = place.run("convoy", *FLAGS, *where)
    assert result.returncode == 0, result.output
    return result_of(run)


def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    place, dataset, uninterrupted, tmp_path, wait_until
):
    run = tmp_path / "run"
    flags = (*FLAGS, f"--data={dataset.data}", f"--workdir={run}", place.devices(1), f"--config.steps={STEPS}")
    with place.started("convoy", *flags, output=tmp_path / "log") as process:
        wait_until(lambda: process.poll() is not None or any(run.glob("checkpoints/step-*.npz")), "a checkpoint")
        assert process.poll() is None, (tmp_path / "log").read_text()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
    assert not (run / "result.json").exists()
    result = place.run("convoy", *flags)
    assert result.returncode == 0, result.output
    assert result_of(run)["weights_sha256"] == uninterrupted["weights_sha256"]


def test_a_deterministic_run_of_baseline_cnn_is_evaluated(place, dataset, tmp_path):
    """With heat maps, which differentiate batch normalization outside of training."""
    run = tmp_path / "run"
    flags = ("--config=baseline_cnn", "--deterministic", "--config.steps=2", "--config.batch_size=8")
    result = place.run("convoy", "train", *flags, f"--data={dataset.data}", f"--workdir={run}", place.devices(1))
    assert result.returncode == 0, result.output
    assert result_of(run)["step"] == 2


def test_without_memory_a_run_says_what_to_change(place, dataset, tmp_path):
    if place.kind == "CPU" and Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "1":
        pytest.skip("the kernel grants any memory (vm.overcommit_memory=1)")
    # XLA could compute the maximum without storing what it is of.
    model = ("--config=smoke", f"--config.model.name={MODELS}:hungry", "--config.precision=float32", "--config.xla=off")
    where = (f"--data={dataset.data}", f"--workdir={tmp_path / 'run'}", place.devices(1))
    result = place.run("convoy", "train", *model, *where)
    assert result.returncode == 2, result.output
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("convoy: ")]
    assert "out of memory" in message and "--config.batch_size=8" in message and "--find_batch_size" in message
    assert "Traceback" not in result.output


def test_two_devices_of_one_process(place, dataset, uninterrupted, tmp_path):
    devices = place.devices(2)
    where = (f"--data={dataset.data}", f"--workdir={tmp_path / 'run'}", devices, f"--config.steps={STEPS}")
    result = place.run("convoy", *FLAGS, *where)
    assert result.returncode == 0, result.output
    assert result_of(tmp_path / "run")["weights_sha256"] == uninterrupted["weights_sha256"]


def test_two_processes_with_a_device_each(place, dataset, uninterrupted, tmp_path):
    """On GPUs through NCCL: the reduction and the deterministic exchange of chunks."""
    place.devices(2)
    with reserved_ports(2) as ports:
        workers = [f"127.0.0.1:{port}" for port in ports]
    flags = (*FLAGS, f"--data={dataset.data}", f"--workdir={tmp_path / 'run'}", f"--config.steps={STEPS}")
    with ExitStack() as stack:
        started = []
        for rank in range(2):
            task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
            environment = {"TF_CONFIG": json.dumps(task)}
            if place.kind == "GPU":
                environment["CUDA_VISIBLE_DEVICES"] = place.gpus[rank]
            output = tmp_path / f"worker-{rank}.log"
            worker = place.started("convoy", *flags, place.devices(1), output=output, environment=environment)
            started.append(stack.enter_context(worker))
        codes = [process.wait(300) for process in started]
    assert codes == [0, 0], "\n".join((tmp_path / f"worker-{rank}.log").read_text() for rank in range(2))
    assert result_of(tmp_path / "run")["weights_sha256"] == uninterrupted["weights_sha256"]


def test_the_doctor_sums_over_two_devices(place):
    result = place.run("convoy", "doctor", place.devices(2))
    (line,) = [line for line in result.stdout.splitlines() if line.split()[1:2] == ["collective"]]
    assert result.returncode == 0, result.output
    assert line.startswith("ok") and ("NCCL" if place.kind == "GPU" else "memory") in line
