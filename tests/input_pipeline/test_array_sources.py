"""Conversion of arrays of images and labels, and of iterables of arrays."""

import io

import numpy as np
import pytest
from PIL import Image

import convoy
from tests.input_pipeline.conversions import examples, listed, reasons
from tests.input_pipeline.datasets import encode
from tests.input_pipeline.images import pixels

COLOR = np.stack([pixels(i) for i in range(6)])
NUMBERS = [10, 2, 10, 2, 10, 2]


def decoded(found):
    return [np.asarray(Image.open(io.BytesIO(image.read()))) for image in found.images]


class Tensor:
    """What `numpy.asarray` accepts."""

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._array, dtype)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (COLOR, COLOR),
        (COLOR[..., 0], COLOR[..., 0]),
        (COLOR[..., :1], COLOR[..., 0]),
        (COLOR[:, ::2, ::-1], COLOR[:, ::2, ::-1]),
        ([Tensor(image) for image in COLOR], COLOR),
        ((Image.fromarray(image) for image in COLOR), COLOR),
        ([encode(image, "png") for image in COLOR], COLOR),
    ],
)
def test_pixels_are_those_of_the_array(tmp_path, images, expected):
    with listed(tmp_path / "data", images=images, labels=NUMBERS) as (_, found):
        assert all(map(np.array_equal, decoded(found), expected))
        assert [image.name for image in found.images] == [f"{i:08d}" for i in range(6)]


@pytest.mark.parametrize(
    ("labels", "names", "categories"),
    [
        (NUMBERS, (), ("2", "10")),
        (np.array(NUMBERS, np.uint8), (), ("2", "10")),
        (np.array(NUMBERS)[:, None], (), ("2", "10")),
        (list(np.array(NUMBERS)), (), ("2", "10")),
        ((Tensor(number) for number in NUMBERS), (), ("2", "10")),
        (["jar", "cup"] * 3, (), ("cup", "jar")),
        (np.array(["jar", "cup"] * 3), (), ("cup", "jar")),
        ([1, 0] * 3, ("cup", "bowl", "jar"), ("cup", "bowl", "jar")),
        (iter(["cup", "jar"] * 3), ("jar", "cup"), ("jar", "cup")),
    ],
)
def test_classes_are_numbers_in_order_or_names(tmp_path, labels, names, categories):
    with listed(tmp_path / "data", class_names=names, images=COLOR, labels=labels) as (_, found):
        assert found.class_names == categories and len(found.images) == 6


def test_images_that_cannot_be_used_are_listed_by_position(tmp_path):
    cut = Image.open(io.BytesIO(encode(COLOR[0], "cut")))
    images = [COLOR[0], COLOR[1].astype(np.float32), COLOR[2].transpose(2, 0, 1), COLOR[3, 0, 0], cut, COLOR[5]]
    with listed(tmp_path / "data", class_names=("a", "b"), images=images, labels=[0, 1, 0, 1, 0, 2]) as (_, found):
        assert [image.name for image in found.images] == ["00000000"]
        why = reasons(found)
    assert "float32 [24, 24, 3]" in why["00000001"] and "0-255" in why["00000001"]
    assert "transpose" in why["00000002"] and "uint8 [3]" in why["00000003"]
    assert "truncated" in why["00000004"] and "label 2" in why["00000005"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"images": COLOR}, "labels"),
        ({"images": COLOR, "labels": NUMBERS[:5]}, "5 labels for 6 images"),
        ({"images": iter(COLOR), "labels": NUMBERS[:5]}, "more images"),
        ({"images": iter(COLOR[:5]), "labels": NUMBERS}, "more labels"),
        ({"images": COLOR, "labels": np.eye(6)}, "argmax"),
        ({"images": "photos", "labels": NUMBERS}, "photos"),
        ({"tar": "photos.tar", "labels": NUMBERS}, "labels"),
        ({"images": COLOR, "labels": NUMBERS, "manifest": "photos.csv"}, "manifest=photos.csv"),
        ({"images": COLOR / 255, "labels": NUMBERS}, "float64"),
        ({"images": zip(COLOR, NUMBERS, strict=True)}, "ndarray, int"),
        ({"images": COLOR, "labels": NUMBERS, "class_names": ["a", "d", "b", "d"]}, "'d'"),
    ],
)
def test_arrays_that_cannot_be_converted_leave_nothing(tmp_path, given, named):
    with pytest.raises(convoy.ConvoyError) as caught:
        convoy.convert(output=tmp_path / "data", **given)
    assert named in str(caught.value) and "\n" not in str(caught.value) and "--" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_arrays_are_converted_to_png(tmp_path):
    gray = COLOR[:, :, :, 1]
    images = [*((image, "color") for image in COLOR), *((image, "gray") for image in gray), (COLOR[0], "color")]
    conversion = convoy.convert(images, output=tmp_path / "data", workers=1, validation_fraction=0)
    assert (conversion.splits[0].images, conversion.duplicates) == (12, 1)
    found = examples(tmp_path / "data")
    for i in range(12):
        record = found[f"{i:08d}"]
        image = np.asarray(Image.open(io.BytesIO(record["image/encoded"])).convert("RGB"))
        assert record["image/format"] == b"png"
        assert np.array_equal(image, COLOR[i] if i < 6 else np.repeat(gray[i - 6, ..., None], 3, -1))
