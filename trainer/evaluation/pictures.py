"""Pictures of an evaluation: grids of images with captions, and confusion matrices.

    names = names_in_pictures(class_names)                         # of `lettering`
    image_grid(images, captions)                                   # up to 25 images of 128 pixels
    shares = row_shares(labels, predicted, counts, num_classes)
    confusion_matrix(shares, names, "validation, step 100")        # up to 1000 x 1000 cells
    heat_overlay(pixels, heat_map)

Bounded in size for any number of images and classes. Drawn with Pillow: matplotlib takes ten times as long for a large
matrix, and TensorBoard gets one per evaluation shown.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from convoy.trainer.evaluation.lettering import default_font, text_image

GRID_IMAGES = 25
_SIDE, _MARGIN, _LINE, _TEXT = 128, 4, 15, 11  # pixels
_MATRIX_SIDE = 640  # pixels, unless there are more rows
_LARGEST_MATRIX = 1000  # above it several classes share a row
_NUMBERED_CELL = 40  # pixels
_NAMED_CELL = 10  # pixels
_LONGEST_NAME = 24
_LUMA = np.array([0.299, 0.587, 0.114])
_SHADE, _COLDEST, _OPACITY = 0.6, 0.3, 1.2  # of the overlay: brightness of the image, first color, opacity of heat
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def printable(name: str) -> str:
    """Returns a name as one line of text that any encoding and font accepts: unprintable characters become U+FFFD."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)


def heat_overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Returns a darkened gray image on which heat glows, from purple to yellow: visible on any picture and page.

    Args:
      pixels: [height, width, 3] uint8.
      heat: [height, width] in [0, 1]; 0 shows the gray image alone.

    Returns:
      [height, width, 3] uint8.
    """
    import matplotlib  # as in `confusion_matrix`

    gray = _SHADE * (pixels @ _LUMA)[..., np.newaxis]
    color = 255 * matplotlib.colormaps["inferno"](_COLDEST + (1 - _COLDEST) * heat)[..., :3]
    opacity = np.minimum(1.0, _OPACITY * heat)[..., np.newaxis]
    return np.uint8(np.rint((1 - opacity) * gray + opacity * color))


def heat_colors(count: int) -> list[str]:
    """Returns colors of `heat_overlay` on mid-gray from 0 to 1, for a legend, as `#rrggbb`."""
    gray = np.full((1, count, 3), 128, np.uint8)
    return ["#" + bytes(color).hex() for color in heat_overlay(gray, np.linspace(0, 1, count)[np.newaxis])[0]]


def image_grid(images: Sequence[np.ndarray], captions: Sequence[Sequence[str]], *, columns: int = 0) -> Image.Image:
    """Returns a grid of images with lines of text below each.

    Args:
      images: up to `GRID_IMAGES` are shown; each [height, width, 3] uint8.
      captions: lines per image, cut where they are wider than the image.
      columns: 0 for a roughly square grid.
    """
    shown = list(zip(images, captions, strict=True))[:GRID_IMAGES]
    columns = columns or int(np.ceil(np.sqrt(len(shown))))
    width, height = _SIDE + _MARGIN, _SIDE + _MARGIN + _LINE * max(len(lines) for _, lines in shown)
    picture = Image.new("RGB", (columns * width + _MARGIN, -(-len(shown) // columns) * height + _MARGIN), "white")
    for number, (pixels, lines) in enumerate(shown):
        row, column = divmod(number, columns)
        left, top = column * width + _MARGIN, row * height + _MARGIN
        tile = Image.fromarray(pixels)
        scale = _SIDE / max(tile.size)
        tile = tile.resize([max(1, round(side * scale)) for side in tile.size], Image.Resampling.BILINEAR)
        picture.paste(tile, (left + (_SIDE - tile.width) // 2, top + (_SIDE - tile.height) // 2))
        for line, text in enumerate(lines):
            written = _fitting(text)
            _paste(picture, written, (left, top + _SIDE + line * _LINE + (_LINE - written.height) // 2))
    return picture


def row_shares(labels: np.ndarray, predicted: np.ndarray, counts: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns a confusion matrix whose rows each add up to 1, or 0 for a class without images.

    Args:
      labels: [pairs] int64; with `predicted` the pairs that occur.
      predicted: [pairs] int64.
      counts: [pairs] int64: number of images per pair.
      num_classes: above 1000 neighboring classes share a row.

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
    shown = class_names[:side] if cell >= _NAMED_CELL else []
    names = [text_image(_short(name), min(_TEXT, cell)) for name in shown]
    margin = _LINE + max((name.width for name in names), default=0) + 3 * _MARGIN
    picture = Image.new("RGB", (margin + side * cell + _LINE, _LINE + side * cell + margin + _MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((margin, 0), title, "black", _font())
    colors = Image.fromarray(matplotlib.colormaps["Blues"](shares, bytes=True)[..., :3])  # [n, n, 3] uint8
    picture.paste(colors.resize((side * cell, side * cell), Image.Resampling.NEAREST), (margin, _LINE))
    draw.rectangle((margin - 1, _LINE - 1, margin + side * cell, _LINE + side * cell), outline="gray")
    middles = [int((k + 0.5) * cell) for k in range(side)]
    below = _LINE + side * cell
    draw.text((margin + side * cell // 2, picture.height - _MARGIN), "predicted", "black", _font(), anchor="mb")
    label = _upwards(text_image("label", _TEXT))
    _paste(picture, label, ((_LINE - label.width) // 2, _LINE + (side * cell - label.height) // 2))
    for name, middle in zip(names, middles, strict=False):
        _paste(picture, name, (margin - _MARGIN - name.width, _LINE + middle - name.height // 2))
        _paste(picture, _upwards(name), (margin + middle - name.height // 2, below + _MARGIN))
    if cell >= _NUMBERED_CELL:
        for row, column in np.argwhere(shares).tolist():
            share = shares[row, column]
            center = (margin + middles[column], _LINE + middles[row])
            draw.text(center, f"{share:.0%}", "white" if share > 0.5 else "black", _font(), anchor="mm")
    return picture


def _upwards(text: Image.Image) -> Image.Image:
    return text.transpose(Image.Transpose.ROTATE_90)


def _paste(picture: Image.Image, text: Image.Image, place: tuple[int, int]) -> None:
    """Adds black text on white to a picture, and leaves what is around its letters."""
    x, y = place
    box = (x, y, x + text.width, y + text.height)
    picture.paste(ImageChops.multiply(picture.crop(box), text), box)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + _ELLIPSIS


def _fitting(text: str) -> Image.Image:
    text = _short(text)
    while (written := text_image(text, _TEXT)).width > _SIDE:
        text = text.rstrip(_ELLIPSIS)[:-1] + _ELLIPSIS
    return written


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(default_font(), _TEXT)
