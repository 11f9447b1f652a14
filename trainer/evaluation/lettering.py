"""Class names in pictures, in any script.

    names = names_in_pictures(class_names)   # "class 7" for a name that no font of this machine can show
    legend(class_names)                      # {"class 7": its name}
    line = text_image(names[0], 11)          # black on white

matplotlib's DejaVu Sans has Latin, Greek, Cyrillic, Arabic, Hebrew and more. Other characters are looked up once per
process in the fonts of the machine, in an order that depends only on their names.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

# Joiners and variation selectors: they select glyphs and need none of their own.
_SELECTORS = "\u200c\u200d\ufe0e\ufe0f"
_STRIKES = (109, 128, 136, 160, 96, 64)  # pixels: the only size of a font of bitmaps, such as those of emoji
_BLANK_FONTS = re.compile(r"last-?resort|adobe-?blank", re.IGNORECASE)  # the same box, or nothing, for any character
_STYLED = re.compile(r"bold|italic|oblique|black|heavy|light|thin|condensed|mono|typewriter", re.IGNORECASE)


def names_in_pictures(class_names: Sequence[str]) -> list[str]:
    """Returns what pictures show for each class: its name, or `class 7` if no font has all characters of the name."""
    return [
        name if name.isascii() or stretches(drawn(name)) is not None else f"class {label}"
        for label, name in enumerate(class_names)
    ]


def legend(class_names: Sequence[str]) -> dict[str, str]:
    """Returns the names of the classes that pictures show by number: `{"class 7": name}`."""
    shown = names_in_pictures(class_names)
    return {number: name for number, name in zip(shown, class_names, strict=True) if number != name}


def drawn(text: str) -> str:
    """Returns text as it is drawn: composed, with U+FFFD for characters that cannot be shown."""
    text = unicodedata.normalize("NFC", text)
    selectors = _SELECTORS if _lays_out() else ""
    kept = (c for c in text if c in selectors or c not in _SELECTORS)
    return "".join(c if c in selectors or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in kept)


@lru_cache(4096)
def stretches(text: str) -> list[tuple[str, str]] | None:
    """Returns the parts of a text with the path of the font for each; None if it cannot be shown."""
    if not _lays_out() and any(map(_needs_layout, text)):
        return None
    found, start = [], 0
    while start < len(text):
        font, end = "", start
        for path in _fonts():
            reached = start + _reach(path, text[start:])
            if reached > end:
                font, end = path, reached
            if end == len(text):
                break
        if not font:
            return None
        found.append((font, text[start:end]))
        start = end
    return found


def text_image(text: str, size: int) -> Image.Image:
    """Returns a line of text, black on white, centered in a height of `2 * size`; boxes for what no font has."""
    text = drawn(text)
    parts = [(*_font(path, size), part) for path, part in stretches(text) or [(default_font(), text)]]
    widths = [font.getlength(part) * scale for font, scale, part in parts]
    ascent, descent = _font(default_font(), size)[0].getmetrics()
    baseline = (2 * size + ascent - descent) // 2
    line, x = Image.new("RGB", (max(1, int(np.ceil(sum(widths)))), 2 * size), "white"), 0.0
    for (font, scale, part), width in zip(parts, widths, strict=True):
        layer = Image.new("RGB", (round(line.width / scale), round(line.height / scale)), "white")
        place = (x / scale, baseline / scale)
        ImageDraw.Draw(layer).text(place, part, "black", font, anchor="ls", embedded_color=True)
        line = Image.fromarray(np.minimum(np.asarray(line), np.asarray(layer.resize(line.size))))
        x += width
    return line


@cache
def default_font() -> str:
    """Returns the path of DejaVu Sans."""
    import matplotlib  # for its font: Pillow's own has Latin letters only

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def _fonts() -> Iterator[str]:
    """Yields paths of fonts, best first."""
    yield default_font()
    yield from _machine_fonts()


@cache
def _machine_fonts() -> list[str]:
    from matplotlib import font_manager  # takes long to import, and most names need no other font

    paths = [path for path in font_manager.findSystemFonts() if not _BLANK_FONTS.search(Path(path).name)]
    return sorted(paths, key=lambda path: (bool(_STYLED.search(Path(path).name)), Path(path).name, path))


def _reach(path: str, text: str) -> int:
    """Returns for how many characters, from the start of the text, a font has glyphs."""
    missing = ~np.isin([ord(c) for c in text], _characters(path)) & [c not in _SELECTORS for c in text]
    return int(missing.argmax()) if missing.any() else len(text)


@cache
def _characters(path: str) -> np.ndarray:
    """Returns the characters of a font, [n] uint32; none if Pillow cannot draw with it."""
    from matplotlib.ft2font import FT2Font

    try:
        _load(path, 11)
        return np.fromiter(FT2Font(path).get_charmap(), np.uint32)
    except (OSError, RuntimeError, ValueError):  # damaged, or of a kind that FreeType cannot read
        return np.zeros(0, np.uint32)


_Loaded = tuple[ImageFont.FreeTypeFont, float]


def _load(path: str, size: int) -> _Loaded:
    """Returns a font, and by how much what it draws must be scaled for the size.

    Raises:
      OSError: it cannot be read.
    """
    for pixels in (size, *_STRIKES):
        try:
            return ImageFont.truetype(path, pixels), size / pixels
        except OSError as error:
            failure = error
    raise failure


_font = lru_cache(64)(_load)


@cache
def _lays_out() -> bool:
    """Returns whether Pillow joins letters and writes from right to left."""
    return bool(features.check("raqm"))


def _needs_layout(character: str) -> bool:
    return unicodedata.bidirectional(character) in ("R", "AL") or unicodedata.category(character) in ("Mn", "Mc")
