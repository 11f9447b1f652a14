"""External records with wrong heights and widths."""

import numpy as np
import pytest
import tensorflow as tf

from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.dataset.records import RecordError
from convoy.input_pipeline.reading.cache import MemoryCache
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.reader import BatchSlice, Reader
from tests.input_pipeline.datasets import encode
from tests.input_pipeline.images import pixels
from tests.input_pipeline.streams import EIGHT, SIZE, STRIPED, assert_same, columns_of, stream

pytestmark = pytest.mark.slow

IMAGES, WRONG = 24, 13


def write(folder, image_format, **overrides):
    """Writes alternating 16 x 16 and 20 x 12 images; `overrides` are functions from the image number to a feature."""
    folder.mkdir()
    frames = []
    for number in range(IMAGES):
        image = pixels(number, 20)[:12] if number % 2 else pixels(number, SIZE)
        features = {
            "image/encoded": encode(image, image_format),
            "image/format": image_format,
            "image/height": image.shape[0],
            "image/width": image.shape[1],
            "image/class/label": number % 3,
        }
        others = {f"image/{name}": value(number) for name, value in overrides.items()}
        frames.append(records.frame(records.example(features | others)))
    (folder / "train-00000-of-00001").write_bytes(b"".join(frames))
    return open_dataset(folder).split("train")


@pytest.mark.parametrize(
    "options",
    [
        {},
        STRIPED,
        {"crop": Crop(SIZE, 0.5)},
        {"cache": "whole"},
        {"cache": "cropped", "crop": Crop(SIZE, 0.5)},
    ],
    ids=["whole", "striped", "random crops", "cache", "cache of random crops"],
)
def test_training_ignores_wrong_sizes(tmp_path, options):
    def images_of(split):
        cache = {"cache": MemoryCache(IMAGES, budget_bytes=2**24)} if "cache" in options else {}
        return stream(split, 9, **{**options, **cache})

    unsized = {"height": lambda _: 0, "width": lambda _: 0}
    expected = images_of(write(tmp_path / "unsized", "png", **unsized))
    # The training size, which images with an odd number do not have.
    wrong = {"height": lambda _: SIZE, "width": lambda _: SIZE}
    assert_same(images_of(write(tmp_path / "wrong", "png", **wrong)), expected)


def test_evaluation_ignores_wrong_sizes(tmp_path):
    split = write(tmp_path / "data", "png", height=lambda _: SIZE, width=lambda _: SIZE)
    reader = Reader(split, Crop(SIZE))
    seen = columns_of(reader.evaluation(EIGHT), -1)
    assert reader.explain() is None
    reader.close()
    assert np.array_equal(seen["index"], np.arange(IMAGES))
    for number in range(0, IMAGES, 2):
        assert np.array_equal(seen["image"][number], pixels(number, SIZE))


@pytest.mark.parametrize(
    "wrong",
    [
        {"height": 13},
        {"height": -1},  # `tf.reshape` infers a dimension of -1
        {"height": 2**62, "width": 2**62},
        {"height": 0, "encoded": b""},
        {"encoded": encode(pixels(WRONG), "jpeg")},
    ],
    ids=["height", "negative", "huge", "empty", "not raw"],
)
def test_raw_pixels_with_a_wrong_size_are_reported_or_substituted(tmp_path, wrong):
    def feature(name, default):
        return lambda number: wrong[name] if number == WRONG and name in wrong else default(number)

    split = write(
        tmp_path / "data",
        "raw",
        height=feature("height", lambda number: 12 if number % 2 else SIZE),
        width=feature("width", lambda number: 20 if number % 2 else SIZE),
        encoded=feature("encoded", lambda n: encode(pixels(n, 20)[:12] if n % 2 else pixels(n, SIZE), "raw")),
    )
    reader, slices = Reader(split, Crop(SIZE)), BatchSlice(6)
    with pytest.raises(tf.errors.OpError):
        columns_of(reader.evaluation(slices), -1)
    offset = split.offset[WRONG]
    error = reader.explain()
    assert isinstance(error, RecordError) and (error.index, error.offset) == (WRONG, offset)
    assert "decoded" in error.reason
    reader.close()

    reader, taken = Reader(split, Crop(SIZE), on_corrupt="substitute"), []
    while len(taken) < 4:
        try:
            for batch in reader.training(slices, seed=3, start_step=len(taken)).take(4 - len(taken)):
                taken.append(batch)
        except tf.errors.OpError:
            assert reader.recover(slices, len(taken), seed=3)
    seen = np.concatenate([batch["index"] for batch in taken])
    assert np.array_equal(np.setdiff1d(np.arange(IMAGES), seen), [WRONG])
    assert np.array_equal(reader.images_at(np.arange(IMAGES), seed=3), seen)
    reader.close()
