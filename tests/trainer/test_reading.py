"""Whole runs on damaged data, in windowed order, from a path of TensorFlow's, and with a cache: what they come to."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.open import index_path, open_dataset
from tests.trainer.run_files import events_of, order_of, result_of

FLIPPED, NO_IMAGE = 17, 60
STEPS, BATCH = 12, 16
SHORT = (
    "--config=smoke",
    "--deterministic",
    "--config.virtual_replicas=2",
    "--config.precision=float32",
    f"--config.steps={STEPS}",
    "--config.eval_every_steps=100",
    "--config.checkpoint_every_steps=5",
    "--record_order",
)
WINDOWED = ("--config.shuffle=block", "--config.shuffle_block_size=20")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, dataset) -> Path:
    """The data set with a flipped bit in one training record, and in another whole bytes that are no image."""
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
def runs(tmp_path_factory, convoy_together, dataset, damaged):
    """Each run's directory, by name, and what it printed."""
    folder = tmp_path_factory.mktemp("runs")
    local = f"--data={dataset.data}"
    on_one_device = {
        "plain": (local,),
        "cached": (local, "--config.cache=memory"),
        "block": (local, *WINDOWED),
        "substituted": (f"--data={damaged}", "--config.on_corrupt=substitute"),
    }
    on_two_devices = {
        "substituted on two": on_one_device["substituted"],
        # Goes on from the last checkpoint of the windowed run, which is taken away from its end.
        "block": (f"--data=file://{dataset.data}", *WINDOWED),
    }
    outputs = {}
    for devices, named in (("cpu:1", on_one_device), ("cpu:2", on_two_devices)):
        commands = [
            ["train", *SHORT, *flags, f"--devices={devices}", f"--workdir={folder / name}"]
            for name, flags in named.items()
        ]
        for name, answer in zip(named, convoy_together(*commands), strict=True):
            assert answer.returncode == 0, answer.output
            outputs[name, devices] = answer.output
        if devices == "cpu:1":
            finished = shutil.copytree(folder / "block", folder / "windowed to the end")
            assert result_of(finished)["step"] == STEPS
            (folder / "block" / "result.json").unlink()
            (folder / "block" / "checkpoints" / f"step-{STEPS:09d}.npz").unlink()
    return folder, outputs


def digest(workdir: Path) -> str:
    return result_of(workdir)["weights_sha256"]


@pytest.mark.slow
class TestReading:
    def test_a_cache_changes_nothing(self, runs):
        folder, _ = runs
        assert digest(folder / "cached") == digest(folder / "plain")

    def test_a_run_in_windowed_order_goes_on_from_another_place_as_if_nothing_had_happened(self, runs, dataset):
        folder, outputs = runs
        told = outputs["block", "cpu:2"]
        assert f"Resumed at step 10 of {STEPS}." in told
        assert f"file://{dataset.data}: 7 classes" in told
        assert digest(folder / "block") == digest(folder / "windowed to the end")
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
        noted = {}
        for name, devices in (("substituted", "cpu:1"), ("substituted on two", "cpu:2")):
            result = result_of(folder / name)
            assert (result["step"], result["substituted_records"]) == (STEPS, 2)
            events = {event["index"]: event for event in events_of(folder / name, "substituted")}
            assert events.keys() == {FLIPPED, NO_IMAGE} and len(events_of(folder / name, "substituted")) == 2
            for index, reason in ((FLIPPED, "is corrupt"), (NO_IMAGE, "no image that can be decoded")):
                event = events[index]
                assert event["shard"] == str(split.shard_paths[split.shard[index]])
                assert event["offset"] == split.offset[index]
                assert reason in event["reason"]
                line = f"record {index} at offset {event['offset']} .*; record {event['substitute']} stands in for it"
                assert len(re.findall(line, outputs[name, devices])) == 1
            noted[name] = {index: event["substitute"] for index, event in events.items()}
            trained = np.concatenate([*order_of(folder / name, 0).values()])
            assert len(trained) == STEPS * BATCH and not np.isin(trained, [FLIPPED, NO_IMAGE]).any()
        assert noted["substituted"] == noted["substituted on two"]
