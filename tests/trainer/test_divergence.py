"""Runs whose gradient becomes NaN: rollback to the last checkpoint with a lower learning rate, or an error with fixes.

With a learning rate of 1e7 the gradient overflows in step 4. Multiplied by 1e-30, the model does not change any more.
"""

import json
import signal

import numpy as np
import pytest

from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.reading import order
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from tests.trainer import user_models
from tests.trainer.run_files import (
    event_names,
    events_of,
    json_lines,
    order_of,
    result_of,
    steps_in_tensorboard,
    steps_logged,
)

BATCH, STEPS, FACTOR = 16, 8, 1e-30
EXPLODING = (
    *("train", "--config=smoke", f"--config.model.name={user_models.__file__}:linear", "--config.precision=float32"),
    *(f"--config.batch_size={BATCH}", "--config.virtual_replicas=2", "--deterministic", "--record_order"),
    *("--config.optimizer.name=sgd", "--config.optimizer.momentum=0", "--config.optimizer.nesterov=False"),
    *("--config.optimizer.clip_norm=0", "--config.optimizer.weight_decay=0"),
    *("--config.schedule.name=constant", "--config.schedule.scaling=none", "--config.schedule.warmup_steps=0"),
    *(f"--config.steps={STEPS}", "--config.log_every_steps=1", "--config.checkpoint_every_steps=2"),
    *(f"--config.eval_every_steps={STEPS}", f"--config.divergence.learning_rate_factor={FACTOR}"),
)
FLAGS = {
    "once": ("--config.divergence.rollbacks=2", "--config.optimizer.learning_rate=1e7"),
    "never": ("--config.divergence.rollbacks=0", "--config.optimizer.learning_rate=1e7"),
    # The checkpoint that it rolls back to has already diverged.
    "in vain": ("--config.divergence.rollbacks=1", "--config.optimizer.learning_rate=1e12"),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory, convoy, dataset):
    """The runs of `FLAGS` on one device: {name: (result, run directory)}."""
    folder = tmp_path_factory.mktemp("divergence")
    runs = {name: folder / name.replace(" ", "-") for name in FLAGS}
    command = (*EXPLODING, "--devices=cpu:1", f"--data={dataset.data}")
    return {name: (convoy(*command, *FLAGS[name], f"--workdir={run}"), run) for name, run in runs.items()}


@pytest.fixture(scope="module")
def images_of(dataset):
    """Returns a function from a step to the images that the order assigns to it."""
    num_images = open_dataset(dataset.data).split("train").num_images

    def images(step):
        positions = np.arange((step - 1) * BATCH, step * BATCH)
        return order.positions_to_images(positions, num_images=num_images, seed=0)[0].tolist()

    return images


class TestRollback:
    def test_resumes_from_the_last_checkpoint_and_finishes(self, on_one_device):
        completed, run = on_one_device["once"]
        assert completed.returncode == 0, completed.output
        (line,) = [line for line in completed.output.splitlines() if line.startswith("Rollback 1 of 2")]
        assert "step 4" in line and "step 2" in line and "1e-30" in line
        assert result_of(run)["step"] == STEPS
        assert event_names(run) == ["start", "first_step", "diverged", "rolled_back", "first_step", "done"]
        (event,) = events_of(run, "rolled_back")
        assert (event["step"], event["diverged_step"], event["learning_rate_factor"]) == (2, 4, FACTOR)

    def test_records_the_images_of_the_batch(self, on_one_device, images_of):
        (event,) = events_of(on_one_device["once"][1], "diverged")
        assert event["step"] == 4
        assert event["images"] == images_of(4)

    def test_lowers_the_learning_rate(self, on_one_device):
        lines = [line for line in json_lines(on_one_device["once"][1] / "metrics.jsonl") if line["split"] == "train"]
        assert [line["optim/lr"] for line in lines] == pytest.approx([1e7] * 2 + [1e7 * FACTOR] * (STEPS - 2), abs=0)

    def test_every_step_is_logged_once(self, on_one_device, images_of):
        _, run = on_one_device["once"]
        assert steps_logged(run, "train") == steps_in_tensorboard(run, "train") == list(range(1, STEPS + 1))
        assert order_of(run, 0) == {step: images_of(step) for step in range(1, STEPS + 1)}

    def test_is_counted_in_checkpoints_so_that_a_resumed_run_keeps_its_learning_rate(self, on_one_device):
        _, metadata = CheckpointStore(on_one_device["once"][1] / "checkpoints").load(STEPS)
        assert metadata["rollbacks"] == 1

    def test_on_two_processes_is_bit_identical(self, on_one_device, cluster, dataset, tmp_path, images_of):
        run = tmp_path / "run"
        command = (*EXPLODING, *FLAGS["once"], "--devices=cpu:1", f"--data={dataset.data}", f"--workdir={run}")
        workers = cluster(*command, output=tmp_path / "output", check=True)
        _, expected = on_one_device["once"]
        assert result_of(run)["weights_sha256"] == result_of(expected)["weights_sha256"]
        assert event_names(run) == event_names(expected)
        assert events_of(run, "diverged")[0]["images"] == images_of(4)
        assert "Rollback 1 of 2" in workers.output(0)
        of_workers = [order_of(run, rank) for rank in (0, 1)]
        for step in range(1, STEPS + 1):
            assert of_workers[0][step] + of_workers[1][step] == images_of(step)


# Kills the process in step 4, before it diverges, with the checkpoint of step 3 written.
KILL = """
import os
import signal
import threading

import convoy

class Kill(convoy.Callback):
    def on_batch(self, training, batch):
        if training.step == 3:
            for thread in threading.enumerate():
                if thread.name == "checkpoint":
                    thread.join()
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_rollback_before_a_change_of_virtual_replicas_moves_the_change(convoy, dataset, tmp_path):
    run = tmp_path / "run"
    (tmp_path / "kill.py").write_text(KILL)
    often = ("--config.checkpoint_every_steps=1", "--devices=cpu:1", f"--data={dataset.data}", f"--workdir={run}")
    command = (*EXPLODING, *FLAGS["once"], *often)
    assert convoy(*command, f"--callbacks={tmp_path / 'kill.py'}:Kill").returncode == -signal.SIGKILL
    assert CheckpointStore(run / "checkpoints").latest() == 3
    # Step 4 diverges also after the rollback to step 3, so that the next one is to step 2.
    convoy(*command, "--virtual_replicas=4", check=True)
    assert [event["step"] for event in events_of(run, "rolled_back")] == [3, 2]
    changes = [(event["step"], event["before"], event["after"]) for event in events_of(run, "virtual_replicas_changed")]
    assert changes == [(3, 2, 4), (2, 2, 4)]
    assert result_of(run)["virtual_replicas_changes"] == [{"step": 2, "before": 2, "after": 4}]
    recorded = {"steps": [2], "numbers": [2]}
    assert json.loads((run / "config.json").read_text())["earlier_virtual_replicas"] == recorded
    metadata = CheckpointStore(run / "checkpoints").load(STEPS)[1]
    assert metadata["config"]["earlier_virtual_replicas"] == recorded


class TestWithoutRollback:
    def test_error_names_the_step_the_checkpoint_and_the_fixes(self, on_one_device):
        completed, run = on_one_device["never"]
        assert completed.returncode == 1
        assert "Traceback" not in completed.output
        error = completed.output.splitlines()[-1]
        assert error.startswith("convoy: step 4: ") and "NaN" in error
        assert "checkpoint: step 2." in error
        for fix in ("config.optimizer.learning_rate=1e+07", "config.optimizer.clip_norm=1", "divergence.rollbacks=2"):
            assert fix in error
        assert not (run / "result.json").exists()
        assert CheckpointStore(run / "checkpoints").steps() == [2]

    def test_run_that_diverges_again_ends(self, on_one_device):
        completed, run = on_one_device["in vain"]
        assert completed.returncode == 1
        assert event_names(run) == ["start", "first_step", "diverged", "rolled_back", "diverged"]
        assert completed.output.splitlines()[-1].startswith("convoy: step 3: ")
