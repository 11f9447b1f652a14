"""Vector drawing of products: outlines transformed by one matrix, filled by role instead of by color.

A product is drawn in the square from -1 to 1, x to the right, y down. The matrix is applied to the outlines before
rasterization, so that rotation, shear and scaling are free and keep edges sharp. The pen draws into an image with four
channels, one for each role of a part. Downscaled to the picture's size, each channel is the share of each pixel that
the role covers: anti-aliasing and mask in one.

Synopsis:
  pen = Pen(size=64, matrix=pose)
  pen.box(-0.5, -0.8, 0.5, 0.8, Role.BODY, corner=0.1)
  coverage = pen.coverage()  # [64, 64, 4]
"""

import enum
import functools
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]
Vary = Callable[[float, float], float]  # (low, high) -> a number between them


class Role(enum.Enum):
    """Role of a part. The value is its CMYK fill; NOTHING erases, as for a hole."""

    BODY = (255, 0, 0, 0)
    ACCENT = (0, 255, 0, 0)
    DARK = (0, 0, 255, 0)
    LIGHT = (0, 0, 0, 255)
    NOTHING = (0, 0, 0, 0)


class Pen:
    """Draws one layer of a picture."""

    def __init__(self, size: int, matrix: np.ndarray) -> None:
        """Starts with an empty layer.

        Args:
          size: width and height of the picture in pixels.
          matrix: [2, 3] affine transform from product to picture coordinates, both from -1 to 1.
        """
        self._oversampling = 3 if size <= 160 else 2
        pixels = size * self._oversampling
        self._matrix = (matrix[:, :2] * (pixels / 2)).T
        self._offset = (matrix[:, 2] + 1) * (pixels / 2)
        self._pixels_per_unit = float(abs(np.linalg.det(self._matrix)) ** 0.5)
        # CMYK as four independent channels: RGBA would be premultiplied by alpha when downscaled.
        self._image = Image.new("CMYK", (pixels, pixels))
        self._draw = ImageDraw.Draw(self._image)

    def coverage(self) -> np.ndarray:
        """Returns [size, size, 4] float32 in [0, 1]: the share of each pixel covered by each role but NOTHING."""
        return np.asarray(self._image.reduce(self._oversampling), np.float32) / np.float32(255)

    def polygon(self, points: Sequence[Point] | np.ndarray, role: Role = Role.BODY) -> None:
        """Fills the outline through `points`."""
        self._draw.polygon(self._placed(points), fill=role.value)

    def symmetric(self, right: Sequence[Point], role: Role = Role.BODY, smooth: bool = False) -> None:
        """Fills a mirror-symmetric outline given by its right half, from top to bottom."""
        points = [*right, *((-x, y) for x, y in reversed(right))]
        (self.curve if smooth else self.polygon)(points, role)

    def curve(self, points: Sequence[Point], role: Role = Role.BODY) -> None:
        """Fills the smooth closed outline through `points` (a Catmull-Rom spline)."""
        corners = np.asarray(points, np.float64)
        neighbors = np.stack([np.roll(corners, shift, axis=0) for shift in (1, 0, -1, -2)])
        self.polygon(np.einsum("sk,knc->nsc", _spline_basis(), neighbors).reshape(-1, 2), role)

    def ellipse(
        self, x: float, y: float, radius_x: float, radius_y: float, role: Role = Role.BODY, turn: float = 0.0
    ) -> None:
        """Fills an ellipse around (x, y), rotated clockwise by `turn` degrees."""
        outline = _circle() * (radius_x, radius_y)
        if turn:
            cosine, sine = np.cos(np.radians(turn)), np.sin(np.radians(turn))
            outline = outline @ np.array([[cosine, sine], [-sine, cosine]])
        self.polygon(outline + (x, y), role)

    def box(
        self, left: float, top: float, right: float, bottom: float, role: Role = Role.BODY, corner: float = 0.0
    ) -> None:
        """Fills a rectangle with corners of radius `corner`."""
        if not corner:
            self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], role)
            return
        corner = min(corner, (right - left) / 2, (bottom - top) / 2)
        center = np.array([(left + right) / 2, (top + bottom) / 2])
        inner = np.array([(right - left) / 2, (bottom - top) / 2]) - corner
        circle = _circle()
        self.polygon(center + circle * corner + np.sign(circle.round(6)) * inner, role)

    def line(self, points: Sequence[Point] | np.ndarray, width: float, role: Role = Role.BODY) -> None:
        """Draws a line through `points` with round ends, at least 0.8 pixels wide."""
        placed = self._placed(points)
        pixels = max(width * self._pixels_per_unit, 0.8 * self._oversampling)
        self._draw.line(placed, fill=role.value, width=max(round(pixels), 1), joint="curve")
        radius = pixels / 2
        for x, y in (placed[:2], placed[-2:]):
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=role.value)

    def arc(
        self,
        x: float,
        y: float,
        radius_x: float,
        radius_y: float,
        start: float,
        end: float,
        width: float,
        role: Role = Role.BODY,
    ) -> None:
        """Draws part of an ellipse's outline, from `start` to `end` in degrees, clockwise from the right."""
        angles = np.radians(np.linspace(start, end, 2 + int(abs(end - start) / 12)))
        self.line(np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1), width, role)

    def text(self, words: str, x: float, y: float, height: float, role: Role = Role.DARK) -> None:
        """Writes `words` centered on (x, y), always horizontal, with `height` in product units."""
        pixels = max(height * self._pixels_per_unit, 4.0)
        left, top = self._placed([(x, y)])
        self._draw.text((left, top), words, fill=role.value, font=_font(max(round(pixels), 4)), anchor="mm")

    def _placed(self, points: Sequence[Point] | np.ndarray) -> list[float]:
        return (np.asarray(points, np.float64) @ self._matrix + self._offset).ravel().tolist()


@functools.cache
def _circle() -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False) + np.pi / 36
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)  # [36, 2]


@functools.cache
def _spline_basis(samples: int = 6) -> np.ndarray:
    t = np.arange(samples) / samples
    powers = np.stack([np.ones_like(t), t, t**2, t**3], axis=1)
    catmull_rom = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2
    return powers @ catmull_rom  # [samples, 4]


@functools.lru_cache(maxsize=64)
def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=pixels)
