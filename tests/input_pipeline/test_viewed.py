"""Images as a viewer shows them, decoded in TensorFlow's graph: the same as Pillow's, for all orientations."""

import contextlib
import functools
import io
import zlib
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.dataset.records import RecordError
from convoy.input_pipeline.images.rgb import as_rgb
from convoy.input_pipeline.reading.decode import CROP_DRAWS, Crop, crop_and_resize
from convoy.input_pipeline.reading.file_kinds import unreadable_kind
from convoy.input_pipeline.reading.reader import BatchSlice, Reader
from convoy.input_pipeline.reading.viewed import decode_as_viewed, exif_orientation, may_be_shown_otherwise
from convoy.input_pipeline.verify.verify import verify
from tests.input_pipeline.external_sets import bytes_feature, int_feature


@pytest.fixture(scope="module")
def drawing():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((30, 22), Image.Resampling.BICUBIC)


def saved(image, image_format, **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def exif(orientation, *, little=True, tags_before=0):
    """Returns an EXIF segment's content with this orientation after some other tags."""
    order = "little" if little else "big"
    entries = [(0x0100 + k, 4, k) for k in range(tags_before)] + [(0x0112, 3, orientation)]
    content = (b"II" if little else b"MM") + (42).to_bytes(2, order) + (8).to_bytes(4, order)
    content += len(entries).to_bytes(2, order)
    for tag, kind, value in entries:
        content += tag.to_bytes(2, order) + kind.to_bytes(2, order) + (1).to_bytes(4, order)
        content += value.to_bytes(2, order) + b"\0\0" if kind == 3 else value.to_bytes(4, order)
    return b"Exif\0\0" + content + b"\0\0\0\0"


def as_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(as_rgb(image)).astype(int)


@pytest.fixture(scope="module")
def decode():
    """The function in a graph, as in the reader and in exported models."""
    return tf.function(decode_as_viewed, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_does(drawing, decode, orientation):
    for options in ({}, {"little": False}, {"tags_before": 9}):
        data = saved(drawing, "JPEG", quality=95, exif=exif(orientation, **options))
        assert int(exif_orientation(data)) == orientation
        stored = Image.fromarray(tf.io.decode_image(data).numpy())
        stored.getexif()[0x0112] = orientation
        expected = np.asarray(ImageOps.exif_transpose(stored))
        assert expected.shape == ((30, 22, 3) if orientation > 4 else (22, 30, 3))
        assert np.array_equal(decode(data), expected)
        assert np.abs(as_pillow(data) - expected).mean() < 3  # another decoder of JPEG


@pytest.mark.parametrize(
    "segment",
    [
        b"",
        exif(0),
        exif(9),
        exif(77),
        exif(6)[:12],
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0" + bytes(20),
        b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>",
    ],
)
def test_without_a_valid_orientation_a_jpeg_is_upright(drawing, decode, segment):
    data = saved(drawing, "JPEG", **({"exif": segment} if segment.startswith(b"Exif") else {}))
    if segment and not segment.startswith(b"Exif"):
        data = data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]
    assert int(exif_orientation(data)) == 1
    assert decode(data).shape == (22, 30, 3)


def test_exif_after_other_segments_is_found(drawing):
    data = saved(drawing, "JPEG", exif=exif(8))
    start = data.index(b"\xff\xe1")
    comment = b"\xff\xfe" + (60_000).to_bytes(2, "big") + bytes(59_998)
    assert int(exif_orientation(data[:start] + comment + data[start:])) == 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparency_is_blended_with_white_as_pillow_does(drawing, decode, mode):
    alpha = Image.linear_gradient("L").resize(drawing.size)
    image, options = drawing.convert(mode.removesuffix("A") if mode != "P" else "RGB"), {}
    if mode in ("RGBA", "LA"):
        image.putalpha(alpha)
    if mode == "P":
        image, options = drawing.quantize(16), {"transparency": 3}
    data = saved(image, "PNG", **options)
    assert np.abs(decode(data).numpy() - as_pillow(data)).max() <= 1


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_orientation_of_chunked_formats_is_applied(drawing, decode, image_format, orientation):
    options = {"lossless": True} if image_format == "WEBP" else {}
    for image in (drawing, drawing.convert("RGBA")):
        data = saved(image, image_format, exif=exif(orientation), **options)
        assert np.array_equal(decode(data), as_pillow(data))


def test_orientation_after_the_pixels_of_a_png_is_found(drawing, decode):
    data = saved(drawing, "PNG", exif=exif(8))
    start = data.index(b"eXIf") - 4
    size = 12 + int.from_bytes(data[start : start + 4], "big")
    chunk, end = data[start : start + size], data.index(b"IEND") - 4
    moved = data[:start] + data[start + size : end] + chunk + data[end:]
    assert np.array_equal(decode(moved), as_pillow(data))
    for broken in (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"):  # a size that leads back, and one past the end
        with pytest.raises(tf.errors.InvalidArgumentError):
            decode(moved[: end - size] + broken + moved[end - size + 4 :])


@pytest.mark.parametrize("lossless", [True, False])
def test_transparent_webp_is_blended_with_white(drawing, decode, lossless):
    image = drawing.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(drawing.size))
    data = saved(image, "WEBP", lossless=lossless, exact=True)
    assert np.abs(decode(data).numpy() - as_pillow(data)).max() <= 3


@pytest.mark.parametrize("image_format", ["PNG", "BMP"])
@pytest.mark.parametrize("colors", [16, 200])
def test_palettes_are_decoded_to_colors(drawing, decode, image_format, colors):
    data = saved(drawing.quantize(colors), image_format)
    assert np.array_equal(decode(data), as_pillow(data))


def test_kinds_that_cannot_be_read_are_named(drawing):
    transparent = drawing.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(drawing.size).point(lambda value: 255 * (value > 99)))
    animated = {"save_all": True, "append_images": [drawing.rotate(180)]}
    named = {
        "TIFF": saved(drawing, "TIFF"),
        "AVIF": saved(drawing, "AVIF"),
        "JPEG 2000": saved(drawing, "JPEG2000"),
        "PPM": saved(drawing, "PPM"),
        "animated WebP": saved(drawing, "WEBP", **animated),
        "transparent GIF": saved(transparent, "GIF", comment=b"c" * 600),
        "BMP of few colors": saved(drawing.convert("1"), "BMP"),
        "HTML or XML": b"<html>",
        "unknown": b"no image",
        "empty": b"",
    }
    kind = tf.function(unreadable_kind, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    assert {name: kind(data).numpy().decode() for name, data in named.items()} == {name: name for name in named}
    gif = {"comment": b"c" * 600, **animated}
    for image_format, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("BMP", {}), ("GIF", {}), ("GIF", gif)):
        assert kind(saved(drawing, image_format, **options)).numpy() == b""


def test_other_formats_are_decoded_as_they_are(drawing, decode):
    for image_format in ("GIF", "BMP"):
        assert decode(saved(drawing, image_format)).shape == (22, 30, 3)
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(b"no image")


def png_bomb(width, height):
    """Returns a small PNG of very many white pixels."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" + b"\xff" * (width // 8)) for _ in range(height)) + packer.flush()
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def stated(data, at, sides):
    """Returns a small image that states other sides."""
    return data[:at] + sides + data[at + len(sides) :]


@pytest.fixture(scope="module")
def bombs():
    """Images of a few kB that state more pixels than the limit, and their height and width."""
    small = Image.new("RGB", (16, 16))
    jpeg = saved(small, "JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    little, big = ((16_000).to_bytes(2, order) for order in ("little", "big"))
    bits = (15_999 | 15_999 << 14).to_bytes(4, "little")
    return {
        "PNG": (png_bomb(16_000, 8_000), (8_000, 16_000)),
        "JPEG": (stated(jpeg, frame, 2 * (65_500).to_bytes(2, "big")), (65_500, 65_500)),
        "wide JPEG": (stated(jpeg, frame, (6_000).to_bytes(2, "big") + big), (6_000, 16_000)),
        "high JPEG": (stated(jpeg, frame, big + (6_000).to_bytes(2, "big")), (16_000, 6_000)),
        "lossless WebP": (stated(saved(small, "WEBP", lossless=True), 21, bits), (16_000, 16_000)),
        "lossy WebP": (stated(saved(small, "WEBP"), 26, 2 * little), (16_000, 16_000)),
        "extended WebP": (stated(saved(small, "WEBP", exif=exif(6)), 24, b"\x7f\x3e\0" * 2), (16_000, 16_000)),
        "GIF": (stated(saved(small.convert("L"), "GIF"), 6, 2 * little), (16_000, 16_000)),
    }


def test_bombs_in_records_are_refused_undecoded(decode, bombs, tmp_path):
    fits = png_bomb(400, 800)
    assert decode(fits).shape == (800, 400, 3) and not may_be_shown_otherwise(fits)
    write_records(tmp_path / "train-00000-of-00001", [data for data, _ in bombs.values()])
    with contextlib.closing(Reader(open_dataset(tmp_path).split("train"), Crop(16))) as reader:
        for number, (name, (data, (height, width))) in enumerate(bombs.items()):
            with pytest.raises(tf.errors.InvalidArgumentError, match=f"too large.*{height} {width}"):
                decode(data)
            assert may_be_shown_otherwise(data) or not name.endswith(("PNG", "JPEG"))
            with pytest.raises(RecordError, match="pixels") as caught:
                reader.images(np.array([number]))
            assert caught.value.index == number
    faults = [fault for fault in verify(tmp_path, workers=1).faults if "pixels" in fault.text]
    assert [fault.record for fault in faults] == list(range(len(bombs)))


def odd_files(drawing):
    """Returns images that a viewer shows otherwise than they are stored."""
    transparent = drawing.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(drawing.size))
    turned = Image.Exif()
    turned[0x0112] = 6
    return [
        *(saved(drawing, "JPEG", exif=exif(k, little=little)) for k in range(2, 9) for little in (True, False)),
        saved(drawing, "JPEG", exif=exif(5, tags_before=9)),
        *(saved(transparent.convert(mode), "PNG") for mode in ("RGBA", "LA")),
        saved(drawing.quantize(16), "PNG", transparency=3),
        saved(drawing, "PNG", exif=turned),
        saved(transparent, "WEBP"),
        saved(drawing.quantize(200), "BMP"),
    ]


def plain_files(drawing):
    return [
        *(saved(drawing, image_format) for image_format in ("JPEG", "PNG")),
        saved(drawing, "JPEG", exif=exif(1, tags_before=3)),
        saved(drawing.convert("L"), "PNG"),
        saved(drawing.quantize(16), "PNG"),
    ]


def test_images_are_known_that_are_shown_as_stored(drawing):
    odd = [data for data in odd_files(drawing) if data.startswith((b"\xff\xd8", b"\x89PNG"))]
    assert all(map(may_be_shown_otherwise, odd))
    assert not any(map(may_be_shown_otherwise, plain_files(drawing)))


def write_records(path, images):
    """Writes a shard as other programs do; the label of each image is its number."""
    features = [
        {"image/encoded": bytes_feature(data), "image/class/label": int_feature(k)} for k, data in enumerate(images)
    ]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for feature in features:
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


@pytest.mark.parametrize("as_viewed", [True, False])
def test_readers_turn_the_images_of_other_programs_as_their_split_says(drawing, tmp_path, as_viewed):
    stored = [*odd_files(drawing), *plain_files(drawing)]
    if not as_viewed:  # as in versions that refused these
        stored = [data for data in stored if not data.startswith(b"RIFF")]
    write_records(tmp_path / "train-00000-of-00001", stored)
    split = replace(open_dataset(tmp_path).split("train"), as_viewed=as_viewed)
    plain = functools.partial(tf.io.decode_image, channels=3, expand_animations=False)
    expected = [(decode_as_viewed if as_viewed else plain)(data) for data in stored]
    with contextlib.closing(Reader(split, Crop(16))) as reader:
        whole = reader.images(np.arange(len(stored)))
        (batch,) = reader.evaluation(BatchSlice(len(stored)))
    for number, image in enumerate(expected):
        assert np.array_equal(whole[number], image), number
        shown = crop_and_resize(image, tf.zeros([CROP_DRAWS]), Crop(16))
        assert np.array_equal(batch["image"][number], shown), number
