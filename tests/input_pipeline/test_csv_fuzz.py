"""Fuzz test of CSV reading: a damaged CSV is read or rejected with a one-line error."""

import random

from convoy.core.errors import ConvoyError
from convoy.input_pipeline.convert.sources import Table, list_sources

CASES = 1500
_PIECES = (
    b"\x00",
    b'"',
    b",",
    b";",
    b"\n",
    b"\r",
    b"\t",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"../",
    b"\\",
    b"filename",
)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Returns a CSV after one to four random edits."""
    for _ in range(rng.randint(1, 4)):
        start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        content = rng.choice(
            (
                content[:start] + bytes([rng.randrange(256)]) + content[start + 1 :],
                content[:start] + rng.choice(_PIECES) + content[start:],
                content[:start] + content[end:],
                content[:end] + content[start:],
                content[:start],
                content[end:] + content[:end],
            )
        )
    return content


def test_damaged_csv_is_read_or_rejected_in_one_line(tmp_path):
    rng = random.Random(0)
    images = tmp_path / "images"
    names = [f"{category}/{category}_{i}.jpg" for category in ("03", "tea pot", "K\u00e4se") for i in range(4)]
    for name in names:
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(b"image")
    rows = [f'"{name}",{name.partition("/")[0]}' for name in names]
    whole = "\n".join(["filename,category", *rows, ""]).encode()
    path = tmp_path / "train.csv"
    read = 0
    for case in range(CASES):
        path.write_bytes(content := mutated(whole, rng))
        try:
            found = list_sources(images, Table(path, skip_missing=bool(case % 2)))
        except ConvoyError as error:
            assert "\n" not in str(error), content
            continue
        read += 1
        assert {image.name for image in found.images} <= set(names), content
        assert {image.category for image in found.images} == set(found.class_names), content
    assert 50 < read < CASES - 50
