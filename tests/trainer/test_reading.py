"""Whole runs on damaged data, with block shuffle, from a TensorFlow file URL, and with a cache."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.open import index_path, open_dataset
from tests.trainer import user_models
from tests.trainer.run_files import events_of, order_of, result_of

FLIPPED, NO_IMAGE = 17, 60
STEPS, BATCH = 12, 16
SHORT = (
    "--config=smoke",
    f"--config.model.name={user_models.__file__}:small",
    "--deterministic",
    "--config.virtual_replicas=2",
    "--config.precision=float32",
    f"--config.steps={STEPS}",
    "--config.eval_every_steps=100",
    "--config.checkpoint_every_steps=5",
    "--record_order",
)
BLOCK_SHUFFLE = ("--config.shuffle=block", "--config.shuffle_block_size=20")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, dataset) -> Path:
    """The dataset with a flipped bit in one training record, and a valid record without an image."""
    data = shutil.copytree(dataset.data, tmp_path_factory.mktemp("damaged") / "data")
    split = open_dataset(data).split("train")
    columns = {name: getattr(split, name).copy() for name in ("shard", "offset", "length", "label", "crc")}
    for index in (FLIPPED, NO_IMAGE):
        path = split.shard_paths[split.shard[index]]
        content = bytearray(path.read_bytes())
        start = split.offset[index] + records.HEADER_BYTES
        end = start + split.length[index]
        jpeg = content.index(b"\xff\xd8\xff", start, end)
        if index == FLIPPED:
            content[jpeg + 100] ^= 1
        else:
            content[jpeg : jpeg + 100] = bytes(100)
            crc = records.masked_crc(bytes(content[start:end]))
            content[end : end + 4] = crc.to_bytes(4, "little")
            columns["crc"][index] = crc
        path.write_bytes(content)
    np.savez(index_path(data, "train"), **columns)
    return data


@pytest.fixture(scope="module")
def runs(tmp_path_factory, convoy, dataset, damaged):
    """Trains the runs; returns the folder with a run directory per name, and the outputs by name and devices."""
    folder = tmp_path_factory.mktemp("runs")
    local = f"--data={dataset.data}"
    on_one_device = {
        "plain": (local,),
        "cached": (local, "--config.cache=memory"),
        "block": (local, *BLOCK_SHUFFLE),
        "substituted": (f"--data={damaged}", "--config.on_corrupt=substitute"),
    }
    on_two_devices = {
        "substituted on two": on_one_device["substituted"],
        # Resumes the run on one device, whose last checkpoint is deleted below.
        "block": (f"--data=file://{dataset.data}", *BLOCK_SHUFFLE),
    }
    outputs = {}
    for devices, named in (("cpu:1", on_one_device), ("cpu:2", on_two_devices)):
        commands = [
            ["train", *SHORT, *flags, f"--devices={devices}", f"--workdir={folder / name}"]
            for name, flags in named.items()
        ]
        for name, completed in zip(named, (convoy(*command) for command in commands), strict=True):
            assert completed.returncode == 0, completed.output
            outputs[name, devices] = completed.output
        if devices == "cpu:1":
            finished = shutil.copytree(folder / "block", folder / "block uninterrupted")
            assert result_of(finished)["step"] == STEPS
            (folder / "block" / "result.json").unlink()
            (folder / "block" / "checkpoints" / f"step-{STEPS:09d}.npz").unlink()
    return folder, outputs


def digest(workdir: Path) -> str:
    return result_of(workdir)["weights_sha256"]


@pytest.mark.slow
class TestReading:
    def test_cache_does_not_change_the_weights(self, runs):
        folder, _ = runs
        assert digest(folder / "cached") == digest(folder / "plain")

    def test_run_with_block_shuffle_resumes_exactly_from_another_url(self, runs, dataset):
        folder, outputs = runs
        output = outputs["block", "cpu:2"]
        assert f"Resumed at step 10 of {STEPS}." in output
        assert f"file://{dataset.data}: 7 classes" in output
        assert digest(folder / "block") == digest(folder / "block uninterrupted")
        assert digest(folder / "block") != digest(folder / "plain")
        seen = np.concatenate([order_of(folder / "block", 0)[step] for step in range(1, STEPS + 1)])
        num_images = open_dataset(dataset.data).split("train").num_images
        for epoch in range(STEPS * BATCH // num_images):
            of_epoch = np.sort(seen[epoch * num_images : (epoch + 1) * num_images])
            assert np.array_equal(of_epoch, np.arange(num_images))

    def test_damaged_records_have_the_same_substitutes_on_any_number_of_devices(self, runs, damaged):
        folder, outputs = runs
        assert digest(folder / "substituted") == digest(folder / "substituted on two")
        split = open_dataset(damaged).split("train")
        substitutes = {}
        for name, devices in (("substituted", "cpu:1"), ("substituted on two", "cpu:2")):
            result = result_of(folder / name)
            assert (result["step"], result["substituted_records"]) == (STEPS, 2)
            events = {event["index"]: event for event in events_of(folder / name, "substituted")}
            assert events.keys() == {FLIPPED, NO_IMAGE} and len(events_of(folder / name, "substituted")) == 2
            for index in (FLIPPED, NO_IMAGE):
                event = events[index]
                assert event["shard"] == str(split.shard_paths[split.shard[index]])
                assert event["offset"] == split.offset[index]
                line = rf"record {index} at offset {event['offset']} .*record {event['substitute']}\b"
                assert len(re.findall(line, outputs[name, devices])) == 1
            assert events[FLIPPED]["reason"] != events[NO_IMAGE]["reason"]
            substitutes[name] = {index: event["substitute"] for index, event in events.items()}
            trained = np.concatenate([*order_of(folder / name, 0).values()])
            assert len(trained) == STEPS * BATCH and not np.isin(trained, [FLIPPED, NO_IMAGE]).any()
        assert substitutes["substituted"] == substitutes["substituted on two"]
