"""Images and labels of WebDataset archives."""

import bz2
import gzip
import lzma

import pytest

from convoy import cli
from convoy.core.errors import DataError
from convoy.input_pipeline.dataset.open import open_dataset
from tests.input_pipeline.conversions import assert_rejected, examples, listed, outcomes_of_damage, quarantined, reasons
from tests.input_pipeline.datasets import encode
from tests.input_pipeline.images import pixels
from tests.input_pipeline.test_tar_members import FORMATS, write

KINDS = ("cup", "fork", "jar")


def png(number):
    return encode(pixels(number), "png")


def write_samples(folder, numbers, name="shard-%03d.tar", maxcount=10, **fields):
    """Writes images with WebDataset's own writer; each field is a function of the number."""
    import webdataset

    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(folder / name), maxcount=maxcount, verbose=0) as writer:
        for i in numbers:
            writer.write({"__key__": f"{i:04d}", "png": png(i), **{key: value(i) for key, value in fields.items()}})
    return folder


def categories(found):
    return {image.name.rpartition("/")[2]: image.category for image in found.images}


def test_images_and_labels_are_those_of_the_writer(tmp_path):
    write_samples(tmp_path / "in", range(25), cls=lambda i: i % 12, txt=lambda i: "a caption")
    logged = []
    with listed(tmp_path / "data", logged, tar=tmp_path / "in" / "shard-{000..002}.tar") as (options, found):
        assert [image.read() for image in found.images] == [png(i) for i in range(25)]
        assert [image.name for image in found.images[9:11]] == ["shard-000.tar/0009.png", "shard-001.tar/0010.png"]
        assert [image.category for image in found.images] == [str(i % 12) for i in range(25)]
        assert found.class_names == tuple(map(str, range(12)))  # in the order of numbers
        assert options.drawn == {"train": 0.9, "validation": 0.1} and not found.bad
    assert "--label_field=cls" in logged[-1]


@pytest.mark.parametrize(
    ("field", "fields", "names"),
    [
        ("txt", {"txt": lambda i: f"{KINDS[i % 3]}\n", "cls": lambda i: 7}, KINDS),
        ("", {"json": lambda i: {"label": KINDS[i % 3], "id": i}}, KINDS),
        ("json", {"json": lambda i: {"class": i % 3, "id": i}, "cls": lambda i: 7}, ("0", "1", "2")),
        ("json:meta.kind", {"json": lambda i: {"meta": {"kind": KINDS[i % 3]}}}, KINDS),
        ("json:meta.kind", {"json": lambda i: {"meta.kind": KINDS[i % 3]}}, KINDS),
        (".kind", {"kind": lambda i: KINDS[i % 3].encode(), "cls": lambda i: 7}, KINDS),
        ("cls", {"cls": lambda i: f"0{i % 3}".encode()}, ("00", "01", "02")),
    ],
)
def test_labels_are_from_the_field_that_is_named(tmp_path, field, fields, names):
    write_samples(tmp_path / "in", range(6), **fields)
    with listed(tmp_path / "data", tar=tmp_path / "in", label_field=field) as (_, found):
        assert found.class_names == names
        assert [image.category for image in found.images] == [names[i % 3] for i in range(6)]


def test_numbers_have_the_names_of_the_file_of_classes(tmp_path):
    write_samples(tmp_path / "in", range(6), cls=lambda i: [2, 0, -1, 3, 2, 0][i])
    with listed(tmp_path / "data", class_names=("jar", "cup", "bowl"), tar=tmp_path / "in") as (_, found):
        assert found.class_names == ("jar", "cup", "bowl")
        assert list(categories(found).values()) == ["bowl", "jar", "bowl", "jar"]
        assert reasons(found) == {
            "shard-000.tar/0002.png": "no label (-1)",
            "shard-000.tar/0003.png": "label 3 is not one of the 3 classes, 0 to 2",
        }


def test_samples_that_cannot_be_used_are_listed_with_reasons(tmp_path):
    members = {
        "good.png": png(0),
        "good.cls": b"1",
        "nolabel.png": png(1),
        "noimage.cls": b"1",
        "link.png": "2",
        "link.cls": b"1",
        "device.cls": "3",
        "device.png": png(2),
        "two.png": png(3),
        "two.jpg": png(3),
        "two.cls": b"1",
        "empty.png": png(4),
        "empty.cls": b" \n",
        "bytes.png": png(5),
        "bytes.cls": b"\xff\xfe\x00",
        "twice.png": png(6),
        "twice.cls": b"1",
        "folder/twice.png": png(7),
        "folder/twice.cls": b"0",
    }
    path = write(tmp_path / "a.tar", members)
    with open(path, "r+b") as file:  # a second member of the same name, as `tar -r` appends it
        data = file.read().rstrip(b"\0")
        more = write(tmp_path / "b.tar", {"twice.png": png(8)}).read_bytes()
        file.seek(-(-len(data) // 512) * 512)
        file.write(more)
    with listed(tmp_path / "data", tar=path) as (_, found):
        assert categories(found) == {"good.png": "1", "twice.png": "0"}
        assert found.images[1].name == "a.tar/folder/twice.png"
        bad = {name.removeprefix("a.tar/"): reason for name, reason in reasons(found).items()}
    assert set(bad) == {
        "nolabel.png", "noimage.cls", "link.png", "device.png", "two.png", "two.jpg", "empty.png", "bytes.png",
        "twice.png",
    }  # fmt: skip
    assert bad["nolabel.png"] == "no label: no .cls has its name"
    assert "symbolic link" in bad["link.png"] and "device" in bad["device.png"]
    assert "more than once" in bad["twice.png"] and "2 images" in bad["two.jpg"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"label": None}, "no label"),
        ({"label": ["a", "b"]}, "list"),
        ({"label": {"a": 1}}, "dict"),
        ({"label": 1.5}, "float"),
        ({"labels": 1}, "'labels'"),
        ([1], "no key 'label'"),
    ],
)
def test_labels_in_json_that_are_not_of_one_class_are_listed(tmp_path, content, reason):
    write_samples(tmp_path / "in", range(2), json=lambda i: content if i else {"label": 1})
    with listed(tmp_path / "data", tar=tmp_path / "in", label_field="json:label") as (_, found):
        assert len(found.images) == 1 and reason in reasons(found)["shard-000.tar/0001.png"]


def test_names_of_members_lead_nowhere(tmp_path):
    members = {
        "/etc/a.png": png(0),
        "/etc/a.cls": b"1",
        "../../b.png": png(1),
        "../../b.cls": b"1",
        "./c.png": png(2),
        "c.cls": b"1",
        "名.2.png": png(3),
        "名.2.cls": b"1",
        "名.3.PNG": png(4),
        "名.3.cls": b"1",
        "d.seg.png": png(5),
        "d.png": png(6),
        "d.cls": b"1",
        ".hidden.png": png(7),
        "._a.png": png(7),
        "__MACOSX/a.png": png(7),
        "__meta__/a.png": png(7),
        "README": b"text",
        "notes.md": b"text",
    }
    with listed(tmp_path / "data", tar=write(tmp_path / "a.tar", members)) as (_, found):
        assert [image.name for image in found.images] == [
            f"a.tar/{name}" for name in ("etc/a.png", "b.png", "c.png", "名.2.png", "名.3.PNG", "d.png")
        ]
        assert [image.read() for image in found.images] == [png(i) for i in (0, 1, 2, 3, 4, 6)]
        assert not found.bad and found.ignored == 2


@pytest.mark.parametrize("kind", FORMATS)
def test_damage_of_any_kind_is_an_error_or_leaves_the_rest(tmp_path, kind):
    members = {"a.png": png(0), "a.cls": b"1", f"{'n' * 90}/b.png": png(1), f"{'n' * 90}/b.json": b'{"label": 1}'}
    path = write(tmp_path / "a.tar", members, FORMATS[kind])
    outcomes = outcomes_of_damage(path, tmp_path / "data", 200, tar=path)
    assert min(outcomes["listed"], outcomes["error"]) > 20, outcomes


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_compressed_archives_are_copied_meanwhile(tmp_path, kind):
    write_samples(tmp_path / "in", range(8), cls=lambda i: i % 2)
    path = tmp_path / "in" / "shard-000.tar"
    data = path.read_bytes()
    if kind == "zst":
        import pyarrow

        compressed = pyarrow.Codec("zstd").compress(data, asbytes=True)
    else:
        compressed = {"gz": gzip, "bz2": bz2, "xz": lzma}[kind].compress(data)
    packed = tmp_path / f"shard.tar.{kind}"
    packed.write_bytes(compressed)
    with listed(tmp_path / "out" / "data", tar=packed) as (_, found):
        assert [image.read() for image in found.images] == [png(i) for i in range(8)]
        assert {image.modified for image in found.images} == {packed.stat().st_mtime_ns}
    assert not (tmp_path / "out").exists()
    packed.write_bytes(compressed[:-20])
    with pytest.raises(DataError, match=f"shard.tar.{kind} "), listed(tmp_path / "out" / "data", tar=packed):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "code", "named"),
    [
        ({"tar": "{in}/shard-*.tar", "label_field": "json:"}, 2, "label_field=json:"),
        ({"tar": "{in}/shard-*.tar", "label_field": "clss"}, 3, "'cls'"),
        ({"tar": "{in}/shard-*.tar", "image_column": "image"}, 2, "image_column=image"),
        ({"tar": "{in}/shard-*.tar", "manifest": "x.csv"}, 2, "manifest=x.csv"),
        ({"tar": "{in}/shard-*.tar", "images": "photos"}, 2, "images=photos"),
        ({"tar": "{in}/cut.tar"}, 3, "cut.tar"),
        ({"tar": "{in}/text.tar"}, 3, "not a tar"),
        ({"tar": "{in}/unlabeled.tar"}, 3, ".cls, .txt or .json"),
        ({"tar": "{in}/ambiguous.tar"}, 3, "json:KEY"),
        ({"tar": "{in}/empty.tar"}, 3, "no images"),
        ({"tar": "{in}/broken.tar", "label_field": "cls"}, 3, "max_bad_fraction"),
        ({"tar": "{in}/sets/*.tar", "split": "test"}, 2, "train"),
    ],
)
def test_what_cannot_be_converted_is_one_line(tmp_path, capsys, given, code, named):
    folder = write_samples(tmp_path / "in", range(4), cls=lambda i: i % 2)
    (folder / "cut.tar").write_bytes((folder / "shard-000.tar").read_bytes()[:-10240])
    (folder / "text.tar").write_text("no archive" * 100)
    write(folder / "unlabeled.tar", {"a.png": png(0), "b.jpg": png(1)})
    write(folder / "ambiguous.tar", {"a.png": png(0), "a.json": b'{"id": 1, "kind": 2}'})
    write(folder / "empty.tar", {})
    write(folder / "broken.tar", {"a.png": png(0), "a.cls": b"1", "b.png": png(1), "b.cls": b"2", "c.png": png(2)})
    for split in ("train", "test"):
        write_samples(folder / "sets", range(4), name=f"{split}-%03d.tar", cls=lambda i: i % 2)
    flags = [f"--{name}={value.format(**{'in': folder})}" for name, value in given.items()]
    assert_rejected(capsys, named, *flags, f"--output={tmp_path}/data", "--workers=1", code=code)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_archives_are_converted_as_files_are(tmp_path, capsys):
    folder = write_samples(tmp_path / "in", range(20), "train-%03d.tar", cls=lambda i: KINDS[i % 3].encode())
    write_samples(folder, [*range(20, 26), 0], "test-%03d.tar", cls=lambda i: KINDS[i % 3].encode())
    write(folder / "test-001.tar", {"x.png": b"no image", "x.cls": b"cup", "y.png": png(30)})
    flags = (f"--tar={folder}", f"--output={tmp_path}/data", "--workers=1", "--max_bad_fraction=0.5")
    assert cli.main(["convoy", "convert", *flags]) == 0
    data = open_dataset(tmp_path / "data")
    assert data.class_names == KINDS
    assert {split: data.split(split).num_images for split in data.splits} == {"train": 18, "validation": 2, "test": 6}
    assert {(name, reason.partition(" (")[0]) for name, reason in quarantined(tmp_path / "data")} == {
        ("test-000.tar/0000.png", "same bytes as train-000.tar/0000.png"),
        ("test-001.tar/x.png", "not an image"),
        ("test-001.tar/y.png", "no label: no .cls has its name"),
    }
    found = examples(tmp_path / "data", "test")
    assert {name: example["image/encoded"] for name, example in found.items()} == {
        f"test-000.tar/{i:04d}.png": png(i) for i in range(20, 26)
    }
    assert "quarantined" in capsys.readouterr().out


def test_a_split_without_labels_is_left_out(tmp_path):
    folder = write_samples(tmp_path / "in", range(6), "train-%03d.tar", cls=lambda i: i % 2)
    write_samples(folder, range(6, 9), "test-%03d.tar")
    logged = []
    with listed(tmp_path / "data", logged, tar=folder) as (_, found):
        assert {image.split for image in found.images} == {"train"} and not found.bad
    assert any("'test'" in line and "3 images" in line for line in logged)
    write_samples(folder, range(6, 9), "test-%03d.tar", cls=lambda i: i)
    with (
        pytest.raises(DataError, match="3 images.*test-000.tar/0006.png: label 6"),
        listed(tmp_path / "data", class_names=("a", "b"), tar=folder),
    ):
        pass  # labels that cannot be used are not missing ones
