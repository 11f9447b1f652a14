"""Image files: damaged ones go through the converter and the reader, and what these accept is compared with Pillow."""

import contextlib
import io
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from convoy.input_pipeline.images.decoder import encode_checked
from convoy.input_pipeline.images.pixels import Pixels, reason
from convoy.input_pipeline.images.rgb import as_rgb, orientation
from tests.fuzz.runner import FAULT, UNHARMED, Outcome, refused
from tests.input_pipeline.zoo import ZOO, png_chunk

_LARGEST = 8_000  # bytes; larger files only take longer
_PIXELS = (Pixels(0, "keep"),) * 5 + (Pixels(0, "png"), Pixels(0, "raw"), Pixels(16, "keep"))
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# Largest mean difference of the two libraries' JPEGs by rounding (see test_pixels.py). It is larger if damaged
# coefficients exceed the range of a pixel, because libjpeg's result then depends on the transform.
MAX_MEAN_DIFFERENCE = 3.0


def damaged(random: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Returns a file with one to three random kinds of damage."""
    damage = _in_png_chunks if data.startswith(b"\x89PNG") and random.random() < 0.6 else _anywhere
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = damage(random, data, others)
    return data


def _anywhere(random: random.Random, data: bytes, others: list[bytes]) -> bytes:
    if len(data) < 4:
        return data
    changed = bytearray(data)
    # Half of the damage is in the header, where each bit matters most.
    place = random.randrange(min(len(data), 64) if random.random() < 0.5 else len(data))
    length = random.choice((1, 2, 4, 16, 100, len(data) // 3))
    match random.randrange(9):
        case 0 | 1:
            for _ in range(random.choice((1, 1, 2, 8))):
                changed[random.randrange(place, len(data))] ^= 1 << random.randrange(8)
        case 2:
            changed[place] = random.choice((0, 1, 2, 3, 6, 8, 16, 127, 128, 255))
        case 3:
            number = struct.pack(random.choice((">H", "<H", ">I", "<I"))[:1] + "I", random.choice(_NUMBERS))
            width = random.choice((2, 4))
            changed[place : place + width] = number[:width]
        case 4:
            del changed[place:]
        case 5:
            del changed[place : place + length]
        case 6:
            changed[place:place] = random.randbytes(length)
        case 7:
            start = random.randrange(len(data))
            changed[place:place] = data[start : start + length]
        case 8:
            other = random.choice(others)
            start = random.randrange(len(other))
            changed[place : place + length] = other[start : start + length]
    return bytes(changed)


def _in_png_chunks(random: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Damages the content or order of chunks, with correct checksums."""
    chunks = list(_png_chunks(data))
    if not chunks:
        return data
    i = random.randrange(len(chunks))
    name, body = chunks[i]
    match random.randrange(8):
        case 0 | 1 | 2:
            chunks[i] = (name, _anywhere(random, body, others))
        case 3 if name == b"IDAT":
            with contextlib.suppress(zlib.error):
                chunks[i] = (name, zlib.compress(_anywhere(random, zlib.decompress(body), others)))
        case 4:
            chunks.insert(random.randrange(len(chunks)), chunks[i])
        case 5:
            chunks.insert(random.randrange(len(chunks)), chunks.pop(i))
        case 6:
            chunks[i] = (random.choice((b"tRNS", b"PLTE", b"gAMA", b"eXIf", b"acTL", b"IEND", b"cICP", b"sBIT")), body)
        case _:
            extra = random.choice((b"tRNS", b"PLTE", b"gAMA", b"sBIT", b"bKGD", b"eXIf"))
            chunks.insert(
                random.randrange(1, len(chunks) + 1), (extra, random.randbytes(random.choice((1, 2, 3, 6, 12))))
            )
    return data[:8] + b"".join(png_chunk(name, body) for name, body in chunks)


def shown(data: bytes) -> np.ndarray:
    """Returns Pillow's pixels; by `as_rgb` if `convert` is not enough (rotated, transparent, 16 bits)."""
    with Image.open(io.BytesIO(data)) as image:
        simple = image.mode in ("RGB", "L", "P", "1") and "transparency" not in image.info and orientation(image) == 1
        return np.asarray((image.convert("RGB") if simple else as_rgb(image)).convert("RGB"))


class Case(NamedTuple):
    """An image file: the name of the undamaged one in the zoo, how to convert it, and its bytes."""

    name: str
    pixels: Pixels
    data: bytes


class Subject:
    def __init__(self, folder: Path):
        self._files = {name: kind.data for name, kind in ZOO.items() if len(kind.data) <= _LARGEST}

    def make(self, rng: random.Random, number: int) -> Case:
        names, others = list(self._files), list(self._files.values())
        name, pixels = names[number % len(names)], rng.choice(_PIXELS)
        return Case(name, pixels, damaged(rng, self._files[name], others))

    def check(self, case: Case) -> Outcome:
        data, pixels = case.data, case.pixels
        try:
            (encoded, image_format, (width, height), _), _ = encode_checked(data, pixels)
        except Exception as error:  # noqa: BLE001 (as in the converter's worker)
            return refused(reason(error))
        if image_format == "raw":
            result = np.frombuffer(encoded, np.uint8).reshape(height, width, 3)
        else:
            import tensorflow as tf

            result = tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
        passed = "passed" if encoded == data else "made"
        if result.shape != (height, width, 3):
            return Outcome(FAULT, f"shape {result.shape} of a record with size {width}x{height}")
        if pixels.image_size:
            return Outcome(UNHARMED, detail=passed)
        try:
            expected = _shown_without_trailing_chunks(data)
        except Exception as error:  # noqa: BLE001
            if image_format != "jpeg":
                return Outcome(FAULT, f"Pillow: {error!r}")
            return Outcome(UNHARMED, detail=f"{passed} jpeg, refused by Pillow")
        if expected.shape != result.shape:
            return Outcome(FAULT, f"shape {result.shape}, Pillow: {expected.shape}")
        if image_format != "jpeg":
            differing = np.count_nonzero(result != expected)
            if differing:
                return Outcome(FAULT, f"{differing} values differ from Pillow's")
            return Outcome(UNHARMED, detail=f"{passed} exactly")
        difference = np.abs(result.astype(np.int16) - expected)
        in_range = difference.mean() <= MAX_MEAN_DIFFERENCE
        return Outcome(UNHARMED, detail=f"{passed} jpeg, {'as Pillow' if in_range else 'out of range'}")


def _shown_without_trailing_chunks(data: bytes) -> np.ndarray:
    """Returns Pillow's pixels: it rejects invalid chunks after the pixels of a PNG, which do not affect them."""
    try:
        return shown(data)
    except Exception:  # noqa: BLE001
        return shown(_without_trailing_chunks(data))


def _without_trailing_chunks(png: bytes) -> bytes:
    chunks = list(_png_chunks(png))
    last = max(i for i, (name, _) in enumerate(chunks) if name == b"IDAT")
    return png[:8] + b"".join(png_chunk(name, body) for name, body in [*chunks[: last + 1], (b"IEND", b"")])


def _png_chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place + 12 <= len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        yield png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        place += 12 + length
