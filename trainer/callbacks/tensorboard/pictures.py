"""Pictures for the page Images: grids of images with what is written below them, and the confusion matrix.

Bounded in size whatever there is to show: a grid of up to 25 images of 128 pixels, a matrix of 1000 x 1000. Drawn
pixel by pixel: matplotlib needs ten times as long for such a matrix, at each evaluation that is shown.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from convoy.trainer.callbacks.tensorboard.summaries import shown_name

GRID_IMAGES = 25
_SIDE, _MARGIN, _LINE = 128, 4, 15  # pixels
_MATRIX_SIDE = 640  # pixels, of a matrix that has not more rows
_LARGEST_MATRIX = 1000  # above it several classes share a row
_NUMBERED_CELL = 40  # pixels
_LONGEST_NAME = 24


def grid(images: Sequence[np.ndarray], captions: Sequence[Sequence[str]]) -> Image.Image:
    """Returns images in a square or nearly so, each with lines of text below.

    Args:
      images: up to `GRID_IMAGES` are shown; each [height, width, 3] uint8.
      captions: of each image its lines, as many for all; cut where they are longer than the image is wide.
    """
    shown = list(zip(images, captions, strict=True))[:GRID_IMAGES]
    columns = int(np.ceil(np.sqrt(len(shown))))
    width, height = _SIDE + _MARGIN, _SIDE + _MARGIN + _LINE * max(len(lines) for _, lines in shown)
    picture = Image.new("RGB", (columns * width + _MARGIN, -(-len(shown) // columns) * height + _MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    for number, (pixels, lines) in enumerate(shown):
        row, column = divmod(number, columns)
        left, top = column * width + _MARGIN, row * height + _MARGIN
        tile = Image.fromarray(pixels)
        scale = _SIDE / max(tile.size)
        tile = tile.resize([max(1, round(side * scale)) for side in tile.size], Image.Resampling.BILINEAR)
        picture.paste(tile, (left + (_SIDE - tile.width) // 2, top + (_SIDE - tile.height) // 2))
        for line, text in enumerate(lines):
            draw.text((left, top + _SIDE + line * _LINE), _fitting(shown_name(text)), "black", _font())
    return picture


def confusion_matrix(
    labels: np.ndarray, predicted: np.ndarray, counts: np.ndarray, class_names: Sequence[str], title: str
) -> Image.Image:
    """Returns a confusion matrix whose rows, the labels, each add up to 1: the darker, the more.

    Args:
      labels: [pairs] with `predicted` the pairs that occur.
      predicted: [pairs]
      counts: [pairs] how often each does.
      class_names: by label.
      title: above it.
    """
    side = min(len(class_names), _LARGEST_MATRIX)
    matrix = np.zeros([side, side])
    np.add.at(matrix, (labels * side // len(class_names), predicted * side // len(class_names)), counts)
    matrix /= np.maximum(1, matrix.sum(1, keepdims=True))
    cell = max(1, _MATRIX_SIDE // side)
    names = [_short(shown_name(name)) for name in class_names] if cell >= _LINE - 5 else []
    font = _font(min(11, cell))
    margin = _LINE + max((int(font.getlength(name)) for name in names), default=0) + 3 * _MARGIN
    picture = Image.new("RGB", (margin + side * cell + _LINE, _LINE + side * cell + margin + _MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((margin, 0), title, "black", _font())
    # [side, side, 4] uint8
    colours = Image.fromarray(matplotlib.colormaps["Blues"](matrix, bytes=True)[..., :3])
    picture.paste(colours.resize([side * cell] * 2, Image.Resampling.NEAREST), (margin, _LINE))
    draw.rectangle((margin - 1, _LINE - 1, margin + side * cell, _LINE + side * cell), outline="grey")
    middles = [int((k + 0.5) * cell) for k in range(side)]
    below = _LINE + side * cell
    draw.text((margin + side * cell // 2, picture.height - _MARGIN), "predicted", "black", _font(), anchor="mb")
    _draw_upwards(picture, (_LINE // 2, _LINE + side * cell // 2), "label", _font(), at="middle")
    for name, middle in zip(names, middles, strict=False):
        draw.text((margin - _MARGIN, _LINE + middle), name, "black", font, anchor="rm")
        _draw_upwards(picture, (margin + middle, below + _MARGIN), name, font, at="end")
    if cell >= _NUMBERED_CELL:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            share = matrix[row, column]
            place = (margin + middles[column], _LINE + middles[row])
            draw.text(place, f"{share:.0%}", "white" if share > 0.5 else "black", _font(), anchor="mm")
    return picture


def _draw_upwards(
    picture: Image.Image, place: tuple[int, int], text: str, font: ImageFont.FreeTypeFont, *, at: str
) -> None:
    """Writes text from below to above, in the middle of `place` or with its end there."""
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (max(1, right), max(1, bottom)), 0)
    ImageDraw.Draw(mask).text((0, 0), text, 255, font)
    mask = mask.rotate(90, expand=True)
    x, y = place
    picture.paste("black", (x - mask.width // 2, y if at == "end" else y - mask.height // 2), mask)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _fitting(text: str) -> str:
    text = _short(text)
    while _font().getlength(text) > _SIDE:
        text = text.rstrip("\N{HORIZONTAL ELLIPSIS}")[:-1] + "\N{HORIZONTAL ELLIPSIS}"
    return text


@cache
def _font(size: int = 11) -> ImageFont.FreeTypeFont:
    # Pillow's own has Latin letters only.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
