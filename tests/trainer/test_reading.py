"""Whole runs on damaged data, with striped shuffle, from a TensorFlow file URL, and with a cache."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.open import index_path, open_dataset
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
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
STRIPED = ("--config.shuffle=striped", "--config.shuffle_window_size=20")


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
    on_disk = ("--config.cache=disk", f"--cache_dir={folder / 'decoded'}", "--cache_gib=0.5")
    on_one_device = {
        "plain": (local,),
        "cached": (local, "--config.cache=memory"),
        "on disk": (local, *on_disk),
        "striped": (local, *STRIPED),
        "substituted": (f"--data={damaged}", "--config.on_corrupt=substitute"),
    }
    on_two_devices = {
        "from disk": (local, *on_disk),
        "substituted on two": on_one_device["substituted"],
        # Resumes the run on one device, whose last checkpoint is deleted below.
        "striped": (f"--data=file://{dataset.data}", *STRIPED),
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
            finished = shutil.copytree(folder / "striped", folder / "striped uninterrupted")
            assert result_of(finished)["step"] == STEPS
            (folder / "striped" / "result.json").unlink()
            (folder / "striped" / "checkpoints" / f"step-{STEPS:09d}.npz").unlink()
    return folder, outputs


def digest(workdir: Path) -> str:
    return result_of(workdir)["weights_sha256"]


@pytest.mark.slow
class TestReading:
    def test_cache_does_not_change_the_weights(self, runs):
        folder, _ = runs
        assert digest(folder / "plain") == digest(folder / "cached") == digest(folder / "on disk")

    def test_a_later_run_uses_the_images_on_the_disk(self, runs, dataset):
        folder, _ = runs
        assert digest(folder / "from disk") == digest(folder / "plain")
        (pixels,) = (folder / "decoded").glob("*.pixels")
        num_images = open_dataset(dataset.data).split("train").num_images
        size = json.loads((folder / "plain/config.json").read_text())["image_size"]
        assert pixels.stat().st_size >= num_images * size * size * 3
        (start,) = events_of(folder / "from disk", "start")
        assert pixels.stat().st_mtime < start["time"]  # nothing was added

    def test_run_with_striped_shuffle_resumes_exactly_from_another_url(self, runs, dataset):
        folder, outputs = runs
        output = outputs["striped", "cpu:2"]
        assert f"Resumed at step 10 of {STEPS}." in output
        assert f"file://{dataset.data}: 7 classes" in output
        assert digest(folder / "striped") == digest(folder / "striped uninterrupted")
        assert digest(folder / "striped") != digest(folder / "plain")
        seen = np.concatenate([order_of(folder / "striped", 0)[step] for step in range(1, STEPS + 1)])
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


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """TFRecords of other people, as {name: (dataset directory, folder of the validation images as files)}.

    The images are stripes whose direction is the class: JPEGs that only their EXIF orientation turns upright, and PNGs
    whose drawing is in the transparency alone.
    """
    folder, random = tmp_path_factory.mktemp("foreign"), np.random.default_rng(0)

    def stripes(vertical):
        period, phase = random.integers(3, 7), random.integers(0, 7)
        line = 255 * ((np.arange(32) + phase) // period % 2).astype(np.uint8)
        return Image.fromarray(np.tile(line, (32, 1)) if vertical else np.tile(line, (32, 1)).T)

    def turned(image):
        exif = Image.Exif()
        exif[0x0112] = 6
        return saved(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)

    def transparent(image):
        hidden = Image.new("RGBA", image.size)
        hidden.putalpha(image)
        return saved(hidden, "PNG")

    def saved(image, image_format, **options):
        file = io.BytesIO()
        image.save(file, image_format, **options)
        return file.getvalue()

    for name, encode in (("turned.jpg", turned), ("transparent.png", transparent)):
        data, files = folder / name / "data", folder / name / "files"
        data.mkdir(parents=True)
        files.mkdir()
        for split, number in (("train", 64), ("validation", 20)):
            images = [encode(stripes(k % 2)) for k in range(number)]
            examples = [
                records.example({"image/encoded": image, "image/class/label": k % 2}) for k, image in enumerate(images)
            ]
            (data / f"{split}-00000-of-00001").write_bytes(b"".join(map(records.frame, examples)))
        for k, image in enumerate(images):
            (files / f"{k:02d}{Path(name).suffix}").write_bytes(image)
    return {path.name: (path / "data", path / "files") for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["turned.jpg", "transparent.png"])
def test_images_of_foreign_records_are_read_as_predict_reads_the_files(convoy, foreign, tmp_path, name):
    data, files = foreign[name]
    run, output = tmp_path / "run", tmp_path / "predictions.csv"
    model = f"--config.model.name={user_models.__file__}:small"
    flags = (*SHORT[:1], model, "--config.steps=60", "--config.eval_every_steps=60", "--config.augment.ops=")
    convoy("train", *flags, f"--data={data}", f"--workdir={run}", "--devices=cpu:1", check=True)
    flags = (f"--workdir={run}", "--devices=cpu:1", "--checkpoint=last")
    convoy("evaluate", *flags, "--split=validation", check=True)
    convoy("predict", *flags, f"--images={files}", f"--output={output}", "--probabilities", check=True)
    with open(run / "predictions_validation.csv", newline="") as file:
        evaluated = [row["predicted"] for row in csv.DictReader(file)]
    with open(output, newline="") as file:
        predicted = [row["category"] for row in csv.DictReader(file)]
    assert evaluated == predicted
    assert len(set(predicted)) == 2
    assert result_of(run)["best"]["top1"] > 0.9  # nothing can be learned from black images
    verified = convoy("verify", f"--data={data}", check=True)
    assert re.search(r"train: 64 images turned by EXIF or transparent", verified.stdout)


@pytest.mark.slow
def test_a_run_that_began_under_the_earlier_reading_keeps_it(convoy, foreign, tmp_path):
    data, _ = foreign["turned.jpg"]
    model = f"--config.model.name={user_models.__file__}:small"
    durations = ("--config.steps=6", "--config.eval_every_steps=6", "--config.checkpoint_every_steps=3")
    command = ("train", SHORT[0], model, "--deterministic", *durations, f"--data={data}", "--devices=cpu:1")
    convoy(*command, f"--workdir={tmp_path / 'run'}", check=True)
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "checkpoints" / "step-000000006.npz").unlink()
    values, metadata = store.load(3)
    del metadata["dataset"]["reading"]
    store.save(values, step=3, metadata=metadata, score=None)
    resumed = convoy(*command, f"--workdir={tmp_path / 'run'}", check=True)
    assert "Resumed at step 3" in resumed.output and "ignores orientation" in resumed.output
    assert "reading" not in json.loads((tmp_path / "run" / "dataset.json").read_text())
    evaluated = convoy("evaluate", f"--workdir={tmp_path / 'run'}", "--split=validation", "--devices=cpu:1", check=True)
    assert "ignores orientation" in evaluated.output


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Folders of two splits with wide and tall images; the class is the direction of a bar in the middle."""
    folder, random = tmp_path_factory.mktemp("frames"), np.random.default_rng(0)
    for split, number in (("train", 96), ("validation", 24)):
        for k in range(number):
            category = ("wide", "tall")[k % 2]
            height, width = (int(side) for side in random.permutation([24, random.integers(36, 60)]))
            frame = np.full((height, width, 3), random.integers(0, 90, 3), np.uint8)
            long, short = (8, 5) if category == "wide" else (5, 8)
            top, left = height // 2 - short, width // 2 - long
            frame[top : top + 2 * short, left : left + 2 * long] = random.integers(160, 256, 3)
            path = folder / split / category / f"{k:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(path)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["crop", "pad"])
def test_images_are_resized_alike_in_training_evaluation_prediction_and_export(convoy, frames, tmp_path, resize):
    data, run, output = (tmp_path / name for name in ("data", "run", "predictions.csv"))
    convoy("convert", f"--images={frames}", f"--output={data}", "--workers=1", check=True)
    model = f"--config.model.name={user_models.__file__}:small"
    durations = ("--config.steps=40", "--config.eval_every_steps=40", "--config.image_size=24")
    command = ("train", SHORT[0], model, *durations, f"--data={data}", "--devices=cpu:1", f"--workdir={run}")
    convoy(*command, f"--config.resize={resize}", check=True)
    convoy("evaluate", f"--workdir={run}", "--devices=cpu:1", "--split=validation", check=True)
    with open(run / "predictions_validation.csv", newline="") as file:
        evaluated = {Path(row["filename"]).name: row["predicted"] for row in csv.DictReader(file)}
    convoy("export", f"--workdir={run}", "--format=saved_model", f"--output={tmp_path / 'exported'}", check=True)
    described = json.loads((tmp_path / "exported" / "export.json").read_text())
    assert described["resize"] == resize and described["formats"]["saved_model"]["largest_difference"] < 1e-4
    for source in (f"--workdir={run}", f"--export={tmp_path / 'exported'}"):
        flags = (source, f"--images={frames / 'validation'}", f"--output={output}")
        convoy("predict", *flags, check=True)
        with open(output, newline="") as file:
            assert {Path(row["filename"]).name: row["category"] for row in csv.DictReader(file)} == evaluated
    refused = convoy(*command)
    assert refused.returncode == 2 and f"resize: {resize} -> squash" in refused.output
