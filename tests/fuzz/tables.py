"""CSV files of file names and categories: every row is read as it is written, and none is lost."""

import csv
import io
import posixpath
import random
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from convoy.core.errors import ConvoyError
from convoy.input_pipeline.convert.sources import Sources, Table, list_sources
from tests.fuzz.runner import ANNOUNCED, FAULT, UNHARMED, Outcome, refused

_CATEGORIES = ("03", "tea pot", "K\u00e4se")
_PIECES = (
    *(b"\x00", b'"', b",", b";", b"\n", b"\r", b"\t", b"|", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"../", b"\\"),
    *(b"filename", b"\x1b[2J", "\u2028".encode(), "\u0661".encode(), b"=1+1", b" ", b"x" * 5000, b"a" * 2**20),
)


class Case(NamedTuple):
    """A CSV, and whether its rows without a file are skipped."""

    content: bytes
    skip_missing: bool


def mutated(rng: random.Random, content: bytes, pieces: tuple[bytes, ...] = _PIECES) -> bytes:
    """Returns bytes after one to four random edits, half of which are small."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        end = rng.choice((end, min(end, start + rng.randrange(9))))
        content = rng.choice(
            (
                content[:start] + bytes([rng.randrange(256)]) + content[start + 1 :],
                content[:start] + rng.choice(pieces) + content[start:],
                content[:start] + content[end:],
                content[:end] + content[start:],
                content[:start],
                content[end:] + content[:end],
            )
        )
    return content


class Subject:
    def __init__(self, folder: Path):
        self._images, self._path = folder / "images", folder / "train.csv"
        self._names = [f"{category}/{category}_{i}.jpg" for category in _CATEGORIES for i in range(4)]
        for name in self._names:
            (self._images / name).parent.mkdir(parents=True, exist_ok=True)
            (self._images / name).write_bytes(b"image")

    def make(self, rng: random.Random, number: int) -> Case:
        separator, encoding = rng.choice(",,,;\t|"), rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16"))
        rows = [("filename", "category")]
        for name in self._names:
            rows.append((rng.choice((name, posixpath.basename(name), name.partition(".")[0])), name.partition("/")[0]))
        text = io.StringIO()
        csv.writer(text, delimiter=separator, quoting=rng.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL))).writerows(rows)
        return Case(mutated(rng, text.getvalue().encode(encoding)), rng.random() < 0.5)

    def check(self, case: Case) -> Outcome:
        self._path.write_bytes(case.content)
        try:
            found = list_sources(self._images, Table(self._path, skip_missing=case.skip_missing))
        except ConvoyError as error:
            return refused(str(error), str(self._path), str(self._images))
        if not any(_is_as_written(found, rows) for rows in _readings(case.content)):
            read = [(image.name, image.category) for image in found.images]
            return Outcome(FAULT, f"read as {read}, missing: {found.missing}")
        return Outcome(ANNOUNCED if found.missing else UNHARMED)  # the converter prints and counts missing rows


def _readings(content: bytes) -> list[list[tuple[str, str]]]:
    """Returns file name and category of each row, for each separator by which the header has these columns."""
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8").removeprefix("\ufeff")
    csv.field_size_limit(2**21)
    readings = []
    for separator in ",;\t|":
        header, *rows = [[], *csv.reader(io.StringIO(text, newline=""), delimiter=separator)][1:] or [[]]
        header = [column.strip() for column in header]
        if header.count("filename") == header.count("category") == 1:
            places = header.index("filename"), header.index("category")
            full = (row for row in rows if any(map(str.strip, row)))
            readings.append([tuple(row[place] if place < len(row) else "" for place in places) for row in full])
    return readings


def _is_as_written(found: Sources, rows: list[tuple[str, str]]) -> bool:
    written = Counter((filename, category.strip()) for filename, category in rows)
    missing = Counter(found.missing)
    matched = Counter()
    for (filename, category), number in (written - missing).items():
        matched[_stem(filename), unicodedata.normalize("NFC", category)] += number
    read = Counter((_stem(image.name), unicodedata.normalize("NFC", image.category)) for image in found.images)
    categories = {image.category for image in found.images}
    return missing <= written and matched == read and categories == set(found.class_names)


def _stem(filename: str) -> str:
    base = posixpath.basename(posixpath.normpath(filename.strip().replace("\\", "/")))
    return unicodedata.normalize("NFC", base).removesuffix(".jpg")
