"""Outlines of clothes and accessories: one function per product, with the name of the product (see `silhouettes`)."""

# ruff: noqa: D103

import numpy as np

from convoy.input_pipeline.sample.pen import Pen, Role, Vary

BODY, ACCENT, DARK, LIGHT, NOTHING = Role.BODY, Role.ACCENT, Role.DARK, Role.LIGHT, Role.NOTHING


def t_shirt(pen: Pen, vary: Vary) -> None:
    width, sleeve, hem = vary(0.42, 0.56), vary(0.22, 0.42), vary(0.65, 0.92)
    end = -0.66 + sleeve * 1.1
    pen.symmetric(
        [(0.2, -0.82), (width, -0.7), (width + sleeve, end), (width + sleeve - 0.24, end + 0.2), (width, -0.2)]
        + [(width + vary(-0.03, 0.05), hem)]
    )
    pen.ellipse(0, -0.8, 0.22, vary(0.1, 0.24), DARK)
    if vary(0, 1) > 0.5:
        pen.ellipse(0, 0.05, 0.2, 0.2, ACCENT)


def dress(pen: Pen, vary: Vary) -> None:
    flare, waist, hem = vary(0.5, 0.85), vary(0.16, 0.25), vary(0.75, 0.97)
    pen.line([(0.24, -0.97), (0.22, -0.65)], 0.08)
    pen.line([(-0.24, -0.97), (-0.22, -0.65)], 0.08)
    pen.symmetric([(0, -0.58), (0.26, -0.75), (0.31, -0.45), (waist, -0.12), (flare, hem)])
    pen.box(-waist - 0.02, -0.2, waist + 0.02, -0.06, ACCENT)
    if vary(0, 1) > 0.5:
        pen.polygon([(-flare, hem), (-flare + 0.06, hem - 0.16), (flare - 0.06, hem - 0.16), (flare, hem)], ACCENT)


def trousers(pen: Pen, vary: Vary) -> None:
    waist, leg, hem = vary(0.32, 0.44), vary(0.2, 0.38), vary(0.55, 0.97)
    outer = waist + vary(0.02, 0.2)
    pen.symmetric([(waist, -0.93), (outer, hem), (outer - leg, hem), (0.03, -0.3)])
    pen.box(-waist, -0.95, waist, -0.8, ACCENT)
    pen.line([(0, -0.8), (0, -0.32)], 0.04, DARK)
    pen.line([(waist * 0.4, -0.75), (waist, -0.5)], 0.04, DARK)
    pen.line([(-waist * 0.4, -0.75), (-waist, -0.5)], 0.04, DARK)


def sneaker(pen: Pen, vary: Vary) -> None:
    ankle, sole = vary(-0.3, -0.62), vary(0.13, 0.24)
    pen.curve(
        [(-0.85, ankle), (-0.5, ankle + 0.1), (-0.18, ankle - 0.06), (0.12, -0.12), (0.6, 0.08), (0.93, 0.32)]
        + [(0.85, 0.48), (-0.85, 0.48)]
    )
    pen.box(-0.92, 0.4, 0.96, 0.4 + sole, LIGHT, corner=0.08)
    pen.line([(-0.92, 0.44 + sole), (0.94, 0.44 + sole)], 0.06, DARK)
    for step in range(3):
        x, y = -0.1 + 0.2 * step, ankle * (0.5 - 0.25 * step) + 0.02 + 0.05 * step
        pen.line([(x - 0.06, y + 0.1), (x + 0.12, y)], 0.06, LIGHT)
    pen.polygon([(-0.6, 0.38), (-0.4, 0.38), (-0.1, -0.05), (-0.28, -0.08)], ACCENT)
    pen.ellipse(-0.55, ankle + 0.07, 0.22, 0.06, DARK)


def handbag(pen: Pen, vary: Vary) -> None:
    top, bottom, rim = vary(0.45, 0.68), vary(0.68, 0.92), vary(-0.25, 0.0)
    pen.arc(0, rim, vary(0.3, 0.42), 0.9 + rim, 180, 360, vary(0.08, 0.14), ACCENT)
    pen.symmetric([(top, rim), (bottom, 0.72), (bottom - 0.1, 0.82)])
    pen.polygon([(-top, rim), (top, rim), (top * 0.8, rim + 0.36), (-top * 0.8, rim + 0.36)], ACCENT)
    pen.box(-0.1, rim + 0.26, 0.1, rim + 0.46, LIGHT)


def watch(pen: Pen, vary: Vary) -> None:
    strap, case = vary(0.16, 0.27), vary(0.38, 0.52)
    pen.symmetric([(strap * 0.8, -1.0), (strap, -0.4), (strap, 0.4), (strap * 0.8, 1.0)], ACCENT)
    for y in (-0.85, -0.7, 0.7, 0.82):
        pen.line([(-0.04, y), (0.04, y)], 0.05, DARK)
    pen.box(case - 0.05, -0.08, case + 0.12, 0.08)
    if vary(0, 1) > 0.6:
        pen.box(-case, -case, case, case, BODY, corner=0.14)
        pen.box(-case + 0.1, -case + 0.1, case - 0.1, case - 0.1, LIGHT, corner=0.08)
    else:
        pen.ellipse(0, 0, case, case)
        pen.ellipse(0, 0, case - 0.1, case - 0.1, LIGHT)
    pen.line([(0, -case * 0.6), (0, 0), (vary(0.1, 0.25), vary(-0.15, 0.2))], 0.06, DARK)


def headphones(pen: Pen, vary: Vary) -> None:
    width, cup = vary(0.58, 0.74), vary(0.16, 0.26)
    pen.arc(0, 0.2, width, vary(0.85, 1.05), 180, 360, vary(0.1, 0.18))
    for side in (-1, 1):
        pen.ellipse(side * (width - 0.1), 0.35, cup * 0.8, 0.4, DARK)
        pen.ellipse(side * (width + 0.06), 0.35, cup, 0.38, ACCENT)


def glasses(pen: Pen, vary: Vary) -> None:
    radius_x, radius_y, rim = vary(0.34, 0.44), vary(0.24, 0.4), vary(0.08, 0.14)
    shaded = DARK if vary(0, 1) > 0.5 else LIGHT
    for side in (-1, 1):
        pen.line([(side * 0.85, -0.1), (side * 0.98, -0.2), (side * 0.94, 0.15)], 0.08)
        pen.ellipse(side * 0.47, 0.0, radius_x + rim / 2, radius_y + rim / 2)
        pen.ellipse(side * 0.47, 0.0, radius_x - rim / 2, radius_y - rim / 2, shaded)
        pen.line([(side * 0.47 - 0.14, 0.08), (side * 0.47 + 0.04, -0.12)], 0.05, ACCENT)
    pen.arc(0, -0.02, 0.12, 0.12, 190, 350, 0.09)


def umbrella(pen: Pen, vary: Vary) -> None:
    dome, width = vary(0.75, 1.0), vary(0.85, 0.98)
    pen.line([(0, -0.98), (0, 0.75)], 0.07, DARK)
    pen.arc(0.14, 0.76, 0.14, 0.17, 0, 180, 0.09, DARK)
    angles = np.radians(np.linspace(180, 360, 20))
    canopy = np.stack([width * np.cos(angles), 0.12 + dome * np.sin(angles)], axis=1)
    hem = [(width * x, 0.12 - dip) for x, dip in ((0.75, 0.1), (0.5, 0), (0.25, 0.1), (0, 0), (-0.25, 0.1))]
    hem += [(width * -0.5, 0.12), (width * -0.75, 0.02)]
    pen.polygon([*map(tuple, canopy), *hem])
    pen.polygon([(0, 0.12 - dome), (-0.5 * width, 0.12), (-0.25 * width, 0.02), (0, 0.12)], ACCENT)
    pen.polygon([(0, 0.12 - dome), (0.5 * width, 0.12), (0.75 * width, 0.02), (width, 0.12)], ACCENT)


def backpack(pen: Pen, vary: Vary) -> None:
    width, pocket = vary(0.48, 0.62), vary(0.1, 0.35)
    pen.arc(0, -0.72, 0.16, 0.2, 180, 360, 0.08, DARK)
    for side in (-1, 1):
        pen.box(side * width - 0.14, 0.15, side * width + 0.14, 0.75, ACCENT, corner=0.1)
        pen.line([(side * width * 0.7, -0.65), (side * (width + 0.14), -0.2), (side * width, 0.3)], 0.1, DARK)
    pen.box(-width, -0.78, width, 0.9, BODY, corner=vary(0.25, 0.5))
    pen.box(-width * 0.75, pocket, width * 0.75, 0.75, ACCENT, corner=0.12)
    pen.line([(-width * 0.75, pocket + 0.14), (width * 0.75, pocket + 0.14)], 0.05, DARK)
    pen.arc(0, -0.2, width * 0.75, 0.3, 180, 360, 0.05, DARK)


def key(pen: Pen, vary: Vary) -> None:
    bow, hole, shaft = vary(0.32, 0.42), vary(0.13, 0.2), vary(0.13, 0.2)
    if vary(0, 1) > 0.5:
        pen.box(-0.55 - bow, -bow, -0.55 + bow, bow, BODY, corner=0.12)
    else:
        pen.ellipse(-0.55, 0, bow, bow)
    pen.ellipse(-0.58, 0, hole, hole, NOTHING)
    pen.box(-0.25, -shaft / 2, 0.96, shaft / 2)
    for x, depth in ((0.42, vary(0.2, 0.3)), (0.62, vary(0.14, 0.24)), (0.82, vary(0.24, 0.36))):
        pen.box(x, 0, x + 0.13, shaft / 2 + depth)
    pen.line([(-0.2, 0), (0.85, 0)], 0.04, ACCENT)


def cap(pen: Pen, vary: Vary) -> None:
    crown, peak = vary(0.62, 0.85), vary(0.75, 0.98)
    pen.curve([(0.2, 0.12), (peak, 0.32), (0.95, 0.46), (0.4, 0.4), (-0.2, 0.34)], ACCENT)
    angles = np.radians(np.linspace(180, 360, 16))
    pen.polygon(np.stack([-0.2 + 0.68 * np.cos(angles), 0.3 + crown * np.sin(angles)], axis=1))
    pen.line([(-0.88, 0.3), (0.48, 0.3)], 0.1, DARK)
    pen.arc(-0.2, 0.3, 0.28, crown, 180, 360, 0.04, DARK)
    pen.ellipse(-0.2, 0.3 - crown, 0.08, 0.06, ACCENT)
    if vary(0, 1) > 0.5:
        pen.ellipse(0.12, -0.02, 0.15, 0.15, LIGHT)


def ring(pen: Pen, vary: Vary) -> None:
    radius, band, stone = vary(0.46, 0.6), vary(0.1, 0.18), vary(0.22, 0.36)
    pen.arc(0, 0.3, radius, radius, 0, 360, band)
    top = 0.3 - radius
    pen.polygon(
        [
            (-stone, top - 0.2),
            (-stone * 0.6, top - 0.44),
            (stone * 0.6, top - 0.44),
            (stone, top - 0.2),
            (0, top + 0.1),
        ],
        ACCENT,
    )
    pen.polygon([(-stone * 0.4, top - 0.2), (0, top - 0.4), (stone * 0.4, top - 0.2), (0, top + 0.02)], LIGHT)


def high_heel(pen: Pen, vary: Vary) -> None:
    top, heel = vary(-0.6, -0.35), vary(0.05, 0.16)
    pen.curve(
        [(-0.86, top), (-0.5, top + 0.14), (-0.12, 0.22), (0.3, 0.38), (0.52, 0.28), (0.95, 0.6), (0.85, 0.7)]
        + [(0.25, 0.68), (-0.15, 0.52), (-0.5, 0.08), (-0.8, 0.02)]
    )
    pen.polygon([(-0.86, -0.1), (-0.55, 0.0), (-0.72 + heel, 0.72), (-0.74, 0.72)])
    pen.line([(0.2, 0.7), (0.88, 0.7)], 0.06, DARK)
    if vary(0, 1) > 0.5:
        pen.arc(-0.62, top + 0.02, 0.27, 0.12, 0, 360, 0.06, ACCENT)
    pen.ellipse(0.56, 0.4, 0.1, 0.07, ACCENT)


def sock(pen: Pen, vary: Vary) -> None:
    top, toe = vary(-0.95, -0.5), vary(0.6, 0.85)
    pen.curve(
        [(-0.42, top), (0.12, top), (0.14, -0.1), (0.3, 0.2), (toe, 0.4), (toe + 0.08, 0.72), (0.45, 0.85)]
        + [(-0.05, 0.72), (-0.42, 0.5), (-0.42, 0.0)]
    )
    pen.box(-0.47, top - 0.04, 0.17, top + 0.2, ACCENT, corner=0.05)
    pen.ellipse(-0.28, 0.52, 0.17, 0.2, ACCENT, turn=-30)
    pen.ellipse(toe - 0.08, 0.62, 0.19, 0.23, ACCENT, turn=-20)
    if vary(0, 1) > 0.4:
        pen.line([(-0.42, top + 0.38), (0.12, top + 0.38)], 0.1, LIGHT)


def lipstick(pen: Pen, vary: Vary) -> None:
    width, slant, collar = vary(0.24, 0.34), vary(0.12, 0.36), vary(0.05, 0.25)
    pen.polygon([(-width * 0.65, collar), (width * 0.65, collar), (width * 0.65, -0.9 + slant), (-width * 0.65, -0.93)])
    pen.box(-width * 0.8, collar - 0.3, width * 0.8, collar + 0.1, ACCENT)
    pen.line([(-width * 0.4, collar - 0.25), (-width * 0.4, collar + 0.05)], 0.06, LIGHT)
    pen.box(-width, collar + 0.04, width, 0.95, DARK, corner=0.04)
    pen.box(-width, collar + 0.1, width, collar + 0.2, LIGHT)
    if vary(0, 1) > 0.5:
        pen.box(width + 0.14, 0.1, width * 2.6 + 0.14, 0.95, DARK, corner=0.06)


def suitcase(pen: Pen, vary: Vary) -> None:
    width, top = vary(0.44, 0.6), vary(-0.5, -0.3)
    pen.line([(-0.22, top), (-0.22, -0.94), (0.22, -0.94), (0.22, top)], 0.08, DARK)
    for side in (-1, 1):
        pen.ellipse(side * (width - 0.12), 0.9, 0.1, 0.09, DARK)
    pen.box(-width, top, width, 0.86, BODY, corner=vary(0.08, 0.2))
    for x in np.linspace(-width + 0.16, width - 0.16, 4):
        pen.line([(x, top + 0.12), (x, 0.74)], 0.05, ACCENT)
    pen.box(-0.14, top - 0.06, 0.14, top + 0.05, DARK)
    pen.line([(-width, 0.2), (width, 0.2)], 0.05, DARK)


def tie(pen: Pen, vary: Vary) -> None:
    wide, knot = vary(0.22, 0.36), vary(0.13, 0.2)
    pen.symmetric([(knot * 0.6, -0.72), (wide, 0.62), (0.02, 0.97)])
    pen.symmetric([(knot, -0.97), (knot * 0.6, -0.66)], ACCENT)
    for y in np.arange(-0.4, 0.5, vary(0.28, 0.4)):
        half = knot * 0.6 + (wide - knot * 0.6) * (y + 0.72) / 1.34
        pen.polygon([(-half, y + 0.1), (half, y - 0.08), (half, y + 0.04), (-half, y + 0.22)], ACCENT)
