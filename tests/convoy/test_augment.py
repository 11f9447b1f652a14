"""`convoy augment`: the page of augmented images."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from convoy.input_pipeline.augment.pipeline import OPERATIONS
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.report.augmentation_page import augmentation_page
from tests.input_pipeline.images import pixels
from tests.pages import Page


def page_of(text, resize="squash", height=16):
    images = [pixels(number, size) for number, size in enumerate((16, 40, 25))]
    images[0] = images[0][:height]
    names = ["03", "<b>mug</b>", "Käse"]
    page = augmentation_page(images, names, text=text, recipe="mine", crop=Crop(16, resize=resize), seed=3)
    return Page(page.encode())


def picture(uri):
    content = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)), np.int16)


@pytest.mark.slow
def test_the_page_shows_the_pipeline_and_every_operation_at_several_strengths():
    page = page_of("crop(scale=0.35..1) | flip | trivial | erase(1)")
    assert "crop(scale=0.35..1) | flip | trivial | erase(1)" in page.words("line")
    assert re.search(r"crop, flip, trivial\W.*\Werase\W", page.words("line"))  # reader, then step
    original, *drawings = map(picture, page.images["line"])
    assert len(drawings) == 16 and len({drawing.tobytes() for drawing in drawings}) == 16
    assert all((np.abs(drawing - 128).max(-1) <= 12).any() for drawing in drawings)  # each has an erased part
    words = page.words("operations")
    assert all(name in words for name in OPERATIONS if name != "trivial")
    assert "number from 0 to 0.5" in words  # the range of hue
    originals, *shown = np.array_split(np.stack([picture(uri) for uri in page.images["operations"]]), [3])
    assert np.array_equal(originals[0], original)
    for changed in np.split(shown[0], len(shown[0]) // 3):
        assert (np.abs(changed - originals).max((1, 2, 3)) > 8).any()
    assert len(page.images["sampled"]) == 3 * (3 * 11 + 3)  # identity, autocontrast and equalize have no strength


@pytest.mark.slow
def test_an_empty_pipeline_shows_whole_images():
    page = page_of("")
    original, *drawings = page.images["line"]
    assert drawings == [original] * 16
    assert "resize" in page.words("line")


@pytest.mark.slow
def test_images_are_resized_as_in_training():
    page = page_of("crop(scale=0.5..1)", resize="pad", height=8)
    assert "config.resize=pad" in page.words("")
    for shown in map(picture, page.images["line"]):
        assert (np.abs(shown[:3] - 128) < 24).all() and (np.abs(shown[5:11] - 128) >= 24).any()


@pytest.mark.slow
def test_the_command_writes_the_page_of_a_recipe(convoy, dataset, tmp_path):
    output = tmp_path / "augment.html"
    flags = (f"--data={dataset.data}", "--config=smoke", "--config.augment.ops=flip | rand(1, 20)")
    cases = {
        f"--output={output}": 0,
        f"--output={tmp_path}": 2,
        f"--output={tmp_path}/none/augment.html": 2,
        "--output=/proc/augment.html": 3,
    }
    answers = [
        *(convoy("augment", *flags, output) for output in cases),
        convoy("augment", *flags[:2], f"--output={output}", "--config.augment.ops=flp"),
    ]
    for answer, code in zip(answers, [*cases.values(), 2], strict=True):
        assert answer.returncode == code, answer.output
    for answer, output_flag in zip(answers[1:], [*cases][1:], strict=False):
        assert output_flag in answer.output
    assert "config.augment.ops" in answers[4].output and "'flip'" in answers[4].output
    page = Page(output.read_bytes())
    assert "smoke" in page.words("") and "32x32" in page.words("")
    assert "flip | rand(1, 20)" in page.words("line")


@pytest.mark.parametrize("missing", ["data", "output"])
def test_missing_required_flags_are_named(convoy, missing):
    given = {"data": "d", "output": "o.html"} | {missing: ""}
    answer = convoy("augment", *(f"--{name}={value}" for name, value in given.items() if value))
    assert answer.returncode == 2 and f"--{missing}" in answer.output
