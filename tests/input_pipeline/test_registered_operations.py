"""Augmentation operations that users add: parsing, promises, and the same pixels wherever they run."""

import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.input_pipeline.augment import registered
from convoy.input_pipeline.augment.apply import on_device, on_host
from convoy.input_pipeline.augment.checks import check_operations
from convoy.input_pipeline.augment.pipeline import CROP_DRAWS, parse_pipeline
from convoy.input_pipeline.augment.registered import register_operation
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.report.augmentation_page import augmentation_page
from tests.input_pipeline.images import pixels
from tests.input_pipeline.streams import assert_same, make_split, stream
from tests.pages import Page

FILE = """
from convoy.input_pipeline.augment.registered import register_operation

@register_operation("shade", draws=2, strength=(0, 1))
def shade(pixels, draws, strength: float = 0.5, *, levels: int = 2, share: tuple[float, float] = (0.5, 1.0)):
    "Darkens the images. And more."
    return pixels * (1.0 - strength * draws[:, 1])[:, None, None, None]

plain = lambda pixels, draws: pixels
"""


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr(registered.REGISTERED, "_added", {})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my (own) operations.py"
    path.write_text(FILE)
    return path


def parsed(text):
    return parse_pipeline(text, image_size=16)


def add(function, **options):
    register_operation("mine", **{"draws": 1, **options})(function)
    return parsed("mine")


def test_an_operation_of_a_file_takes_arguments_and_its_own_draws(file):
    pipeline = parsed(f"flip | {file}:shade(0.25, share=0.1..0.2) | erase")
    operation = pipeline.device[1]
    assert (pipeline.host, operation.first_draw, operation.draws) == ((), CROP_DRAWS + 1, 2)
    assert operation.arguments == {"strength": 0.25, "levels": 2, "share": (0.1, 0.2)}
    assert isinstance(operation.arguments["levels"], int)
    assert pipeline.device[2].first_draw == CROP_DRAWS + 3
    assert operation.signature.about == "Darkens the images. And more"
    images = tf.constant(np.full((3, 16, 16, 3), 200, np.uint8))
    draws = np.zeros((3, pipeline.draws), np.float32)
    draws[:, CROP_DRAWS + 2] = (0, 0.5, 0.75)
    shaded = on_device(images, draws, pipeline.device[1:2]).numpy()
    np.testing.assert_allclose(shaded[:, 0, 0, 0], [200, 175, 162.5])
    assert np.array_equal(on_host(images, draws, pipeline.device[1:2]).numpy(), shaded.astype(np.uint8))


def test_the_file_runs_again_only_if_it_has_changed(file):
    (first,), (second,) = parsed(f"{file}:shade").pieces, parsed(f"{file}:shade | {file}:shade").pieces
    assert first.value is second.value and first.digests == {file.name: first.digests[file.name]}
    file.write_text(FILE.replace("1.0 -", "2.0 -"))
    (third,) = parsed(f"{file}:shade").pieces
    assert third.value is not first.value and third.digests != first.digests


def test_registered_names_are_used_like_built_in_ones():
    assert [operation.name for operation in add(lambda pixels, draws: pixels).device] == ["mine"]
    add(lambda pixels, draws: pixels, on_device=False)
    assert [operation.name for operation in parsed("flip | mine").host] == ["flip", "mine"]
    assert [piece.name for piece in parsed("mine | flip | mine").pieces] == ["mine"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("mone", "'mine'"),
        ("mine(2)", "strength=2: must be a number from 0 to 1"),
        ("mine(strenght=1)", "'strength'"),
        ("mine(0.5, 1.5)", "integer"),
        ("mine(0.5, inf)", "levels=inf"),
        ("{file}:shed", "shade"),
        ("{file}:shade(2)", "strength=2"),
        ("{file}:shade(2", "shade(...)"),
        ("{file}:plain", "register_operation"),
        ("none.py:shade", "none.py"),
        ("no_such_module:shade", "no_such_module"),
    ],
)
def test_errors_name_the_operation_and_the_nearest(file, text, named):
    def mine(pixels, draws, strength: float, levels: int = 1):
        return pixels

    register_operation("mine", draws=1, strength=(0, 1))(mine)
    with pytest.raises(UsageError, match="config.augment.ops") as caught:
        parsed(text.format(file=file))
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "function"),
    [
        ("flip", {}, lambda pixels, draws: pixels),
        ("a-b", {}, lambda pixels, draws: pixels),
        ("mine", {"draws": -1}, lambda pixels, draws: pixels),
        ("mine", {"strength": (0, 1)}, lambda pixels, draws: pixels),
        ("mine", {}, lambda pixels: pixels),
        ("mine", {}, lambda pixels, draws, *others: pixels),
        ("mine", {"low": (0, 1)}, lambda pixels, draws, low=2.0: pixels),
        ("mine", {}, lambda pixels, draws, text="a": pixels),
    ],
)
def test_registrations_that_cannot_work_are_refused(name, options, function):
    with pytest.raises(UsageError, match=name):
        register_operation(name, **{"draws": 1, **options})(function)


COUNTER = []
IMPURE = {
    "RandomUniform": lambda pixels, draws: pixels * tf.random.uniform([]),
    "variable": lambda pixels, draws, weight=None: pixels + VARIABLE,
    "called again": lambda pixels, draws: pixels + np.float32(COUNTER.append(0) or len(COUNTER)),
    "batch": lambda pixels, draws: pixels - tf.reduce_mean(pixels),
    "with the other": lambda pixels, draws: tf.reverse(pixels, [0]),
    "NaN": lambda pixels, draws: pixels / tf.math.reduce_std(pixels, [1, 2, 3], keepdims=True),
    "uint8": lambda pixels, draws: tf.cast(pixels, tf.uint8),
    "(8, 8, 16, 3)": lambda pixels, draws: pixels[:, ::2],
    "ndarray": lambda pixels, draws: np.zeros((8, 16, 16, 3), np.float32),
    "ValueError": lambda pixels, draws: tf.reshape(pixels, [7, -1]),
}
VARIABLE = tf.Variable(1.0)


@pytest.mark.parametrize("reason", IMPURE)
def test_operations_that_break_the_promise_are_refused_with_the_reason(reason):
    function = IMPURE[reason]
    pipeline = add(lambda pixels, draws: function(pixels, draws))
    with pytest.raises(UsageError, match="config.augment.ops: mine ") as caught:
        check_operations(pipeline, [16], exact=False)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_the_last_bits_count_in_deterministic_runs_only():
    pipeline = add(lambda pixels, draws: pixels + 1e-4 * tf.reduce_mean(pixels) / 255.0)
    check_operations(pipeline, [16], exact=False)
    with pytest.raises(UsageError, match="deterministic"):
        check_operations(pipeline, [16], exact=True)


def test_pure_operations_pass(file):
    text = f"crop | {file}:shade | trivial | {file}:shade(1) | flip"
    check_operations(parsed(text), [8, 16], exact=True)
    assert [operation.name for operation in parsed(text).device] == [f"{file}:shade", "flip"]


def test_the_training_stream_is_the_same_from_any_step(tmp_path, file):
    split = make_split(tmp_path / "shards", count=24)
    pipeline = parsed(f"{file}:shade(0.9) | equalize")
    options = {"draws": pipeline.draws, "operations": pipeline.host}
    whole, rest = stream(split, 5, **options), stream(split, 3, start_step=2, **options)
    assert_same({name: column[16:] for name, column in whole.items()}, rest)
    assert not np.array_equal(whole["image"], stream(split, 5)["image"])


@pytest.mark.slow
def test_the_page_shows_the_operations_of_the_pipeline(file):
    images = [pixels(number, 16) for number in range(3)]
    text = f"flip | {file}:shade(0.75)"
    page = augmentation_page(images, ["a", "b", "c"], text=text, recipe="mine", crop=Crop(16), seed=3)
    words = Page(page.encode()).words("operations")
    assert f"{file}:shade" in words and "Darkens the images" in words and "strength=0.75" in words
