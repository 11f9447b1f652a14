"""Image files of every kind, through the converter's encoding and TensorFlow's decoding, against what Pillow shows."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from convoy.input_pipeline.images.decoder import encode_all_checked, encode_checked
from convoy.input_pipeline.images.pixels import Pixels, encode, reason
from convoy.input_pipeline.reading.decode import CROP_DRAWS, Crop, decode_and_crop
from tests.input_pipeline.zoo import (
    HEIGHT,
    ORIENTATION,
    WIDTH,
    ZOO,
    exif,
    inks_profile,
    photograph,
    png,
    png_chunk,
    saved,
    seen,
    tiff,
    turned,
    without_segment,
)

KEEP = Pixels(0, "keep")
# TensorFlow asks libjpeg for its quick transform, Pillow for the exact one. Measured over all qualities and samplings:
# they differ by up to 6 in a pixel at quality 92, 11 at 95 and above, and by 1 to 2 on average. With the exact
# transform TensorFlow differs from Pillow by 2 at most, which a test below holds it to.
QUICK_TRANSFORM, EXACT_TRANSFORM = 16, 2
MEAN = 2.5
END_MARKS = 21  # bytes: a PNG's last chunk and the checksums before it


def decoded(data: bytes) -> np.ndarray:
    """Decodes as the reader does."""
    return tf.io.decode_image(data, channels=3, expand_animations=False).numpy()


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    assert one.shape == other.shape
    return np.abs(one.astype(int) - other)


def refusal(data: bytes, pixels: Pixels = KEEP) -> str:
    with pytest.raises(Exception) as error:  # noqa: PT011
        encode_checked(data, pixels)
    words = reason(error.value)
    assert words and words.isprintable() and len(words) < 310 and " at 0x" not in words
    return words


# What is accepted.


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_of_image_is_read_as_it_is_seen(name):
    kind = ZOO[name]
    (data, image_format, (width, height), channels), _ = encode_checked(kind.data, KEEP)
    assert (image_format, data == kind.data) == (kind.image_format, kind.passes)
    result = decoded(data)
    assert result.shape == (height, width, 3) == kind.shown.shape
    assert channels == tf.io.decode_image(data, expand_animations=False).shape[-1]
    if not kind.is_lossy:
        np.testing.assert_array_equal(result, kind.shown)
    elif kind.passes:
        assert difference(result, kind.shown).max() <= QUICK_TRANSFORM
        assert difference(result, kind.shown).mean() <= MEAN
        exact = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE").numpy()
        assert difference(exact, kind.shown).max() <= EXACT_TRANSFORM
    else:
        assert difference(result, kind.shown).mean() <= 2 * MEAN


@pytest.mark.parametrize("name", [name for name in ZOO if not ZOO[name].is_lossy])
@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_asked_for_pixels_are_those_that_are_seen(name, encoding):
    (data, image_format, (width, height), channels), _ = encode_checked(ZOO[name].data, Pixels(0, encoding))
    assert (image_format, channels) == (encoding, 1 if name == "png, grey" and encoding == "png" else 3)
    result = decoded(data) if encoding == "png" else np.frombuffer(data, np.uint8).reshape(height, width, 3)
    np.testing.assert_array_equal(result, ZOO[name].shown)


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_of_image_is_resized_from_what_is_seen(name):
    kind = ZOO[name]
    size = 20
    (data, *_), _ = encode_checked(kind.data, Pixels(size, "png"))
    expected = np.asarray(Image.fromarray(kind.shown).resize((size, size), Image.Resampling.BILINEAR))
    features = {"encoded": data, "format": "png", "height": size, "width": size}
    result = decode_and_crop(
        {key: tf.constant(value) for key, value in features.items()}, tf.zeros([CROP_DRAWS]), Crop(size)
    )
    # A JPEG more than twice as large is decoded at a lower resolution, which is not quite a resize.
    assert difference(result.numpy(), expected).mean() <= (3 if kind.is_lossy else 0)


@pytest.mark.parametrize("name", ["jpeg, baseline", "png, RGB", "gif", "webp", "tiff", "bmp, 24 bits"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_the_content_and_not_the_name_says_what_an_image_is(tmp_path, name, suffix):
    path = tmp_path / f"image{suffix}"
    path.write_bytes(ZOO[name].data)
    assert encode_checked(path.read_bytes(), KEEP) == encode_checked(ZOO[name].data, KEEP)


@pytest.mark.parametrize("orientation", [1, 6])
def test_values_of_rgb_stay_as_they_are_stored_whatever_their_profile(orientation):
    # Or a phone's upright pictures would get other colours than those it had to turn.
    profile = b"a wide gamut" * 50
    data = saved(photograph(), "JPEG", quality=95, icc_profile=profile, exif=exif(orientation))
    result = decoded(encode_checked(data, KEEP)[0].data)
    assert difference(result, turned(seen(data), orientation)).mean() <= 2 * MEAN


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_inks_are_seen_through_their_profile(image_format):
    cyan = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
    data = saved(cyan, image_format, icc_profile=inks_profile())
    red, green, blue = decoded(encode_checked(data, KEEP)[0].data).mean((0, 1))
    assert red < 30 and 130 < green < 170 and 190 < blue < 240  # Lab (55, -37, -50)
    assert difference(seen(data), np.full((32, 32, 3), (0, 255, 255))).max() <= 2  # without it


@pytest.mark.parametrize("profile", [b"no profile", inks_profile()[:300], inks_profile().replace(b"CMYK", b"GRAY")])
def test_inks_of_a_damaged_profile_are_seen_as_without_one(profile):
    cmyk = photograph().convert("CMYK")
    (data, *_), _ = encode_checked(saved(cmyk, "TIFF", icc_profile=profile), KEEP)
    np.testing.assert_array_equal(decoded(data), np.asarray(cmyk.convert("RGB")))


def test_colours_stay_sharp_where_a_jpeg_that_had_them_so_is_turned():
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = (255, 0, 0)
    stripes[:, 1::2] = (0, 0, 255)
    sharp = saved(Image.fromarray(stripes), "JPEG", quality=95, subsampling=0, exif=exif(3))
    result = decoded(encode_checked(sharp, KEEP)[0].data)
    assert difference(result, turned(stripes, 3)).mean() < 10


def test_a_broken_tag_does_not_hide_the_orientation_beside_it():
    entries = struct.pack(">HHIHHHHII", ORIENTATION, 3, 1, 6, 0, 0x8769, 4, 1, 0xFFFFFF)  # more data beyond the end
    jpeg = saved(photograph(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\10\0\2" + entries + bytes(4))
    assert encode_checked(jpeg, KEEP)[0].size == (HEIGHT, WIDTH)


def test_what_is_resaved_carries_nothing_over():
    jpeg = saved(photograph(), "JPEG", exif=exif(6), comment=b"secret", icc_profile=b"profile")
    with Image.open(io.BytesIO(encode_checked(jpeg, KEEP)[0].data)) as image:
        assert not {"exif", "comment", "icc_profile"} & set(image.info)


def test_without_a_check_the_result_is_the_same():
    for kind in ZOO.values():
        assert encode(kind.data, KEEP) == encode_checked(kind.data, KEEP)[0]


# What is refused.


@pytest.mark.parametrize(
    "name",
    [
        "jpeg, baseline",
        "jpeg, progressive",
        "jpeg, restart markers",
        "jpeg, CMYK",
        "jpeg, orientation 6",
        "jpeg, arithmetic",
    ],
)
def test_a_jpeg_that_lacks_data_is_refused_wherever_it_is_cut(name):
    data = ZOO[name].data
    for length in range(2, len(data), 7):
        assert refusal(data[:length]) in ("truncated", "damaged or cut off in its header"), length


@pytest.mark.parametrize("name", ["jpeg, baseline", "jpeg, orientation 6", "jpeg, CMYK"])
def test_a_jpeg_that_lacks_data_is_refused_although_it_has_an_end(name):
    # libjpeg makes up the rest, in grey, and goes on.
    data = ZOO[name].data
    start = data.index(b"\xff\xda") + 20
    refused = 0
    for length in range(start, len(data) - 20, 11):
        words = refusal(data[:length].rstrip(b"\xff") + b"\xff\xd9")
        refused += words == "truncated"
    assert refused > 5


@pytest.mark.parametrize(
    "name", [name for name in ZOO if not name.startswith("jpeg,") and "junk" not in name and "1x1" not in name]
)
def test_any_other_image_that_lacks_data_is_refused_or_lacks_nothing_that_is_seen(name):
    kind = ZOO[name]
    accepted = set()
    for length in [*range(1, len(kind.data), max(1, len(kind.data) // 40)), len(kind.data) - 1]:
        try:
            (data, *_), _ = encode_checked(kind.data[:length], KEEP)
        except Exception as error:  # noqa: BLE001
            assert reason(error)
            continue
        accepted.add(len(kind.data) - length)
        if not kind.is_lossy:
            np.testing.assert_array_equal(decoded(data), kind.shown, err_msg=f"cut at {length} of {len(kind.data)}")
    # Of a second frame or page nothing is needed, and of a first one only marks of its end can be missing.
    assert not accepted or max(accepted) <= END_MARKS or "animated" in name or "pages" in name, accepted


@pytest.mark.parametrize("pixels", [KEEP, Pixels(24, "jpeg"), Pixels(0, "raw")], ids=str)
@pytest.mark.parametrize("together", [10**3, 10**6])
def test_images_together_are_encoded_and_refused_as_each_alone(pixels, together, capfd, monkeypatch):
    monkeypatch.setattr("convoy.input_pipeline.images.decoder._PIXELS_TOGETHER", together)

    def outcome(data):
        try:
            return encode_checked(data, pixels)
        except Exception as error:  # noqa: BLE001
            return reason(error)

    whole = [kind.data for kind in ZOO.values()]
    cut = [data[: len(data) * 2 // 3] for data in whole]
    images = [image for pair in zip(whole, cut, strict=True) for image in pair] + [b"", b"<html>"]
    encoded = list(encode_all_checked(images, pixels))
    assert [reason(one) if isinstance(one, Exception) else one for one in encoded] == [*map(outcome, images)]
    assert 0 < sum(isinstance(one, Exception) for one in encoded) < len(images)
    assert capfd.readouterr().err == ""


def test_a_jpeg_of_senseless_codes_is_refused():
    data = bytearray(ZOO["jpeg, baseline"].data)
    start = data.index(b"\xff\xda") + 40
    data[start : start + 30] = b"\xfe" * 30
    assert refusal(bytes(data)) in ("damaged JPEG (Corrupt JPEG data: bad Huffman code)", "truncated")


def test_a_jpeg_of_stray_bytes_is_mended_so_that_training_is_not_told_of_it_at_every_decoding(capfd):
    plain = ZOO["jpeg, progressive"].data
    second_scan = plain.index(b"\xff\xc4", plain.index(b"\xff\xda"))
    stray = plain[:second_scan] + b"\0stray" + plain[second_scan:]
    decoded(stray)
    assert "extraneous bytes" in capfd.readouterr().err
    (data, image_format, *_), _ = encode_checked(stray, KEEP)
    assert image_format == "jpeg" and data != stray
    assert difference(decoded(data), seen(plain)).mean() <= 2 * MEAN
    assert capfd.readouterr().err == ""


def test_nothing_of_what_decoders_say_reaches_the_screen(capfd):
    plain = ZOO["jpeg, baseline"].data
    for data in (
        plain[:400],
        plain[:-100],
        plain[:-100] + b"\xff\xd9",
        saved(photograph(), "TIFF", compression="jpeg")[:500],
    ):
        refusal(data)
    print("still heard", file=sys.stderr)
    assert capfd.readouterr().err == "still heard\n"


@pytest.mark.parametrize("value", [0, 255])
def test_a_png_whose_checksum_is_wrong_is_refused(value):
    data = bytearray(ZOO["png, RGB"].data)
    data[len(data) // 2] = value if data[len(data) // 2] != value else 1
    assert refusal(bytes(data)).startswith("damaged PNG")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (bytes(5000), "zero bytes, not an image"),
        (b"<html><body>404 Not Found", "HTML, not an image"),
        (b"\xef\xbb\xbf\r\n <!-- x --> <!DOCTYPE HTML>", "HTML, not an image"),
        (b'<?xml version="1.0"?>\n<svg width="4"/>', "SVG, a drawing without pixels: save it as PNG"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML, not an image"),
        (b"<!-- a --><!-- b -->\n<html>", "HTML, not an image"),
        (b"<!DOCTYPE html><body><svg>", "HTML, not an image"),
        (b'<!-- x > y --><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN">\n<svg>', "SVG, a drawing"),
        (b"<!---->" * 1000, "not an image (JPEG, PNG"),  # a pattern that backtracks would take for ever
        (b"<!>" * 1000, "not an image (JPEG, PNG"),
        (b'{"error": "rate limited"}', "text, not an image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which Pillow cannot read: save it as JPEG"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isom", "a video, not an image"),
        (b"%PDF-1.7\n", "PDF, not an image"),
        (b"PK\3\4 zip", "a compressed archive, not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image (JPEG, PNG, GIF, WEBP"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the image: run git lfs pull"),
        (ZOO["jpeg, baseline"].data[:30], "truncated"),
        (ZOO["png, RGB"].data[:20], "truncated"),
        (ZOO["jpeg, baseline"].data[1:], "not an image (JPEG, PNG"),
        (saved(Image.new("F", (4, 4)), "TIFF"), "32-bit or signed pixels"),
        (saved(Image.new("I", (4, 4)), "TIFF"), "32-bit or signed pixels"),
        (tiff(bytes(32), 4, 4, t258=16, t339=2), "32-bit or signed pixels"),
        (png(np.full((4, 4, 3), 999), 16, 2, [(b"tRNS", bytes(6))]), "a transparent colour of 3x16 bits"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_by_its_name(data, words):
    assert refusal(data).startswith(words)


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000)))


def jpeg_of(width: int, height: int) -> bytes:
    data = ZOO["jpeg, baseline"].data
    size = data.index(b"\xff\xc0") + 5
    return data[:size] + struct.pack(">HH", height, width) + data[size + 4 :]


def webp_of(width: int, height: int) -> bytes:
    body = (
        b"VP8X"
        + struct.pack("<I", 10)
        + bytes(4)
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
    )
    body += ZOO["webp"].data[12:]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def gif_of(width: int, height: int) -> bytes:
    data = ZOO["gif"].data
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


BOMBS = {
    "png": png_header(100_000, 100_000),
    "png, one pixel high": png_header(2**31 - 1, 1),
    "png, within the limit": png_header(9_000, 9_000),
    "jpeg": jpeg_of(65_500, 65_500),
    "jpeg, within the limit": jpeg_of(9_000, 9_000),
    "webp": webp_of(16_383, 16_383),
    "gif": gif_of(65_535, 65_535),
    "tiff": tiff(bytes(100), 65_535, 65_535),
    "tiff, within the limit": tiff(bytes(100), 9_000, 9_000, t262=2, t277=3),
    "bmp": ZOO["bmp, 24 bits"].data[:18] + struct.pack("<ii", 99_999, 99_999) + ZOO["bmp, 24 bits"].data[26:],
    "bmp, within the limit": ZOO["bmp, run lengths"].data[:18] + struct.pack("<ii", 9_000, 9_000) + bytes(2000),
}
# Pillow does not tell that libjpeg made up what this one lacks, and where images are resized nobody else is asked.
_SEEN_AS_GREY = "jpeg, within the limit"
_MEASURE = """
import resource, sys
from convoy.input_pipeline.images.decoder import encode_checked, warm_up
from convoy.input_pipeline.images.pixels import Pixels, reason
from tests.input_pipeline.test_pixels import BOMBS, photograph, saved
warm_up()
for size in (0, 64):
    encode_checked(saved(photograph(), "WEBP"), Pixels(size, "keep"))
    for name, data in BOMBS.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            encode_checked(data, Pixels(size, "keep"))
            words = "ACCEPTED"
        except Exception as error:
            words = reason(error)
        print(f"{name}|{size}|{words}|{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024}")
"""


@pytest.mark.slow
def test_small_files_that_claim_to_be_large_are_refused_in_little_memory():
    process = subprocess.run(
        [sys.executable, "-c", _MEASURE], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    lines = [line.split("|") for line in process.stdout.splitlines()]
    assert len(lines) == 2 * len(BOMBS), process.stderr
    for name, size, words, megabytes in lines:
        if (name, size, words) == (_SEEN_AS_GREY, "64", "ACCEPTED"):
            continue
        assert words != "ACCEPTED" and (words.startswith("decompression bomb: ") or "within" in name), (name, words)
        # 9,000x9,000 pixels are within what is taken for a photograph: 324 MB as Pillow has them, 243 MB as TensorFlow.
        assert int(megabytes) < (700 if "within" in name else 20), (name, words, megabytes)


def test_the_pixels_of_a_bomb_are_named():
    assert refusal(png_header(10_000, 10_000)) == "decompression bomb: 10,000x10,000 pixels, more than 89,478,485"
    assert refusal(png_header(100_000, 100_000)) == "decompression bomb: 10,000,000,000 pixels"


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(width, height):
    for data in (png_header(width, height), jpeg_of(width, height), tiff(b"", width, height)):
        refusal(data)
    # A GIF's screen is corrected by its frame.
    assert encode_checked(gif_of(width, height), KEEP)[0].size == (WIDTH, HEIGHT)


def test_a_reason_is_one_line_without_what_differs_between_runs():
    assert reason(PermissionError(13, "Permission denied", "x.jpg")) == "not readable: permission denied"
    assert reason(Image.UnidentifiedImageError("cannot identify <_io.BytesIO object at 0x7f12ab>")) == (
        "damaged (cannot identify the file)"
    )
    assert reason(Image.DecompressionBombError("Image size (400000000 pixels) exceeds")) == (
        "decompression bomb: 400,000,000 pixels"
    )
    assert reason(OSError("image file is truncated (12 bytes not processed)")) == "truncated"
    assert reason(KeyError(269)) == "damaged (269)"
    assert reason(struct.error()) == "damaged (error)"
    assert reason(MemoryError()) == "needs more memory than there is"
    assert reason(ValueError("two\nlines \x1b[31m")) == "two lines ?[31m"


def test_a_jpeg_without_its_tables_is_refused():
    for marker in (0xDB, 0xDA):  # without 0xC4, tables for video are taken
        assert refusal(without_segment(ZOO["jpeg, baseline"].data, marker))
