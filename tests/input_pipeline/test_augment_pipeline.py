"""The line of a recipe: what it says, and what it refuses."""

import subprocess
import sys

import pytest

from convoy.core.errors import UsageError
from convoy.input_pipeline.augment.pipeline import CROP_DRAWS, OPERATIONS, AugmentPipeline, Operation, parse_pipeline


def parsed(text):
    return parse_pipeline(text, image_size=64)


def test_a_line_says_what_happens_where_and_with_which_random_numbers():
    assert parsed("crop(64, scale=0.35..1) | flip | trivial | erase(0.25)") == AugmentPipeline(
        scale=(0.35, 1.0),
        host=(Operation("flip", (0.5,), 4), Operation("trivial", (), 5)),
        device=(Operation("erase", (0.25, (0.02, 0.33)), 8),),
    )
    assert parsed("crop(64, scale=0.35..1) | flip | trivial | erase(0.25)").draws == 13


def test_an_empty_line_keeps_whole_images():
    for text in ("", "  "):
        assert parsed(text) == AugmentPipeline() and not parsed(text).crops
        assert parsed(text).draws == CROP_DRAWS


def test_the_tail_that_a_device_can_do_is_its_half():
    names = lambda operations: [operation.name for operation in operations]  # noqa: E731
    line = parsed("crop | flip | brightness(0.2) | contrast(0.4) | saturation(0.4)")
    assert (names(line.host), names(line.device)) == ([], ["flip", "brightness", "contrast", "saturation"])
    line = parsed("hue(0.1) | rotate(20) | flip")
    assert (names(line.host), names(line.device)) == (["hue", "rotate"], ["flip"])
    line = parsed("flip | equalize")
    assert (names(line.host), names(line.device)) == (["flip", "equalize"], [])


def test_arguments_go_by_position_or_by_name_in_any_order_and_spacing():
    for text in ("rand(3, 12)", "rand( ops = 3,magnitude=12 )", "rand(magnitude=12, ops=3)", "rand(3,magnitude=12.0)"):
        assert parsed(text).host == (Operation("rand", (3.0, 12.0)),)
    assert parsed("rand()") == parsed("rand") == parsed("rand(2, 9)")
    assert parsed("rand(3) | flip").device[0].first_draw == CROP_DRAWS + 6


def test_the_random_numbers_of_an_operation_do_not_depend_on_the_crop():
    assert parsed("crop | flip | trivial").host == parsed("flip | trivial").host


def test_every_operation_can_be_written_with_arguments_in_its_range():
    for name, signature in OPERATIONS.items():
        values = [
            "0.5..1" if parameter.is_range else f"{max(parameter.low, min(parameter.high, 64)):g}"
            for parameter in signature.parameters
        ]
        line = parsed(f"{name}({', '.join(values)})")
        assert line.crops == (name == "crop") and len(line.host + line.device) == (name != "crop")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("crop | flp", "operation 2, 'flp': unknown operation (did you mean 'flip'?)"),
        ("flip | | trivial", "operation 2, '': unknown operation"),
        ("flip |", "operation 2, '': unknown operation"),
        ("flip trivial", "operation 1, 'flip trivial': write flip or flip(...)"),
        ("crop(64", "operation 1, 'crop(64': write crop or crop(...)"),
        ("flip | crop", "operation 2, 'crop': crop must be the first"),
        ("crop | crop", "operation 2, 'crop': crop must be the first"),
        ("crop(32)", "config.image_size=64"),
        ("crop(scale=0..1)", "scale=0..1: must be a range LOW..HIGH from 0.0001 to 1."),
        ("crop(scale=1..0.5)", "scale=1..0.5: must be a range LOW..HIGH"),
        ("crop(scale=0.5)", "scale=0.5: must be a range LOW..HIGH"),
        ("crop(sacle=0.5..1)", "'sacle' (did you mean 'scale'?)"),
        ("flip | erase(2)", "operation 2, 'erase(2)': probability=2: must be a number from 0 to 1."),
        ("erase(nan)", "probability=nan: must be a number from 0 to 1."),
        ("erase(0.5, probability=0.1)", "probability is given twice."),
        ("brightness", "share is missing: write brightness(X)"),
        ("brightness(,)", "too many arguments: brightness takes share."),
        ("posterize(2.5)", "bits=2.5: must be an integer from 1 to 8."),
        ("rand(2, 31)", "magnitude=31: must be an integer from 0 to 30."),
        ("trivial(9)", "too many arguments: trivial takes no arguments."),
        ("rotate(fast)", "degrees=fast: must be a number from 0 to 180."),
    ],
)
def test_errors_name_operation_position_and_fix(text, named):
    with pytest.raises(UsageError) as caught:
        parsed(text)
    assert str(caught.value).startswith("config.augment.ops: operation ")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parsing_does_not_import_tensorflow():
    code = "import sys; from convoy.input_pipeline.augment.pipeline import parse_pipeline"
    code += "; parse_pipeline('crop | trivial', image_size=8)"
    code += "; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
