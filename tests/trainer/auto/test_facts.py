"""What `--config=auto` finds out about images: sizes, and whether mirroring or another hue changes their class."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.trainer.auto import facts, rules, table
from convoy.trainer.auto.choosing import rounded_speed

COLORS = ("red", "lime", "blue", "yellow")


def arrow(label, random):
    """Draws an arrow to the left (0) or to the right (1), somewhere, in any color."""
    image = Image.new("RGB", (40, 40), tuple(random.integers(0, 90, 3).tolist()))
    x, y = (int(value) for value in random.integers(4, 16, 2))
    points = [(x, y + 8), (x + 10, y), (x + 10, y + 5), (x + 20, y + 5), (x + 20, y + 11), (x + 10, y + 11)]
    points += [(x + 10, y + 16)]
    if label:
        points = [(2 * x + 20 - across, down) for across, down in points]
    ImageDraw.Draw(image).polygon(points, fill=tuple(random.integers(150, 255, 3).tolist()))
    return image


def colored_square(label, random):
    """Draws a square of the color of its class, of any size and place."""
    image = Image.new("RGB", (32, 32), (40, 40, 40))
    x, y, side = (int(value) for value in random.integers(3, 14, 3))
    ImageDraw.Draw(image).rectangle((x, y, x + side, y + side), fill=COLORS[label])
    return image


def shape(label, random):
    """Draws a disk or a cross of any color: neither mirroring nor color matters."""
    image = Image.new("RGB", (48, 32), (0, 0, 0))
    color = tuple(random.integers(90, 255, 3).tolist())
    x, y = int(random.integers(10, 38)), int(random.integers(10, 22))
    draw = ImageDraw.Draw(image)
    if label:
        draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=color)
    else:
        draw.line((x - 8, y, x + 8, y), fill=color, width=3)
        draw.line((x, y - 8, x, y + 8), fill=color, width=3)
    return image


class Drawn:
    """A source of drawn images."""

    def __init__(self, draw, names, number=200):
        random = np.random.default_rng(0)
        self.class_names, self.num_images, self._encoded = list(names), number, []
        for index in range(number):
            buffer = io.BytesIO()
            draw(index % len(names), random).save(buffer, "PNG")
            self._encoded.append(buffer.getvalue())

    def label(self, index):
        return index % len(self.class_names)

    def read(self, indices):
        return [self._encoded[index] for index in indices]


def examined(draw, names, **options):
    return facts.examine(open_dataset({"train": Drawn(draw, names, **options)}))


@pytest.mark.parametrize(
    ("draw", "names", "mirroring_matters", "color_matters"),
    [
        (arrow, ("one", "other"), True, False),
        (colored_square, COLORS, False, True),
        (shape, ("cross", "disk"), False, False),
    ],
)
def test_what_changes_the_class_is_found(draw, names, mirroring_matters, color_matters):
    found = examined(draw, names)
    assert bool(rules.mirroring(found)[0]) == mirroring_matters
    assert (rules.color_weight(found)[0] >= table.NO_HUE) == color_matters
    assert ("flip" in ops_of(found)) != mirroring_matters
    assert ("hue" in ops_of(found)) != color_matters


def ops_of(found):
    return next(c.value for c in rules.choose(found, rules.Machine()) if c.field == "augment.ops")


def test_few_images_decide_nothing():
    assert rules.mirroring(examined(arrow, ("one", "other"), number=6))[0] is None


def test_facts_of_sizes_and_classes():
    found = examined(shape, ("cross", "disk"), number=31)
    assert (found.images, found.validation_images, found.smallest_class, found.largest_class) == (31, 0, 15, 16)
    assert found.side == pytest.approx((48 * 32) ** 0.5)
    assert (found.sampled, found.odd_shapes, found.long_shapes, found.is_gray) == (31, 0.0, 0.0, False)


def test_shapes_that_vary_are_counted():
    def varied(label, random):
        return Image.new("RGB", [(30, 30), (30, 30), (30, 30), (90, 30)][int(random.integers(4))])

    found = examined(varied, ("a1", "b1"), number=100)
    assert 0.1 < found.odd_shapes == found.long_shapes < 0.5
    assert found.is_gray


def test_the_same_data_give_the_same_facts():
    assert examined(shape, ("cross", "disk")) == examined(shape, ("cross", "disk"))


def test_facts_of_a_converted_dataset(dataset):
    found = facts.examine(open_dataset(dataset.data))
    assert found.class_names == dataset.categories
    assert (found.side, found.sampled) == (32.0, found.images)


def test_images_that_cannot_be_read_are_an_error(dataset, monkeypatch):
    monkeypatch.setattr(facts, "_decoded", lambda payload, key: Image.open(io.BytesIO(b"none")))
    with pytest.raises(DataError, match="convoy verify"):
        facts.examine(open_dataset(dataset.data))


def test_the_sample_has_every_class_of_few_and_enough_of_each_of_many():
    labels = np.repeat(np.arange(4), (1000, 1000, 50, 3))
    counts = np.bincount(labels[facts.sampled(labels)])
    assert counts.sum() == 512
    assert counts[3] == 3 and counts[2] == 50 and abs(counts[0] - counts[1]) <= 1
    many = np.repeat(np.arange(1000), 20)
    taken = np.bincount(many[facts.sampled(many)], minlength=1000)
    assert taken[taken > 0].min() == 8


@pytest.mark.parametrize(
    ("measured", "used"), [(85, 64), (64, 64), (61.5, 64), (60, 45.25), (89, 90.51), (127, 128), (0.3, 0.25)]
)
def test_speeds_are_rounded_to_powers_of_the_root_of_two(measured, used):
    assert rounded_speed(measured) == pytest.approx(used, abs=0.01)
