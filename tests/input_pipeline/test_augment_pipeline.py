"""Parsing of the pipeline string of a recipe."""

import subprocess
import sys

import pytest

from convoy.core.errors import UsageError
from convoy.input_pipeline.augment.pipeline import (
    CROP_DRAWS,
    OPERATIONS,
    AugmentPipeline,
    Operation,
    parse_pipeline,
    with_user_names,
)


def parsed(text):
    return parse_pipeline(text, image_size=64)


def test_pipeline_has_placement_and_first_draw_of_each_operation():
    assert parsed("crop(64, scale=0.35..1) | flip | trivial | erase(0.25)") == AugmentPipeline(
        scale=(0.35, 1.0),
        host=(Operation("flip", (0.5,), 4), Operation("trivial", (), 5)),
        device=(Operation("erase", (0.25, (0.02, 0.33)), 8),),
    )
    assert parsed("crop(64, scale=0.35..1) | flip | trivial | erase(0.25)").draws == 13


def test_empty_string_keeps_whole_images():
    for text in ("", "  "):
        assert parsed(text) == AugmentPipeline() and not parsed(text).crops
        assert parsed(text).draws == CROP_DRAWS


def test_last_operations_that_a_device_supports_run_there():
    names = lambda operations: [operation.name for operation in operations]  # noqa: E731
    pipeline = parsed("crop | flip | brightness(0.2) | contrast(0.4) | saturation(0.4)")
    assert (names(pipeline.host), names(pipeline.device)) == ([], ["flip", "brightness", "contrast", "saturation"])
    pipeline = parsed("hue(0.1) | rotate(20) | flip")
    assert (names(pipeline.host), names(pipeline.device)) == (["hue", "rotate"], ["flip"])
    pipeline = parsed("flip | equalize")
    assert (names(pipeline.host), names(pipeline.device)) == (["flip", "equalize"], [])


def test_arguments_by_position_or_name_in_any_order_and_spacing():
    for text in ("rand(3, 12)", "rand( ops = 3,magnitude=12 )", "rand(magnitude=12, ops=3)", "rand(3,magnitude=12.0)"):
        assert parsed(text).host == (Operation("rand", (3.0, 12.0)),)
    assert parsed("rand()") == parsed("rand") == parsed("rand(2, 9)")
    assert parsed("rand(3) | flip").device[0].first_draw == CROP_DRAWS + 6


def test_draws_do_not_depend_on_the_crop():
    assert parsed("crop | flip | trivial").host == parsed("flip | trivial").host


def test_every_operation_accepts_arguments_in_its_range():
    for name, signature in OPERATIONS.items():
        values = [
            "0.5..1" if parameter.is_range else f"{max(parameter.low, min(parameter.high, 64)):g}"
            for parameter in signature.parameters
        ]
        pipeline = parsed(f"{name}({', '.join(values)})")
        assert pipeline.crops == (name == "crop") and len(pipeline.host + pipeline.device) == (name != "crop")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("crop | flp", ("operation 2, 'flp'", "'flip'")),
        ("flip | | trivial", ("operation 2, ''", "unknown")),
        ("flip |", ("operation 2, ''", "unknown")),
        ("flip trivial", ("operation 1, 'flip trivial'", "flip(...)")),
        ("crop(64", ("operation 1, 'crop(64'", "crop(...)")),
        ("flip | crop", ("operation 2, 'crop'", "first")),
        ("crop | crop", ("operation 2, 'crop'", "first")),
        ("crop(32)", ("config.image_size=64",)),
        ("crop(scale=0..1)", ("scale=0..1", "LOW..HIGH", "0.0001 to 1.")),
        ("crop(scale=1..0.5)", ("scale=1..0.5", "LOW..HIGH")),
        ("crop(scale=0.5)", ("scale=0.5", "LOW..HIGH")),
        ("crop(sacle=0.5..1)", ("'sacle'", "'scale'")),
        ("flip | erase(2)", ("operation 2, 'erase(2)'", "probability=2:", "0 to 1.")),
        ("erase(nan)", ("probability=nan", "0 to 1.")),
        ("erase(0.5, probability=0.1)", ("probability", "twice")),
        ("brightness", ("share is missing", "brightness(X)")),
        ("brightness(,)", ("too many arguments", "share")),
        ("posterize(2.5)", ("bits=2.5", "integer", "1 to 8.")),
        ("rand(2, 31)", ("magnitude=31", "integer", "0 to 30.")),
        ("trivial(9)", ("too many arguments", "trivial")),
        ("rotate(fast)", ("degrees=fast", "number", "0 to 180.")),
    ],
)
def test_errors_name_operation_position_and_fix(text, named):
    with pytest.raises(UsageError) as caught:
        parsed(text)
    assert str(caught.value).startswith("config.augment.ops: operation ")
    assert all(name in str(caught.value) for name in named)
    assert "\n" not in str(caught.value)


def test_names_of_users_operations_are_replaced_by_their_place():
    text = "crop(scale=0.5..1) | dim(0.2)|a/ops.py:dim(1) |flip | dim | package.ops:other"
    found = with_user_names(text, lambda number, name: f"<{number} {name}>")
    assert found == "crop(scale=0.5..1) | <0 dim>(0.2)|<1 a/ops.py:dim>(1) |flip | <0 dim> | <2 package.ops:other>"
    assert with_user_names("", lambda number, name: "") == ""


def test_parsing_does_not_import_tensorflow():
    code = "import sys; from convoy.input_pipeline.augment.pipeline import parse_pipeline"
    code += "; parse_pipeline('crop | trivial', image_size=8)"
    code += "; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
