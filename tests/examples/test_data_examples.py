"""The examples of operations, sources and iterables, run as their docstrings say."""

import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoy.input_pipeline.augment.checks import check_operations
from convoy.input_pipeline.augment.pipeline import parse_pipeline
from convoy.input_pipeline.dataset.open import open_dataset
from tests.processes import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
VIGNETTE = f"crop(scale=0.5..1) | flip | {EXAMPLES / 'operation.py'}:vignette(0.8)"
PHOTOS = f"{EXAMPLES / 'source.py'}:photos"
IMPURE = """
import tensorflow as tf
from convoy.input_pipeline.augment.registered import register_operation

@register_operation("noise", draws=0)
def noise(pixels, draws):
    return pixels + tf.random.normal(pixels.shape)
"""
# Provides the records of a dataset of `convoy convert` as a source.
RECORDS = """
import tensorflow as tf
from convoy.input_pipeline.dataset.open import open_dataset
from tests.input_pipeline.datasets import read_payloads

class Records:
    def __init__(self, dataset, name):
        split, self.class_names = dataset.split(name), dataset.class_names
        parsed = [tf.train.Example.FromString(payload).features.feature for payload in read_payloads(split)]
        self.images = [features["image/encoded"].bytes_list.value[0] for features in parsed]
        self.num_images, self.label = len(self.images), split.label.__getitem__

    def read(self, indices):
        return [self.images[index] for index in indices]

def records():
    dataset = open_dataset({data!r})
    return {{name: Records(dataset, name) for name in ("train", "validation")}}
"""


@pytest.fixture
def archives(tmp_path):
    """Returns a zip and a tar archive of 30 images of three classes."""
    drawn = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), np.uint8)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as zipped, tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for i, pixels in enumerate(drawn):
            path = tmp_path / "photos" / "abc"[i % 3] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((32, 32)).save(path)
            zipped.write(path, path.relative_to(tmp_path))
            tar.add(path, path.relative_to(tmp_path))
    return tmp_path / "photos.zip", tmp_path / "photos.tar"


def test_the_operation_is_pure():
    check_operations(parse_pipeline(VIGNETTE, image_size=32), [16, 32], exact=True)


def test_the_source_reads_an_archive(archives, monkeypatch):
    monkeypatch.setenv("PHOTOS", str(archives[0]))
    dataset = open_dataset(PHOTOS)
    assert dataset.class_names == ("a", "b", "c")
    assert [dataset.split(name).num_images for name in dataset.splits] == [27, 3]


@pytest.mark.slow
def test_the_iterable_is_converted(archives, monkeypatch, tmp_path):
    from convoy import cli

    monkeypatch.setenv("PHOTOS", str(archives[1]))
    flags = (f"--images={EXAMPLES / 'convert_iterable.py'}:photos", f"--output={tmp_path / 'data'}", "--workers=1")
    assert cli.main(["convoy", "convert", *flags]) == 0
    dataset = open_dataset(tmp_path / "data")
    assert dataset.class_names == ("a", "b", "c")
    assert sum(dataset.split(name).num_images for name in dataset.splits) == 30


@pytest.mark.slow
def test_an_operation_and_a_source_give_the_same_run_on_one_and_two_devices(convoy, archives, tmp_path):
    operations = tmp_path / "operations.py"
    operations.write_bytes((EXAMPLES / "operation.py").read_bytes())
    environment = {"PHOTOS": str(archives[0])}
    model = f"--config.model.name={REPOSITORY / 'tests/trainer/user_models.py'}:normalized"
    flags = ("--config=smoke", model, "--deterministic", "--config.virtual_replicas=2", f"--data={PHOTOS}")
    pipeline = ("--config.steps=4", f"--config.augment.ops=crop | {operations}:vignette(0.8)")
    hashes = []
    for devices in (1, 2):
        run = tmp_path / f"run{devices}"
        where = (f"--workdir={run}", f"--devices=cpu:{devices}", *pipeline)
        convoy("train", *flags, *where, environment=environment, check=True)
        hashes.append(json.loads((run / "result.json").read_text())["weights_sha256"])
    assert hashes[0] == hashes[1]
    operations.unlink()
    convoy("evaluate", f"--workdir={run}", "--split=validation", environment=environment, check=True)
    assert json.loads((run / "evaluation_validation.json").read_text())["data"] == PHOTOS
    impure = tmp_path / "impure.py"
    impure.write_text(IMPURE)
    where = (f"--workdir={tmp_path / 'no'}", f"--config.augment.ops={impure}:noise")
    answer = convoy("train", *flags, *where, environment=environment)
    assert answer.returncode == 2 and "RandomStandardNormal" in answer.output and not (tmp_path / "no").exists()


@pytest.mark.slow
def test_a_source_of_converted_records_trains_the_weights_of_the_shards(convoy, dataset, finished_run, tmp_path):
    source = tmp_path / "records.py"
    source.write_text(RECORDS.format(data=str(dataset.data)))
    where = (f"--data={source}:records", f"--workdir={tmp_path / 'run'}", "--devices=cpu:1")
    convoy("train", *finished_run.flags, *where, check=True)
    expected, found = (
        json.loads((Path(run) / "result.json").read_text()) for run in (finished_run.workdir, tmp_path / "run")
    )
    assert found["weights_sha256"] == expected["weights_sha256"]
    assert found["metrics"] == expected["metrics"]
