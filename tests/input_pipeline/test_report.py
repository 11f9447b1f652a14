import os
import re
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from convoy.core.finding import Severity
from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.images.perceptual import FLAT, perceptual_hash
from convoy.input_pipeline.report.alike import Images, find_alike, gather
from convoy.input_pipeline.report.findings import balances, findings, small_classes
from convoy.input_pipeline.report.page import write_report
from tests.input_pipeline.datasets import encode
from tests.pages import Page

CLASSES = ("bag", "mug", "shoe")


def picture(number, size=(48, 40)):
    """Returns [height, width, 3] uint8: blocks of colors, different numbers are not near-duplicates."""
    blocks = np.random.default_rng(number).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC))


def copied(pixels):
    """Returns a near-duplicate: slightly brighter, with lower quality."""
    return np.clip(pixels.astype(np.int64) + 6, 0, 255).astype(np.uint8) // 2 * 2


class ReportData:
    """A dataset written image by image, with the report's input from the converter."""

    def __init__(self, folder, class_names=CLASSES):
        self.folder, self.class_names = folder, class_names
        self.rows = {}
        self.quarantine, self.sources = [], {}

    def add(self, split, pixels, label, name="", image_format="jpeg", content=None):
        self.rows.setdefault(split, []).append((pixels, label, name, image_format, content))

    def left_out(self, split, path, category, reason):
        self.quarantine.append({"split": split, "path": path, "category": category, "reason": reason})

    def write(self, file="report.html", without_sidecar=()):
        """Writes shards and the report; returns the page."""
        splits, images, manifest = {}, {}, {}
        for name, rows in self.rows.items():
            columns, facts = {key: [] for key in ("offset", "length", "label", "crc")}, []
            path = self.folder / f"made-{name}.tfrecord-00000-of-00001"
            with path.open("wb") as shard:
                for pixels, label, filename, image_format, content in rows:
                    encoded = encode(pixels, image_format)
                    payload = records.example(
                        {
                            "image/encoded": encoded,
                            "image/format": image_format,
                            "image/height": pixels.shape[0],
                            "image/width": pixels.shape[1],
                            "image/class/label": label,
                            "image/filename": os.fsencode(filename),
                        }
                    )
                    place = (shard.tell(), len(payload), label, records.masked_crc(payload))
                    for column, value in zip(columns.values(), place, strict=True):
                        column.append(value)
                    shard.write(records.frame(payload))
                    digest = hash(encoded) % 2**64 if content is None else content
                    facts.append((pixels.shape[1], pixels.shape[0], len(encoded), digest, perceptual_hash(pixels), 0))
            index = {key: np.array(column) for key, column in columns.items()}
            splits[name] = Split(name=name, shard_paths=(path,), shard=np.zeros(len(rows), np.int32), **index)
            if name not in without_sidecar:
                keys = ("width", "height", "source_bytes", "content", "perceptual", "changed")
                types = (np.uint32, np.uint32, np.int64, np.uint64, np.uint64, bool)
                columns = zip(keys, types, zip(*facts, strict=True), strict=True)
                images[name] = {key: np.array(column, dtype) for key, dtype, column in columns}
            counts = np.bincount(index["label"], minlength=len(self.class_names)).tolist()
            shards = [{"file": path.name, "images": len(rows), "bytes": path.stat().st_size}]
            manifest[name] = {"seed": 7, "num_images": len(rows), "counts": counts, "shards": shards}
        write_report(
            self.folder / file,
            manifest={
                "format_version": 1,
                "name": "made",
                "settings": {"image_size": 0, "encoding": "keep"},
                "class_names": list(self.class_names),
                "splits": manifest,
            },
            splits=splits,
            quarantine=self.quarantine,
            images=images,
            sources=self.sources,
        )
        return Page((self.folder / file).read_bytes())


@pytest.fixture
def made(tmp_path):
    """Three classes with twelve training and four test images each; no near-duplicates."""
    made = ReportData(tmp_path)
    for number in range(48):
        split = "train" if number < 36 else "test"
        made.add(split, picture(number), number % 3, f"{CLASSES[number % 3]}/{number}.jpg")
    return made


def badges(page):
    """Returns the badges of the findings, in order."""
    return re.findall(r"\b(fix|check|note) (?=\d|train|test|The largest|<)", page.words("findings"))


def test_clean_dataset_has_counts_and_only_the_size_finding(made):
    page = made.write()
    assert "48 images 3 classes 2 splits" in page.words("")
    size = (made.folder / "made-train.tfrecord-00000-of-00001").stat().st_size
    assert page.rows["findings"][1] == ["train", "36", "3", f"{size / 1e6:.1f} MB", "1", "0"]
    assert page.rows["findings"][2][:3] == ["test", "12", "3"]
    assert badges(page) == ["note"] and "100 %" in page.words("findings")
    assert page.rows["classes"] == [
        ["class", "train", "test"],
        ["bag", "12", "4"],
        ["mug", "12", "4"],
        ["shoe", "12", "4"],
    ]
    assert page.rows["left-out"] == page.rows["leakage"] == []
    assert page.images["leakage"] == page.images["alike"] == []
    assert "48 × 40" in page.words("sizes")
    assert "seed of test 7" in page.words("settings")
    assert len(page.images["samples"]) == 24


def test_leakage_is_the_first_finding_with_both_images(made):
    made.add("test", picture(5), CLASSES.index("shoe"), "shoe/again.jpg")
    made.add("test", copied(picture(3)), CLASSES.index("bag"), "bag/brighter.png", "png")
    made.add("test", copied(picture(4)), CLASSES.index("mug"), "mug/brighter.png", "png")
    made.left_out("test", "mug/c.jpg", "mug", "same bytes as image 4 of split train")
    page = made.write()
    assert badges(page)[0] == "fix"
    assert "3 images of test (20 %)" in page.words("findings")
    assert "--group_similar" in page.words("findings")
    leakage = page.words("leakage")
    assert "3 images of test, 20 % of it" in leakage
    assert "same bytes shoe test shoe/again.jpg shoe train shoe/5.jpg" in leakage
    assert "looks alike bag test bag/brighter.png bag train bag/3.jpg" in leakage
    assert "1 more image" in leakage
    assert len(page.images["leakage"]) == 6
    assert page.images["leakage"][0] == page.images["leakage"][1]


def test_exact_duplicate_across_classes_is_shown_before_a_near_duplicate(made):
    made.add("train", copied(picture(0)), CLASSES.index("mug"), "mug/like.png", "png")
    made.add("train", picture(9), CLASSES.index("shoe"), "shoe/same.jpg")
    made.add("train", copied(picture(9)), CLASSES.index("shoe"), "shoe/same.png", "png")
    page = made.write()
    assert badges(page)[:2] == ["fix", "check"]
    alike = page.words("alike")
    assert "2 groups with different labels" in alike
    same = "same bytes 3 images bag train bag/9.jpg shoe train shoe/same.jpg shoe train shoe/same.png"
    assert alike.index(same) < alike.index("look alike 2 images bag train bag/0.jpg mug train mug/like.png")
    assert "with the same label" not in alike


def test_copies_within_a_class_are_one_group(made):
    for number in range(9):
        made.add("train", copied(picture(0)) // (number + 1) * (number + 1), 0, f"bag/copy{number}.png", "png")
    page = made.write()
    assert "1 group with the same label" in page.words("alike")
    assert "10 images bag train bag/0.jpg bag train bag/copy0.png" in page.words("alike")
    assert "and 5 more" in page.words("alike")
    assert len(page.images["alike"]) == 5
    assert "9 images (16 %)" in page.words("findings")


def test_single_color_images_are_listed_separately_and_are_not_near_duplicates(made):
    for value in (0, 128, 255):
        made.add("train", np.full((40, 48, 3), value, np.uint8), value % 3, f"bag/blank{value}.png", "png")
        made.add("test", np.full((40, 47, 3), value, np.uint8), value % 3, f"bag/blank{value}b.png", "png")
    page = made.write()
    assert badges(page)[0] == "check"
    assert "6 images are of a single color" in page.words("findings")
    assert "6 images of a single color" in page.words("alike")
    assert "groups" not in page.words("alike")
    assert page.images["leakage"] == []


def test_sizes_and_aspect_ratios_are_counted(tmp_path):
    made = ReportData(tmp_path)
    sizes = [(30, 30)] * 5 + [(100, 50)] * 3 + [(64, 200), (300, 299)]
    for number, size in enumerate(sizes):
        made.add("train", picture(number, size), number % 3)
    rows = made.write().rows["sizes"]
    assert ["16 to 31", "", "5", "50 %"] in rows and ["256 to 383", "", "1", "10 %"] in rows
    assert ["192 to 255", "", "0", "0 %"] in rows and ["384 to 511", "", "0", "0 %"] not in rows
    assert ["below 32", "", "5", "50 %"] in rows and ["below 64", "", "8", "80 %"] in rows
    assert ["below 384", "", "10", "100 %"] in rows and not [row for row in rows if row[0] == "below 512"]
    assert ["square", "", "6", "60 %"] in rows and ["3:2 to 2:1", "", "3", "30 %"] in rows
    assert ["taller than 1:3", "", "1", "10 %"] in rows
    assert rows.index(["30 × 30", "", "5", "50 %"]) < rows.index(["100 × 50", "", "3", "30 %"])


def test_imbalanced_small_and_empty_classes_are_named(tmp_path):
    made = ReportData(tmp_path, ("a", "b", "c", "d"))
    for number in range(44):
        made.add("train", picture(number), 0 if number < 40 else 1 if number < 43 else 2)
    made.add("test", picture(99), 0)
    page = made.write()
    assert badges(page)[:4] == ["check"] * 4
    classes = page.words("classes")
    assert "train: largest “a” with 40, smallest “c” with 1: 40 to 1." in classes
    assert "“c” 1, “b” 3." in classes
    assert re.search(r"test: no images of “b”, “c”, “d”\.", classes)


def test_class_findings_have_codes():
    counts = {"train": np.array([40, 3, 1, 0]), "test": np.array([1, 0, 0, 0])}
    nothing = gather({}, {})
    found = findings(
        small=small_classes(counts, "abcd"),
        balance=balances(counts, "abcd"),
        class_names=["a", "b", "c", "d"],
        images=nothing,
        alike=find_alike(nothing, leaks_shown=1),
        num_kept=45,
        num_bad=5,
        num_stray=2,
        num_duplicates=1,
    )
    assert [(finding.severity, finding.code, finding.section) for finding in found] == [
        (Severity.WARNING, "empty-classes", "classes"),
        (Severity.WARNING, "empty-classes", "classes"),
        (Severity.WARNING, "small-classes", "classes"),
        (Severity.WARNING, "class-imbalance", "classes"),
        (Severity.WARNING, "unusable-files", "left-out"),
        (Severity.NOTE, "ignored-files", "left-out"),
        (Severity.NOTE, "duplicate-files", "left-out"),
    ]
    texts = [finding.text for finding in found]
    assert "train" in texts[0] and "1 of 4" in texts[0] and "test" in texts[1] and "3 of 4" in texts[1]
    assert "2 classes" in texts[2] and "40" in texts[3] and "5 files (10 %)" in texts[4] and "1 file" in texts[6]


def test_class_names_that_look_alike_or_like_nothing_are_findings():
    nothing = gather({}, {})
    found = findings(
        small=[],
        balance=[],
        class_names=["Mug", "mug", "tea  cup", "Tea cup", "NaN", "03", "3"],
        images=nothing,
        alike=find_alike(nothing, leaks_shown=1),
        num_kept=10,
        num_bad=0,
        num_stray=0,
        num_duplicates=0,
    )
    by_code = {finding.code: finding.text for finding in found}
    assert by_code.keys() == {"alike-class-names", "placeholder-class-names"}
    assert "2 groups" in by_code["alike-class-names"] and "'Mug' and 'mug'" in by_code["alike-class-names"]
    assert "'NaN'" in by_code["placeholder-class-names"]


def test_image_findings_have_codes():
    content = np.array([1, 2, 3, 3, 4, 5, 6, 7, 1, 8], np.uint64)
    looks = np.array([15, 15 << 20, 255 << 40, 255 << 40, 0xFFFF, 0xFFFF, 1 << 60 | 0xAAAA0000, FLAT, 15, 0xFFFF])
    images = Images(
        splits=("train", "test"),
        split=np.array([0] * 8 + [1, 1]),
        position=np.array([*range(8), 0, 1]),
        label=np.array([0, 0, 0, 1, 0, 1, 0, 0, 0, 0], np.int32),
        width=np.full(10, 32, np.uint32),
        height=np.full(10, 64, np.uint32),
        source_bytes=np.full(10, 100),
        content=content,
        perceptual=looks.astype(np.uint64),
        changed=np.zeros(10, bool),
    )
    alike = find_alike(images, leaks_shown=4)
    found = findings(
        small=[],
        balance=[],
        class_names=["a", "b"],
        images=images,
        alike=alike,
        num_kept=10,
        num_bad=0,
        num_stray=0,
        num_duplicates=0,
    )
    assert [(finding.severity, finding.code, finding.section) for finding in found] == [
        (Severity.ERROR, "split-leakage", "leakage"),
        (Severity.ERROR, "label-conflict", "alike"),
        (Severity.WARNING, "near-duplicates-across-classes", "alike"),
        (Severity.WARNING, "single-color-images", "alike"),
        (Severity.NOTE, "small-images", "sizes"),
    ]
    assert "2 images of test (100 %)" in found[0].text and found[0].fix
    assert [finding.text.split()[0] for finding in found[1:]] == ["1", "1", "1", "100"]


def test_left_out_files_are_listed_by_reason_with_thumbnails(made, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    whole = encode(picture(1, (200, 150)), "jpeg")
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "page.jpg").write_bytes(b"<html>")
    (photos / "folder.jpg").mkdir()
    os.mkfifo(photos / "pipe.jpg")  # opening it would block
    made.sources["train"] = photos
    for name in ("cut.jpg", "page.jpg", "folder.jpg", "pipe.jpg", "gone.jpg"):
        made.left_out("train", name, "mug", f"broken after {len(name)} bytes")
    made.left_out("test", "cut.jpg", "mug", "the file is empty")  # in another folder
    made.left_out("train", "twin.jpg", "mug", "same bytes as mug/4.jpg")
    page = made.write()
    assert "6 files (11 %)" in page.words("findings") and "1 file had" in page.words("findings")
    assert ["broken after … bytes", "", "5", "83 %"] in page.rows["left-out"]
    assert ["none", "test: cut.jpg", "mug", "the file is empty"] in page.rows["left-out"]
    assert ["", "train: cut.jpg", "mug", "broken after 7 bytes"] in page.rows["left-out"]
    assert ["train: twin.jpg", "mug", "same bytes as mug/4.jpg"] in page.rows["left-out"]
    assert len(page.images["left-out"]) == 1


HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "a\nb\tc\x00d\u2028e",
    "\u202egpj.exe\u2066",
    "invalid \udcff\udc80 \ud800",
    "{{ 7 * 7 }}{% for x in y %}</table></section>&amp;",
    "long" * 5_000,
    "العربية 中文 👩‍👩‍👧",
)


def test_names_are_escaped(tmp_path):
    made = ReportData(tmp_path, HOSTILE)
    for number in range(2 * len(HOSTILE)):
        name = "long" * 60 if number % 8 == 6 else HOSTILE[number % 8].replace("\ud800", "")
        made.add("train", picture(number // 2 % 8), number % 8, name)
        made.add("test", picture(number // 2 % 8), number % 8, name)
    made.sources["train"] = tmp_path
    for text in HOSTILE:
        made.left_out("train", text, text, text)
        made.left_out("train", text, text, f"same bytes as {text}")
    page = made.write()
    names = [row[0] for row in page.rows["classes"][1:]]
    assert {*HOSTILE[:2], HOSTILE[5], HOSTILE[7]} < set(names)
    assert "a\\x0ab\\x09c\\x00d\\u2028e" in names
    assert "\\u202egpj.exe\\u2066" in names
    assert "invalid \\xff\\x80 \\ud800" in names
    assert max(map(len, names)) == 160 and [name for name in names if name.endswith("…")]
    raw = (tmp_path / "report.html").read_text("utf-8")
    assert not set("\u202e\u2066\u2028\x00") & set(raw)
    for section in ("leakage", "classes", "samples", "alike", "left-out"):
        assert "<script>alert(1)</script>" in page.words(section)


def test_equal_datasets_have_equal_pages_without_paths(made):
    made.left_out("train", "a.jpg", "mug", "the file is empty")
    made.write("one.html")
    made.write("two.html")
    content = (made.folder / "one.html").read_bytes()
    assert content == (made.folder / "two.html").read_bytes()
    assert os.fsencode(made.folder) not in content


def test_missing_sidecar_is_stated_in_its_sections(made):
    made.add("validation", picture(0), 0)
    page = made.write(without_sidecar=("test", "validation"))
    assert [row[0] for row in page.rows["findings"]] == ["split", "train", "validation", "test"]
    for section in ("alike", "sizes"):
        assert "not available for validation, test" in page.words(section)
    page = made.write(without_sidecar=("train", "test", "validation"))
    assert "not available for train, validation, test" in page.words("sizes")
    assert len(page.images["samples"]) == 24


def test_leakage_is_unavailable_without_a_sidecar(made):
    made.add("test", picture(5), CLASSES.index("shoe"))
    for without in (("test",), ("train", "test")):
        page = made.write(without_sidecar=without)
        assert page.words("leakage").startswith("Leakage between splits Leakage not available")
        assert "None." not in page.words("findings")


def test_every_format_has_thumbnails_except_damaged_records(tmp_path):
    made = ReportData(tmp_path)
    for number, image_format in enumerate(("jpeg", "png", "raw", "cut")):
        made.add("train", picture(number), number % 3, f"{number}", image_format)
    page = made.write()
    assert len(page.images["samples"]) == 3
    assert page.words("samples").count("no picture") == 1


@pytest.mark.slow
def test_page_of_many_classes_is_small(tmp_path):
    made = ReportData(tmp_path, tuple(f"class {number:05d}" for number in range(10_000)))
    for number in range(1_000):
        made.add("train", picture(number % 50, (24, 24)), (number * number) % 9_973, f"{number}.jpg")
    page = made.write()
    rows = page.rows["classes"]
    headers = [place for place, row in enumerate(rows) if row == ["class", "train"]]
    largest, smallest, every = (rows[start + 1 : end] for start, end in pairwise([*headers, len(rows)]))
    counts = np.bincount(np.arange(1_000) ** 2 % 9_973, minlength=10_000)
    assert len(largest) == len(smallest) == 15
    assert [int(row[1]) for row in largest] == np.sort(counts)[::-1][:15].tolist()
    assert {row[1] for row in smallest} == {"0"}
    assert every == [[f"class {label:05d}", str(count)] for label, count in enumerate(counts)]
    assert "of 336 of the 10,000 classes" in page.words("samples")
    assert len(page.images["samples"]) == 336
    assert page.size < 3_000_000
