"""Folds of a dataset for cross-validation: which images are in which, and what a view of a dataset has."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from convoy.core.errors import DataError
from convoy.input_pipeline.convert.convert import Options, convert
from convoy.input_pipeline.convert.plan import content_hash
from convoy.input_pipeline.convert.sources import Table
from convoy.input_pipeline.dataset.folds import OUT_OF_FOLD, assign, make_folds
from convoy.input_pipeline.dataset.image_facts import GROUP, read_images
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.dataset.recorded_view import view_of
from convoy.trainer.evaluation.predictions import filenames
from tests.input_pipeline.datasets import encode, read_payloads, write_dataset, write_split
from tests.input_pipeline.images import draw_classes, pixels

NAMES = ("a", "b", "c")


def drawn(images, seed=0):
    """Returns keys and labels of images, each alone in its group."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**63, images).astype(np.uint64), rng.integers(0, len(NAMES), images)


def assigned(keys, labels, number=5, groups=None):
    groups = np.unique(keys, return_inverse=True)[1] if groups is None else groups
    return assign(keys, groups, labels, number, NAMES)


def by_name(folds):
    """Returns the fold of each labelled image by its file name."""
    names = filenames(folds.together().split(OUT_OF_FOLD))
    return dict(zip(names, folds.of.tolist(), strict=True))


class TestAssignment:
    def test_every_class_is_in_equal_parts(self):
        keys, labels = drawn(500)
        of = assigned(keys, labels)
        for label in range(len(NAMES)):
            sizes = np.bincount(of[labels == label], minlength=6)[1:]
            assert sizes.max() - sizes.min() <= 1

    def test_does_not_depend_on_the_order(self):
        keys, labels = drawn(300)
        order = np.random.default_rng(1).permutation(300)
        np.testing.assert_array_equal(assigned(keys, labels)[order], assigned(keys[order], labels[order]))

    def test_added_images_move_few_others(self):
        keys, labels = drawn(1000)
        before = assigned(keys[:980], labels[:980])
        assert np.mean(before != assigned(keys, labels)[:980]) < 0.03

    def test_small_classes_add_up_to_folds_of_the_same_size(self):
        names = [f"class {number}" for number in range(400)]
        keys, labels = drawn(1200)[0], np.repeat(np.arange(400), 3)
        sizes = np.bincount(assign(keys, np.arange(1200), labels, 5, names), minlength=6)[1:]
        assert sizes.min() > 190

    def test_groups_stay_together_whatever_their_labels(self):
        keys, labels = drawn(600)
        groups = np.arange(600) // 4
        of = assigned(keys, labels, groups=groups)
        assert all(len(np.unique(of[groups == group])) == 1 for group in range(150))
        assert np.bincount(of, minlength=6)[1:].min() > 90


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    images = draw_classes(folder / "photos", {"03": 12, "mug": 18, "Käse": 9})
    splits = {"train": 0.6, "validation": 0.2, "test": 0.2}
    convert(Options(images=images, output=folder / "data", splits=splits, workers=1))
    return folder / "data"


class TestViews:
    def test_each_labelled_image_is_validated_on_once_and_trained_on_otherwise(self, data):
        whole = open_dataset(data)
        labelled = sorted(name for split in ("train", "validation") for name in filenames(whole.split(split)))
        folds, seen = make_folds(whole, 3), []
        for number in (1, 2, 3):
            view = folds.without(number)
            train, validation = (filenames(view.split(name)) for name in ("train", "validation"))
            assert sorted([*train, *validation]) == labelled
            seen += validation
            assert filenames(view.split("test")) == filenames(whole.split("test"))
        assert sorted(seen) == labelled
        assert sorted(filenames(folds.together().split(OUT_OF_FOLD))) == labelled

    def test_records_and_labels_of_a_view_are_those_of_the_dataset(self, data):
        whole = open_dataset(data)
        payload_of = {}
        for name in ("train", "validation"):
            split = whole.split(name)
            rows = zip(read_payloads(split), split.label.tolist(), strict=True)
            payload_of |= dict(zip(filenames(split), rows, strict=True))
        split = make_folds(whole, 3).without(2).split("train")
        found = list(zip(read_payloads(split), split.label.tolist(), strict=True))
        assert found == [payload_of[name] for name in filenames(split)]

    def test_folds_do_not_depend_on_splits_shards_or_seed(self, data, tmp_path):
        images = data.parent / "photos"
        convert(Options(images=images, output=tmp_path / "data", validation_fraction=0, seed=7, shards=3, workers=1))
        before, after = (
            by_name(make_folds(open_dataset(data), 3)),
            by_name(make_folds(open_dataset(tmp_path / "data"), 3)),
        )
        assert np.mean([after[name] == fold for name, fold in before.items()]) > 0.8  # the test images were added

    def test_digests_tell_folds_their_number_and_data_apart(self, data, tmp_path):
        whole = open_dataset(data)
        views = [make_folds(whole, number).without(fold) for number, fold in ((3, 1), (3, 2), (4, 1))]
        digests = {view.digest(split) for view in views for split in ("train", "validation")}
        other = make_folds(
            open_dataset(write_dataset(tmp_path / "other", {"train": [pixels(i, 8) for i in range(9)]}, NAMES)), 3
        )
        assert len(digests | {other.without(1).digest("train"), whole.digest("train")}) == 8
        assert views[0].digest("test") == whole.digest("test")
        assert make_folds(open_dataset(data), 3).without(1).digest("train") == views[0].digest("train")

    def test_view_of_a_description(self, data):
        whole = open_dataset(data)
        assert view_of(whole, {}) is whole
        fold = view_of(whole, {"fold": 2, "folds": 3})
        assert fold.digest("validation") == make_folds(whole, 3).without(2).digest("validation")
        assert OUT_OF_FOLD in view_of(whole, {"folds": 3}).splits

    def test_a_dataset_that_is_too_small_for_the_folds_is_another_one(self, data):
        whole = open_dataset(data)
        assert view_of(whole, {"fold": 2, "folds": 60}) is whole

    def test_too_many_folds_are_refused(self, data):
        with pytest.raises(DataError, match="--folds=60"):
            make_folds(open_dataset(data), 60)

    def test_more_folds_than_any_class_has_images_are_refused(self, data):
        whole = open_dataset(data)
        labels = np.concatenate([whole.split(name).label for name in ("train", "validation")])
        most = int(np.bincount(labels).max())
        make_folds(whole, most).check()
        folds = make_folds(whole, most + 1)  # runs of earlier versions are read
        with pytest.raises(DataError, match=rf"--folds={most + 1}:.*at most {most}\b"):
            folds.check()

    def test_classes_with_too_few_images_are_named(self, data):
        whole = open_dataset(data)
        assert "Käse" in make_folds(whole, 12).small_classes()
        assert make_folds(whole, 2).small_classes() == []


class TestGroups:
    def test_groups_of_a_column_stay_together(self, tmp_path):
        images = draw_classes(tmp_path / "photos", {"mug": 24, "pot": 24})
        rows = [
            (f"{name}/{name}_{i:03d}.jpg", name, f"p{i // 4}" if i < 20 else "")
            for name in ("mug", "pot")
            for i in range(24)
        ]
        table = tmp_path / "table.csv"
        table.write_text("filename,category,patient\n" + "".join(f"{','.join(row)}\n" for row in rows))
        convert(
            Options(
                images=images,
                table=Table(table, group_column="patient"),
                output=tmp_path / "data",
                validation_fraction=0.2,
                workers=1,
            )
        )
        stored = [read_images(tmp_path / "data", split)[GROUP] for split in ("train", "validation")]
        groups = {row[2] for row in rows} - {""}
        assert {*np.concatenate(stored).tolist()} == {0, *(content_hash(group.encode()) for group in groups)}
        folds = make_folds(open_dataset(tmp_path / "data"), 3)
        of = by_name(folds)
        for group in groups:
            assert len({of[name] for name, _, patient in rows if patient == group}) == 1
        assert len({of[name] for name, _, patient in rows if not patient}) > 1
        dataclasses.replace(folds, number=9).check()  # 5 patients and 4 images without one
        with pytest.raises(DataError, match=r"--folds=10:.*at most 9\b"):
            dataclasses.replace(folds, number=10).check()

    @pytest.mark.parametrize("similar", [False, True])
    def test_look_alikes_stay_together_or_are_counted(self, tmp_path, similar):
        random = np.random.default_rng(0)
        for category in ("mug", "pot"):
            (tmp_path / "photos" / category).mkdir(parents=True)
            for number in range(12):
                coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
                for name, side in (("", 64), ("copy_", 48)):
                    file = tmp_path / "photos" / category / f"{name}{category}_{number}.png"
                    coarse.resize((side, side), Image.Resampling.BICUBIC).save(file)
        options = Options(images=tmp_path / "photos", output=tmp_path / "data", validation_fraction=0.2, workers=1)
        convert(dataclasses.replace(options, group_similar=similar))
        folds = make_folds(open_dataset(tmp_path / "data"), 3)
        of = by_name(folds)
        spread = sum(of[name] != of[name.replace("copy_", "")] for name in of if "copy_" in name)
        assert (spread == 0) == (folds.alike_across_folds() == 0) == similar


def test_records_of_other_tools_are_divided_by_their_checksums(tmp_path):
    write_split(tmp_path / "shards", [pixels(i, 8) for i in range(24)], [i % 3 for i in range(24)])
    folds = make_folds(open_dataset(tmp_path / "shards"), 4)
    labels = folds.together().split(OUT_OF_FOLD).label
    assert all(np.bincount(labels[folds.images(number)], minlength=3).tolist() == [2, 2, 2] for number in range(1, 5))


def test_sources_are_read_by_their_own_numbers():
    class Images:
        def __init__(self, first, number):
            self.first, self.num_images = first, number

        def label(self, index):
            return (self.first + index) % 2

        def read(self, indices):
            return [encode(pixels(self.first + index, 8), "png") for index in indices]

    folds = make_folds(open_dataset({"train": Images(0, 12), "validation": Images(12, 8)}), 2)
    found = []
    for number in (1, 2):
        split = folds.without(number).split("validation")
        assert split.source.read(range(split.num_images)) == [
            encode(pixels(image, 8), "png") for image in folds.images(number)
        ]
        assert split.label.tolist() == [image % 2 for image in folds.images(number)]
        found += folds.images(number).tolist()
    assert sorted(found) == list(range(20))
