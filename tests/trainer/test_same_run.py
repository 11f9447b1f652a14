"""A deterministic run gives the same result on any hardware: devices, processes, devices per process, CPU cores."""

import functools
import os

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.reading import order
from tests.trainer import user_models
from tests.trainer.run_files import approximately, measured, order_of, result_of

STEPS, BATCH = 8, 16
HARDWARE = {  # name: (processes, devices per process)
    "one device": (1, 1),
    "two devices": (1, 2),
    "four devices": (1, 4),
    "two processes": (2, 1),
    "two processes of two devices": (2, 2),
}
PRECISIONS = ("float32", "bfloat16")
# Where bfloat16 is tested too: between them, these have all that the others have.
IN_BFLOAT16 = ("one device", "four devices", "two processes of two devices")
# Everything random, and everything computed once per step from reduced values. Dropout is in the model.
EVERYTHING = (
    "--config=smoke",
    f"--config.model.name={user_models.__file__}:normalized",
    f"--config.batch_size={BATCH}",
    "--config.virtual_replicas=4",
    f"--config.steps={STEPS}",
    "--config.eval_every_steps=5",
    "--config.checkpoint_every_steps=3",
    "--config.log_every_steps=2",
    # Ops on the host and on the device, sampled and fixed.
    "--config.augment.ops=crop(scale=0.7..1) | contrast(0.2) | trivial | rand(2, 9) | flip | hue(0.1, 0.6) | erase",
    "--config.mix.mixup=0.4",
    "--config.mix.cutmix=1",
    "--config.mix.probability=0.7",
    "--config.mix.off_fraction=0.25",
    "--config.optimizer.weight_decay_per_run=4",
    "--config.sampling=inverse_sqrt",
    "--config.ema.decay=0.9",
    "--config.optimizer.clip_norm=1",
    "--config.label_smoothing=0.1",
    "--config.loss.class_weights=balanced",
    "--record_order",
)
# The `convoy` command, pinned to one core.
_ON_ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from convoy.cli import entry_point
entry_point()
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory, convoy, cluster, dataset):
    """Returns a function that trains on some hardware and returns the run directories by precision."""
    folder = tmp_path_factory.mktemp("same")

    @functools.cache
    def train(hardware):
        processes, devices = HARDWARE[hardware]
        precisions = PRECISIONS if hardware in IN_BFLOAT16 else ("float32",)
        runs = {precision: folder / hardware.replace(" ", "-") / precision for precision in precisions}
        commands = {
            precision: [
                *("train", *EVERYTHING, "--deterministic", f"--devices=cpu:{devices}"),
                *(f"--config.precision={precision}", f"--data={dataset.data}", f"--workdir={run}"),
            ]
            for precision, run in runs.items()
        }
        if processes == 1:
            for command in commands.values():
                convoy(*command, check=True)
        else:
            for precision, command in commands.items():
                output = folder / hardware.replace(" ", "-") / f"{precision}-output"
                cluster(*command, processes=processes, output=output, check=True)
        return runs

    return train


@pytest.fixture(scope="module")
def images_of(dataset):
    """Returns a function from a step to the images that the order assigns to it, [batch]."""

    def images(step):
        sampling = order.class_sampling(open_dataset(dataset.data).split("train").label, "inverse_sqrt")
        of_step = np.arange((step - 1) * BATCH, step * BATCH)
        return order.sampled_positions_to_images(of_step, sampling=sampling, seed=0)[0].tolist()

    return images


def evaluation_pages(run):
    """Returns the images and precision-recall curves that a run logged to TensorBoard, by tag and step."""
    pages = {}
    for name in ("media", "validation"):
        events = EventAccumulator(str(run / "tensorboard" / name), size_guidance={"tensors": 0}).Reload()
        tags = [tag for tag in events.Tags()["tensors"] if tag.startswith(("pr", "media/confusion", "media/worst"))]
        for tag in tags:
            pages |= {(tag, event.step): event.tensor_proto.SerializeToString() for event in events.Tensors(tag)}
    return pages


@pytest.mark.parametrize(
    ("hardware", "precision"),
    [(name, "float32") for name in HARDWARE if name != "one device"] + [(name, "bfloat16") for name in IN_BFLOAT16[1:]],
)
def test_weights_are_bit_identical_to_one_device(trained_on, hardware, precision):
    one, other = trained_on("one device")[precision], trained_on(hardware)[precision]
    result, expected = result_of(other), result_of(one)
    processes, devices = HARDWARE[hardware]
    assert (result["workers"], result["replicas"]) == (processes, processes * devices)
    assert (result["step"], result["images_seen"]) == (STEPS, STEPS * BATCH)
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert result["temperature"] == expected["temperature"]
    assert measured(other, "train") == measured(one, "train")
    assert [line["step"] for line in measured(other, "validation")] == [5, STEPS]
    assert measured(other, "validation") == approximately(measured(one, "validation"))


def test_tensorboard_pages_combine_all_workers(trained_on):
    shown, expected = (
        evaluation_pages(trained_on(hardware)["float32"]) for hardware in ("two processes", "two devices")
    )
    assert {step for _, step in expected} == {5, STEPS}
    assert {"pr/micro", "media/confusion_matrix", "media/worst"} < {tag for tag, _ in expected}
    assert shown == expected


def test_precisions_give_different_weights(trained_on):
    runs = trained_on("one device")
    assert result_of(runs["float32"])["weights_sha256"] != result_of(runs["bfloat16"])["weights_sha256"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_weights_are_bit_identical_on_one_core(trained_on, python, dataset, tmp_path):
    command = ("train", *EVERYTHING, "--deterministic", "--devices=cpu:1", "--config.precision=float32")
    where = (f"--data={dataset.data}", f"--workdir={tmp_path / 'run'}")
    completed = python("-c", _ON_ONE_CORE, *command, *where)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    expected = result_of(trained_on("one device")["float32"])
    assert result_of(tmp_path / "run")["weights_sha256"] == expected["weights_sha256"]


def test_without_determinism_two_processes_agree_with_one_device_up_to_rounding(convoy, cluster, dataset, tmp_path):
    # SGD, because Adam amplifies rounding errors: it divides small gradients by their own magnitude.
    sgd = ("--config.optimizer.name=sgd", "--config.optimizer.learning_rate=0.01", "--config.precision=float32")
    command = ("train", *EVERYTHING, *sgd, "--devices=cpu:1", f"--data={dataset.data}")
    one, two = tmp_path / "one", tmp_path / "two"
    convoy(*command, f"--workdir={one}", check=True)
    cluster(*command, f"--workdir={two}", output=tmp_path / "output", check=True)
    for split in ("train", "validation"):
        lines, expected = measured(two, split), measured(one, split)
        assert lines and [line["step"] for line in lines] == [line["step"] for line in expected]
        losses, expected_losses = ([line["quality/loss"] for line in measures] for measures in (lines, expected))
        assert losses == pytest.approx(expected_losses, rel=1e-4)


@pytest.mark.parametrize("hardware", HARDWARE)
def test_workers_together_train_on_exactly_the_images_of_each_step(trained_on, images_of, hardware):
    run, workers = trained_on(hardware)["float32"], HARDWARE[hardware][0]
    assert len(list((run / "order").iterdir())) == workers
    of_workers = [order_of(run, rank) for rank in range(workers)]
    for step in range(1, STEPS + 1):
        # Worker 0 has the first part of the batch.
        assert [image for images in of_workers for image in images[step]] == images_of(step), f"step {step}"
    assert all(images.keys() == set(range(1, STEPS + 1)) for images in of_workers)
