"""Pictures of an evaluation: grids of images with captions, and confusion matrices.

    image_grid(images, captions)                                   # up to 25 images of 128 pixels
    shares = row_shares(labels, predicted, counts, num_classes)
    confusion_matrix(shares, class_names, "validation, step 100")  # up to 1000 x 1000 cells

Bounded in size for any number of images and classes. Drawn with Pillow: matplotlib takes ten times as long for a large
matrix, and TensorBoard gets one per evaluation shown.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GRID_IMAGES = 25
_SIDE, _MARGIN, _LINE = 128, 4, 15  # pixels
_MATRIX_SIDE = 640  # pixels, unless there are more rows
_LARGEST_MATRIX = 1000  # above it several classes share a row
_NUMBERED_CELL = 40  # pixels
_NAMED_CELL = 10  # pixels
_LONGEST_NAME = 24
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def printable(name: str) -> str:
    """Returns a name as one line of text that any encoding and font accepts: unprintable characters become U+FFFD."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)


def image_grid(images: Sequence[np.ndarray], captions: Sequence[Sequence[str]]) -> Image.Image:
    """Returns a roughly square grid of images with lines of text below each.

    Args:
      images: up to `GRID_IMAGES` are shown; each [height, width, 3] uint8.
      captions: lines per image, cut where they are wider than the image.
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
            draw.text((left, top + _SIDE + line * _LINE), _fitting(printable(text)), "black", _font())
    return picture


def row_shares(labels: np.ndarray, predicted: np.ndarray, counts: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns a confusion matrix whose rows each add up to 1, or 0 for a class without images.

    Args:
      labels: [pairs] int64; with `predicted` the pairs that occur.
      predicted: [pairs] int64.
      counts: [pairs] int64: number of images per pair.
      num_classes: above 1000 neighbouring classes share a row.

    Returns:
      [n, n] float64, n = min(num_classes, 1000): rows are labels, columns are predicted classes.
    """
    side = min(num_classes, _LARGEST_MATRIX)
    matrix = np.zeros([side, side])
    np.add.at(matrix, (labels * side // num_classes, predicted * side // num_classes), counts)
    return matrix / np.maximum(1, matrix.sum(1, keepdims=True))


def confusion_matrix(shares: np.ndarray, class_names: Sequence[str], title: str) -> Image.Image:
    """Returns a confusion matrix as a picture; a darker cell means a larger share.

    Args:
      shares: [n, n] in [0, 1]: rows are labels, columns are predicted classes.
      class_names: by row; names and numbers are left out where the cells are too small for them.
      title: text above the matrix.
    """
    import matplotlib  # takes long to import, and most processes of a run never draw

    side = len(shares)
    cell = max(1, _MATRIX_SIDE // side)
    names = [_short(printable(name)) for name in class_names] if cell >= _NAMED_CELL else []
    font = _font(min(11, cell))
    margin = _LINE + max((int(font.getlength(name)) for name in names), default=0) + 3 * _MARGIN
    picture = Image.new("RGB", (margin + side * cell + _LINE, _LINE + side * cell + margin + _MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((margin, 0), title, "black", _font())
    colours = Image.fromarray(matplotlib.colormaps["Blues"](shares, bytes=True)[..., :3])  # [n, n, 3] uint8
    picture.paste(colours.resize((side * cell, side * cell), Image.Resampling.NEAREST), (margin, _LINE))
    draw.rectangle((margin - 1, _LINE - 1, margin + side * cell, _LINE + side * cell), outline="grey")
    middles = [int((k + 0.5) * cell) for k in range(side)]
    below = _LINE + side * cell
    draw.text((margin + side * cell // 2, picture.height - _MARGIN), "predicted", "black", _font(), anchor="mb")
    _draw_upwards(picture, (_LINE // 2, _LINE + side * cell // 2), "label", _font(), at="middle")
    for name, middle in zip(names, middles, strict=False):
        draw.text((margin - _MARGIN, _LINE + middle), name, "black", font, anchor="rm")
        _draw_upwards(picture, (margin + middle, below + _MARGIN), name, font, at="end")
    if cell >= _NUMBERED_CELL:
        for row, column in np.argwhere(shares).tolist():
            share = shares[row, column]
            centre = (margin + middles[column], _LINE + middles[row])
            draw.text(centre, f"{share:.0%}", "white" if share > 0.5 else "black", _font(), anchor="mm")
    return picture


def _draw_upwards(
    picture: Image.Image, place: tuple[int, int], text: str, font: ImageFont.FreeTypeFont, *, at: str
) -> None:
    """Draws text that reads from bottom to top, centred on `place` or ending there."""
    _, _, right, bottom = font.getbbox(text)
    mask = Image.new("L", (max(1, int(right)), max(1, int(bottom))), 0)
    ImageDraw.Draw(mask).text((0, 0), text, 255, font)
    mask = mask.rotate(90, expand=True)
    x, y = place
    picture.paste("black", (x - mask.width // 2, y if at == "end" else y - mask.height // 2), mask)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + _ELLIPSIS


def _fitting(text: str) -> str:
    text = _short(text)
    while _font().getlength(text) > _SIDE:
        text = text.rstrip(_ELLIPSIS)[:-1] + _ELLIPSIS
    return text


@cache
def _font(size: int = 11) -> ImageFont.FreeTypeFont:
    import matplotlib  # for its font: Pillow's own has Latin letters only

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
