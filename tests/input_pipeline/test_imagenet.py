"""Conversion of ImageNet from archives and folders, with each file of labels that comes with it."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

import convoy
from convoy.core.errors import DataError
from convoy.input_pipeline.convert.imagenet import opened_imagenet
from convoy.input_pipeline.convert.request import Request
from tests.input_pipeline.conversions import assert_rejected, contents, quarantined
from tests.input_pipeline.datasets import encode
from tests.input_pipeline.images import pixels

WORDS = {
    "n01440764": "tench, Tinca tinca",
    "n02012849": "crane",
    "n03126707": "crane",
    "n03710721": "maillot, tank suit",
}
NAMES = ("tench", "crane (n02012849)", "crane (n03126707)", "maillot")
SYNSETS = tuple(WORDS)
TRAIN = {
    f"{synset}/{synset}_{i}.JPEG": encode(pixels(10 * label + i), "jpeg")
    for label, synset in enumerate(SYNSETS)
    for i in range(3)
}
TRUTH = {f"ILSVRC2012_val_{i:08d}": SYNSETS[(3 * i) % 4] for i in range(1, 7)}
VALIDATION = {f"{stem}.JPEG": encode(pixels(90 + i), "jpeg") for i, stem in enumerate(TRUTH)}


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def class_archives(root=""):
    by_class = {synset: {} for synset in SYNSETS}
    for name, content in TRAIN.items():
        synset, file = name.split("/")
        by_class[synset][file] = content
    return {f"{root}{synset}.tar": tar(files) for synset, files in by_class.items()}


def folders(root, validation="val"):
    write(root / "train", TRAIN)
    write(root / validation, VALIDATION)


def archives(root):
    write(root, {"ILSVRC2012_img_train.tar": tar(class_archives()), "ILSVRC2012_img_val.tar": tar(VALIDATION)})


def archives_of_classes_and_validation_folders(root):
    write(root / "ILSVRC2012_img_train", class_archives())
    write(root / "val", {f"{TRUTH[Path(name).stem]}/{name}": content for name, content in VALIDATION.items()})


def kaggle(root):
    folders(root / "ILSVRC" / "Data" / "CLS-LOC")
    others = {"test/ILSVRC2012_test_00000001.JPEG": b"", "train/n01440764/n01440764_0.xml": b""}
    write(root / "ILSVRC" / "Annotations" / "CLS-LOC", others)
    write(root / "ILSVRC" / "ImageSets" / "CLS-LOC", {"val.txt": b"ILSVRC2012_val_00000001 1\n"})


def solution(root):
    lines = [f"{stem},{synset} 85 1 499 272 {synset} 1 1 9 9 " for stem, synset in reversed(TRUTH.items())]
    write(root, {"LOC_val_solution.csv": "\n".join(["ImageId,PredictionString", *lines]).encode()})


def list_of_synsets(root):
    write(root, {"imagenet_2012_validation_synset_labels.txt": "".join(f"{s}\n" for s in TRUTH.values()).encode()})


def devkit_files():
    from scipy.io import savemat

    numbers = {synset: number for number, synset in zip((490, 12, 361, 7), SYNSETS, strict=True)}
    fields = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children")]
    rows = [(np.float64(numbers[synset]), synset, words, np.float64(0)) for synset, words in WORDS.items()]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, fields)})
    truth = "".join(f"{numbers[synset]}\n" for synset in TRUTH.values()).encode()
    data = "ILSVRC2012_devkit_t12/data"
    return {f"{data}/meta.mat": meta.getvalue(), f"{data}/ILSVRC2012_validation_ground_truth.txt": truth}


def unpacked_devkit(root):
    write(root, devkit_files())


def packed_devkit(root):
    import gzip

    write(root, {"ILSVRC2012_devkit_t12.tar.gz": gzip.compress(tar(devkit_files()))})


def no_truth(root):
    pass


def name_classes(root, file="LOC_synset_mapping.txt"):
    write(root, {file: "".join(f"{synset} {words}\n" for synset, words in WORDS.items()).encode()})


def listed(root, log=lambda line: None, **request):
    with (
        opened_imagenet(Request("out", {"imagenet": str(root)}, **request), log) as options,
        options.listing() as found,
    ):
        return found


def images_of(found):
    return [(image.name, image.category, image.split, image.read()) for image in found.images]


@pytest.fixture(scope="module")
def expected():
    name_of = dict(zip(SYNSETS, NAMES, strict=True))
    train = [(f"train/{name}", name_of[name.split("/")[0]], "train", content) for name, content in TRAIN.items()]
    true = {name: TRUTH[Path(name).stem] for name in VALIDATION}
    validation = [
        (f"val/{true[name]}/{name}", name_of[true[name]], "validation", content) for name, content in VALIDATION.items()
    ]
    return sorted(train) + sorted(validation)


@pytest.mark.parametrize(
    ("layout", "truth"),
    [
        (folders, solution),
        (folders, list_of_synsets),
        (folders, unpacked_devkit),
        (archives, packed_devkit),
        (archives, solution),
        (archives_of_classes_and_validation_folders, no_truth),
        (kaggle, solution),
    ],
    ids=lambda function: function.__name__,
)
def test_images_are_the_same_from_every_layout_and_file_of_labels(tmp_path, expected, layout, truth):
    layout(tmp_path)
    truth(tmp_path)
    name_classes(tmp_path)
    lines = []
    found = listed(tmp_path, lines.append)
    assert images_of(found) == expected
    assert found.class_names == NAMES  # in the order of the synsets, as elsewhere; each has its own
    assert (found.ignored, found.missing, found.bad) == (0, (), ())
    assert any("LOC_synset_mapping.txt" in line for line in lines)


def test_archives_and_folders_give_the_same_dataset(tmp_path):
    for layout, truth in ((archives, packed_devkit), (kaggle, solution)):
        root = tmp_path / layout.__name__
        layout(root)
        truth(root)
        name_classes(root)
        convoy.convert(imagenet=root, output=root / "out" / "imagenet", workers=1)
    data = contents(tmp_path / "archives" / "out" / "imagenet")
    assert data == contents(tmp_path / "kaggle" / "out" / "imagenet")
    manifest = json.loads(data["manifest.json"])
    assert manifest["class_names"] == list(NAMES)
    assert {split: entry["counts"] for split, entry in manifest["splits"].items()} == {
        "train": [3, 3, 3, 3],
        "validation": [1, 1, 2, 2],
    }


def test_classes_without_names_are_called_by_their_synsets(tmp_path):
    folders(tmp_path, validation="other")
    lines = []
    assert listed(tmp_path, lines.append).class_names == SYNSETS
    assert any("synset_words.txt" in line for line in lines)
    write(tmp_path, {"synset_words.txt": b"n01440764 tench, Tinca tinca\n"})
    assert listed(tmp_path, lines.append).class_names == ("tench", *SYNSETS[1:])
    assert "n02012849" in lines[-1]


def test_an_archive_of_a_class_counts_rather_than_its_folder(tmp_path):
    write(tmp_path / "train", class_archives())
    write(tmp_path / "train", {"n01440764/n01440764_0.JPEG": b"cut o"})  # its unpacking was interrupted
    assert [image[3] for image in images_of(listed(tmp_path))] == list(TRAIN.values())


def test_class_folders_in_the_folder_itself_are_training_images(tmp_path):
    write(tmp_path, TRAIN)
    write(tmp_path / "papers", {"figure.jpg": b""})
    found = listed(tmp_path)
    assert len(found.images) == len(TRAIN) and found.ignored == 0
    with opened_imagenet(Request("out", {"imagenet": str(tmp_path)}, splits={"train": 0.5, "test": 0.5}), print) as one:
        assert one.drawn == {"train": 0.5, "test": 0.5}


def test_validation_images_of_other_classes_are_left_out_and_listed(tmp_path):
    folders(tmp_path)
    solution(tmp_path)
    for path in (tmp_path / "train").glob("n03*/*"):
        path.unlink()
        path.parent.rmdir() if not any(path.parent.iterdir()) else None
    lines = []
    found = listed(tmp_path, lines.append)
    others = {name for name, synset in TRUTH.items() if synset.startswith("n03")}
    assert found.class_names == SYNSETS[:2]
    assert {Path(image.name).stem for image, _ in found.excluded} == others and found.ignored == len(others)
    assert any(f"{len(others)} images" in line for line in lines)


def test_missing_validation_images_are_an_error_unless_they_are_skipped(tmp_path, capsys):
    root = tmp_path / "imagenet"
    folders(root)
    solution(root)
    (root / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()
    with pytest.raises(DataError, match="1 of 6 .*ILSVRC2012_val_00000002.*--missing=skip"):
        listed(root)
    summary = convoy.convert(imagenet=root, output=tmp_path / "data", missing="skip", workers=1)
    assert summary.missing == 1
    assert (f"val/{TRUTH['ILSVRC2012_val_00000002']}/ILSVRC2012_val_00000002.JPEG", "missing") in quarantined(
        tmp_path / "data"
    )


def cut_archive(root):
    archives(root)
    path = root / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:-3000])


def empty_class(root):
    folders(root)
    solution(root)
    (root / "train" / "n09999999").mkdir()


def other_folders(root):
    write(root / "train" / "cup", {"1.jpg": b""})


def unknown_image(root):
    folders(root)
    solution(root)
    write(root / "val", {"ILSVRC2012_val_00000007.JPEG": b"?"})


def image_twice(root):
    folders(root)
    solution(root)
    write(root / "val" / TRUTH["ILSVRC2012_val_00000001"], {"ILSVRC2012_val_00000001.JPEG": b"?"})


def broken_names(root):
    folders(root)
    solution(root)
    write(root, {"synset_words.txt": b"tench\n"})


def broken_truth(root):
    folders(root)
    write(root, {"LOC_val_solution.csv": b"ImageId,PredictionString\nILSVRC2012_val_00000001,tench 1 2 3 4\n"})


def numbers_alone(root):
    folders(root)
    unpacked_devkit(root)
    next(root.rglob("meta.mat")).unlink()


def damaged_devkit(root):
    folders(root)
    packed_devkit(root)
    path = root / "ILSVRC2012_devkit_t12.tar.gz"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (folders, "LOC_val_solution.csv"),
        (cut_archive, "ILSVRC2012_img_train.tar is cut off"),
        (empty_class, "n09999999"),
        (other_folders, "--images"),
        (unknown_image, "ILSVRC2012_val_00000007"),
        (image_twice, "ILSVRC2012_val_00000001.JPEG"),
        (broken_names, "line 1"),
        (broken_truth, "'tench'"),
        (numbers_alone, "meta.mat"),
        (damaged_devkit, "ILSVRC2012_devkit_t12.tar.gz"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_is_named_with_the_file(tmp_path, make, named):
    make(tmp_path)
    with pytest.raises(DataError) as caught:
        listed(tmp_path)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_without_scipy_both_other_files_are_named(tmp_path, monkeypatch):
    folders(tmp_path)
    unpacked_devkit(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DataError) as caught:
        listed(tmp_path)
    for name in ("scipy", "LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt"):
        assert name in str(caught.value)


def test_the_command_refuses_what_does_not_fit(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    folders(tmp_path / "imagenet")
    output = f"--output={tmp_path / 'data'}"
    assert_rejected(capsys, "ILSVRC2012_img_train.tar", f"--imagenet={tmp_path / 'empty'}", output, code=3)
    assert_rejected(capsys, "does not exist", f"--imagenet={tmp_path / 'gone'}", output, code=3)
    for flag in ("--split=test", "--splits=train:0.5,test:0.5", "--manifest=x.csv", "--images=x", "--tfds_dir=x"):
        named = flag.partition("=")[0]
        assert_rejected(capsys, named, f"--imagenet={tmp_path / 'imagenet'}", output, flag, code=2)
