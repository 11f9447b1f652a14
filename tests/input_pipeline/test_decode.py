import itertools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from convoy.input_pipeline.reading.decode import CROP_DRAWS, Crop, crop_and_resize, decode_and_crop
from tests.input_pipeline.datasets import encode
from tests.input_pipeline.images import pixels

LARGEST_DRAW = np.float32(1 - 2**-24)
SIZES = [(1, 1), (1, 7), (7, 1), (2, 3), (1, 300), (300, 1), (33, 20)]


def cropped(image: np.ndarray, crop: Crop, randomness=(0.0, 0.0, 0.0, 0.0), image_format: str = "raw") -> np.ndarray:
    features = {
        "encoded": tf.constant(encode(image, image_format)),
        "format": tf.constant(image_format),
        "height": tf.constant(image.shape[0], tf.int64),
        "width": tf.constant(image.shape[1], tf.int64),
    }
    return compiled(crop)(features, tf.constant(randomness, tf.float32)).numpy()


def resized(image: np.ndarray, crop: Crop, randomness=(0.0, 0.0, 0.0, 0.0)) -> np.ndarray:
    """Returns a crop of a decoded image, without compiling it."""
    return crop_and_resize(tf.constant(image), tf.constant(randomness, tf.float32), crop).numpy()


def compiled(crop: Crop, functions={}):  # noqa: B006 (one compilation per crop for the module)
    if crop not in functions:
        functions[crop] = tf.function(lambda features, randomness: decode_and_crop(features, randomness, crop))
    return functions[crop]


def coordinates(height: int, width: int) -> np.ndarray:
    """Returns an image whose pixel values are their coordinates: [y, x, 255]."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y % 256, x % 256, np.full_like(x, 255)], -1).astype(np.uint8)


def kept_window(image: np.ndarray, crop: Crop, randomness) -> tuple[int, int, int, int]:
    """Returns (top, bottom, left, right), inclusive, of the part of `coordinates` that a crop keeps."""
    result = cropped(image, crop, randomness)
    y, x = result[..., 0].astype(int), result[..., 1].astype(int)
    return y.min(), y.max(), x.min(), x.max()


def test_whole_image_of_the_target_size_is_unchanged():
    image = pixels(3, 16)
    for image_format in ("raw", "png", "bmp"):
        assert np.array_equal(cropped(image, Crop(16), image_format=image_format), image)


def test_jpeg_is_decoded_by_tensorflow():
    image = pixels(4, 16)
    decoded = tf.io.decode_jpeg(encode(image, "jpeg"), channels=3).numpy()
    assert np.array_equal(cropped(image, Crop(16), image_format="jpeg"), decoded)


def test_gray_image_gets_three_channels():
    gray = pixels(5, 16)[..., 0]
    result = cropped(gray, Crop(16), image_format="png")
    assert np.array_equal(result, np.repeat(gray[..., None], 3, -1))


def test_halving_an_image_averages_four_pixels():
    image = pixels(6, 16)
    averaged = np.round(image.reshape(8, 2, 8, 2, 3).astype(np.float32).mean((1, 3)))
    assert np.array_equal(cropped(image, Crop(8)), averaged.astype(np.uint8))


def test_doubling_an_image_interpolates_linearly():
    image = pixels(7, 8)
    expected = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR))
    assert np.abs(cropped(image, Crop(16)).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("shape", SIZES)
def test_crops_of_thin_images_have_the_requested_size(shape):
    image = np.full((*shape, 3), 200, np.uint8)
    for min_area in (1.0, 0.5, 0.01):
        for randomness in itertools.product([0.0, 0.5, LARGEST_DRAW], repeat=CROP_DRAWS):
            result = cropped(image, Crop(6, min_area), randomness)
            assert result.shape == (6, 6, 3) and result.dtype == np.uint8
            assert (result == 200).all()  # nothing from outside the image


@pytest.mark.parametrize("shape", SIZES)
def test_thin_images_show_nothing_from_outside_but_padding(shape):
    image = np.full((*shape, 3), 200, np.uint8)
    padded = resized(image, Crop(6, resize="pad"))
    assert set(np.unique(padded)) == ({200} if shape == (1, 1) else {128, 200})
    for min_area, draw in itertools.product((1.0, 0.5, 0.01), (0.0, LARGEST_DRAW)):
        assert (resized(image, Crop(6, min_area, resize="crop"), [draw] * CROP_DRAWS) == 200).all()
        # Random crops fill the same place as the whole image.
        assert np.array_equal(resized(image, Crop(6, min_area, resize="pad"), [draw] * CROP_DRAWS), padded)


@pytest.mark.parametrize("resize", ["crop", "pad"])
def test_square_images_are_the_same_however_others_are_resized(resize):
    random = np.random.default_rng(0)
    for side, size, min_area in itertools.product((1, 7, 12, 33), (12, 8), (1.0, 0.3)):
        image, draws = pixels(side, side), random.random(CROP_DRAWS)
        expected = resized(image, Crop(size, min_area), draws)
        assert np.array_equal(resized(image, Crop(size, min_area, resize=resize), draws), expected)


@pytest.mark.parametrize("wide", [True, False])
def test_crop_keeps_the_central_square_in_its_proportions(wide):
    image = coordinates(40, 101) if wide else coordinates(101, 40)
    square = image[:, 30:70] if wide else image[30:70]
    for size in (40, 20, 60):
        assert np.array_equal(resized(image, Crop(size, resize="crop")), resized(square, Crop(size)))


@pytest.mark.parametrize("wide", [True, False])
def test_pad_keeps_the_whole_image_in_its_proportions_on_gray(wide):
    image = pixels(3, 24)[:12] if wide else pixels(3, 24)[:, :12]
    result = resized(image, Crop(24, resize="pad"))
    content, around = result[6:18], np.concatenate([result[:6], result[18:]])
    if not wide:
        content, around = result[:, 6:18], np.concatenate([result[:, :6], result[:, 18:]], 1)
    assert np.array_equal(content, image) and (around == 128).all()
    small = resized(image, Crop(12, resize="pad"))
    assert (small == 128).all((1, 2)).sum() == (6 if wide else 0) and (small == 128).all((0, 2)).sum() == 6 - 6 * wide


def test_crop_can_touch_every_edge():
    image = coordinates(40, 40)
    crop = Crop(8, 0.25)
    half = 0.5  # the middle of the aspect ratios, a square: a quarter of the area is 20x20
    corners = {(0.0, 0.0): (0, 0), (LARGEST_DRAW, LARGEST_DRAW): (20, 20), (0.0, LARGEST_DRAW): (0, 20)}
    for (down, right), (top, left) in corners.items():
        # Downsizing averages 2.5 pixels into one, so the outermost of 8 is about one pixel inside.
        found = kept_window(image, crop, (0.0, half, down, right))
        expected = (top, top + 19, left, left + 19)
        assert np.abs(np.subtract(found, expected)).max() <= 1, (down, right)


def test_first_two_draws_set_area_and_aspect_ratio():
    image = coordinates(120, 120)

    def height_and_width(area_draw, aspect_draw):
        top, bottom, left, right = kept_window(image, Crop(120, 0.25), (area_draw, aspect_draw, 0.0, 0.0))
        return bottom - top + 1, right - left + 1

    assert height_and_width(0.0, 0.5) == (60, 60)  # a quarter of the area, as a square
    assert height_and_width(LARGEST_DRAW, 0.5) == (120, 120)
    assert height_and_width(0.0, 0.0) == (69, 52)  # width : height is 3:4
    assert height_and_width(0.0, LARGEST_DRAW) == (52, 69)  # 4:3


def test_max_area_is_respected():
    image = coordinates(120, 120)
    top, bottom, left, right = kept_window(image, Crop(120, 0.1, 0.25), (LARGEST_DRAW, 0.5, 0.0, 0.0))
    assert (top, left, bottom, right) == (0, 0, 59, 59)


@pytest.mark.parametrize(
    ("shape", "min_area"), [((200, 100), 0.5), ((60, 240), 0.9), ((240, 60), 0.9), ((150, 150), 0.3)]
)
def test_min_area_is_respected(shape, min_area):
    image = coordinates(*shape)
    for randomness in np.random.default_rng(0).random((50, CROP_DRAWS)):
        top, bottom, left, right = kept_window(image, Crop(max(shape), min_area), randomness)
        # Rounding may lose half a pixel on each side.
        assert (bottom - top + 1.5) * (right - left + 1.5) >= min_area * shape[0] * shape[1]


def test_random_crops_take_their_share_of_what_a_whole_image_keeps():
    image, quarter = coordinates(60, 240), (0.0, 0.5)  # a quarter of the area, with the middle aspect ratio

    def window(resize, down, right):
        found = resized(image, Crop(240, 0.25, resize=resize), (*quarter, down, right))
        found = found[found[..., 2] == 255]  # without padding
        return [found[:, 0].min(), found[:, 0].max(), found[:, 1].min(), found[:, 1].max()]

    last = LARGEST_DRAW
    # Of the square in the middle, from anywhere in the image.
    assert window("crop", 0.0, 0.0) == [0, 29, 0, 29]
    assert window("crop", last, last) == [30, 59, 210, 239]
    # Of the image, in its proportions.
    assert window("pad", 0.0, 0.0) == [0, 29, 0, 119]
    assert window("pad", last, last) == [30, 59, 120, 239]


@pytest.mark.parametrize(("sides", "size"), [((40, 60), 24), ((9, 7), 32), ((24, 24), 12), ((3, 50), 20)])
def test_resized_values_are_rounded_half_to_even(sides, size):
    image = pixels(3, 60)[: sides[0], : sides[1]]
    method = "area" if max(sides) > size else "bilinear"
    expected = np.round(tf.image.resize(image, [size, size], method=method).numpy()).astype(np.uint8)
    assert np.array_equal(cropped(image, Crop(size)), expected)


def test_draws_are_unused_if_the_whole_image_is_kept():
    image = pixels(8, 24)
    assert np.array_equal(cropped(image, Crop(12), [np.nan] * 4), cropped(image, Crop(12)))


def test_invalid_image_bytes_raise():
    features = {
        "encoded": tf.constant(b"not an image"),
        "format": tf.constant("jpeg"),
        "height": tf.constant(8, tf.int64),
        "width": tf.constant(8, tf.int64),
    }
    with pytest.raises(tf.errors.InvalidArgumentError):
        compiled(Crop(8))(features, tf.zeros([CROP_DRAWS]))


def test_raw_bytes_of_another_size_raise():
    features = {
        "encoded": tf.constant(bytes(100)),
        "format": tf.constant("raw"),
        "height": tf.constant(8, tf.int64),
        "width": tf.constant(8, tf.int64),
    }
    with pytest.raises(tf.errors.InvalidArgumentError):
        compiled(Crop(8))(features, tf.zeros([CROP_DRAWS]))
