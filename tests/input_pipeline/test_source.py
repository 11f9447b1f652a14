"""Data sets of users' objects: the same images in the same order as from shards, and what is refused."""

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.dataset import source as sources
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.reader import Reader
from convoy.input_pipeline.report.pictures import of_records
from convoy.trainer.evaluation.predictions import filenames
from tests.input_pipeline.datasets import encode, read_payloads
from tests.input_pipeline.images import pixels
from tests.input_pipeline.streams import EIGHT, SIZE, assert_same, columns_of, make_split, stream

FILE = """
from pathlib import Path

class Photos:
    class_names = ["cup", "jar"]

    def __init__(self, folder):
        self.paths = sorted(Path(folder).iterdir())
        self.num_images = len(self.paths)

    def label(self, index):
        return int(self.paths[index].name[:3]) % 2

    def read(self, indices):
        return [self.paths[index].read_bytes() for index in indices]

def photos():
    folder = Path(__file__).parent / "images"
    return {"train": Photos(folder), "test": Photos(folder)}

nothing = {"train": 3}

def fails():
    return 1 / 0
"""


class Images:
    """PNGs in memory; the arguments replace attributes and methods."""

    def __init__(self, number=12, **replaced):
        self.images = [encode(pixels(i, SIZE), "png") for i in range(number)]
        self.num_images = number
        vars(self).update(replaced)

    def label(self, index):
        return index % 3

    def read(self, indices):
        return [self.images[index] for index in indices]


@pytest.fixture
def file(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i:03d}.png").write_bytes(encode(pixels(i, SIZE), "png"))
    path = tmp_path / "sources.py"
    path.write_text(FILE)
    return path


def like(split):
    """Returns a source of the images of a split's shards, in the same order."""
    images = [
        tf.train.Example.FromString(payload).features.feature["image/encoded"].bytes_list.value[0]
        for payload in read_payloads(split)
    ]
    labels = split.label.tolist()
    return SimpleNamespace(
        num_images=len(images), label=labels.__getitem__, read=lambda indices: [images[i] for i in indices]
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"crop": Crop(SIZE, 0.3)}, {"sampling": "balanced"}])
def test_batches_are_those_of_the_shards_with_the_same_images(tmp_path, options):
    split = make_split(tmp_path, count=20)
    own = open_dataset(like(split)).split("train")
    assert_same(stream(split, 4, **options), stream(own, 4, **options))


def test_records_are_decoded_like_those_of_the_shards(tmp_path):
    split = make_split(tmp_path, count=3)
    (whole, *_), own = Reader(split, Crop(SIZE)).images(np.arange(3)), open_dataset(like(split)).split("train")
    assert own.num_images == 3 and np.array_equal(own.label, split.label)
    assert np.array_equal(Reader(own, Crop(SIZE)).images(np.array([0]))[0], whole)


@pytest.mark.slow
def test_a_source_is_read_from_any_step_and_evaluated(tmp_path):
    split = make_split(tmp_path, count=20)
    own = open_dataset({"train": like(split), "test": like(split)}).split("test")
    whole, rest = stream(own, 5), stream(own, 3, start_step=2)
    assert_same({name: column[16:] for name, column in whole.items()}, rest)
    evaluated = [columns_of(Reader(each, Crop(SIZE)).evaluation(EIGHT), 3) for each in (split, own)]
    assert_same(*evaluated)
    assert filenames(own) == [""] * 20
    assert of_records({"test": own}, [str(i) for i in range(20)], [("test", 7)])["test", 7].uri.startswith("data:")


def test_a_file_provides_sources_by_split(file):
    dataset = open_dataset(f"{file}:photos")
    assert dataset.splits == ("test", "train") and dataset.class_names == ("cup", "jar")
    assert dataset.split("train").label.tolist() == [0, 1, 0, 1, 0, 1]
    assert str(dataset.directory.resolve()) == f"{file}:photos" and dataset.name == "photos"
    with pytest.raises(DataError, match="validation"):
        dataset.split("validation")


@pytest.mark.parametrize(
    ("name", "error", "named"),
    [
        ("photo", UsageError, "'photos'"),
        ("nothing", UsageError, "int of split 'train'"),
        ("fails", DataError, "ZeroDivisionError"),
    ],
)
def test_names_without_sources_are_refused(file, name, error, named):
    with pytest.raises(error, match="--data=") as caught:
        open_dataset(f"{file}:{name}")
    assert named in str(caught.value)


def test_registered_sources_are_found_by_name(monkeypatch):
    monkeypatch.setattr(sources.SOURCES, "_added", {})
    sources.SOURCES.register("mine")(lambda: Images())
    assert open_dataset("mine").class_names == ("0", "1", "2")
    with pytest.raises(DataError, match="minx"):
        open_dataset("minx")


def test_the_identity_covers_classes_labels_and_sampled_bytes():
    images = Images(200).images
    changed = [*images[:-1], images[0]]
    others = [
        {"label": lambda index: index % 2 + index // 199},
        {"class_names": ["a", "b", "c"]},
        {"images": changed},
        {"number": 199},
    ]
    digests = [open_dataset(Images(**{"number": 200, **other})).digest("train") for other in ({}, {}, *others)]
    assert digests[0] == digests[1] and len(set(digests)) == 5


def lies_at_last(indices, calls=[]):  # noqa: B006
    calls.append(0)
    return [encode(pixels(i + (len(calls) > 1), SIZE), "png") for i in indices]


@pytest.mark.parametrize(
    ("replaced", "named"),
    [
        ({"num_images": 0}, "num_images is 0"),
        ({"num_images": 2.5}, "num_images"),
        ({"label": lambda index: index - 1}, "label(0) is -1"),
        ({"label": lambda index: "cup"}, "label(0)"),
        ({"class_names": ["a", "b"]}, "label(2) is 2"),
        ({"class_names": ["a", "b", "a"]}, "'a' twice"),
        ({"read": lambda indices: []}, "returns 0 for 12 indices"),
        ({"read": lambda indices: [np.zeros(4)] * len(indices)}, "ndarray"),
        ({"read": lambda indices: [b"{}"] * len(indices)}, "text, not an image"),
        ({"read": lambda indices: 1 / 0}, "ZeroDivisionError"),
        ({"read": lies_at_last}, "other bytes"),
    ],
)
def test_broken_promises_are_refused_when_the_source_is_opened(replaced, named):
    with pytest.raises(DataError, match="source Images") as caught:
        open_dataset(Images(**replaced))
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_objects_of_one_thread_are_refused():
    import sqlite3

    connection = sqlite3.connect(":memory:")
    connection.execute("create table images (number integer, content blob)")
    connection.executemany("insert into images values (?, ?)", enumerate(Images().images))
    query = "select content from images where number = ?"
    one = Images(read=lambda indices: [connection.execute(query, (index,)).fetchone()[0] for index in indices])
    with pytest.raises(DataError, match="thread"):
        open_dataset(one)


def test_an_image_that_changes_while_training_ends_the_run():
    one = Images()
    split = open_dataset(one).split("train")
    reader = Reader(split, Crop(SIZE))
    one.images = one.images[::-1]
    with pytest.raises(tf.errors.OpError):
        next(iter(reader.training(EIGHT, seed=0)))
    assert isinstance(reader.explain(), DataError) and "other bytes" in str(reader.explain())


@pytest.mark.slow
def test_an_image_that_cannot_be_decoded_is_named_or_substituted():
    images = Images().images
    one = Images(images=[images[0][:60] if i == 5 else image for i, image in enumerate(images)])
    split = open_dataset(one).split("train")
    reader = Reader(split, Crop(SIZE))
    with pytest.raises(tf.errors.OpError):
        list(reader.training(EIGHT, seed=0).take(3))
    error = reader.explain()
    assert (error.index, "image 5" in str(error), "offset" in str(error)) == (5, True, False)
    reader = Reader(split, Crop(SIZE), on_corrupt="substitute")
    with pytest.raises(tf.errors.OpError):
        list(reader.training(EIGHT, seed=0).take(3))
    assert reader.recover(EIGHT, 0, seed=0)
    list(reader.training(EIGHT, seed=0).take(3))


def test_reads_never_overlap():
    inside, overlaps = threading.Lock(), []
    images = Images(64).images

    def read(indices):
        overlaps.append(not inside.acquire(blocking=False))
        result = [images[index] for index in indices]
        inside.release()
        return result

    dataset = open_dataset({"train": Images(64, read=read), "test": Images(64, read=read)})
    with ThreadPoolExecutor(8) as pool:
        opened = [dataset.split(name).source for name in dataset.splits] * 50
        assert all(pool.map(lambda each: each.read(range(64)) == images, opened))
    assert len(overlaps) > 100 and not any(overlaps)


def test_the_digest_is_documented():
    """A stored run compares it: it must not change."""
    one = Images(2, images=[b"\x89PNG\r\n1", b"\x89PNG\r\n2"])
    content = hashlib.sha256(b"2 " + np.array([0, 1], "<i4").tobytes())
    for image in one.images:
        content.update(hashlib.sha256(image).digest())
    assert open_dataset(one).split("train").source.digest == content.hexdigest()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_code_of_another_user_is_refused(file, tmp_path):
    record = tmp_path / "dataset.json"
    record.write_text("{}")
    sources.check_source_owner(f"{file}:photos", record)
    sources.check_source_owner(str(tmp_path), record)  # not a source
    for path in (file, record):
        os.chown(path, 4321, -1)
        with pytest.raises(UsageError, match=path.name):
            sources.check_source_owner(f"{file}:photos", record)
        os.chown(path, os.getuid(), -1)
