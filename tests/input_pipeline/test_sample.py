import csv
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoy.core.errors import UsageError
from convoy.input_pipeline.sample import sample_set
from convoy.input_pipeline.sample.pen import Pen, Role
from convoy.input_pipeline.sample.photograph import photograph
from convoy.input_pipeline.sample.sample_set import SampleSet
from convoy.input_pipeline.sample.silhouettes import PRODUCTS

REPOSITORY = Path(__file__).parents[2]


def command(*flags):
    return [sys.executable, "-m", "convoy", "sample", *flags]


def run(*flags):
    return subprocess.run(command(*flags), cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    output = tmp_path_factory.mktemp("sample") / "new" / "photos"
    result = run(f"--output={output}", "--categories=5", "--per_category=5", "--size=24", "--seed=3")
    assert result.returncode == 0, result.stderr
    return output, result


class TestOutput:
    @pytest.mark.parametrize(("split", "per_category"), [("train", 5), ("test", 2)])
    def test_every_image_is_in_its_category_folder_and_once_in_the_csv(self, done, split, per_category):
        output, _ = done
        header, *listed = rows(output / f"{split}.csv")
        found = sorted([path.name, path.parent.name] for path in (output / split).glob("*/*.jpg"))
        assert header == ["filename", "category"]
        assert sorted(listed) == found
        assert sorted(category for _, category in listed) == sorted(["00", "01", "02", "03", "04"] * per_category)

    def test_filenames_are_unique_across_splits_and_categories(self, done):
        names = [path.name for path in done[0].rglob("*.jpg")]
        assert len(set(names)) == len(names) == 5 * (5 + 2)

    def test_images_are_rgb_jpegs_of_the_requested_size(self, done):
        for path in done[0].rglob("*.jpg"):
            with Image.open(path) as picture:
                assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (24, 24))

    def test_csv_mixes_categories(self, done):
        categories = [category for _, category in rows(done[0] / "train.csv")[1:]]
        assert categories != sorted(categories)

    def test_categories_csv_names_each_category(self, done):
        assert rows(done[0] / "categories.csv")[:3] == [["category", "name"], ["00", "t-shirt"], ["01", "dress"]]

    def test_no_other_files_are_left(self, done):
        output, _ = done
        assert os.listdir(output.parent) == ["photos"]
        assert sorted(os.listdir(output)) == ["categories.csv", "test", "test.csv", "train", "train.csv"]

    def test_folder_has_the_permissions_of_a_new_folder(self, done, tmp_path):
        (tmp_path / "new").mkdir()
        assert done[0].stat().st_mode == (tmp_path / "new").stat().st_mode

    def test_output_has_counts_and_the_next_command(self, done):
        output, result = done
        assert all(part in result.stdout for part in ("25 training", "10 test", "5 categories", "24x24"))
        assert f"convoy convert --images={output / 'train'} --output=" in result.stdout
        assert result.stderr == ""


class TestSeed:
    def test_same_bytes_with_any_number_of_processes(self, tmp_path):
        images = SampleSet(categories=42, per_category=2, size=64, seed=7)
        images.write(tmp_path / "one", workers=1)
        images.write(tmp_path / "two", workers=2)
        assert contents(tmp_path / "one") == contents(tmp_path / "two")

    def test_same_images_in_a_larger_set(self, tmp_path):
        SampleSet(categories=3, per_category=4, size=16).write(tmp_path / "small")
        SampleSet(categories=3, per_category=9, size=16).write(tmp_path / "large")
        small = {name: digest for name, digest in contents(tmp_path / "small").items() if name.endswith(".jpg")}
        assert small.items() <= contents(tmp_path / "large").items()

    def test_other_seed_has_other_images(self, tmp_path):
        for seed in (0, 1):
            SampleSet(categories=2, per_category=3, size=16, seed=seed).write(tmp_path / str(seed))
        assert not set(contents(tmp_path / "0").values()) & {
            digest for name, digest in contents(tmp_path / "1").items() if name.endswith(".jpg")
        }


class TestMislabeledImages:
    def test_share_in_train_is_about_three_percent(self):
        listings = list(SampleSet(per_category=200).listings("train"))
        share = np.mean([listing.product != listing.category for listing in listings])
        assert 0.02 < share < 0.04

    def test_none_in_test(self):
        listings = SampleSet(per_category=2, test_per_category=200).listings("test")
        assert all(listing.product == listing.category for listing in listings)

    def test_product_is_from_the_set(self):
        assert {listing.product for listing in SampleSet(categories=3, per_category=500).listings("train")} == {0, 1, 2}
        assert {listing.product for listing in SampleSet(categories=1, per_category=500).listings("train")} == {0}


class TestImages:
    @pytest.mark.parametrize("size", [16, 64, 512])
    def test_every_product_fills_a_visible_part_of_the_image(self, size):
        for name, draw in PRODUCTS.items():
            for part in (0.0, 0.5, 1.0):
                pen = Pen(size, np.eye(2, 3) * 0.9)
                draw(pen, lambda low, high, part=part: low + (high - low) * part)
                assert 0.06 < pen.coverage().sum(axis=2).mean() < 0.75, name

    def test_silhouettes_of_both_splits_are_nearest_to_their_own_product(self):
        """The splits have only the shape in common, so it must identify the product."""

        def masks(part):
            drawn = []
            for draw in PRODUCTS.values():
                pen = Pen(32, np.eye(2, 3) * 0.9)
                draw(pen, lambda low, high: low + (high - low) * part)
                drawn.append(pen.coverage().ravel())
            return np.stack(drawn)

        train, test = masks(0.35), masks(0.65)
        nearest = np.square(test[:, None] - train[None]).sum(axis=2).argmin(axis=1)
        assert (nearest == np.arange(len(PRODUCTS))).mean() > 0.95

    @pytest.mark.slow
    def test_training_and_test_styles_differ_in_color_and_texture(self):
        """A linear classifier without shape features separates the splits, but not two halves of one split."""

        def features(split, numbers):
            found = []
            for number in numbers:
                pixels = np.asarray(photograph(0, split, number % 42, number % 42, number, 32), np.float32) / 255
                colors = np.histogramdd(pixels.reshape(-1, 3), bins=4, range=[(0, 1)] * 3)[0].ravel() / 32**2
                texture = [np.abs(np.diff(pixels, axis=axis)).mean() * 10 for axis in (0, 1)]
                found.append([*np.sqrt(colors), *texture, 1.0])
            return np.array(found)

        def accuracy(first, second):
            sides = np.repeat([1.0, -1.0], len(first) // 2)
            known, unseen = np.concatenate([first[::2], second[::2]]), np.concatenate([first[1::2], second[1::2]])
            weights = np.linalg.solve(known.T @ known + 0.3 * np.eye(known.shape[1]), known.T @ sides)
            return (np.sign(unseen @ weights) == sides).mean()

        train, test, again = (
            features("train", range(420)),
            features("test", range(420)),
            features("train", range(420, 840)),
        )
        assert accuracy(train, test) > 0.8
        assert 0.4 < accuracy(train, again) < 0.6

    def test_images_of_one_product_differ(self):
        pictures = [np.asarray(photograph(0, "train", 4, 4, index, 32), np.float32) for index in range(12)]
        assert min(np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]) > 8

    def test_hole_is_transparent(self):
        pen = Pen(32, np.eye(2, 3))
        pen.ellipse(0, 0, 0.9, 0.9)
        pen.ellipse(0, 0, 0.4, 0.4, Role.NOTHING)
        coverage = pen.coverage().sum(axis=2)
        assert coverage[16, 16] == 0
        assert coverage[16, 6] == 1


class TestInvalidArguments:
    @pytest.mark.parametrize(
        ("flag", "valid"),
        [
            ("--categories=0", "from 1 to 42"),
            ("--categories=43", "from 1 to 42"),
            ("--per_category=-1", "from 1 to 10000"),
            ("--test_per_category=-1", "from 0 to 10000"),
            ("--size=4", "from 16 to 1024"),
            ("--seed=-1", "from 0 to"),
            ("--workers=-1", "from 0 to"),
        ],
    )
    def test_out_of_range_value_is_rejected_with_the_range(self, tmp_path, flag, valid):
        result = run(f"--output={tmp_path / 'photos'}", "--per_category=1", "--categories=1", flag)
        assert result.returncode == 2
        assert flag in result.stderr and valid in result.stderr
        assert len(result.stderr.splitlines()) <= 2
        assert os.listdir(tmp_path) == []

    def test_nonempty_folder_is_rejected_and_unchanged(self, tmp_path):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "mine.txt").write_text("mine")
        result = run(f"--output={tmp_path / 'photos'}", "--per_category=1")
        assert result.returncode == 2
        assert f"--output={tmp_path / 'photos'}" in result.stderr and "not empty" in result.stderr
        assert os.listdir(tmp_path) == ["photos"]
        assert os.listdir(tmp_path / "photos") == ["mine.txt"]

    def test_output_file_is_rejected(self, tmp_path):
        (tmp_path / "photos").write_text("mine")
        with pytest.raises(UsageError, match="photos.*file"):
            SampleSet(categories=1, per_category=1).write(tmp_path / "photos")
        with pytest.raises(UsageError, match="photos: File exists|Not a directory"):
            SampleSet(categories=1, per_category=1).write(tmp_path / "photos" / "inside")

    def test_empty_folder_is_used(self, tmp_path):
        (tmp_path / "photos").mkdir()
        SampleSet(categories=1, per_category=1, size=16).write(tmp_path / "photos")
        assert (tmp_path / "photos" / "train.csv").exists()

    def test_output_is_required(self):
        result = run("--categories=1")
        assert result.returncode == 2
        assert "--output" in result.stderr


class TestInterruption:
    def test_error_while_drawing_leaves_no_files(self, tmp_path, monkeypatch):
        def fail(seed, split, category, product, index, size):
            if index == 3:
                raise RuntimeError("failed")
            return photograph(seed, split, category, product, index, size)

        monkeypatch.setattr(sample_set, "photograph", fail)
        with pytest.raises(RuntimeError, match="failed"):
            SampleSet(categories=2, per_category=5, size=16).write(tmp_path / "photos", workers=1)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_killed_command_leaves_no_output_and_no_process(self, tmp_path, number):
        flags = (f"--output={tmp_path / 'photos'}", "--per_category=300", "--size=256", "--workers=2")
        process = subprocess.Popen(command(*flags), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 30
            while not any(tmp_path.rglob("*.jpg")):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(number)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
        if number == signal.SIGTERM:
            assert (process.returncode, errors) == (143, "")
            assert os.listdir(tmp_path) == []
        assert not (tmp_path / "photos").exists()
        time.sleep(0.3)
        before = sum(1 for _ in tmp_path.rglob("*.jpg"))
        time.sleep(0.3)
        assert sum(1 for _ in tmp_path.rglob("*.jpg")) == before


def test_drawing_does_not_import_tensorflow():
    code = (
        "import sys, convoy.cli.sample, convoy.input_pipeline.sample.sample_set; sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
