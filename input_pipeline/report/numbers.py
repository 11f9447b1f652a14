"""Counts for the page: image sizes, aspect ratios and reasons, as bars to display."""

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from convoy.core.text import Bar, bars

SIDES = (32, 64, 128, 224, 256, 384, 512)  # pixels; common training resolutions
_SIDE_EDGES = (1, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
_PLOT_STEPS = 400
# Upper bounds of width divided by height, and the name of the range below each.
_ASPECTS = (
    (1 / 3, "taller than 1:3"),
    (1 / 2, "1:3 to 1:2"),
    (2 / 3, "1:2 to 2:3"),
    (0.95, "2:3 to square"),
    (1 / 0.95, "square"),
    (3 / 2, "square to 3:2"),
    (2, "3:2 to 2:1"),
    (3, "2:1 to 3:1"),
    (np.inf, "wider than 3:1"),
)


def shorter_sides(width: np.ndarray, height: np.ndarray) -> list[Bar]:
    """Returns a histogram of the shorter sides, in pixels, without empty ranges at the ends."""
    counts, _ = np.histogram(np.minimum(width, height), [*_SIDE_EDGES, np.inf])
    labels = [f"{low} to {high - 1}" for low, high in zip(_SIDE_EDGES, _SIDE_EDGES[1:], strict=False)]
    return _without_empty_ends(bars([*labels, f"{_SIDE_EDGES[-1]} or more"], counts.tolist()))


def aspect_ratios(width: np.ndarray, height: np.ndarray) -> list[Bar]:
    """Returns a histogram of width divided by height, from tall to wide."""
    bounds = np.array([bound for bound, _ in _ASPECTS])
    places = np.searchsorted(bounds, width / np.maximum(height, 1), side="left")
    counts = np.bincount(places, minlength=len(bounds)).tolist()
    return _without_empty_ends(bars([label for _, label in _ASPECTS], counts))


def frequent_sizes(width: np.ndarray, height: np.ndarray, number: int) -> tuple[list[Bar], int]:
    """Returns up to `number` most frequent sizes as `width × height`, and the number of distinct sizes."""
    sizes, counts = np.unique(width.astype(np.uint64) << np.uint64(32) | height, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:number]
    labels = [f"{int(size) >> 32} × {int(size) & 0xFFFFFFFF}" for size in sizes[order]]
    return bars(labels, counts[order].tolist()), len(sizes)


def smaller_than_usual(width: np.ndarray, height: np.ndarray) -> list[Bar]:
    """Returns the number of images below each of `SIDES`, up to the first side that all images are below."""
    shorter = np.minimum(width, height)
    counts = [int((shorter < side).sum()) for side in SIDES]
    last = next((place for place, count in enumerate(counts) if count == len(shorter)), len(SIDES) - 1)
    # Lengths are shares of all images, not of the longest bar, so that bars compare with the whole.
    return [
        Bar(f"below {side}", count, round(100 * count / max(1, len(shorter)), 1))
        for side, count in zip(SIDES[: last + 1], counts, strict=False)
    ]


def reasons(texts: Iterable[str], number: int) -> tuple[list[Bar], int]:
    """Returns the `number` most frequent reasons, with digits masked, and the number of distinct ones."""
    counts = Counter(re.sub(r"[0-9][0-9,.]*", "…", text) for text in texts)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return bars([text for text, _ in ordered[:number]], [count for _, count in ordered[:number]]), len(ordered)


def area(counts: np.ndarray) -> str:
    """Returns an SVG path, 100 x 100: an area plot of the counts in descending order, in up to `_PLOT_STEPS` steps."""
    heights = np.sort(counts)[::-1] * (100 / max(1, counts.max()))
    if len(heights) > _PLOT_STEPS:
        heights = heights[np.arange(_PLOT_STEPS) * len(heights) // _PLOT_STEPS]
    places = np.linspace(0, 100, len(heights) + 1)
    steps = "".join(f"V{100 - height:.1f}H{end:.2f}" for height, end in zip(heights, places[1:], strict=True))
    return f"M0,100{steps}V100Z"


def _without_empty_ends(found: list[Bar]) -> list[Bar]:
    filled = [place for place, bar in enumerate(found) if bar.count]
    return found[filled[0] : filled[-1] + 1] if filled else []
