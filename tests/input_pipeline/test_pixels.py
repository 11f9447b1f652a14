"""Image files of every kind: the converter's encoding and TensorFlow's decoding, compared with Pillow."""

import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from convoy.core.errors import UsageError
from convoy.input_pipeline.images.decoder import encode_all_checked, encode_checked
from convoy.input_pipeline.images.pixels import Limits, Pixels, encode, reason
from convoy.input_pipeline.reading.decode import CROP_DRAWS, Crop, decode_and_crop
from tests.input_pipeline.images import pixels
from tests.input_pipeline.zoo import (
    HEIGHT,
    ORIENTATION,
    WIDTH,
    ZOO,
    cmyk_profile,
    exif,
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
# TensorFlow uses libjpeg's fast transform, Pillow the exact one. Measured over all qualities and samplings, a pixel
# differs by up to 6 at quality 92 and up to 11 at 95 and above, and by 1 to 2 on average. With the exact transform
# TensorFlow differs from Pillow by at most 2.
FAST_TRANSFORM, EXACT_TRANSFORM = 16, 2
MEAN = 2.5
END_BYTES = 21  # a PNG's last chunk and the checksums before it


def decoded(data: bytes) -> np.ndarray:
    """Decodes as the reader does."""
    return tf.io.decode_image(data, channels=3, expand_animations=False).numpy()


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    assert one.shape == other.shape
    return np.abs(one.astype(int) - other)


def rejection(data: bytes, pixels: Pixels = KEEP) -> str:
    with pytest.raises(Exception) as error:  # noqa: PT011
        encode_checked(data, pixels)
    text = reason(error.value)
    assert text and text.isprintable() and len(text) < 310 and " at 0x" not in text
    return text


# Accepted images.


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_of_image_is_decoded_as_pillow_does(name):
    kind = ZOO[name]
    (data, image_format, (width, height), channels), _ = encode_checked(kind.data, KEEP)
    assert (image_format, data == kind.data) == (kind.image_format, kind.passes)
    result = decoded(data)
    assert result.shape == (height, width, 3) == kind.shown.shape
    assert channels == tf.io.decode_image(data, expand_animations=False).shape[-1]
    if not kind.is_lossy:
        np.testing.assert_array_equal(result, kind.shown)
    elif kind.passes:
        assert difference(result, kind.shown).max() <= FAST_TRANSFORM
        assert difference(result, kind.shown).mean() <= MEAN
        exact = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE").numpy()
        assert difference(exact, kind.shown).max() <= EXACT_TRANSFORM
    else:
        assert difference(result, kind.shown).mean() <= 2 * MEAN


@pytest.mark.parametrize("name", [name for name in ZOO if not ZOO[name].is_lossy])
@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_requested_encoding_keeps_the_pixels(name, encoding):
    (data, image_format, (width, height), channels), _ = encode_checked(ZOO[name].data, Pixels(0, encoding))
    assert (image_format, channels) == (encoding, 1 if name == "png, gray" and encoding == "png" else 3)
    result = decoded(data) if encoding == "png" else np.frombuffer(data, np.uint8).reshape(height, width, 3)
    np.testing.assert_array_equal(result, ZOO[name].shown)


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_of_image_is_resized(name):
    kind = ZOO[name]
    size = 20
    (data, *_), _ = encode_checked(kind.data, Pixels(size, "png"))
    expected = np.asarray(Image.fromarray(kind.shown).resize((size, size), Image.Resampling.BILINEAR))
    features = {"encoded": data, "format": "png", "height": size, "width": size}
    result = decode_and_crop(
        {key: tf.constant(value) for key, value in features.items()}, tf.zeros([CROP_DRAWS]), Crop(size)
    )
    # A JPEG more than twice as large is decoded at a lower resolution, which differs slightly from resizing.
    assert difference(result.numpy(), expected).mean() <= (3 if kind.is_lossy else 0)


@pytest.mark.parametrize("source", [(75, 57), (90, 91), (300, 225), (640, 480)], ids=str)
def test_jpegs_that_are_read_smaller_are_resized_as_whole_ones(source):
    size = 32
    for image in (photograph(*source), Image.fromarray(pixels(5, 640)).resize(source)):
        data = saved(image, "JPEG", quality=95)
        (png, *_), _ = encode_checked(data, Pixels(size, "png"))
        with Image.open(io.BytesIO(data)) as whole:
            expected = np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR))
        # Less than what encoding it as a JPEG changes.
        assert difference(decoded(png), expected).mean() < 1


@pytest.mark.parametrize("name", ["jpeg, baseline", "png, RGB", "gif", "webp", "tiff", "bmp, 24 bits"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_format_is_detected_from_the_content(tmp_path, name, suffix):
    path = tmp_path / f"image{suffix}"
    path.write_bytes(ZOO[name].data)
    assert encode_checked(path.read_bytes(), KEEP) == encode_checked(ZOO[name].data, KEEP)


@pytest.mark.parametrize("orientation", [1, 6])
def test_rgb_values_are_kept_whatever_their_profile(orientation):
    # Otherwise a phone's upright pictures and its rotated ones would differ in color.
    profile = b"a wide gamut" * 50
    data = saved(photograph(), "JPEG", quality=95, icc_profile=profile, exif=exif(orientation))
    result = decoded(encode_checked(data, KEEP)[0].data)
    assert difference(result, turned(seen(data), orientation)).mean() <= 2 * MEAN


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk_is_converted_with_its_profile(image_format):
    cyan = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
    data = saved(cyan, image_format, icc_profile=cmyk_profile())
    red, green, blue = decoded(encode_checked(data, KEEP)[0].data).mean((0, 1))
    assert red < 30 and 130 < green < 170 and 190 < blue < 240  # Lab (55, -37, -50)
    assert difference(seen(data), np.full((32, 32, 3), (0, 255, 255))).max() <= 2  # without the profile


@pytest.mark.parametrize("profile", [b"no profile", cmyk_profile()[:300], cmyk_profile().replace(b"CMYK", b"GRAY")])
def test_damaged_cmyk_profile_is_ignored(profile):
    cmyk = photograph().convert("CMYK")
    (data, *_), _ = encode_checked(saved(cmyk, "TIFF", icc_profile=profile), KEEP)
    np.testing.assert_array_equal(decoded(data), np.asarray(cmyk.convert("RGB")))


def test_rotated_jpeg_keeps_full_chroma():
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = (255, 0, 0)
    stripes[:, 1::2] = (0, 0, 255)
    jpeg = saved(Image.fromarray(stripes), "JPEG", quality=95, subsampling=0, exif=exif(3))
    result = decoded(encode_checked(jpeg, KEEP)[0].data)
    assert difference(result, turned(stripes, 3)).mean() < 10


def test_orientation_is_read_despite_another_broken_tag():
    entries = struct.pack(">HHIHHHHII", ORIENTATION, 3, 1, 6, 0, 0x8769, 4, 1, 0xFFFFFF)  # more data beyond the end
    jpeg = saved(photograph(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\10\0\2" + entries + bytes(4))
    assert encode_checked(jpeg, KEEP)[0].size == (HEIGHT, WIDTH)


def test_reencoded_image_has_no_metadata():
    jpeg = saved(photograph(), "JPEG", exif=exif(6), comment=b"secret", icc_profile=b"profile")
    with Image.open(io.BytesIO(encode_checked(jpeg, KEEP)[0].data)) as image:
        assert not {"exif", "comment", "icc_profile"} & set(image.info)


def test_encode_equals_encode_checked():
    for kind in ZOO.values():
        assert encode(kind.data, KEEP) == encode_checked(kind.data, KEEP)[0]


# Rejected images.


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
def test_jpeg_cut_anywhere_is_rejected(name):
    data = ZOO[name].data
    for length in range(2, len(data), 7):
        assert rejection(data[:length]) in ("truncated", "damaged or cut off in its header"), length


@pytest.mark.parametrize("name", ["jpeg, baseline", "jpeg, orientation 6", "jpeg, CMYK"])
def test_cut_jpeg_with_an_end_marker_is_rejected(name):
    # libjpeg fills the rest with gray and continues.
    data = ZOO[name].data
    start = data.index(b"\xff\xda") + 20
    truncated = 0
    for length in range(start, len(data) - 20, 11):
        truncated += rejection(data[:length].rstrip(b"\xff") + b"\xff\xd9") == "truncated"
    assert truncated > 5


@pytest.mark.parametrize(
    "name", [name for name in ZOO if not name.startswith("jpeg,") and "junk" not in name and "1x1" not in name]
)
def test_other_cut_image_is_rejected_or_has_all_pixels(name):
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
    # A second frame or page may be missing; in the first one, at most its end bytes.
    assert not accepted or max(accepted) <= END_BYTES or "animated" in name or "pages" in name, accepted


@pytest.mark.parametrize("pixels", [KEEP, Pixels(24, "jpeg"), Pixels(0, "raw")], ids=str)
@pytest.mark.parametrize("together", [10**3, 10**6])
def test_encoding_together_equals_encoding_one_by_one(pixels, together, capfd, monkeypatch):
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


def test_jpeg_with_invalid_huffman_codes_is_rejected():
    data = bytearray(ZOO["jpeg, baseline"].data)
    start = data.index(b"\xff\xda") + 40
    data[start : start + 30] = b"\xfe" * 30
    text = rejection(bytes(data))
    assert text == "truncated" or "bad Huffman code" in text


def test_jpeg_with_stray_bytes_is_reencoded_and_decodes_without_warnings(capfd):
    plain = ZOO["jpeg, progressive"].data
    second_scan = plain.index(b"\xff\xc4", plain.index(b"\xff\xda"))
    stray = plain[:second_scan] + b"\0stray" + plain[second_scan:]
    decoded(stray)
    assert "extraneous bytes" in capfd.readouterr().err
    (data, image_format, *_), _ = encode_checked(stray, KEEP)
    assert image_format == "jpeg" and data != stray
    assert difference(decoded(data), seen(plain)).mean() <= 2 * MEAN
    assert capfd.readouterr().err == ""


def test_decoder_messages_do_not_reach_stderr(capfd):
    plain = ZOO["jpeg, baseline"].data
    for data in (
        plain[:400],
        plain[:-100],
        plain[:-100] + b"\xff\xd9",
        saved(photograph(), "TIFF", compression="jpeg")[:500],
    ):
        rejection(data)
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "after\n"


@pytest.mark.parametrize("value", [0, 255])
def test_png_with_a_wrong_checksum_is_rejected(value):
    data = bytearray(ZOO["png, RGB"].data)
    data[len(data) // 2] = value if data[len(data) // 2] != value else 1
    assert rejection(bytes(data)).startswith("damaged PNG")


@pytest.mark.parametrize(
    ("data", "noun"),
    [
        (b"", "empty"),
        (bytes(5000), "zero bytes"),
        (b"<html><body>404 Not Found", "HTML"),
        (b"\xef\xbb\xbf\r\n <!-- x --> <!DOCTYPE HTML>", "HTML"),
        (b'<?xml version="1.0"?>\n<svg width="4"/>', "SVG"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
        (b"<!-- a --><!-- b -->\n<html>", "HTML"),
        (b"<!DOCTYPE html><body><svg>", "HTML"),
        (b'<!-- x > y --><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN">\n<svg>', "SVG"),
        (b"<!---->" * 1000, "not an image (JPEG, PNG"),  # takes forever with a pattern that backtracks
        (b"<!>" * 1000, "not an image (JPEG, PNG"),
        (b'{"error": "rate limited"}', "text"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isom", "video"),
        (b"%PDF-1.7\n", "PDF"),
        (b"PK\3\4 zip", "archive"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"unknown", "not an image (JPEG, PNG, GIF, WEBP"),
        (b"\xff\x0a" + bytes(9), "JPEG XL"),
        (b"\x93NUMPY\1\0", "NumPy"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (ZOO["jpeg, baseline"].data[:30], "truncated"),
        (ZOO["png, RGB"].data[:20], "truncated"),
        (ZOO["jpeg, baseline"].data[1:], "not an image (JPEG, PNG"),
        (saved(Image.new("F", (4, 4)), "TIFF"), "32-bit"),
        (saved(Image.new("I", (4, 4)), "TIFF"), "32-bit"),
        (tiff(bytes(32), 4, 4, t258=16, t339=2), "32-bit"),
        (png(np.full((4, 4, 3), 999), 16, 2, [(b"tRNS", bytes(6))]), "3x16 bits"),
    ],
)  # fmt: skip
def test_reason_names_the_kind_of_file(data, noun):
    assert noun in rejection(data)


def jpeg_frame(marker: int = 0xC0, precision: int = 8, channels: int = 3) -> bytes:
    """Returns a whole JPEG whose frame header states another kind."""
    data = bytearray(ZOO["jpeg, baseline"].data)
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4], data[at + 9] = marker, precision, channels
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "noun"),
    [
        (jpeg_frame(precision=12), "12 bits"),
        (jpeg_frame(marker=0xC3), "lossless"),
        (jpeg_frame(marker=0xC5), "hierarchical"),
        (jpeg_frame(marker=0xF7), "JPEG-LS"),
        (jpeg_frame(channels=2), "2 channels"),
        (tiff(bytes(48), 4, 4, t258=8, t277=3, t262=32803), "32803"),
        (saved(Image.new("RGB", (4, 4)), "BMP").replace(b"\x18\0\0\0\0\0", b"\x18\0\x09\0\0\0", 1), "BMP compression"),
    ],
)
def test_whole_files_of_unsupported_kinds_are_not_damaged(data, noun):
    from convoy.input_pipeline.images.decoder import encode_checked

    with pytest.raises(Exception) as caught:  # noqa: PT011 (any kind, as documented)
        encode_checked(data, Pixels(0, "keep"))
    why = reason(caught.value)
    assert noun in why and "save it" in why
    assert not any(word in why for word in ("damaged", "truncated", "cut off"))


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
# libjpeg fills in the missing data and Pillow does not report it; resized images are not checked by TensorFlow.
_ACCEPTED_IF_RESIZED = "jpeg, within the limit"
_MEASURE = """
import resource, sys
from convoy.input_pipeline.images import tensorflow_decoder  # noqa: F401 (its memory does not count)
from convoy.input_pipeline.images.decoder import encode_checked
from convoy.input_pipeline.images.pixels import Pixels, reason
from tests.input_pipeline.test_pixels import BOMBS, photograph, saved
for size in (0, 64):
    encode_checked(saved(photograph(), "WEBP"), Pixels(size, "keep"))
    for name, data in BOMBS.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            encode_checked(data, Pixels(size, "keep"))
            outcome = "ACCEPTED"
        except Exception as error:
            outcome = reason(error)
        print(f"{name}|{size}|{outcome}|{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024}")
"""


@pytest.mark.slow
def test_decompression_bombs_are_rejected_with_little_memory():
    process = subprocess.run(
        [sys.executable, "-c", _MEASURE], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    lines = [line.split("|") for line in process.stdout.splitlines()]
    assert len(lines) == 2 * len(BOMBS), process.stderr
    for name, size, outcome, megabytes in lines:
        if (name, size, outcome) == (_ACCEPTED_IF_RESIZED, "64", "ACCEPTED"):
            continue
        assert outcome != "ACCEPTED", (name, size)
        assert "decompression bomb" in outcome or "within" in name, (name, outcome)
        # 9,000x9,000 pixels are within the limit: 324 MB in Pillow, 243 MB in TensorFlow.
        assert int(megabytes) < (700 if "within" in name else 20), (name, outcome, megabytes)


def test_decompression_bomb_reason_has_the_pixel_count():
    text = rejection(png_header(10_000, 10_000))
    assert "bomb" in text and "10,000x10,000" in text and "--max_megapixels=89.4785" in text
    text = rejection(png_header(100_000, 100_000))
    assert "bomb" in text and "10,000,000,000" in text and "--max_megapixels" in text


@pytest.mark.parametrize("pillow", [Image.MAX_IMAGE_PIXELS, None])
def test_limits_of_images_are_settable(monkeypatch, pillow):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow)
    small, large = saved(Image.new("1", (40, 25)), "PNG"), png_header(20_000, 10_000)  # 0.001 and 200 megapixels
    with pytest.raises(ValueError, match="--max_megapixels=0.0009 "):
        encode(small, Pixels(0, "keep", Limits(max_megapixels=0.0009)))
    assert encode(small, Pixels(0, "keep", Limits(max_megapixels=0.001))).size == (40, 25)
    with pytest.raises(Exception) as refused:  # by what comes after the header
        encode(large, Pixels(8, "png", Limits(max_megapixels=200)))
    assert "bomb" not in reason(refused.value)
    # What TensorFlow cannot decode at its size is not stored at its size, whatever the limit.
    with pytest.raises(ValueError, match="TensorFlow"):
        encode(large, Pixels(0, "keep", Limits(max_megapixels=200)))
    with pytest.raises(ValueError, match="--max_file_mib=1 "):
        Limits(max_file_mib=1).check_file(2**20 + 1)
    Limits(max_file_mib=1).check_file(2**20)


@pytest.mark.parametrize("name", ["text", "profile"])
def test_limit_of_metadata_is_settable(name):
    text = PngInfo()
    text.add_text("Comment", "x" * 1_500_000, zip=True)
    more = {"pnginfo": text} if name == "text" else {"icc_profile": random.Random(0).randbytes(1_500_000)}
    data = saved(photograph(), "PNG", **more)
    with pytest.raises(ValueError) as refused:
        encode(data, Pixels(0, "keep", Limits(max_metadata_mib=1)))
    assert "--max_metadata_mib=1 " in reason(refused.value)
    encode(data, Pixels(0, "keep", Limits(max_metadata_mib=2)))


@pytest.mark.parametrize("limit", ["max_megapixels", "max_file_mib", "max_metadata_mib"])
@pytest.mark.parametrize("value", [0, -1])
def test_limits_must_be_positive(limit, value):
    with pytest.raises(UsageError, match=f"--{limit}={value}"):
        Limits(**{limit: value})


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 5), (5, 0)])
def test_image_without_pixels_is_rejected(width, height):
    for data in (png_header(width, height), jpeg_of(width, height), tiff(b"", width, height)):
        rejection(data)
    # A GIF's frame overrides its screen size.
    assert encode_checked(gif_of(width, height), KEEP)[0].size == (WIDTH, HEIGHT)


def test_reason_is_one_line_without_addresses():
    assert reason(PermissionError(13, "Permission denied", "x.jpg")) == "not readable: permission denied"
    assert reason(Image.UnidentifiedImageError("cannot identify <_io.BytesIO object at 0x7f12ab>")) == (
        "damaged (cannot identify the file)"
    )
    assert reason(Image.DecompressionBombError("Image size (400000000 pixels) exceeds")) == (
        "decompression bomb: 400,000,000 pixels, more than --max_megapixels allows"
    )
    assert reason(OSError("image file is truncated (12 bytes not processed)")) == "truncated"
    assert reason(KeyError(269)) == "damaged (269)"
    assert reason(struct.error()) == "damaged (error)"
    assert reason(MemoryError()) == "needs more memory than there is"
    assert reason(ValueError("two\nlines \x1b[31m")) == "two lines ?[31m"


def test_jpeg_without_its_tables_is_rejected():
    for marker in (0xDB, 0xDA):  # not 0xC4: without it, decoders use default Huffman tables
        assert rejection(without_segment(ZOO["jpeg, baseline"].data, marker))
