"""Counts for the page: classes, sizes, aspect ratios, reasons. Plain numbers and words, ready to be shown."""

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from convoy.core.text import Bar, bars

SIDES = (32, 64, 128, 224, 256, 384, 512)  # pixels: what images are usually trained at
_SIDE_EDGES = (1, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
# Upper bounds of width to height, and what lies below each.
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
    """Returns how many images have which shorter side, in pixels, from the smallest range to the largest that occur."""
    counts = np.bincount(
        np.searchsorted(_SIDE_EDGES, np.minimum(width, height), side="right") - 1, minlength=len(_SIDE_EDGES)
    )
    labels = [f"{low} to {high - 1}" for low, high in zip(_SIDE_EDGES, _SIDE_EDGES[1:], strict=False)]
    return _without_empty_ends(bars([*labels, f"{_SIDE_EDGES[-1]} or more"], counts.tolist()))


def aspect_ratios(width: np.ndarray, height: np.ndarray) -> list[Bar]:
    """Returns how many images are how much wider than high, from tall to wide."""
    bounds = np.array([bound for bound, _ in _ASPECTS])
    places = np.searchsorted(bounds, width / np.maximum(height, 1), side="left")
    counts = np.bincount(places, minlength=len(bounds)).tolist()
    return _without_empty_ends(bars([label for _, label in _ASPECTS], counts))


def frequent_sizes(width: np.ndarray, height: np.ndarray, number: int) -> tuple[list[Bar], int]:
    """Returns the most frequent sizes as `width x height`, at most `number`, and how many different ones there are."""
    sizes, counts = np.unique(width.astype(np.uint64) << np.uint64(32) | height, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:number]
    labels = [f"{int(size) >> 32} × {int(size) & 0xFFFFFFFF}" for size in sizes[order]]
    return bars(labels, counts[order].tolist()), len(sizes)


def smaller_than_usual(width: np.ndarray, height: np.ndarray) -> list[Bar]:
    """Returns how many images have a shorter side below each usual side, up to the first that all are below."""
    shorter = np.minimum(width, height)
    counts = [int((shorter < side).sum()) for side in SIDES]
    last = next((place for place, count in enumerate(counts) if count == len(shorter)), len(SIDES) - 1)
    # The bars show shares of all images, so that two of them can be compared.
    return [
        Bar(f"below {side}", count, round(100 * count / max(1, len(shorter)), 1))
        for side, count in zip(SIDES[: last + 1], counts, strict=False)
    ]


def reasons(texts: Iterable[str], number: int) -> tuple[list[Bar], int]:
    """Counts reasons that differ in numbers only as one; returns the most frequent, and how many kinds there are."""
    counts = Counter(re.sub(r"[0-9][0-9,.]*", "…", text) for text in texts)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return bars([text for text, _ in ordered[:number]], [count for _, count in ordered[:number]]), len(ordered)


def area(counts: np.ndarray) -> str:
    """Returns an SVG path of 100 x 100: the counts from the largest to the smallest, filled down to zero."""
    heights = np.sort(counts)[::-1] * (100 / max(1, counts.max()))
    places = np.linspace(0, 100, len(heights) + 1)
    steps = "".join(f"V{100 - height:.1f}H{end:.2f}" for height, end in zip(heights, places[1:], strict=True))
    return f"M0,100{steps}V100Z"


def _without_empty_ends(found: list[Bar]) -> list[Bar]:
    filled = [place for place, bar in enumerate(found) if bar.count]
    return found[filled[0] : filled[-1] + 1] if filled else []
