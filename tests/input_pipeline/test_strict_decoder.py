"""The decoders that stand in for TensorFlow's: verdicts and results are those of TensorFlow, also on damaged images."""

import io
import random
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from convoy.input_pipeline.images import pixels, strict_decoder
from convoy.input_pipeline.images.decoder import encode_checked
from convoy.input_pipeline.images.kinds import jpeg_header
from convoy.input_pipeline.images.pixels import Pixels, reason
from tests.fuzz.images import damaged
from tests.input_pipeline.zoo import ZOO, photograph, png_chunk, saved

KEEP = Pixels(0, "keep")
LARGEST = 8_000  # bytes, of an image that is damaged in many ways
CASES = 1_500
PASSING = [name for name, kind in ZOO.items() if kind.passes]
# What `strict_decoder` leaves to TensorFlow although it passes.
IN_DOUBT = {
    "jpeg, arithmetic",
    "png, interlaced",
    "png, interlaced 1x1",
    "png, gamma",
    "png, profile",
    "png, trailing junk",
    "png, white background chunk",
}


def outcome(data: bytes, settings: Pixels):
    """Returns the record bytes, their facts and the perceptual hash, or the reason why the image is left out."""
    try:
        return encode_checked(data, settings)
    except Exception as error:  # noqa: BLE001 (as in the converter's worker)
        return reason(error)


@pytest.fixture
def outcome_by_tensorflow(monkeypatch):
    """Returns `outcome` without any other decoder for the check than TensorFlow's, and with Pillow's headers."""

    def checked_by_tensorflow(data, settings):
        with monkeypatch.context() as patches:
            patches.setattr(strict_decoder, "decoded", lambda *image: None)
            patches.setattr(pixels, "_plain_jpeg", lambda *image: None)
            return outcome(data, settings)

    return checked_by_tensorflow


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_of_image_has_the_outcome_of_tensorflow(name, outcome_by_tensorflow):
    for settings in (KEEP, Pixels(0, "png"), Pixels(16, "jpeg")):
        assert outcome(ZOO[name].data, settings) == outcome_by_tensorflow(ZOO[name].data, settings)


@pytest.mark.parametrize("side", [1, 15, 16, 31, 32, 33, 63, 64, 65, 127, 128, 200])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}], ids=str)
def test_jpegs_of_every_decode_ratio_have_the_outcome_of_tensorflow(side, options, outcome_by_tensorflow):
    for image in (photograph(side, side + 3), photograph(side, side + 3).convert("L")):
        data = saved(image, "JPEG", **options)
        assert strict_decoder.decoded(data, "jpeg", image.size) is not None
        for settings in (KEEP, Pixels(16, "keep"), Pixels(50, "raw")):
            assert outcome(data, settings) == outcome_by_tensorflow(data, settings)


def test_damaged_images_have_the_outcome_of_tensorflow(outcome_by_tensorflow):
    files = {name: kind.data for name, kind in ZOO.items() if kind.image_format in name and len(kind.data) <= LARGEST}
    others, names = list(files.values()), list(files)
    accepted = plain = refused = 0
    for number in range(CASES):
        rng = random.Random(number)
        data = damaged(rng, files[names[number % len(names)]], others)
        settings = KEEP if number % 3 else Pixels(16, "keep")
        found = outcome(data, settings)
        assert found == outcome_by_tensorflow(data, settings), number
        header = jpeg_header(data)
        plain += header is not None and header.is_plain
        refused += isinstance(found, str)
        accepted += not isinstance(found, str) and found[0].data == data
    assert min(accepted, plain, refused) > CASES // 20  # each case is among the damaged files


@pytest.mark.parametrize("name", PASSING)
def test_most_kinds_that_pass_need_no_tensorflow(name):
    kind = ZOO[name]
    size = kind.shown.shape[1], kind.shown.shape[0]
    strictly = strict_decoder.decoded(kind.data, kind.image_format, size)
    assert (strictly is None) == (name in IN_DOUBT)
    if kind.image_format == "png" and strictly is not None:
        np.testing.assert_array_equal(strictly, kind.shown)


def test_pngs_with_a_resolution_and_a_text_need_no_tensorflow():
    png = saved(photograph(), "PNG", dpi=(72, 72))
    header = png.index(b"IDAT") - 4
    text = png_chunk(b"tEXt", b"Software\0a drawing program")
    data = png[:header] + text + png[header:]
    assert strict_decoder.decoded(data, "png", photograph().size) is not None
    assert strict_decoder.decoded(png[:header] + text + text + png[header:], "png", photograph().size) is None


def test_header_of_a_jpeg_is_pillows():
    for name, kind in ZOO.items():
        header = jpeg_header(kind.data)
        assert (header is not None) == name.startswith("jpeg,")
        if header:
            with Image.open(io.BytesIO(kind.data)) as image:
                assert (header.size, header.channels) == (image.size, len(image.getbands()))
            assert kind.passes or not (header.is_plain and header.is_common), name
            assert not jpeg_header(kind.data[: kind.data.index(b"\xff\xda")]).is_plain, name
    plain = ("baseline", "progressive", "gray", "4:2:2", "comment", "restart markers")
    assert all(jpeg_header(ZOO[f"jpeg, {name}"].data).is_plain for name in plain)


def test_plain_images_are_converted_without_importing_tensorflow():
    program = """
import sys
from convoy.input_pipeline.convert import convert, worker
from convoy.input_pipeline.images.decoder import encode_all_checked
from convoy.input_pipeline.images.pixels import Pixels
from tests.input_pipeline.zoo import photograph, saved
images = [saved(photograph(), "JPEG"), saved(photograph(), "PNG"), saved(photograph(), "WEBP")]
for pixels in (Pixels(0, "keep"), Pixels(16, "keep")):
    assert not any(isinstance(one, Exception) for one in encode_all_checked(images, pixels))
print("tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done
