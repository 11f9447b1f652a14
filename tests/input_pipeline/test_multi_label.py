"""Several labels per image, from a CSV to the records and back."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.convert import metadata, plan
from convoy.input_pipeline.convert.convert import convert
from convoy.input_pipeline.convert.options import Options
from convoy.input_pipeline.convert.sources import Source, Table, list_sources, with_labels
from convoy.input_pipeline.convert.tfds_sources import list_prepared
from convoy.input_pipeline.dataset import contents
from convoy.input_pipeline.dataset.examples import from_bytes, read_features
from convoy.input_pipeline.dataset.folds import make_folds
from convoy.input_pipeline.dataset.index import index_path
from convoy.input_pipeline.dataset.label_sets import LabelSets, unused_delimiter
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.verify.verify import verify
from tests.input_pipeline.conversions import assert_rejected, quarantined
from tests.input_pipeline.datasets import read_payloads

LABELS = {
    "a.png": ("dog", "cat"),
    "b.png": (),
    "c.png": ("dog",),
    "d.png": ("bird", "cat", "dog"),
    "e.png": ("cat",),
    "f.png": ("bird",),
}
NAMES = ("bird", "cat", "dog")


def csv_of(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def delimited(path, labels=LABELS, delimiter=" "):
    return csv_of(path, ["filename,category", *(f"{name},{delimiter.join(own)}" for name, own in labels.items())])


def one_hot(path, labels=LABELS, names=("dog", "bird", "cat")):
    rows = [f"{image},{','.join(str(int(name in own)) for name in names)}" for image, own in labels.items()]
    return csv_of(path, [f"filename,{','.join(names)}", *rows])


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(LABELS):
        Image.new("RGB", (8, 8), (40 * number, 90, 200 - 30 * number)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def converted(photos, output, table, **options):
    convert(Options(photos, output, table, workers=1, **{"validation_fraction": 0.0, **options}))
    return open_dataset(output)


def labels_of(dataset, split="train"):
    opened = dataset.split(split)
    texts = {}
    for i, payload in enumerate(read_payloads(opened)):
        features = read_features(from_bytes(payload), len(payload))
        name = features["image/filename"][0].decode()
        texts[name] = [text.decode() for text in features["image/class/text"]]
        assert features["image/class/label"] == opened.labels_of(i)
    return texts


class TestTables:
    @pytest.mark.parametrize("delimiter", [" ", ";", ", "])
    def test_labels_in_one_cell(self, tmp_path, photos, delimiter):
        path = delimited(tmp_path / "t.csv", {"a.png": ("dog", "cat", "dog"), "b.png": ()}, delimiter)
        quoted = csv_of(path, [line.replace(",", ',"', 1) + '"' for line in path.read_text().splitlines()])
        quoted.write_text(quoted.read_text().replace('filename,"category"', "filename,category"))
        found = list_sources(photos, Table(quoted, label_delimiter=delimiter.strip() or " "))
        assert [image.labels for image in found.images] == [("cat", "dog"), ()]
        assert found.class_names == ("cat", "dog")

    def test_columns_are_classes_even_without_images(self, tmp_path, photos):
        path = csv_of(tmp_path / "t.csv", ["filename,dog,fish,by", "a.png,1,0,x", "b.png,0.0,0,y", "c.png,1.0,0,x"])
        found = list_sources(photos, Table(path, one_hot=True, group_column="by"))
        assert found.class_names == ("dog", "fish")
        assert [image.labels for image in found.images] == [("dog",), (), ("dog",)]
        assert [image.group for image in found.images] == ["x", "y", "x"]

    @pytest.mark.parametrize("value", ["2", "yes", "", "-1"])
    def test_other_values_are_refused_with_their_line(self, tmp_path, photos, value):
        path = csv_of(tmp_path / "t.csv", ["filename,cat,dog", "a.png,1,0", f"b.png,0,{value}"])
        with pytest.raises(DataError, match=r"line 3.*'dog'"):
            list_sources(photos, Table(path, one_hot=True))

    def test_columns_of_0_and_1_without_the_flag_are_refused(self, tmp_path, photos):
        with pytest.raises(DataError, match="--multi_label"):
            list_sources(photos, Table(one_hot(tmp_path / "t.csv")))

    @pytest.mark.parametrize("delimiter", ["", "|"])
    def test_lists_without_their_delimiter_are_noted(self, tmp_path, photos, delimiter):
        lines = ["filename,category", "a.png,cat dog", "b.png,cat", "c.png,dog"]
        table = Table(csv_of(tmp_path / "t.csv", lines), label_delimiter=delimiter)
        found = list_sources(photos, table)
        assert found.class_names == ("cat", "cat dog", "dog")
        assert "--label_delimiter=' '" in found.notes[0]
        csv_of(table.path, [*lines, "d.png,"])
        if delimiter:
            assert list_sources(photos, table).images[-1].labels == ()
        else:
            with pytest.raises(DataError, match=r"line 5.*--label_delimiter=' '"):
                list_sources(photos, table)

    def test_flags_need_a_table_and_exclude_each_other(self, tmp_path, photos, capsys):
        flags = (f"--images={photos}", f"--output={tmp_path / 'data'}")
        assert_rejected(capsys, "--manifest", *flags, "--multi_label", code=2)
        table = f"--manifest={delimited(tmp_path / 't.csv')}"
        assert_rejected(capsys, "--multi_label", *flags, table, "--multi_label", "--label_delimiter= ", code=2)


class TestDivision:
    def images(self, number=2000):
        random = np.random.default_rng(0)
        shares = np.linspace(0.01, 0.5, 8)
        chosen = random.random((number, len(shares))) < shares
        return [
            with_labels(Source(str(i), f"{i}.png", "", 1), tuple(f"c{k}" for k in np.flatnonzero(chosen[i])))
            for i in range(number)
        ]

    def test_each_split_gets_its_share_of_every_label(self):
        images, shares = self.images(), {"train": 0.7, "validation": 0.2, "test": 0.1}
        totals = Counter(name for image in images for name in image.classes)
        unlabeled = sum(not image.labels for image in images)
        for split, members in plan.divide(images, shares, 0).items():
            counts = Counter(name for image in members for name in image.classes)
            assert all(abs(counts[name] - shares[split] * total) <= 2 for name, total in totals.items())
            assert abs(sum(not image.labels for image in members) - shares[split] * unlabeled) <= 1
            assert abs(len(members) - shares[split] * len(images)) < 0.03 * len(images)

    def test_depends_on_names_and_seed_only(self):
        images, shares = self.images(300), {"train": 0.8, "test": 0.2}
        splits = plan.divide(images, shares, 0)
        backwards = plan.divide(images[::-1], shares, 0)
        assert {split: set(members) for split, members in splits.items()} == {
            split: set(members) for split, members in backwards.items()
        }
        assert set(plan.divide(images, shares, 1)["test"]) != set(splits["test"])

    def test_first_split_has_every_label_and_others_are_not_empty(self):
        images = [with_labels(Source(str(i), f"{i}.png", "", 1), (f"c{i}",) if i < 3 else ("c",)) for i in range(9)]
        splits = plan.divide(images, {"train": 0.1, "validation": 0.45, "test": 0.45}, 0)
        assert {name for image in splits["train"] for name in image.classes} == {"c0", "c1", "c2", "c"}
        assert all(splits.values())

    def test_groups_and_conflicts_stay_together(self):
        images, shares = self.images(300), {"train": 0.5, "test": 0.5}
        groups = [images[start : start + 3] for start in range(0, 90, 3)]
        together = frozenset(image.name for image in images[200:210])
        splits = plan.divide(images, shares, 0, together, groups)
        split_of = {image.name: split for split, members in splits.items() for image in members}
        assert all(len({split_of[image.name] for image in group}) == 1 for group in groups)
        assert {split_of[name] for name in together} == {"train"}
        assert sum(map(len, splits.values())) == 300


class TestConversion:
    def test_both_forms_give_the_same_records(self, tmp_path, photos):
        from_cells = converted(photos, tmp_path / "x", Table(delimited(tmp_path / "t.csv"), label_delimiter=" "))
        from_columns = converted(photos, tmp_path / "y/x", Table(one_hot(tmp_path / "o.csv"), one_hot=True))
        assert labels_of(from_cells) == {name: sorted(own) for name, own in LABELS.items()}
        assert from_cells.digest("train") == from_columns.digest("train")
        assert index_path(tmp_path / "x", "train").read_bytes() == index_path(tmp_path / "y/x", "train").read_bytes()
        assert from_cells.manifest == from_columns.manifest

    def test_dataset_and_split_say_so(self, tmp_path, photos):
        dataset = converted(photos, tmp_path / "data", Table(delimited(tmp_path / "t.csv"), label_delimiter=" "))
        train, entry = dataset.split("train"), dataset.manifest["splits"]["train"]
        assert dataset.manifest.keys() == contents.MANIFEST.keys()
        assert entry.keys() == contents.SPLIT.keys() - {"grouped"}
        with np.load(index_path(tmp_path / "data", "train")) as archive:
            assert archive.files == list(contents.INDEX)
        assert dataset.multi_label
        assert dataset.class_names == NAMES
        assert entry["counts"] == [2, 3, 3] == train.class_counts(3).tolist()
        assert entry["labels_per_image"] == [1, 3, 1, 1]
        assert train.targets(np.arange(6)).sum(0).tolist() == [2, 3, 3]
        assert {dataset.label_text("train", i) for i in range(6)} >= {"", "cat dog", "bird cat dog"}

    def test_verify_finds_nothing_and_rebuilds_the_index(self, tmp_path, photos):
        data = tmp_path / "data"
        converted(photos, data, Table(delimited(tmp_path / "t.csv"), label_delimiter=" "))
        report = verify(data, workers=1)
        assert report.faults == ()
        assert (report.splits[0].records, report.splits[0].classes) == (6, 3)
        index = index_path(data, "train")
        before = index.read_bytes()
        index.unlink()
        assert open_dataset(data).split("train").class_counts(3).tolist() == [2, 3, 3]  # from the records
        assert verify(data, workers=1, repair_index=True).rebuilt == ("train",)
        assert index.read_bytes() == before

    def test_verify_finds_a_wrong_index(self, tmp_path, photos):
        data = tmp_path / "data"
        dataset = converted(photos, data, Table(delimited(tmp_path / "t.csv"), label_delimiter=" "))
        with np.load(index_path(data, "train")) as archive:
            arrays = dict(archive)
        place = int(np.flatnonzero(arrays["num_labels"] == 1)[0])  # another label for this image
        first = int(arrays["num_labels"][:place].sum())
        arrays["label"][first] = (arrays["label"][first] + 1) % 3
        metadata.write_index(data, "train", arrays)
        faults = verify(data, workers=1).faults
        assert {fault.code for fault in faults} == {"index-mismatch"}
        assert faults[0].record == place
        assert dataset.split("train").labels_of(place) != arrays["label"][first : first + 1].tolist()

    def test_duplicates_with_other_labels_are_conflicts(self, tmp_path, photos):
        labels = {**LABELS, "g.png": LABELS["a.png"], "h.png": ("bird",)}
        for copy in ("g.png", "h.png"):
            (photos / copy).write_bytes((photos / "a.png").read_bytes())
        table = Table(delimited(tmp_path / "t.csv", labels), label_delimiter=" ")
        summary = convert(Options(photos, tmp_path / "data", table, workers=1, validation_fraction=0.0))
        assert summary.duplicates == 1
        assert summary.conflicts == (("h.png", "a.png"),)
        assert quarantined(tmp_path / "data") == {("g.png", "same bytes as a.png")}

    def test_broken_images_are_unusable_also_without_a_label(self, tmp_path, photos):
        (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:40])  # has no label
        (photos / "other.png").write_bytes((photos / "a.png").read_bytes())
        table = Table(delimited(tmp_path / "t.csv"), label_delimiter=" ")
        dataset = converted(photos, tmp_path / "data", table, max_bad_fraction=0.2)
        assert dataset.split("train").num_images == 5
        assert {path for path, _ in quarantined(tmp_path / "data")} == {"b.png", "other.png"}
        page = (tmp_path / "data/report.html").read_text()
        assert "1 file (17 %) could not be used" in page and "1 file was ignored" in page

    def test_report_counts_labels_and_pairs(self, tmp_path, photos):
        converted(photos, tmp_path / "data", Table(delimited(tmp_path / "t.csv"), label_delimiter=" "))
        page = (tmp_path / "data/report.html").read_text()
        assert "labels per image" in page
        assert "cat" in page.partition("occur together")[2]

    def test_tfds_reads_the_lists(self, tmp_path, photos):
        import tensorflow_datasets as tfds

        dataset = converted(photos, tmp_path / "data", Table(delimited(tmp_path / "t.csv"), label_delimiter=" "))
        builder = tfds.builder_from_directory(str(tmp_path / "data"))
        found = [example["image"]["class"] for example in tfds.as_numpy(builder.as_dataset(split="train"))]
        assert [each["label"].tolist() for each in found] == [dataset.split("train").labels_of(i) for i in range(6)]
        assert [b" ".join(each["text"]).decode() for each in found] == [
            dataset.label_text("train", i) for i in range(6)
        ]

    def test_further_splits_are_of_the_same_kind(self, tmp_path, photos):
        several = Table(delimited(tmp_path / "t.csv"), label_delimiter=" ")
        one = Table(csv_of(tmp_path / "u.csv", ["filename,category", "a.png,cat", "c.png,dog"]))
        converted(photos, tmp_path / "several", several)
        converted(photos, tmp_path / "one", one)
        for output, other in ((tmp_path / "several", one), (tmp_path / "one", several)):
            with pytest.raises(UsageError, match="label"):
                convert(Options(photos, output, other, split="test", workers=1))
        (tmp_path / "folders").mkdir()
        photos.rename(tmp_path / "folders/cat")  # as other sources than a CSV have one label
        with pytest.raises(UsageError, match="CSV"):
            convert(Options(tmp_path / "folders", tmp_path / "several", split="test", workers=1))

    def test_dry_run_counts_images_and_labels(self, tmp_path, photos):
        table, seen = Table(delimited(tmp_path / "t.csv"), label_delimiter=" "), []
        options = Options(photos, tmp_path / "data", table, workers=1, validation_fraction=0.0, dry_run=True)
        found = convert(options, preview=seen.append)
        for summary in (seen[0], found):
            (split,) = summary.splits
            assert (split.images, split.classes, split.labels_per_image) == (6, 3, (1, 3, 1, 1))
            assert [one.kept["train"] for one in summary.classes] == [2, 3, 3]
        assert not (tmp_path / "data").exists()

    def test_cross_validation_is_refused(self, tmp_path, photos):
        dataset = converted(photos, tmp_path / "data", Table(delimited(tmp_path / "t.csv"), label_delimiter=" "))
        with pytest.raises(DataError, match="--folds=2"):
            make_folds(dataset, 2)

    def test_prepared_images_of_several_labels_are_refused(self, tmp_path, photos):
        dataset = converted(photos, tmp_path / "data", Table(delimited(tmp_path / "t.csv"), label_delimiter=" "))
        with pytest.raises(DataError, match="CSV"):
            list_prepared(dataset, ["train"])

    def test_a_dataset_of_one_label_has_no_new_fields(self, tmp_path, photos):
        one = Table(csv_of(tmp_path / "u.csv", ["filename,category", "a.png,cat", "c.png,dog"]))
        dataset = converted(photos, tmp_path / "one", one)
        with np.load(index_path(tmp_path / "one", "train")) as archive:
            assert sorted(archive) == ["crc", "label", "length", "offset", "shard"]
        assert not {"multi_label", "label_delimiter"} & dataset.manifest.keys()
        assert "labels_per_image" not in dataset.manifest["splits"]["train"]


class TestLabelSets:
    labels = LabelSets.of({"label": np.int32([1, 2, 0, 1, 2, 2]), "num_labels": np.int32([2, 0, 3, 1])}, 4)

    def test_multi_hot_in_any_order(self):
        expected = [[0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0]]
        np.testing.assert_array_equal(self.labels.multi_hot(np.array([3, 0, 1, 0])), expected)

    def test_class_sampling_goes_by_the_rarest_label(self):
        assert self.labels.rarest().tolist() == [1, 4, 0, 2]  # class 3 has no image; 4 is no label

    def test_delimiter_is_in_no_name(self):
        assert unused_delimiter(["a", "b"]) == " "
        assert unused_delimiter(["a b", "c;d"]) == "|"
