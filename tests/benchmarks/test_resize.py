"""The benchmark of `config.resize`: its images and its table."""

import numpy as np

from benchmarks.resize import reframed, table
from tests.benchmarks.test_generalization_tables import outcome
from tests.input_pipeline.images import pixels


def test_scenes_have_the_whole_picture_and_cuts_a_part_of_it_up_to_two_to_one():
    picture, random = pixels(0, 40), np.random.default_rng(0)
    shapes = {"scene": [], "cut": []}
    for framing in 60 * [*shapes]:
        image = reframed(picture, framing, random)
        inner, outer = (picture, image) if framing == "scene" else (image, picture)
        rows, columns = np.subtract(outer.shape, inner.shape)[:2] + 1
        height, width = inner.shape[:2]
        assert any(
            np.array_equal(outer[row : row + height, column : column + width], inner)
            for row in range(rows)
            for column in range(columns)
        )
        shapes[framing].append(image.shape[:2])
    for framing, side in (("scene", min), ("cut", max)):
        assert {side(shape) for shape in shapes[framing]} == {40}
        ratios = [height / width for height, width in shapes[framing]]
        assert 0.5 <= min(ratios) < 0.6 and 1.6 < max(ratios) <= 2


def test_table_compares_runs_with_the_same_seed():
    runs = {"squash": [outcome(test=0.5), outcome(test=0.7)], "pad": [outcome(test=0.6), outcome(test=0.8)]}
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table(runs)]
    assert cells[2][0] == "`squash`" and cells[2][2].startswith("60.0 ± 14.1") and cells[2][3] == ""
    assert cells[3][3] == "+10.0 ± 0.0"
