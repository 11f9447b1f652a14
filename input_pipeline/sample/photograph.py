"""One product photograph: a product in a pose, in a shop's colors, in front of a shop's backdrop, under some light.

Photographs come from two markets, one for training and one for testing, that differ in everything except the products:
backdrops, cloths, palettes, clutter, the words on price tags, and the range of each shape. Within a market each image
is from one of a few shops with its own backdrop, colors and tag. In training a category is mostly sold by the same
few shops, as in a real catalog. A model that learns backdrops and tags scores well in training and badly in testing;
a model that learns shapes scores well in both.
"""

import colorsys
import dataclasses
import functools

import numpy as np
from PIL import Image, ImageFilter

from convoy.input_pipeline.sample import patterns
from convoy.input_pipeline.sample.pen import Pen, Role
from convoy.input_pipeline.sample.silhouettes import PRODUCTS, Outline

Color = np.ndarray  # [3] float32 in [0, 1]


@dataclasses.dataclass(frozen=True)
class Market:
    """Common properties of the photographs of one split."""

    backdrops: tuple[patterns.Pattern, ...]
    cloths: tuple[patterns.Pattern, ...]
    hues: tuple[tuple[float, float], ...]
    saturation: tuple[float, float]
    brightness: tuple[float, float]
    clutter: tuple[str, ...]
    words: tuple[str, ...]
    fashion: tuple[float, float]  # range of each shape's parameters, within [0, 1]
    tilt: float  # largest rotation, degrees
    regulars: float  # share of a category's photographs from its few regular shops


MARKETS = {
    "train": Market(
        backdrops=(
            patterns.plain,
            patterns.gradient,
            patterns.room,
            patterns.planks,
            patterns.pinstripes,
            patterns.glow,
        ),
        cloths=(patterns.plain, patterns.stripes, patterns.dots, patterns.gradient, patterns.tartan),
        hues=((0.97, 1.08), (0.12, 0.17), (0.3, 0.38), (0.56, 0.66), (0.8, 0.86)),
        saturation=(0.55, 1.0),
        brightness=(0.45, 1.0),
        clutter=("disc", "box", "leaf"),
        words=("SALE", "-50%", "NEW", "HOT", "$9.90", "1+1"),
        fashion=(0.0, 0.7),
        tilt=20,
        regulars=0.6,
    ),
    "test": Market(
        backdrops=(patterns.plain, patterns.tiles, patterns.bricks, patterns.corner, patterns.mottle, patterns.bokeh)
        + (patterns.drapery, patterns.speckle),
        cloths=(patterns.plain, patterns.checks, patterns.zigzag, patterns.mottle, patterns.glow),
        hues=((0.04, 0.12), (0.18, 0.28), (0.42, 0.54), (0.68, 0.78), (0.88, 0.95)),
        saturation=(0.25, 0.85),
        brightness=(0.3, 0.95),
        clutter=("triangle", "ring", "stick"),
        words=("-30%", "DEAL", "BEST", "FREE", "2X1", "GIFT"),
        fashion=(0.3, 1.0),
        tilt=28,
        regulars=0.0,
    ),
}
SHOPS = 16


@dataclasses.dataclass(frozen=True)
class Shop:
    """Common properties of the photographs of one shop."""

    backdrop: patterns.Pattern
    near: Color
    far: Color
    hue: float
    tag: str  # "none", "disc", "bar" or "corner"
    tag_color: Color
    word: str
    side: float  # -1: tags on the left, 1: on the right


@functools.lru_cache(maxsize=256)
def shop(seed: int, split: str, number: int) -> Shop:
    """Returns shop `number` of a split's market, a pure function of its arguments."""
    market = MARKETS[split]
    random = np.random.default_rng([seed, list(MARKETS).index(split), 1, number])
    hue = _hue(market, random)
    pale = random.random() < 0.6
    saturation = random.uniform(0.0, 0.2) if pale else random.uniform(0.2, 0.5)
    value = random.uniform(0.82, 1.0) if pale else random.uniform(0.2, 0.7)
    wall_hue = _hue(market, random)
    return Shop(
        backdrop=market.backdrops[number % len(market.backdrops)],
        near=_color(wall_hue, saturation, value),
        far=_color(wall_hue + random.uniform(-0.06, 0.06), saturation + 0.1, value * random.uniform(0.6, 0.85)),
        hue=hue,
        tag=str(random.choice(("none", "none", "disc", "bar", "corner"))),
        tag_color=_color(_hue(market, random), 0.85, 0.9),
        word=str(random.choice(market.words)),
        side=float(random.choice((-1, 1))),
    )


def photograph(seed: int, split: str, category: int, product: int, index: int, size: int) -> Image.Image:
    """Returns one picture, a pure function of its arguments.

    Args:
      seed: seed of the set, 0 or more.
      split: "train" or "test".
      category: category of the picture; selects the shops and the random stream.
      product: product in the picture, an index of `PRODUCTS`; not `category` if the picture is mislabeled.
      index: number of the picture within split and category.
      size: width and height in pixels, 16 or more.

    Returns:
      An RGB image, size x size.
    """
    random = np.random.default_rng([seed, list(MARKETS).index(split), 2, category, index])
    market = MARKETS[split]
    seller = shop(seed, split, _seller(seed, market, category, random))
    scene = _backdrop(seller, random, size)
    scene = _with_clutter(scene, market, random, size)
    scene = _with_product(scene, list(PRODUCTS.values())[product], market, seller, random, size)
    scene = _with_tag(_with_occlusion(scene, market, random, size), market, seller, random, size)
    return _developed(scene, random, size)


def _seller(seed: int, market: Market, category: int, random: np.random.Generator) -> int:
    if random.random() < market.regulars:
        regulars = np.random.default_rng([seed, 3, category]).choice(SHOPS, 3, replace=False)
        return int(regulars[random.integers(3)])
    return int(random.integers(SHOPS))


def _backdrop(seller: Shop, random: np.random.Generator, size: int) -> np.ndarray:
    share = seller.backdrop(random, size)[..., None]  # [size, size, 1]
    tint = 1 + random.normal(0, 0.03, 3)
    near, far = ((color * tint).astype(np.float32) for color in (seller.near, seller.far))
    return near + (far - near) * share


def _with_clutter(scene: np.ndarray, market: Market, random: np.random.Generator, size: int) -> np.ndarray:
    """Adds up to three small objects at the edges of the picture."""
    count = int(random.integers(0, 4))
    if not count:
        return scene
    pen = Pen(size, np.eye(2, 3))
    for _ in range(count):
        angle, distance = random.uniform(0, 2 * np.pi), random.uniform(0.7, 1.0)
        _thing(pen, market, random, distance * np.cos(angle), distance * np.sin(angle), random.uniform(0.08, 0.2))
    return _inked(scene, pen.coverage(), _palette(market, random))


def _thing(pen: Pen, market: Market, random: np.random.Generator, x: float, y: float, reach: float) -> None:
    kind = market.clutter[random.integers(len(market.clutter))]
    role = (Role.BODY, Role.ACCENT, Role.DARK, Role.LIGHT)[random.integers(4)]
    turn = random.uniform(0, 360)
    cosine, sine = reach * np.cos(np.radians(turn)), reach * np.sin(np.radians(turn))
    if kind == "disc":
        pen.ellipse(x, y, reach, reach, role)
    elif kind == "leaf":
        pen.ellipse(x, y, reach * 1.4, reach * 0.5, role, turn=turn)
    elif kind == "ring":
        pen.arc(x, y, reach, reach, 0, 360, reach * 0.4, role)
    elif kind == "stick":
        pen.line([(x - 1.6 * cosine, y - 1.6 * sine), (x + 1.6 * cosine, y + 1.6 * sine)], reach * 0.4, role)
    else:
        corners = np.radians(turn + np.arange(0, 360, 120 if kind == "triangle" else 90))
        pen.polygon(np.stack([x + 1.2 * reach * np.cos(corners), y + 1.2 * reach * np.sin(corners)], axis=1), role)


def _with_product(
    scene: np.ndarray,
    draw: Outline,
    market: Market,
    seller: Shop,
    random: np.random.Generator,
    size: int,
) -> np.ndarray:
    earliest, latest = market.fashion

    def vary(low: float, high: float) -> float:
        return low + (high - low) * random.uniform(earliest, latest)

    pen = Pen(size, _pose(market, random))
    draw(pen, vary)
    coverage = pen.coverage()
    mask = coverage.sum(axis=2)
    backdrop = scene[size // 4 : -size // 4, size // 4 : -size // 4].mean(axis=(0, 1))
    colors = _palette(market, random, seller.hue if random.random() < 0.5 else None)
    colors[0] = _apart(colors[0], backdrop, 0.4)
    colors[1] = _apart(colors[1], backdrop, 0.3)
    second = _apart(_palette(market, random)[0], colors[0], 0.25)

    # Light from the upper left: edges facing it are brighter, the others darker.
    soft = _blurred(mask, size / 20)
    reach = max(size // 32, 1)
    relief = _shifted(soft, reach, reach) - _shifted(soft, -reach, -reach)
    drop = max(size // 20, 1)
    shadow = _shifted(soft, drop, round(drop * random.uniform(0, 1.5))) * random.uniform(0.15, 0.5)
    scene = scene * (1 - shadow * (1 - mask))[..., None]

    cloth = market.cloths[random.integers(len(market.cloths))](random, size)[..., None] * random.uniform(0.5, 1.0)
    body = colors[0] + (second - colors[0]) * cloth
    lit = (1 + random.uniform(0.1, 0.45) * relief)[..., None]
    inked = coverage[..., :1] * body + _mixed(coverage[..., 1:], colors[1:])
    return scene * (1 - mask)[..., None] + inked * lit


def _pose(market: Market, random: np.random.Generator) -> np.ndarray:
    """Returns a random [2, 3] affine transform that keeps a product mostly inside the picture."""
    scale = random.uniform(0.62, 0.96)
    stretch = random.uniform(0.88, 1.12)
    mirror = random.choice((-1, 1))
    angle = np.radians(random.uniform(-market.tilt, market.tilt))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shape = np.array([[mirror * scale * stretch, random.uniform(-0.15, 0.15)], [0, scale / stretch]])
    shift = random.uniform(-1, 1, (2, 1)) * (1.08 - scale) * 0.6
    return np.hstack([turn @ shape, shift])


def _with_occlusion(scene: np.ndarray, market: Market, random: np.random.Generator, size: int) -> np.ndarray:
    """Covers part of the product in a quarter of the pictures."""
    if random.random() > 0.25:
        return scene
    pen = Pen(size, np.eye(2, 3))
    angle = random.uniform(0, 2 * np.pi)
    x, y = 0.6 * np.cos(angle), 0.6 * np.sin(angle)
    _thing(pen, market, random, x, y, random.uniform(0.15, 0.26))
    return _inked(scene, pen.coverage(), _palette(market, random))


def _with_tag(scene: np.ndarray, market: Market, seller: Shop, random: np.random.Generator, size: int) -> np.ndarray:
    """Adds the shop's price tag to most of its pictures."""
    if seller.tag == "none" or random.random() < 0.3:
        return scene
    pen = Pen(size, np.eye(2, 3))
    word = seller.word if random.random() < 0.7 else market.words[random.integers(len(market.words))]
    if seller.tag == "disc":
        pen.ellipse(seller.side * 0.66, -0.66, 0.34, 0.34, Role.ACCENT)
        pen.text(word, seller.side * 0.66, -0.66, 0.95 / max(len(word), 3), Role.LIGHT)
    elif seller.tag == "bar":
        pen.box(-1, 0.74, 1, 1, Role.ACCENT)
        pen.text(word, 0, 0.87, 0.26, Role.LIGHT)
    else:
        pen.polygon([(seller.side, -1), (seller.side * 0.15, -1), (seller.side, -0.15)], Role.ACCENT)
        pen.text(word, seller.side * 0.68, -0.76, 0.24, Role.LIGHT)
    colors = np.stack([seller.tag_color, seller.tag_color, np.zeros(3), np.ones(3)]).astype(np.float32)
    return _inked(scene, pen.coverage(), colors)


def _developed(scene: np.ndarray, random: np.random.Generator, size: int) -> Image.Image:
    """Applies uneven light, exposure, white balance, focus and sensor noise."""
    x, y = patterns.grid(size)
    slope = random.uniform(-0.25, 0.25, 2).astype(np.float32)
    light = 1 + slope[0] * (x - 0.5) + slope[1] * (y - 0.5)
    exposure = (random.uniform(0.92, 1.18) * (1 + random.normal(0, 0.03, 3))).astype(np.float32)
    contrast = np.float32(random.uniform(0.85, 1.12))
    scene = ((scene * light[..., None] * exposure) - 0.5) * contrast + 0.5
    scene = scene + random.uniform(0, 0.04) * random.standard_normal(scene.shape, dtype=np.float32)
    picture = Image.fromarray((scene * 255).clip(0, 255).astype(np.uint8))
    if random.random() < 0.35:
        picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 0.9) * size / 64))
    return picture


def _inked(scene: np.ndarray, coverage: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Composites a layer over the scene: `coverage` is [size, size, 4], `colors` has one color per role, [4, 3]."""
    return scene * (1 - coverage.sum(axis=2, keepdims=True)) + _mixed(coverage, colors)


def _mixed(coverage: np.ndarray, colors: np.ndarray) -> np.ndarray:
    # Not `@`: the order of summation of BLAS may vary, and equal seeds must give equal bytes.
    return np.einsum("yxr,rc->yxc", coverage, colors)


def _palette(market: Market, random: np.random.Generator, hue: float | None = None) -> np.ndarray:
    """Returns one color per role, [4, 3]: body, accent, dark, light."""
    hue = _hue(market, random) if hue is None else hue + random.uniform(-0.03, 0.03)
    body = _color(hue, random.uniform(*market.saturation), random.uniform(*market.brightness))
    if random.random() < 0.2:
        body = _color(hue, random.uniform(0, 0.1), random.uniform(0.1, 0.95))
    accent = _apart(_color(_hue(market, random), random.uniform(0.1, 0.9), random.uniform(0.3, 1.0)), body, 0.35)
    dark = _color(hue, random.uniform(0, 0.4), random.uniform(0.05, 0.22))
    light = _color(hue, random.uniform(0, 0.12), random.uniform(0.88, 1.0))
    return np.stack([body, accent, dark, light])


def _apart(color: Color, other: Color, least: float) -> Color:
    """Returns `color`, shifted towards black or white until it differs from `other` by `least`."""
    difference = float(np.abs(color - other).mean())
    if difference >= least:
        return color
    end = np.float32(0.05 if other.mean() > 0.5 else 0.97)
    share = np.float32(min(1.0, (least - difference) / max(least, 0.01) + 0.2))
    return color + (end - color) * share


def _hue(market: Market, random: np.random.Generator) -> float:
    return random.uniform(*market.hues[random.integers(len(market.hues))])


def _color(hue: float, saturation: float, value: float) -> Color:
    return np.array(colorsys.hsv_to_rgb(hue % 1, min(saturation, 1), min(value, 1)), np.float32)


def _shifted(mask: np.ndarray, down: int, right: int) -> np.ndarray:
    height, width = mask.shape
    shifted = np.zeros_like(mask)
    shifted[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = mask[
        max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return shifted


def _blurred(mask: np.ndarray, radius: float) -> np.ndarray:
    picture = Image.fromarray((mask * 255).clip(0, 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.BoxBlur(radius)), np.float32) / np.float32(255)
