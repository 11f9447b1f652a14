"""Fuzzer for image files: damages them, runs them through the converter and the reader, and compares with Pillow.

    python -m tests.input_pipeline.fuzz_images --cases=30000 --seed=7

Prints one line of JSON per fault, then one with counts (also per reason if FUZZ_REASONS is set). The number of the
current case is written to --journal, which identifies a case that kills the process. --only=NUMBER runs a single case,
and --save=FILE saves its bytes. A case that takes longer than CASE_SECONDS ends the process with SIGALRM.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import signal
import struct
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from convoy.input_pipeline.images.decoder import encode_checked, warm_up
from convoy.input_pipeline.images.pixels import Pixels, reason
from convoy.input_pipeline.images.rgb import as_rgb, orientation
from tests.input_pipeline.zoo import ZOO, png_chunk

CASE_SECONDS = 60
_LARGEST = 8_000  # bytes; larger files only take longer
_PIXELS = (Pixels(0, "keep"),) * 5 + (Pixels(0, "png"), Pixels(0, "raw"), Pixels(16, "keep"))
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# Largest mean difference of the two libraries' JPEGs by rounding (see test_pixels.py). It is larger if damaged
# coefficients exceed the range of a pixel, because libjpeg's result then depends on the transform.
MAX_MEAN_DIFFERENCE = 3.0
_REASONS = bool(os.environ.get("FUZZ_REASONS"))


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


def evaluate(data: bytes, pixels: Pixels) -> tuple[str, str]:
    """Returns the outcome for a file, and its fault or ""."""
    import tensorflow as tf

    try:
        (encoded, image_format, (width, height), channels), _ = encode_checked(data, pixels)
    except Exception as error:  # noqa: BLE001 (as in the converter's worker)
        words = reason(error)
        fault = "" if words and words.isprintable() and len(words) < 400 else f"reason {words!r}"
        return f"refused: {words}" if _REASONS else "refused", fault
    if image_format == "raw":
        result = np.frombuffer(encoded, np.uint8).reshape(height, width, 3)
    else:
        result = tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
    passed = "passed" if encoded == data else "made"
    if result.shape != (height, width, 3):
        return passed, f"shape {result.shape} of a record with size {width}x{height}"
    if pixels.image_size:
        return passed, ""
    try:
        try:
            expected = shown(data)
        except Exception:  # noqa: BLE001 (Pillow rejects invalid chunks after the pixels, which do not affect them)
            expected = shown(_without_trailing_chunks(data))
    except Exception as error:  # noqa: BLE001
        return f"{passed} {image_format}, refused by Pillow", "" if image_format == "jpeg" else f"Pillow: {error!r}"
    if expected.shape != result.shape:
        return passed, f"shape {result.shape}, Pillow: {expected.shape}"
    if image_format != "jpeg":
        differing = np.count_nonzero(result != expected)
        return f"{passed} exactly", f"{differing} values differ" if differing else ""
    difference = np.abs(result.astype(np.int16) - expected)
    return f"{passed} jpeg, {'as Pillow' if difference.mean() <= MAX_MEAN_DIFFERENCE else 'out of range'}", ""


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


def main() -> None:
    """Runs the cases; see the module docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--journal", type=Path, default=Path(os.devnull))
    parser.add_argument("--only", type=int)
    parser.add_argument("--save", type=Path)
    flags = parser.parse_args()
    files = {name: kind.data for name, kind in ZOO.items() if len(kind.data) <= _LARGEST}
    names, others = list(files), list(files.values())
    warm_up()
    counts, slowest, largest = Counter(), (0.0, ""), (0, "")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open(flags.journal, "w") as journal:
        for number in range(flags.cases) if flags.only is None else [flags.only]:
            rng = random.Random(f"{flags.seed} {number}")
            name, pixels = names[number % len(names)], rng.choice(_PIXELS)
            data = damaged(rng, files[name], others)
            os.pwrite(journal.fileno(), f"case {number} of seed {flags.seed}: {name}, {pixels}".ljust(200).encode(), 0)
            if flags.save:
                flags.save.write_bytes(data)
            signal.alarm(CASE_SECONDS)
            started = time.monotonic()
            try:
                outcome, fault = evaluate(data, pixels)
            except Exception:  # noqa: BLE001
                outcome, fault = "error", traceback.format_exc(limit=-3)
            signal.alarm(0)
            slowest = max(slowest, (time.monotonic() - started, f"{number} {name}"))
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            largest = max(largest, (now - memory, f"{number} {name}"))
            memory = now
            counts[outcome] += 1
            if fault:
                print(json.dumps({"case": number, "kind": name, "pixels": str(pixels), "fault": fault}), flush=True)
    summary = {"counts": counts, "slowest_s": slowest, "most_megabytes_more": (largest[0] // 1024, largest[1])}
    print(json.dumps({**summary, "peak_megabytes": memory // 1024}))


if __name__ == "__main__":
    main()
