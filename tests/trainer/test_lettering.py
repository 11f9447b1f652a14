"""Class names in pictures in scripts that the default font lacks, with and without a font that has them."""

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import features

from convoy.trainer.callbacks.tensorboard_pages import train_batch
from convoy.trainer.evaluation import lettering
from convoy.trainer.evaluation.lettering import legend, names_in_pictures, text_image
from convoy.trainer.evaluation.pictures import confusion_matrix, image_grid
from tests.trainer.report.made_runs import drawn_predictions, evaluated, made_run
from tests.trainer.report.test_page import page_of

NAMES = ("bag", "猫", "tasse", "犬")


def font(path, characters):
    """Makes a font whose characters are all filled squares."""
    pen = TTGlyphPen(None)
    for number, corner in enumerate(((0, 0), (0, 1000), (1000, 1000), (1000, 0))):
        (pen.lineTo if number else pen.moveTo)(corner)
    pen.closePath()
    builder, names = FontBuilder(1000), [".notdef", *(f"u{ord(c):x}" for c in characters)]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(dict(zip(map(ord, characters), names[1:], strict=True)))
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def machine(monkeypatch):
    """Sets the fonts of the machine."""

    def has(*paths):
        monkeypatch.setattr(lettering, "_machine_fonts", lambda: list(paths))
        lettering.stretches.cache_clear()

    yield has
    lettering.stretches.cache_clear()


def black(image):
    return int((np.asarray(image.convert("L")) < 64).sum())


def test_names_are_drawn_with_a_font_that_has_them(machine, tmp_path):
    (tmp_path / "0.ttf").write_bytes(b"no font")
    machine(str(tmp_path / "0.ttf"), font(tmp_path / "1.ttf", "犬"), font(tmp_path / "2.ttf", "猫犬"))
    assert names_in_pictures(NAMES) == [*NAMES] and legend(NAMES) == {}
    assert black(text_image("猫犬", 20)) == 2 * 20 * 20
    assert [part for _, part in lettering.stretches("a猫犬b")] == ["a", "猫犬", "b"]
    assert text_image("a猫b", 20).width == pytest.approx(20 + text_image("ab", 20).width, abs=2)


def test_names_without_a_font_are_numbers_with_a_legend(machine, tmp_path):
    machine(font(tmp_path / "other.ttf", "鼠"))
    assert names_in_pictures(NAMES) == ["bag", "class 1", "tasse", "class 3"]
    assert legend(NAMES) == {"class 1": "猫", "class 3": "犬"}


def test_other_fonts_are_searched_for_other_characters_only(machine, monkeypatch):
    machine()
    monkeypatch.setattr(lettering, "_machine_fonts", lambda: pytest.fail("searched"))
    names = ["bag", "Tasse für Ümit", "e\u0301te\u0301", "чашка", "κούπα", "a\nb\x00"]
    assert names_in_pictures(names) == names


def test_text_from_right_to_left_begins_on_the_right(machine):
    machine()
    name = "שיייי"  # a wide letter, then narrow ones
    if not features.check("raqm"):
        assert names_in_pictures([name]) == ["class 0"]
        return
    ink = (np.asarray(text_image(name, 40).convert("L")) < 128).sum(0)
    wide = (np.asarray(text_image("ש", 40).convert("L")) < 128).sum(0)
    assert names_in_pictures([name]) == [name]
    assert np.abs(ink[-len(wide) :] - wide).sum() < wide.sum() / 4
    assert np.abs(ink[: len(wide)] - wide).sum() > wide.sum() / 4


def test_joiners_within_a_name_are_not_boxes(machine):
    machine()
    joined = "می\u200cخواهم"
    assert lettering.drawn(joined).count("\N{REPLACEMENT CHARACTER}") == 0
    assert lettering.drawn("\u202egpj").startswith("\N{REPLACEMENT CHARACTER}")


def test_all_pictures_use_the_font(machine, tmp_path):
    machine(font(tmp_path / "1.ttf", "猫"))
    image = np.full([32, 32, 3], 255, np.uint8)
    assert black(image_grid([image], [["猫猫"]])) == 2 * 11 * 11
    without, with_name = (confusion_matrix(np.eye(2), ["bag", name], "") for name in ("", "猫猫"))
    assert black(with_name) - black(without) == 2 * 2 * 11 * 11  # beside the row and below the column


def test_report_and_tensorboard_list_the_numbers(machine, tmp_path):
    import tensorflow as tf

    def texts(names):
        batch = {
            "image": tf.zeros([1, 8, 8, 3], tf.uint8),
            "label": tf.ones([1], tf.int32),
            "randomness": tf.zeros([1, 1]),
        }
        values = train_batch(batch, (), names, tf.distribute.OneDeviceStrategy("cpu:0"))
        return {value.tag: value.tensor.string_val[0].decode() for value in values[1:]}

    def listed(names, folder):
        run = made_run(tmp_path / folder, class_names=names)
        found, _ = drawn_predictions(np.arange(40) % 4, num_classes=4)
        evaluated(run, found, class_names=names)
        return "class 3" in page_of(run).text["confusion"]

    machine()
    assert listed(NAMES, "numbered") and not listed(["bag", "a", "b", "c"], "named")
    assert texts(NAMES) == {"media/class_numbers": "    class 1: 猫\n    class 3: 犬\n"}
    assert texts(["bag", "a"]) == {}
    machine(font(tmp_path / "1.ttf", "猫犬"))
    assert not listed(NAMES, "with font") and texts(NAMES) == {}
