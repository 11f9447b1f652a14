"""Augmentation operations, compared with Pillow or a formula. An image's result does not depend on the batch."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from convoy.input_pipeline.augment import operations, policies
from convoy.input_pipeline.augment.apply import on_device, on_host
from convoy.input_pipeline.augment.pipeline import parse_pipeline
from tests.input_pipeline.images import pixels

SIZE = 24
# Smooth and noisy images, one with few values, one with a single value, and one with a constant channel.
IMAGES = np.stack(
    [
        *(pixels(number, SIZE) for number in range(4)),
        pixels(4, SIZE) // 64 * 64,
        np.full((SIZE, SIZE, 3), 7, np.uint8),
        pixels(5, SIZE) * np.array([1, 0, 1], np.uint8),
        np.random.default_rng(0).integers(40, 200, (SIZE, SIZE, 3), np.uint8),
    ]
)
PICTURES = [Image.fromarray(image) for image in IMAGES]
COUNT = len(IMAGES)
FACTORS = np.linspace(0.02, 1.99, COUNT).astype(np.float32)
LARGEST_DRAW = np.float32(1 - 2**-24)
EVERYTHING = (
    "flip | translate(0.3) | rotate(90) | shear(0.4) | brightness(0.3) | contrast(0.5) | saturation(0.5) | hue(0.3) | "
    "sharpness(0.7) | posterize(3) | solarize(100) | equalize | autocontrast | trivial | rand(3, 12) | "
    "contrast(0.4) | hue(0.2) | erase(0.7)"
)


def assert_as_pillow(result, expected):
    np.testing.assert_array_equal(np.asarray(result), np.stack([np.asarray(picture) for picture in expected]))


def moved(picture, *matrix):
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix)


def draws(count, number, seed=0):
    return (np.random.default_rng(seed).integers(0, 2**24, (count, number)) * 2.0**-24).astype(np.float32)


def augmented(text, images, randomness):
    """Returns images augmented by a pipeline without its crop, [n, size, size, 3] float32."""
    line = parse_pipeline(text, image_size=SIZE)
    return on_device(on_host(tf.constant(images), tf.constant(randomness), line.host), randomness, line.device).numpy()


def with_draws(text, *values, images=IMAGES):
    """Returns images augmented by a pipeline of one operation, all with the same draws."""
    return augmented(text, images, np.tile(np.float32([0, 0, 0, 0, *values]), (len(images), 1)))


@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color", "Sharpness"])
def test_enhancements_equal_pillows(name):
    function = {"Color": "saturation"}.get(name, name.lower())
    enhanced = getattr(operations, function)(tf.cast(IMAGES, tf.float32), FACTORS)
    enhancer = getattr(ImageEnhance, name)
    expected = [enhancer(picture).enhance(float(factor)) for picture, factor in zip(PICTURES, FACTORS, strict=True)]
    assert_as_pillow(operations.to_bytes(enhanced), expected)


def test_byte_operations_equal_pillows():
    bits = np.arange(1, 9)
    thresholds = np.float32([0, 1, 17.5, 64, 128, 200.25, 255, 256])
    images = tf.constant(IMAGES)
    assert_as_pillow(
        operations.posterize(images, tf.constant(bits, tf.int32)),
        [ImageOps.posterize(picture, int(number)) for picture, number in zip(PICTURES, bits, strict=True)],
    )
    assert_as_pillow(
        operations.solarize(images, thresholds),
        [ImageOps.solarize(picture, float(threshold)) for picture, threshold in zip(PICTURES, thresholds, strict=True)],
    )
    assert_as_pillow(operations.autocontrast(images), [ImageOps.autocontrast(picture) for picture in PICTURES])
    assert_as_pillow(operations.equalize(images), [ImageOps.equalize(picture) for picture in PICTURES])
    assert_as_pillow(operations.flip(images, np.ones(COUNT, bool)), [ImageOps.mirror(picture) for picture in PICTURES])


def test_shear_and_translation_equal_pillows():
    images = tf.constant(IMAGES)
    shares = np.linspace(-0.97, 0.99, COUNT).astype(np.float32)
    pairs = list(zip(PICTURES, shares.tolist(), strict=True))
    assert_as_pillow(operations.geometry(images, shear_x=shares), [moved(p, 1, s, 0, 0, 1, 0) for p, s in pairs])
    assert_as_pillow(operations.geometry(images, shear_y=shares), [moved(p, 1, 0, 0, s, 1, 0) for p, s in pairs])
    steps = np.float32([-32, -SIZE, -5, 0, 1, 7, SIZE - 1, 32])
    pairs = list(zip(PICTURES, steps.tolist(), strict=True))
    assert_as_pillow(operations.geometry(images, move_x=steps), [moved(p, 1, 0, -s, 0, 1, 0) for p, s in pairs])
    assert_as_pillow(operations.geometry(images, move_y=steps), [moved(p, 1, 0, 0, 0, 1, -s) for p, s in pairs])


def test_rotation_equals_pillows_except_for_rounding():
    degrees = np.float32([-135, -60, -1, 0, 30, 45, 90, 180])
    result = operations.geometry(tf.constant(IMAGES), degrees=degrees).numpy()
    expected = [np.asarray(p.rotate(angle)) for p, angle in zip(PICTURES, degrees.tolist(), strict=True)]
    # Pillow computes positions with 16 fractional bits.
    assert (result != np.stack(expected)).any(-1).mean() < 0.02
    np.testing.assert_array_equal(result[3], IMAGES[3])


def test_hue_changes_a_share_of_the_images_and_rotates_those_all_the_way():
    for draw in (0.0, 0.2, 0.39):
        rotated = with_draws("hue(0.5, 0.4)", draw)
        np.testing.assert_allclose(rotated, with_draws("hue(0.5)", draw / 0.4), atol=0.02)
        assert (rotated[0] != IMAGES[0]).any()
    for text, draw in (("hue(0.5, 0.4)", 0.41), ("hue(0.5, 0.4)", LARGEST_DRAW), ("hue(0.5, 0)", 0.0)):
        np.testing.assert_array_equal(with_draws(text, draw), IMAGES)


def test_hue_rotates_the_color_circle():
    colors = np.uint8([[[[200, 40, 40], [40, 200, 40], [40, 40, 200], [90, 90, 90]]]])
    rotated = operations.hue(tf.cast(colors, tf.float32), np.float32([1 / 3]))
    np.testing.assert_allclose(rotated[0, 0], colors[0, 0][[1, 2, 0, 3]], atol=0.01)
    for share in (-0.4, 0.13):
        rotated = operations.hue(tf.cast(IMAGES, tf.float32), np.full(COUNT, share, np.float32))
        expected = 255 * tf.image.adjust_hue(IMAGES / np.float32(255), share)
        np.testing.assert_allclose(rotated, expected, atol=0.01)


def test_arguments_set_the_range_of_each_operation():
    half = np.float32(0.5)
    images = IMAGES.astype(np.float32)
    np.testing.assert_array_equal(with_draws("brightness(0.2)", half), images)
    np.testing.assert_allclose(with_draws("brightness(0.2)", 1.0), np.minimum(images + 51, 255), rtol=1e-6)
    np.testing.assert_array_equal(with_draws("contrast(0.4)", half), images)
    gray = np.asarray([np.asarray(picture.convert("L"), np.float64) for picture in PICTURES])
    mean = np.floor(gray.mean((1, 2)) + 0.5)[:, None, None, None]
    contrasted = np.clip(mean + 1.4 * (images - mean), 0, 255)
    np.testing.assert_allclose(with_draws("contrast(0.4)", 1.0), contrasted, atol=1e-3)
    saturated = np.clip(gray[..., None] + 0.6 * (images - gray[..., None]), 0, 255)
    np.testing.assert_allclose(with_draws("saturation(0.4)", 0.0), saturated, atol=1e-3)
    np.testing.assert_array_equal(with_draws("translate(0.25)", 1.0, half)[:, :, 6:], images[:, :, :-6])
    np.testing.assert_array_equal(with_draws("translate(0.25)", half, 0.0)[:, :-6], images[:, 6:])
    sheared = with_draws("shear(0.5)", half, 1.0)  # each column by half of its distance from the center, upwards
    np.testing.assert_array_equal(sheared[:, :, SIZE // 2], images[:, :, SIZE // 2])
    np.testing.assert_array_equal(sheared[:, :-6, -1], images[:, 6:, -1])
    np.testing.assert_array_equal(with_draws("rotate(90)", 1.0), np.rot90(images, axes=(1, 2)))


@pytest.mark.parametrize("name", ["flip", "equalize", "autocontrast", "posterize(2, P)", "solarize(90, P)", "erase"])
def test_probability_is_the_share_of_changed_images(name):
    text = name.replace("P", "0.3") if "P" in name else f"{name}(0.3)"
    images = np.tile(IMAGES[7], (2, 1, 1, 1))
    others = [0.5, 0.5, 0.5, 0.5] * (name == "erase")
    changed = [
        (with_draws(text, draw, *others, images=images) != images).any() for draw in (0.0, 0.2999, 0.3001, LARGEST_DRAW)
    ]
    assert changed == [True, True, False, False]


def test_erased_rectangle_has_the_drawn_area_and_position():
    def erased(*values, text="erase(1, area=0.25..0.25)"):
        (image,) = with_draws(text, 0.0, *values, images=np.zeros((1, SIZE, SIZE, 3), np.uint8))
        assert set(np.unique(image)) <= {0, 128} and (image == image[..., :1]).all()
        rows, columns = (np.flatnonzero(image[..., 0].any(axis)) for axis in (1, 0))
        assert (image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 128).all()
        return rows[0], rows[-1], columns[0], columns[-1]

    assert erased(0.0, 0.5, 0.0, 0.0) == (0, 11, 0, 11)
    assert erased(0.0, 0.5, LARGEST_DRAW, 0.0) == (12, 23, 0, 11)
    assert erased(0.0, 0.5, 0.0, LARGEST_DRAW) == (0, 11, 12, 23)
    assert erased(0.0, 0.0, 0.0, 0.0) == (0, 6, 0, 21)  # height / width = 0.3: 6.6 by 21.9 pixels
    assert erased(0.0, LARGEST_DRAW, 0.0, 0.0) == (0, 21, 0, 6)
    assert erased(LARGEST_DRAW, 0.5, 0.0, 0.0, text="erase(1, area=0.01..1)") == (0, 23, 0, 23)


@pytest.mark.slow
def test_result_does_not_depend_on_the_batch():
    images, randomness = np.tile(IMAGES, (4, 1, 1, 1)), draws(4 * COUNT, 80)
    together = augmented(EVERYTHING, images, randomness)
    assert all((together[k] != images[k]).any() for k in range(len(images)))
    alone = [augmented(EVERYTHING, images[k : k + 1], randomness[k : k + 1])[0] for k in range(0, len(images), 5)]
    np.testing.assert_array_equal(together[::5], alone)
    order = np.random.default_rng(1).permutation(len(images))
    np.testing.assert_array_equal(augmented(EVERYTHING, images[order], randomness[order]), together[order])


@pytest.mark.parametrize("compiled", [False, True])
def test_device_operations_equal_the_host_with_and_without_xla(compiled):
    text = "flip | brightness(0.3) | contrast(0.5) | saturation(0.5) | hue(0.3) | erase(0.7)"
    steps = parse_pipeline(text, image_size=SIZE).device
    assert len(steps) == 6
    function = tf.function(on_device, jit_compile=compiled, autograph=False)
    randomness = draws(COUNT, 20)
    result = function(tf.constant(IMAGES), tf.constant(randomness), steps).numpy()
    np.testing.assert_allclose(result, augmented(text, IMAGES, randomness), atol=0.01)
    assert result.dtype == np.float32 and result.min() >= 0 and result.max() <= 255


def test_wide_space_has_the_ranges_of_trivial_augment():
    space = policies.wide_space()
    seen = {}
    for name, strengths, is_signed in zip(space.names, space.strengths, space.is_signed, strict=True):
        seen[name] = (strengths[0], strengths[-1], bool(is_signed))
    assert seen == {
        "identity": (0, 0, False),
        **dict.fromkeys(("shear_x", "shear_y"), (0, pytest.approx(0.99), True)),
        **dict.fromkeys(("move_x", "move_y"), (0, 32, True)),
        "degrees": (0, 135, True),
        **dict.fromkeys(("brightness", "saturation", "contrast", "sharpness"), (0, pytest.approx(0.99), True)),
        "posterize": (8, 2, False),
        "solarize": (255, 0, False),
        **dict.fromkeys(("autocontrast", "equalize"), (0, 0, False)),
    }


def trivial_by_pillow(picture, draws):
    """Returns TrivialAugment's result for these draws, computed with Pillow, and the name of the operation."""
    space = policies.wide_space()
    number = int(draws[0] * np.float32(len(space.names)))
    name, is_signed = space.names[number], space.is_signed[number]
    amount = float(space.strengths[number, int(draws[2] * np.float32(31))])
    amount = -amount if is_signed and draws[1] < 0.5 else amount
    return {
        "identity": lambda: picture,
        "shear_x": lambda: moved(picture, 1, amount, 0, 0, 1, 0),
        "shear_y": lambda: moved(picture, 1, 0, 0, amount, 1, 0),
        "move_x": lambda: moved(picture, 1, 0, -amount, 0, 1, 0),
        "move_y": lambda: moved(picture, 1, 0, 0, 0, 1, -amount),
        "degrees": lambda: picture.rotate(amount),
        "brightness": lambda: ImageEnhance.Brightness(picture).enhance(1 + amount),
        "saturation": lambda: ImageEnhance.Color(picture).enhance(1 + amount),
        "contrast": lambda: ImageEnhance.Contrast(picture).enhance(1 + amount),
        "sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(1 + amount),
        "posterize": lambda: ImageOps.posterize(picture, int(amount)),
        "solarize": lambda: ImageOps.solarize(picture, amount),
        "autocontrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
    }[name](), name


def test_trivial_applies_one_operation_per_image():
    count = 200
    images = np.stack([IMAGES[k % COUNT] for k in range(count)])
    randomness = draws(count, 7)
    result = augmented("trivial", images, randomness)
    names = set()
    for image, found, numbers in zip(images, result, randomness, strict=True):
        expected, name = trivial_by_pillow(Image.fromarray(image), numbers[4:])
        names.add(name)
        differ = (found != np.asarray(expected)).any(-1).mean()
        # At 45 degrees, a diagonal of the image falls on pixel edges.
        assert differ <= (0.05 if name == "degrees" else 0), (name, numbers)
    assert len(names) == 14


def test_rand_applies_operations_at_one_magnitude():
    space = policies.narrow_space(SIZE)
    draw = lambda name: (space.names.index(name) + 0.5) / len(space.names)  # noqa: E731
    solarized_then_moved = with_draws("rand(2, 15)", draw("solarize"), 0.9, draw("move_x"), 0.9)
    expected = [
        moved(ImageOps.solarize(picture, 127.5), 1, 0, -np.trunc(150 / 331 * SIZE / 2), 0, 1, 0) for picture in PICTURES
    ]
    assert_as_pillow(solarized_then_moved, expected)
    np.testing.assert_array_equal(with_draws("rand(1, 0)", draw("degrees"), 0.1), IMAGES)
    # Magnitude 30 keeps 4 bits.
    bits = with_draws("rand(1, 30)", draw("posterize"), 0.1).astype(np.uint8)
    np.testing.assert_array_equal(bits, IMAGES & 0xF0)
