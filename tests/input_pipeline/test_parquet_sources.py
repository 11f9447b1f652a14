"""Images and labels of parquet files, written by Hugging Face's `datasets` and by pyarrow."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from convoy import cli
from convoy.core.errors import DataError
from convoy.input_pipeline.dataset.open import open_dataset
from tests.input_pipeline.conversions import assert_rejected, examples, listed, outcomes_of_damage, quarantined, reasons
from tests.input_pipeline.datasets import encode
from tests.input_pipeline.images import pixels

KINDS = ("jar", "cup", "fork")  # not sorted: labels keep their numbers


def png(number):
    return encode(pixels(number), "png")


def write(path, images, labels, names=None, image="image", label="label", **options):
    """Writes a parquet file with columns of plain values, and ClassLabel names where they are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({image: images, label: labels})
    if names:
        features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, **options)
    return path


def test_images_and_names_are_those_of_datasets(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(KINDS))})
    images = [{"bytes": png(i), "path": None if i % 2 else f"{i}.png"} for i in range(150)]
    labels = [i % 3 for i in range(150)]
    (tmp_path / "in" / "data").mkdir(parents=True)
    for split, numbers in {"train": range(140), "validation": range(140, 150)}.items():
        rows = {"image": [images[i] for i in numbers], "label": [labels[i] for i in numbers]}
        written = datasets.Dataset.from_dict(rows, features=features)
        written.to_parquet(tmp_path / "in" / "data" / f"{split}-00000-of-00001.parquet", batch_size=50)
    logged = []
    with listed(tmp_path / "data", logged, parquet=tmp_path / "in") as (options, found):
        assert found.class_names == KINDS and not found.bad
        assert [image.read() for image in found.images] == [png(i) for i in range(150)]
        assert [image.category for image in found.images] == [KINDS[i % 3] for i in range(150)]
        assert found.images[70].name == "data/train-00000-of-00001.parquet/0000070"
        assert list(options.split_folders) == ["train", "validation"] and list(options.drawn) == ["train"]
    assert not list(tmp_path.glob("data*"))  # the copy is gone


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_plain_columns_of_bytes_are_read(tmp_path, kind):
    rows = pa.array([png(i) for i in range(10)], kind)
    path = write(tmp_path / "a.parquet", rows, [f"{KINDS[i % 3]} " for i in range(10)], image="content", label="kind")
    with listed(tmp_path / "data", parquet=path, image_column="content", label_column="kind") as (_, found):
        assert [image.read() for image in found.images] == [png(i) for i in range(10)]
        assert found.class_names == tuple(sorted(KINDS))


@pytest.mark.parametrize(
    ("labels", "classes", "bad"),
    [
        (pa.array([10, 2, None, 2]), ("2", "10"), {2: "no label"}),
        (pa.array([10.0, 2.0, float("nan"), 2.5]), ("2", "10"), {2: "no label", 3: "float"}),
        (pa.array(["b", " ", None, "a"]), ("a", "b"), {1: "no label", 2: "no label"}),
        (pa.array(["b", "a", None, "a"]).dictionary_encode(), ("a", "b"), {2: "no label"}),
        (pa.array([True, False, None, True]), ("false", "true"), {2: "no label"}),
        (pa.array([-1, 2, 2, -1], pa.int8()), ("-1", "2"), {}),
    ],
)
def test_labels_of_any_simple_type(tmp_path, labels, classes, bad):
    path = write(tmp_path / "a.parquet", [png(i) for i in range(4)], labels)
    with listed(tmp_path / "data", parquet=path) as (_, found):
        assert found.class_names == classes
        why = {int(name.rpartition("/")[2]): reason for name, reason in reasons(found).items()}
    assert set(why) == set(bad) and all(bad[row] in why[row] for row in bad)


def test_labels_outside_the_names_and_nulls_are_listed(tmp_path):
    images = [png(0), None, png(2), png(3), png(4), b""]
    structs = [image if image is None else {"bytes": image, "path": "x"} for image in images]
    structs[4] = {"bytes": None, "path": "/photos/4.png"}
    path = write(tmp_path / "a.parquet", structs, [0, 1, 3, -1, 2, 2], KINDS)
    with listed(tmp_path / "data", parquet=path) as (_, found):
        assert found.class_names == KINDS
        assert [image.category for image in found.images] == [KINDS[0], KINDS[2]]
        assert [image.read() for image in found.images] == [png(0), b""]  # which decoding reports
        assert reasons(found) == {
            "a.parquet/0000001": "no image (null)",
            "a.parquet/0000002": "label 3 is not one of the 3 classes, 0 to 2",
            "a.parquet/0000003": "no label (-1)",
            "a.parquet/0000004": "no image (null)",
        }


def test_damage_of_any_kind_is_an_error_or_leaves_the_rest(tmp_path):
    path = write(tmp_path / "a.parquet", [png(i) for i in range(3)], [0, 1, 2], KINDS)
    outcomes = outcomes_of_damage(path, tmp_path / "data", 60, parquet=path)
    assert min(outcomes["listed"], outcomes["error"]) > 5, outcomes


def test_few_rows_are_in_memory_at_a_time(tmp_path):
    """Of one row group with 32 MiB of images, in pages of 1 MiB."""
    images = [bytes([i]) * 2**17 for i in range(256)]
    options = {"compression": "none", "use_dictionary": False, "write_batch_size": 8}
    path = write(tmp_path / "a.parquet", images, list(range(256)), **options)
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        with listed(tmp_path / "data", parquet=path) as (_, found):
            assert [image.read()[0] for image in found.images] == list(range(256))
    finally:
        pa.set_memory_pool(before)
    assert 2**20 < pool.max_memory() < 3 * 2**23


@pytest.mark.parametrize(
    ("given", "code", "named"),
    [
        ({"parquet": "{in}/good.parquet", "image_column": "imgae"}, 3, "'image'"),
        ({"parquet": "{in}/good.parquet", "label_column": "labels"}, 3, "'label'"),
        ({"parquet": "{in}/good.parquet", "image_column": "label"}, 3, "int64"),
        ({"parquet": "{in}/good.parquet", "label_field": "cls"}, 2, "label_field=cls"),
        ({"parquet": "{in}/nothing-*.parquet"}, 3, "nothing-*.parquet"),
        ({"parquet": "{in}/lists.parquet"}, 3, "list<"),
        ({"parquet": "{in}/structs.parquet"}, 3, "struct<"),
        ({"parquet": "{in}/paths.parquet"}, 3, "string"),
        ({"parquet": "{in}/two.parquet"}, 3, "fine, coarse"),
        ({"parquet": "{in}/other.parquet"}, 3, "--image_column"),
        ({"parquet": "{in}/cut.parquet"}, 3, "cut.parquet"),
        ({"parquet": "{in}/text.parquet"}, 3, "text.parquet"),
        ({"parquet": "{in}/damaged.parquet"}, 3, "damaged.parquet"),
        ({"parquet": "{in}/names/*"}, 3, "class names"),
        ({"parquet": "{in}/null.parquet"}, 3, "no label"),
        ({"parquet": "{in}/rows.parquet"}, 3, "no images"),
        ({"parquet": "{in}/part-*"}, 3, "shard 1 of the 2"),
    ],
)
def test_what_cannot_be_converted_is_one_line(tmp_path, capsys, given, code, named):
    folder = tmp_path / "in"
    images, labels = [png(i) for i in range(4)], [0, 1, 0, 1]
    good = write(folder / "good.parquet", images, labels).read_bytes()
    write(folder / "lists.parquet", images, [[0], [1], [0, 1], []])
    write(folder / "structs.parquet", images, [{"id": 0}] * 4)
    write(folder / "paths.parquet", ["a.png"] * 4, labels)
    write(folder / "null.parquet", images, [None] * 4)
    write(folder / "rows.parquet", pa.array([], pa.binary()), pa.array([], pa.int64()))
    write(folder / "other.parquet", [1, 2, 3, 4], labels, image="id")
    write(folder / "part-00000-of-00002.parquet", images, labels)
    for names in (["a", "b"], ["b", "a"]):
        write(folder / "names" / f"{names[0]}.parquet", images, labels, names)
    two = {"fine": {"_type": "ClassLabel"}, "coarse": {"_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": two}})}
    pq.write_table(
        pa.table({"image": images, "fine": labels, "coarse": labels}).replace_schema_metadata(metadata),
        folder / "two.parquet",
    )
    (folder / "cut.parquet").write_bytes(good[:-100])
    (folder / "text.parquet").write_text("no parquet")
    path = write(folder / "damaged.parquet", images, labels, write_page_checksum=True, compression="none")
    data = bytearray(path.read_bytes())
    data[data.index(png(2)) + 50] ^= 1
    path.write_bytes(data)
    flags = [f"--{name}={value.format(**{'in': folder})}" for name, value in given.items()]
    assert_rejected(capsys, named, *flags, f"--output={tmp_path}/data", "--workers=1", code=code)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_split_without_a_column_of_labels_is_left_out(tmp_path):
    write(tmp_path / "in" / "train.parquet", [png(i) for i in range(4)], [0, 1, 0, 1])
    pq.write_table(pa.table({"image": [png(5)]}), tmp_path / "in" / "test.parquet")
    write(tmp_path / "in" / "val.parquet", [png(7)], [-1], KINDS)
    logged = []
    with pytest.raises(DataError, match="another class names"), listed(tmp_path / "data", parquet=tmp_path / "in"):
        pass
    write(tmp_path / "in" / "train.parquet", [png(i) for i in range(4)], [0, 1, 0, 1], KINDS)
    with listed(tmp_path / "data", logged, parquet=tmp_path / "in") as (_, found):
        assert {image.split for image in found.images} == {"train"}
    assert any("'test'" in line for line in logged) and any("'validation'" in line for line in logged)


def test_files_are_converted_as_folders_are(tmp_path, capsys):
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(20)]
    write(tmp_path / "in" / "train-00000-of-00001.parquet", images, [i % 3 for i in range(20)], KINDS)
    more = [*images[:1], {"bytes": b"no image", "path": ""}, {"bytes": png(30), "path": ""}]
    write(tmp_path / "in" / "test-00000-of-00001.parquet", more, [0, 1, 9], KINDS)
    flags = (f"--parquet={tmp_path}/in", f"--output={tmp_path}/data", "--workers=1", "--max_bad_fraction=0.7")
    write(tmp_path / "in" / "test.parquet", [{"bytes": png(40), "path": ""}], [2], KINDS)
    assert cli.main(["convoy", "convert", *flags]) == 0
    data = open_dataset(tmp_path / "data")
    assert data.class_names == KINDS
    assert {split: data.split(split).num_images for split in data.splits} == {"train": 18, "validation": 2, "test": 1}
    (kept,) = examples(tmp_path / "data", "test").values()
    assert (kept["image/encoded"], kept["image/class/label"]) == (png(40), 2)
    name = "test-00000-of-00001.parquet"
    assert {(name, reason.partition(" (")[0]) for name, reason in quarantined(tmp_path / "data")} == {
        (f"{name}/0000000", "same bytes as train-00000-of-00001.parquet/0000000"),
        (f"{name}/0000001", "not an image"),
        (f"{name}/0000002", "label 9 is not one of the 3 classes, 0 to 2"),
    }
    assert "--image_column=image" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "in"]
