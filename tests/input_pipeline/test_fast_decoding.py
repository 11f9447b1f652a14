"""`config.decode=fast`: how small JPEG files are decoded, and what is decoded exactly nevertheless."""

import io
import json
import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from convoy.input_pipeline.reading.decode import CROP_DRAWS, Crop, decode, decode_and_crop, decode_and_crop_all
from tests.input_pipeline.datasets import encode


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Returns a smooth picture, as photographs are."""
    coarse = np.random.default_rng(height).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def jpeg(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def features(encoded: bytes, image_format: str = "jpeg") -> dict[str, tf.Tensor]:
    unknown = tf.constant(0, tf.int64)
    return {"encoded": tf.constant(encoded), "format": tf.constant(image_format), "height": unknown, "width": unknown}


def seen(encoded: bytes, crop: Crop, draws=(0.5,) * CROP_DRAWS) -> np.ndarray:
    return decode_and_crop(features(encoded), tf.constant(draws, tf.float32), crop).numpy()


@pytest.mark.parametrize(
    ("crop", "decoded"),
    [
        (Crop(64), (94, 125)),  # a quarter
        (Crop(94), (94, 125)),
        (Crop(95), (188, 250)),
        (Crop(40), (47, 63)),  # an eighth, the smallest scale
        (Crop(8), (47, 63)),
        (Crop(224), (375, 500)),
        (Crop(500), (375, 500)),  # is enlarged later
        (Crop(64, resize="crop"), (94, 125)),
        (Crop(125, resize="pad"), (94, 125)),
        (Crop(64, 0.3), (188, 250)),  # the narrowest crop has 0.47 of the side
        (Crop(64, 0.05), (375, 500)),
        (Crop(64, 0.3, resize="crop"), (188, 250)),
        (Crop(64, 0.3, resize="pad"), (188, 250)),
    ],
)
def test_images_are_decoded_at_the_smallest_sufficient_scale(crop, decoded):
    assert decode(features(jpeg(picture(375, 500))), crop._replace(decode="fast")).shape == (*decoded, 3)


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("min_area", [1, 0.6, 0.1])
@pytest.mark.parametrize("sides", [(375, 500), (200, 90), (31, 64), (16, 16), (5, 40)])
def test_pictures_look_the_same(resize, min_area, sides):
    encoded, crop = jpeg(picture(*sides)), Crop(24, min_area, resize=resize)
    for draws in np.random.default_rng(0).random((4, CROP_DRAWS)):
        exact, fast = (np.float32(seen(encoded, crop._replace(decode=way), draws)) for way in ("exact", "fast"))
        assert np.abs(fast - exact).mean() < 6
    if max(sides) == 500:
        assert not np.array_equal(exact, fast)


@pytest.mark.parametrize(
    "encoded",
    [
        jpeg(picture(16, 16)),
        encode(np.asarray(picture(40, 60)), "png"),
    ],
    ids=["small", "png"],
)
def test_other_files_are_decoded_exactly(encoded):
    assert np.array_equal(seen(encoded, Crop(16, decode="fast")), seen(encoded, Crop(16)))


def test_gray_cmyk_and_progressive_files_are_scaled_too():
    for encoded in (
        *(jpeg(picture(160, 160, mode)) for mode in ("L", "CMYK")),
        jpeg(picture(160, 160), progressive=True),
    ):
        assert decode(features(encoded), Crop(20, decode="fast")).shape == (20, 20, 3)


@pytest.mark.parametrize("encoded", [jpeg(picture(160, 160))[:400], b"\xff\xd8\xff" + bytes(50)])
def test_a_damaged_file_fails_as_in_tensorflow(encoded):
    for way in ("exact", "fast"):
        with pytest.raises(tf.errors.OpError):
            seen(encoded, Crop(16, decode=way))


def test_an_image_is_the_same_alone_and_among_others():
    crop = Crop(16, decode="fast")
    files = [jpeg(picture(*sides)) for sides in ((16, 16), (90, 50), (16, 16), (200, 300))]
    columns = {"encoded": tf.constant(files), "format": tf.constant(["jpeg"] * 4)}
    columns |= {side: tf.constant([16, 0, 16, 0], tf.int64) for side in ("height", "width")}
    together = decode_and_crop_all(columns, None, crop, 4).numpy()
    for number, image in enumerate(together):
        one = {name: column[number : number + 1] for name, column in columns.items()}
        assert np.array_equal(decode_and_crop_all(one, None, crop, 1).numpy()[0], image)


@pytest.mark.slow
def test_accuracy_stays_within_the_noise_of_seeds(convoy, tmp_path):
    sample = ("--categories=6", "--per_category=50", "--test_per_category=50", "--size=160")
    convoy("sample", f"--output={tmp_path / 'photos'}", *sample, check=True)
    data, tested = f"--data={tmp_path / 'data'}", 6 * 50
    for split in ("train", "test"):
        images = f"--images={tmp_path / 'photos' / split}"
        convoy("convert", images, f"--output={tmp_path / 'data'}", f"--split={split}", check=True)
    correct = {}
    for way in ("exact", "fast"):
        for seed in (0, 1):
            run = f"--workdir={tmp_path / f'{way}-{seed}'}"
            recipe = ("--config=convnet", "--config.epochs=15", f"--config.seed={seed}", f"--config.decode={way}")
            convoy("train", *recipe, data, run, check=True)
            convoy("evaluate", data, run, "--split=test", check=True)
            result = json.loads((tmp_path / f"{way}-{seed}/evaluation_test.json").read_text())
            correct[way, seed] = round(result["quality"]["top1"] * tested)
    exact, fast = (correct[way, 0] + correct[way, 1] for way in ("exact", "fast"))
    assert min(correct.values()) > 0.5 * tested  # far above chance
    assert abs(fast - exact) < 3 * math.sqrt(2 * exact * (1 - exact / (2 * tested)))
