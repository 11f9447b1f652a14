import os

import numpy as np
import pytest
from PIL import Image

from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.images.perceptual import perceptual_hash
from convoy.input_pipeline.report.page import write_report
from tests.input_pipeline.datasets import encode
from tests.pages import Page

CLASSES = ("bag", "mug", "shoe")


def picture(number, size=(48, 40)):
    """Returns [height, width, 3] uint8: blocks of colours, none of which looks like another number's."""
    blocks = np.random.default_rng(number).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC))


def copied(pixels):
    """Returns the picture a little brighter and in another quality."""
    return np.clip(pixels.astype(np.int64) + 6, 0, 255).astype(np.uint8) // 2 * 2


class Made:
    """A data set made image by image, and what the converter tells the report of it."""

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
    """Twelve pictures of each of three classes to train on, four of each to test on, all unlike."""
    made = Made(tmp_path)
    for number in range(48):
        split = "train" if number < 36 else "test"
        made.add(split, picture(number), number % 3, f"{CLASSES[number % 3]}/{number}.jpg")
    return made


def test_a_clean_data_set_has_its_numbers_and_no_findings_but_its_size(made):
    page = made.write()
    assert page.words("").startswith("made: data report made What is in this data set")
    assert "48 images 3 classes 2 splits" in page.words("")
    size = (made.folder / "made-train.tfrecord-00000-of-00001").stat().st_size
    assert page.rows["findings"][1] == ["train", "36", "3", f"{size / 1e6:.1f} MB", "1", "0"]
    assert page.rows["findings"][2][:3] == ["test", "12", "3"]
    assert page.words("findings").startswith("What stands out note 100 % of the images have a side of fewer than 64")
    assert page.rows["classes"] == [
        ["class", "train", "test"],
        ["bag", "12", "4"],
        ["mug", "12", "4"],
        ["shoe", "12", "4"],
    ]
    assert "12 images in every class that has any" in page.words("classes")
    assert "No picture of one split is in another" in page.words("leakage")
    assert page.words("alike").endswith("None.")
    assert "Every image is 48 × 40 pixels" in page.words("sizes")
    assert page.words("left-out") == "Left out Nothing was left out."
    assert "image_size images keep their size" in page.words("settings")
    assert "seed of test 7" in page.words("settings")
    assert len(page.images["samples"]) == 24


def test_leakage_between_splits_stands_first_with_both_pictures(made):
    made.add("test", picture(5), CLASSES.index("shoe"), "shoe/again.jpg")
    made.add("test", copied(picture(3)), CLASSES.index("bag"), "bag/brighter.png", "png")
    made.add("test", copied(picture(4)), CLASSES.index("mug"), "mug/brighter.png", "png")
    made.left_out("test", "mug/c.jpg", "mug", "same bytes as image 4 of split train")
    page = made.write()
    finding = "2 that look alike. Results on test will be too good."
    assert page.words("findings").startswith(
        f"What stands out mend 3 images of test (20 %) are in train too: 1 with the same bytes, {finding}"
    )
    leakage = page.words("leakage")
    assert "3 images of test, 20 % of it, are in train too" in leakage
    assert "same bytes shoe test shoe/again.jpg shoe train shoe/5.jpg" in leakage
    assert "looks alike bag test bag/brighter.png bag train bag/3.jpg" in leakage
    assert "1 more image was found in an earlier split while converting" in leakage
    assert len(page.images["leakage"]) == 6
    assert page.images["leakage"][0] == page.images["leakage"][1]


def test_a_picture_in_two_classes_is_shown_before_one_that_only_looks_alike(made):
    made.add("train", copied(picture(0)), CLASSES.index("mug"), "mug/like.png", "png")
    made.add("train", picture(9), CLASSES.index("shoe"), "shoe/same.jpg")
    made.add("train", copied(picture(9)), CLASSES.index("shoe"), "shoe/same.png", "png")
    page = made.write()
    assert "mend 1 picture is in more than one class with the very same bytes." in page.words("findings")
    assert "look 1 group of pictures that look alike is spread over different classes." in page.words("findings")
    alike = page.words("alike")
    assert "2 groups in different classes" in alike
    same = "same bytes 3 images bag train bag/9.jpg shoe train shoe/same.jpg shoe train shoe/same.png"
    assert alike.index(same) < alike.index("look alike 2 images bag train bag/0.jpg mug train mug/like.png")
    assert "within one class" not in alike


def test_copies_within_a_class_are_one_group_and_counted_without_the_one_that_stands_for_them(made):
    for number in range(9):
        made.add("train", copied(picture(0)) // (number + 1) * (number + 1), 0, f"bag/copy{number}.png", "png")
    page = made.write()
    assert "1 group within one class" in page.words("alike")
    assert "10 images bag train bag/0.jpg bag train bag/copy0.png" in page.words("alike")
    assert "and 5 more" in page.words("alike")
    assert len(page.images["alike"]) == 5
    assert "note 9 images (16 %) could be spared" in page.words("findings")


def test_images_of_one_colour_are_listed_apart_and_are_no_likes(made):
    for value in (0, 128, 255):
        made.add("train", np.full((40, 48, 3), value, np.uint8), value % 3, f"bag/blank{value}.png", "png")
        made.add("test", np.full((40, 47, 3), value, np.uint8), value % 3, f"bag/blank{value}b.png", "png")
    page = made.write()
    assert "look 6 images are of a single colour." in page.words("findings")
    assert "6 images of a single colour" in page.words("alike")
    assert "groups" not in page.words("alike")
    assert "No picture of one split is in another" in page.words("leakage")


def test_sizes_and_aspect_ratios_are_counted(tmp_path):
    made = Made(tmp_path)
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


def test_uneven_small_and_missing_classes_are_named(tmp_path):
    made = Made(tmp_path, ("a", "b", "c", "d"))
    for number in range(44):
        made.add("train", picture(number), 0 if number < 40 else 1 if number < 43 else 2)
    made.add("test", picture(99), 0)
    page = made.write()
    for finding in (
        "train has no image of 1 of the 4 classes.",
        "test has no image of 3 of the 4 classes.",
        "2 classes have fewer than 10 images in train.",
        "The largest class of train has 40 times the images of the smallest.",
    ):
        assert f"look {finding}" in page.words("findings")
    assert "train: largest “a” with 40, smallest “c” with 1: 40 to 1." in page.words("classes")
    assert "fewer than 10 images of 2 classes: “c” 1, “b” 3." in page.words("classes")
    assert "test: no image of “b”, “c”, “d”." in page.words("classes")


def test_what_was_left_out_is_told_by_reason_with_pictures_as_far_as_files_decode(made, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    whole = encode(picture(1, (200, 150)), "jpeg")
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "page.jpg").write_bytes(b"<html>")
    (photos / "folder.jpg").mkdir()
    os.mkfifo(photos / "pipe.jpg")  # whoever opens it waits
    made.sources["train"] = photos
    for name in ("cut.jpg", "page.jpg", "folder.jpg", "pipe.jpg", "gone.jpg"):
        made.left_out("train", name, "mug", f"broken after {len(name)} bytes")
    made.left_out("test", "cut.jpg", "mug", "the file is empty")  # of another folder
    made.left_out("train", "twin.jpg", "mug", "same bytes as mug/4.jpg")
    page = made.write()
    assert "look 6 files (11 %) could not be used and were left out." in page.words("findings")
    assert "note 1 file had the bytes of another image and was left out." in page.words("findings")
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


def test_no_name_can_leave_its_place_in_the_page(tmp_path):
    made = Made(tmp_path, HOSTILE)
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


def test_the_same_data_set_gives_the_same_bytes_that_name_no_path(made):
    made.left_out("train", "a.jpg", "mug", "the file is empty")
    made.write("one.html")
    made.write("two.html")
    content = (made.folder / "one.html").read_bytes()
    assert content == (made.folder / "two.html").read_bytes()
    assert os.fsencode(made.folder) not in content


def test_splits_without_a_sidecar_are_shown_and_what_cannot_be_told_is_said(made):
    made.add("validation", picture(0), 0)
    page = made.write(without_sidecar=("test", "validation"))
    assert [row[0] for row in page.rows["findings"]] == ["split", "train", "validation", "test"]
    for section in ("alike", "sizes"):
        assert "of validation, test cannot be told" in page.words(section)
    page = made.write(without_sidecar=("train", "test", "validation"))
    assert "Sizes of train, validation, test cannot be told" in page.words("sizes")
    assert len(page.images["samples"]) == 24


def test_leakage_is_not_denied_where_it_cannot_be_told(made):
    made.add("test", picture(5), CLASSES.index("shoe"))
    for without in (("test",), ("train", "test")):
        page = made.write(without_sidecar=without)
        assert "No picture of one split is in another" not in page.words("leakage")
        assert "Leakage of" in page.words("leakage") and "cannot be told" in page.words("leakage")
        assert "Nothing." not in page.words("findings")


def test_images_of_every_format_have_thumbnails_and_damaged_records_have_none(tmp_path):
    made = Made(tmp_path)
    for number, image_format in enumerate(("jpeg", "png", "raw", "cut")):
        made.add("train", picture(number), number % 3, f"{number}", image_format)
    page = made.write()
    assert len(page.images["samples"]) == 3
    assert page.words("samples").count("no picture") == 1


def test_a_thousand_classes_fit_on_a_page_of_less_than_three_megabytes(tmp_path):
    made = Made(tmp_path, tuple(f"class {number}" for number in range(1000)))
    for number in range(2000):
        made.add("train", picture(number, (24, 24)), number % 1000, f"{number}.jpg")
    page = made.write()
    assert len(page.rows["classes"]) == 1001
    assert "of 336 of the 1,000 classes" in page.words("samples")
    assert len(page.images["samples"]) == 336
    assert page.size < 3_000_000
