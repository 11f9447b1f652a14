"""Outlines of household products: one function per product, with the name of the product (see `silhouettes`)."""

# ruff: noqa: D103

import numpy as np

from convoy.input_pipeline.sample.pen import Pen, Role, Vary

BODY, ACCENT, DARK, LIGHT = Role.BODY, Role.ACCENT, Role.DARK, Role.LIGHT


def bottle(pen: Pen, vary: Vary) -> None:
    width, neck, shoulder = vary(0.26, 0.42), vary(0.1, 0.17), vary(-0.5, -0.15)
    pen.symmetric([(neck, -0.85), (neck, shoulder - 0.2), (width, shoulder + 0.1), (width, 0.88), (width - 0.06, 0.96)])
    pen.box(-neck - 0.03, -0.97, neck + 0.03, -0.75, DARK, corner=0.04)
    pen.box(-width, vary(0.05, 0.2), width, vary(0.5, 0.75), LIGHT)
    pen.box(-width * 0.6, 0.3, width * 0.6, 0.42, ACCENT)


def mug(pen: Pen, vary: Vary) -> None:
    height, narrow = vary(0.5, 0.72), vary(0.0, 0.14)
    pen.arc(0.42, 0.05, vary(0.28, 0.42), vary(0.28, 0.42), -100, 100, vary(0.11, 0.18))
    pen.polygon([(-0.62, -height), (0.46, -height), (0.46 - narrow, height), (-0.62 + narrow, height)])
    pen.ellipse(-0.08, height, 0.54 - narrow, 0.1)
    pen.ellipse(-0.08, -height, 0.54, 0.14, LIGHT)
    pen.ellipse(-0.08, -height + 0.02, 0.45, 0.1, DARK)
    if vary(0, 1) > 0.5:
        pen.box(-0.58, -0.1, 0.42, 0.22, ACCENT)
    else:
        pen.ellipse(-0.08, 0.08, 0.22, 0.22, ACCENT)


def table_lamp(pen: Pen, vary: Vary) -> None:
    top, bottom, edge = vary(0.2, 0.42), vary(0.55, 0.75), vary(-0.25, 0.0)
    if vary(0, 1) > 0.5:
        pen.ellipse(0, 0.45, 0.26, 0.36, ACCENT)
    pen.line([(0, edge), (0, 0.85)], vary(0.08, 0.14), ACCENT)
    pen.ellipse(0, 0.86, vary(0.32, 0.48), 0.12, ACCENT)
    pen.symmetric([(top, -0.95), (bottom, edge)])
    pen.line([(-bottom, edge), (bottom, edge)], 0.07, LIGHT)
    pen.line([(0.28, edge), (0.28, edge + 0.3)], 0.03, DARK)


def chair(pen: Pen, vary: Vary) -> None:
    seat, lean = vary(0.0, 0.16), vary(0.0, 0.14)
    for start, end in ((-0.42, -0.42), (0.5, 0.55), (-0.22, -0.2), (0.36, 0.34)):
        pen.line([(start, seat), (end, 0.95)], 0.09, ACCENT)
    pen.line([(-0.42, seat), (-0.42 - lean, -0.95)], 0.1, ACCENT)
    pen.line([(0.32, seat - 0.1), (0.32 - lean, -0.95)], 0.1, ACCENT)
    if vary(0, 1) > 0.5:
        pen.polygon([(-0.4 - lean, -0.95), (0.3 - lean, -0.95), (0.32, -0.3), (-0.42, -0.3)])
    else:
        for y in (-0.85, -0.58, -0.3):
            pen.line([(-0.42 - lean * -y, y), (0.32 - lean * -y, y)], 0.14)
    pen.polygon([(-0.48, seat), (0.34, seat - 0.1), (0.62, seat + 0.06), (0.56, seat + 0.2), (-0.48, seat + 0.2)])


def toy_car(pen: Pen, vary: Vary) -> None:
    roof, wheel, hood = vary(-0.62, -0.4), vary(0.18, 0.27), vary(0.45, 0.75)
    pen.polygon([(-0.72, -0.05), (-0.5, roof), (0.22, roof), (hood, -0.05)])
    pen.polygon([(-0.58, -0.06), (-0.44, roof + 0.1), (-0.16, roof + 0.1), (-0.16, -0.06)], LIGHT)
    pen.polygon([(-0.06, -0.06), (-0.06, roof + 0.1), (0.16, roof + 0.1), (hood - 0.16, -0.06)], LIGHT)
    pen.box(-0.96, -0.08, 0.97, 0.36, BODY, corner=0.16)
    pen.line([(-0.9, 0.18), (0.9, 0.18)], 0.06, ACCENT)
    pen.ellipse(0.88, 0.04, 0.08, 0.08, LIGHT)
    for x in (-0.54, 0.54):
        pen.ellipse(x, 0.38, wheel, wheel, DARK)
        pen.ellipse(x, 0.38, wheel * 0.45, wheel * 0.45, LIGHT)


def teapot(pen: Pen, vary: Vary) -> None:
    round_x, round_y = vary(0.5, 0.62), vary(0.42, 0.56)
    pen.arc(-round_x, 0.15, 0.32, 0.34, 80, 285, 0.12, ACCENT)
    pen.polygon([(0.3, 0.1), (0.62, 0.02), (0.8, -0.4), (1.0, -0.36), (0.82, 0.25), (0.4, 0.6)])
    pen.ellipse(0, 0.22, round_x, round_y)
    pen.ellipse(0, 0.22 - round_y + 0.06, 0.34, 0.14, ACCENT)
    pen.ellipse(0, 0.22 - round_y - 0.14, 0.1, 0.1, DARK)
    pen.box(-0.34, 0.16 + round_y, 0.34, 0.28 + round_y, DARK, corner=0.05)


def camera(pen: Pen, vary: Vary) -> None:
    lens, top = vary(0.34, 0.46), vary(-0.45, -0.32)
    pen.polygon([(-0.3, top), (-0.2, top - 0.26), (0.2, top - 0.26), (0.3, top)], ACCENT)
    pen.box(-0.76, top - 0.12, -0.5, top + 0.1, DARK)
    pen.box(-0.92, top, 0.92, 0.65, BODY, corner=vary(0.06, 0.2))
    pen.box(-0.92, top + 0.02, 0.92, top + 0.16, ACCENT)
    pen.ellipse(0, 0.16, lens + 0.08, lens + 0.08, LIGHT)
    pen.ellipse(0, 0.16, lens, lens, DARK)
    pen.ellipse(0, 0.16, lens * 0.55, lens * 0.55, ACCENT)
    pen.ellipse(-0.1, 0.05, 0.08, 0.08, LIGHT)
    pen.box(0.58, top + 0.22, 0.8, top + 0.36, LIGHT)


def clock(pen: Pen, vary: Vary) -> None:
    radius = vary(0.62, 0.74)
    if vary(0, 1) > 0.5:
        for side in (-1, 1):
            pen.ellipse(side * 0.45, -0.68, 0.28, 0.2, ACCENT, turn=side * 35)
            pen.line([(side * 0.35, 0.6), (side * 0.52, 0.95)], 0.13, ACCENT)
    pen.ellipse(0, 0.05, radius + 0.14, radius + 0.14)
    pen.ellipse(0, 0.05, radius, radius, LIGHT)
    for angle in np.radians(np.arange(0, 360, 30)):
        x, y = np.cos(angle), np.sin(angle)
        pen.line(
            [(0.76 * radius * x, 0.05 + 0.76 * radius * y), (0.9 * radius * x, 0.05 + 0.9 * radius * y)], 0.06, DARK
        )
    hour, minute = np.radians(vary(180, 360)), np.radians(vary(-90, 90))
    pen.line([(0, 0.05), (radius * 0.45 * np.cos(hour), 0.05 + radius * 0.45 * np.sin(hour))], 0.1, DARK)
    pen.line([(0, 0.05), (radius * 0.65 * np.cos(minute), 0.05 + radius * 0.65 * np.sin(minute))], 0.06, ACCENT)


def frying_pan(pen: Pen, vary: Vary) -> None:
    radius, grip = vary(0.48, 0.6), vary(0.11, 0.18)
    pen.line([(0.1, 0), (0.92, 0)], grip, ACCENT)
    pen.ellipse(0.88, 0, 0.04, 0.04, LIGHT)
    pen.ellipse(-0.4, 0, radius, radius)
    pen.ellipse(-0.4, 0, radius - 0.1, radius - 0.1, DARK)
    if vary(0, 1) > 0.5:
        pen.curve([(-0.65, -0.1), (-0.4, -0.28), (-0.15, -0.1), (-0.2, 0.18), (-0.45, 0.24), (-0.66, 0.12)], LIGHT)
        pen.ellipse(-0.4, 0, 0.12, 0.12, ACCENT)


def book(pen: Pen, vary: Vary) -> None:
    width, height, thickness = vary(0.45, 0.62), vary(0.78, 0.92), vary(0.1, 0.22)
    pen.polygon(
        [(width, -height), (width + thickness, -height + 0.1), (width + thickness, height + 0.08), (width, height)],
        LIGHT,
    )
    pen.line([(width + thickness / 2, -height + 0.12), (width + thickness / 2, height)], 0.03, DARK)
    pen.polygon(
        [(-width, height), (width, height), (width + thickness, height + 0.08), (-width + 0.1, height + 0.08)], DARK
    )
    pen.box(-width, -height, width, height)
    pen.box(-width, -height, -width + 0.14, height, ACCENT)
    pen.box(-width + 0.28, -height * 0.7, width - 0.12, -height * 0.3, LIGHT)
    pen.line([(-width + 0.36, -height * 0.5), (width - 0.2, -height * 0.5)], 0.06, DARK)
    pen.ellipse(0.07, height * 0.35, 0.2, 0.2, ACCENT)


def phone(pen: Pen, vary: Vary) -> None:
    width, frame = vary(0.4, 0.52), vary(0.05, 0.1)
    pen.box(-width, -0.94, width, 0.94, DARK, corner=vary(0.08, 0.22))
    pen.box(-width + frame, -0.84 + frame, width - frame, 0.84 - frame, BODY, corner=0.05)
    for row in range(3):
        for column in range(3):
            x, y = (column - 1) * width * 0.52, -0.42 + row * 0.32
            pen.box(x - 0.08, y - 0.08, x + 0.08, y + 0.08, LIGHT if (row + column) % 2 else ACCENT, corner=0.03)
    pen.line([(-0.1, -0.84), (0.1, -0.84)], 0.05, LIGHT)
    pen.ellipse(0, 0.84, 0.06, 0.06, LIGHT)


def laptop(pen: Pen, vary: Vary) -> None:
    width, top, front = vary(0.62, 0.74), vary(-0.8, -0.6), vary(0.5, 0.68)
    pen.box(-width, top, width, 0.2, DARK, corner=0.06)
    pen.box(-width + 0.08, top + 0.08, width - 0.08, 0.12)
    pen.box(-width + 0.18, top + 0.2, -0.05, top + 0.5, LIGHT)
    pen.line([(0.08, top + 0.26), (width - 0.2, top + 0.26)], 0.05, ACCENT)
    pen.line([(0.08, top + 0.42), (width - 0.3, top + 0.42)], 0.05, ACCENT)
    pen.polygon([(-width, 0.2), (width, 0.2), (0.97, front), (-0.97, front)], ACCENT)
    pen.polygon([(-width + 0.06, 0.25), (width - 0.06, 0.25), (0.76, front - 0.14), (-0.76, front - 0.14)], DARK)
    pen.box(-0.97, front - 0.02, 0.97, front + 0.07, DARK)


def ball(pen: Pen, vary: Vary) -> None:
    radius, make = vary(0.72, 0.9), vary(0, 1)
    pen.ellipse(0, 0, radius, radius)
    if make > 0.66:
        for angle in range(0, 360, 120):
            edge = np.radians(np.linspace(angle, angle + 60, 6))
            rim = np.stack([radius * np.cos(edge), radius * np.sin(edge)], axis=1)
            pen.polygon([(0.0, 0.0), *map(tuple, rim)], ACCENT)
        pen.ellipse(0, 0, 0.14, 0.14, LIGHT)
    elif make > 0.33:
        pen.line([(-radius, 0), (radius, 0)], 0.06, DARK)
        pen.line([(0, -radius), (0, radius)], 0.06, DARK)
        pen.arc(-radius, 0, 0.5, 0.75, -60, 60, 0.06, DARK)
        pen.arc(radius, 0, 0.5, 0.75, 120, 240, 0.06, DARK)
    else:
        angles = np.radians(np.arange(-90, 270, 72))
        spokes = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        pen.polygon(spokes * radius * 0.34, DARK)
        for spoke in spokes:
            pen.line([tuple(spoke * radius * 0.3), tuple(spoke * radius * 0.7)], 0.05, DARK)
            x, y = spoke * radius * 0.8
            pen.ellipse(x, y, 0.15, 0.15, DARK)


def sofa(pen: Pen, vary: Vary) -> None:
    back, arm = vary(-0.6, -0.35), vary(0.22, 0.34)
    for x in (-0.8, 0.8):
        pen.line([(x, 0.55), (x, 0.75)], 0.1, DARK)
    pen.box(-0.85, back, 0.85, 0.4, BODY, corner=vary(0.1, 0.28))
    pen.box(-0.9, 0.25, 0.9, 0.58, BODY, corner=0.06)
    pen.line([(0, back + 0.05), (0, 0.55)], 0.04, DARK)
    pen.box(-0.7, 0.05, -0.02, 0.32, ACCENT, corner=0.1)
    pen.box(0.02, 0.05, 0.7, 0.32, ACCENT, corner=0.1)
    for side in (-1, 1):
        center = side * (1 - arm / 2)
        pen.box(center - arm / 2, -0.12, center + arm / 2, 0.6, BODY, corner=0.14)
        pen.line([(side * (1 - arm), -0.02), (side * (1 - arm), 0.55)], 0.04, DARK)


def scissors(pen: Pen, vary: Vary) -> None:
    opening, loop = vary(0.12, 0.36), vary(0.2, 0.28)
    for side in (-1, 1):
        tip = (side * opening, -0.96)
        pen.polygon([tip, (side * 0.13, 0.1), (-side * 0.14, 0.35), (-side * 0.1, 0.02)])
        pen.line([(0, 0.1), (-side * 0.28, 0.42)], 0.15, ACCENT)
        pen.arc(-side * (loop + 0.14), 0.64, loop, loop + 0.05, 0, 360, 0.13, ACCENT)
    pen.ellipse(0, 0.08, 0.06, 0.06, DARK)


def guitar(pen: Pen, vary: Vary) -> None:
    lower, waist = vary(0.42, 0.54), vary(0.22, 0.3)
    pen.box(-0.07, -0.85, 0.07, 0.2, ACCENT)
    pen.box(-0.13, -1.0, 0.13, -0.76, DARK, corner=0.03)
    pen.symmetric(
        [(0.12, -0.2), (0.32, -0.12), (waist, 0.16), (lower, 0.5), (lower * 0.85, 0.82), (0.12, 0.96)], smooth=True
    )
    pen.box(-0.06, -0.3, 0.06, 0.1, ACCENT)
    pen.ellipse(0, 0.26, 0.15, 0.15, DARK)
    pen.line([(-0.18, 0.66), (0.18, 0.66)], 0.08, DARK)
    pen.line([(0, -0.9), (0, 0.66)], 0.03, LIGHT)


def bicycle(pen: Pen, vary: Vary) -> None:
    radius, tube = vary(0.34, 0.42), vary(0.07, 0.12)
    for x in (-0.56, 0.56):
        pen.arc(x, 0.38, radius, radius, 0, 360, 0.08, DARK)
        pen.ellipse(x, 0.38, 0.06, 0.06, DARK)
    crank, seat, head = (-0.08, 0.38), (-0.28, -0.2), (0.4, -0.24)
    pen.line([(-0.56, 0.38), crank, head, seat, (-0.56, 0.38)], tube)
    pen.line([crank, seat, (-0.32, -0.38)], tube)
    pen.line([(0.56, 0.38), head, (0.34, -0.48)], tube)
    pen.line([(-0.5, -0.4), (-0.16, -0.38)], 0.13, ACCENT)
    pen.line(
        [(0.2, -0.48), (0.36, -0.5), (0.5, -0.4)] if vary(0, 1) > 0.5 else [(0.16, -0.56), (0.5, -0.46)], 0.09, ACCENT
    )
    pen.ellipse(*crank, 0.1, 0.1, ACCENT)


def hammer(pen: Pen, vary: Vary) -> None:
    head, grip = vary(0.26, 0.4), vary(0.13, 0.2)
    pen.line([(0, -0.65), (0, 0.9)], grip, ACCENT)
    pen.line([(0, 0.45), (0, 0.9)], grip + 0.06, DARK)
    pen.box(-0.3, -0.72 - head / 2, 0.36, -0.72 + head / 2)
    pen.box(0.36, -0.76 - head / 2, 0.6, -0.68 + head / 2, BODY, corner=0.04)
    if vary(0, 1) > 0.35:
        pen.curve([(-0.28, -0.72 - head / 2), (-0.6, -0.76), (-0.85, -0.4), (-0.6, -0.58), (-0.28, -0.72 + head / 2)])
    else:
        pen.box(-0.6, -0.76 - head / 2, -0.3, -0.68 + head / 2, BODY, corner=0.04)


def potted_plant(pen: Pen, vary: Vary) -> None:
    rim, leaves, long = vary(0.34, 0.5), round(vary(4.6, 7.4)), vary(0.42, 0.6)
    for angle in np.linspace(-155, -25, leaves):
        x, y = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        pen.ellipse(long * x, 0.2 + 1.35 * long * y, long * 0.72, vary(0.11, 0.19), ACCENT, turn=angle)
        pen.line([(0, 0.25), (1.3 * long * x, 0.2 + 1.8 * long * y)], 0.03, DARK)
    pen.symmetric([(rim, 0.25), (rim * 0.68, 0.95)])
    pen.box(-rim - 0.07, 0.15, rim + 0.07, 0.36)
    pen.line([(-rim, 0.4), (rim, 0.4)], 0.04, DARK)


def television(pen: Pen, vary: Vary) -> None:
    height, frame = vary(0.5, 0.62), vary(0.05, 0.1)
    if vary(0, 1) > 0.5:
        pen.line([(0, 0.3), (0, 0.75)], 0.16, DARK)
        pen.box(-0.4, 0.7, 0.4, 0.8, DARK)
    else:
        pen.line([(-0.6, 0.4), (-0.72, 0.8)], 0.09, DARK)
        pen.line([(0.6, 0.4), (0.72, 0.8)], 0.09, DARK)
    pen.box(-0.98, -0.05 - height, 0.98, -0.05 + height, DARK, corner=0.05)
    pen.box(-0.98 + frame, -0.05 - height + frame, 0.98 - frame, -0.05 + height - frame)
    edge = -0.05 + height - frame
    pen.polygon([(-0.88, edge), (-0.4, edge - 0.5), (-0.1, edge - 0.2), (0.25, edge - 0.4), (0.85, edge)], ACCENT)
    pen.ellipse(0.5, -0.3, 0.14, 0.14, LIGHT)


def game_controller(pen: Pen, vary: Vary) -> None:
    grip, waist = vary(0.42, 0.68), vary(0.16, 0.3)
    pen.symmetric(
        [(0.15, -0.36), (0.6, -0.46), (0.9, -0.1), (0.96, grip), (0.72, grip + 0.08), (0.42, waist), (0.12, waist)],
        smooth=True,
    )
    pen.line([(-0.64, -0.12), (-0.36, -0.12)], 0.11, DARK)
    pen.line([(-0.5, -0.26), (-0.5, 0.02)], 0.11, DARK)
    for x, y in ((0.5, -0.26), (0.5, 0.02), (0.36, -0.12), (0.64, -0.12)):
        pen.ellipse(x, y, 0.075, 0.075, ACCENT)
    for side in (-1, 1):
        pen.ellipse(side * 0.22, 0.1, 0.13, 0.13, DARK)
    pen.box(-0.1, -0.26, 0.1, -0.14, LIGHT)


def teddy_bear(pen: Pen, vary: Vary) -> None:
    head, belly = vary(0.36, 0.46), vary(0.38, 0.5)
    for side in (-1, 1):
        pen.ellipse(side * head * 0.85, -0.76, 0.17, 0.17)
        pen.ellipse(side * head * 0.85, -0.76, 0.09, 0.09, ACCENT)
        pen.ellipse(side * (belly + 0.1), 0.12, 0.16, 0.32, BODY, turn=side * -vary(15, 50))
        pen.ellipse(side * 0.36, 0.76, 0.22, 0.2)
        pen.ellipse(side * 0.38, 0.78, 0.12, 0.12, ACCENT)
    pen.ellipse(0, 0.35, belly, 0.48)
    pen.ellipse(0, 0.38, belly * 0.6, 0.3, ACCENT)
    pen.ellipse(0, -0.45, head, head * 0.88)
    pen.ellipse(0, -0.33, 0.2, 0.16, LIGHT)
    pen.ellipse(0, -0.38, 0.08, 0.06, DARK)
    for side in (-1, 1):
        pen.ellipse(side * 0.17, -0.55, 0.055, 0.055, DARK)


def light_bulb(pen: Pen, vary: Vary) -> None:
    radius, neck = vary(0.46, 0.6), vary(0.18, 0.24)
    pen.symmetric(
        [(0.15, -0.95), (radius * 0.85, -0.72), (radius, -0.35), (radius * 0.72, 0.02), (neck, 0.36)], smooth=True
    )
    pen.line([(-0.12, 0.3), (-0.2, -0.25), (0, -0.1), (0.2, -0.25), (0.12, 0.3)], 0.05, ACCENT)
    pen.box(-neck, 0.34, neck, 0.82, DARK, corner=0.05)
    for y in (0.46, 0.6, 0.74):
        pen.line([(-neck, y), (neck, y - 0.05)], 0.05, LIGHT)
    pen.ellipse(0, 0.86, 0.1, 0.08, DARK)
    pen.ellipse(-radius * 0.5, -0.55, 0.08, 0.16, LIGHT, turn=30)


def fork(pen: Pen, vary: Vary) -> None:
    head, tines = vary(0.22, 0.32), round(vary(2.6, 4.4))
    pen.symmetric([(0.06, -0.1), (0.07, 0.3), (0.11, 0.8), (0.06, 0.98)], smooth=True)
    pen.symmetric([(head, -0.5), (head * 0.9, -0.2), (0.06, 0.05)], smooth=True)
    for x in np.linspace(-head + 0.02, head - 0.02, tines):
        pen.line([(x, -0.4), (x, -0.94)], 0.09)
    if vary(0, 1) > 0.5:
        pen.line([(0, 0.4), (0, 0.86)], 0.15, ACCENT)
