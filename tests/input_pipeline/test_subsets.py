"""Subsets of the training images: which images are in them, and what a view of a dataset has."""

import numpy as np
import pytest

from convoy.input_pipeline.convert.convert import Options, convert
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.dataset.recorded_view import view_of
from convoy.input_pipeline.dataset.subsets import in_subset, training_subset
from convoy.trainer.evaluation.predictions import filenames
from tests.input_pipeline.datasets import read_payloads
from tests.input_pipeline.images import draw_classes

NAMES = ("a", "b", "c")


def drawn(images, seed=0):
    """Returns keys and labels of images."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**63, images).astype(np.uint64), rng.integers(0, len(NAMES), images)


def chosen(keys, labels, fraction, groups=None, names=NAMES):
    groups = np.unique(keys, return_inverse=True)[1] if groups is None else groups
    return in_subset(keys, groups, labels, fraction, names)


class TestChoice:
    @pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
    def test_every_class_has_its_share(self, fraction):
        keys, labels = drawn(500)
        kept = chosen(keys, labels, fraction)
        for label in range(len(NAMES)):
            images = (labels == label).sum()
            assert abs(kept[labels == label].sum() - fraction * images) < 1

    def test_a_smaller_one_is_part_of_a_larger_one(self):
        for seed in range(20):
            keys, labels = drawn(40, seed)
            groups = np.random.default_rng(seed).integers(0, 15, 40)
            subsets = [chosen(keys, labels, fraction, groups) for fraction in (0.1, 0.25, 0.5, 0.75)]
            for smaller, larger in zip(subsets, subsets[1:], strict=False):
                assert not (smaller & ~larger).any()

    def test_does_not_depend_on_the_order(self):
        keys, labels = drawn(300)
        order = np.random.default_rng(1).permutation(300)
        np.testing.assert_array_equal(chosen(keys, labels, 0.25)[order], chosen(keys[order], labels[order], 0.25))

    def test_each_class_keeps_an_image(self):
        keys, labels = drawn(3)[0], np.array([0, 1, 2])
        assert chosen(keys, labels, 0.25).all()
        groups = np.array([0, 0, 1, 1, 1, 1])  # the images of class 1 are in the group of a class with smaller keys
        found = chosen(np.arange(6).astype(np.uint64), np.array([0, 1, 2, 2, 2, 2]), 0.25, groups)
        assert found.tolist() == [True, True, True, True, True, True]

    def test_many_small_classes_add_up_to_the_share(self):
        names = [f"class {number}" for number in range(400)]
        keys, labels = drawn(2400)[0], np.repeat(np.arange(400), 6)
        assert chosen(keys, labels, 0.25, names=names).sum() == pytest.approx(600, rel=0.05)

    def test_groups_are_in_it_together(self):
        keys, labels = drawn(600)
        groups = np.arange(600) // 4
        kept = chosen(keys, labels, 0.25, groups)
        assert all(len(np.unique(kept[groups == group])) == 1 for group in range(150))
        assert kept.mean() == pytest.approx(0.25, abs=0.05)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subsets")
    images = draw_classes(folder / "photos", {"03": 20, "mug": 32, "Käse": 2})
    splits = {"train": 0.6, "validation": 0.2, "test": 0.2}
    convert(Options(images=images, output=folder / "data", splits=splits, workers=1))
    return folder / "data"


class TestViews:
    def test_training_images_are_fewer_and_other_splits_stay(self, data):
        whole = open_dataset(data)
        half, quarter = (training_subset(whole, fraction) for fraction in (0.5, 0.25))
        names = [set(filenames(each.split("train"))) for each in (quarter, half, whole)]
        assert names[0] < names[1] < names[2]
        assert all((view.split("train").class_counts(3) > 0).all() for view in (half, quarter))
        for split in ("validation", "test"):
            assert filenames(half.split(split)) == filenames(whole.split(split))
            assert half.digest(split) == whole.digest(split)

    def test_records_and_labels_are_those_of_the_dataset(self, data):
        whole, view = (each.split("train") for each in (open_dataset(data), training_subset(open_dataset(data), 0.5)))
        rows = zip(filenames(whole), read_payloads(whole), whole.label.tolist(), strict=True)
        expected = {name: (payload, label) for name, payload, label in rows}
        found = list(zip(read_payloads(view), view.label.tolist(), strict=True))
        assert found == [expected[name] for name in filenames(view)]

    def test_subsets_do_not_depend_on_shards_or_seed(self, data, tmp_path):
        whole = open_dataset(data)
        folder = tmp_path / "same"
        for name in filenames(whole.split("train")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((data.parent / "photos" / name).read_bytes())
        convert(Options(images=folder, output=tmp_path / "data", validation_fraction=0, seed=7, shards=3, workers=1))
        found = [
            set(filenames(training_subset(each, 0.5).split("train")))
            for each in (whole, open_dataset(tmp_path / "data"))
        ]
        assert found[0] == found[1]

    def test_digests_tell_fractions_apart(self, data):
        whole = open_dataset(data)
        digests = {each.digest("train") for each in (whole, *(training_subset(whole, part) for part in (0.25, 0.5)))}
        assert len(digests) == 3

    def test_a_run_s_description_makes_the_same_view(self, data):
        whole = open_dataset(data)
        view = training_subset(whole, 0.5)
        assert view_of(whole, view.description).digest("train") == view.digest("train")
