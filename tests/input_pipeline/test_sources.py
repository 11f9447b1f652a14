import unicodedata
from pathlib import Path

import pytest

from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.convert.sources import Table, list_sources, one_spelling
from convoy.input_pipeline.convert.split_folders import find_splits, find_unlabeled


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"image")
    return folder


def manifest(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def assert_rejected(message: str, *arguments, **options) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list_sources(*arguments, **options)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_each_subfolder_is_a_class_with_all_images_below_it(tmp_path):
    touch(
        tmp_path, "mug/b.JPG", "mug/nested/deeper/a.png", "bag/c.webp", "bag/notes.txt", "train.csv", "bag/.hidden.jpg"
    )
    found = list_sources(tmp_path)
    assert [(image.name, image.category) for image in found.images] == [
        ("bag/c.webp", "bag"),
        ("mug/b.JPG", "mug"),
        ("mug/nested/deeper/a.png", "mug"),
    ]
    assert found.class_names == ("bag", "mug")
    assert found.images[0].size == 5
    assert found.stray == ("bag/notes.txt",)
    assert found.ignored == 2  # notes.txt and train.csv


def test_folders_of_systems_are_never_classes(tmp_path):
    hidden = (
        "__MACOSX/a",
        "@eaDir/a",
        "lost+found/a",
        ".ipynb_checkpoints/a",
        "$RECYCLE.BIN/a",
        "mug/@eaDir/thumbnail",
    )
    touch(tmp_path, "mug/a.jpg", "bag/b.jpg", *(f"{name}.jpg" for name in hidden))
    found = list_sources(tmp_path)
    assert found.class_names == ("bag", "mug")
    assert [image.name for image in found.images] == ["bag/b.jpg", "mug/a.jpg"]


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        ("train test", {"train": "train", "test": "test"}),
        ("Testing Validation Training", {"train": "Training", "validation": "Validation", "test": "Testing"}),
        ("dev train", {"train": "train", "validation": "dev"}),
        ("VAL", {"validation": "VAL"}),
        ("mug bag", {}),
    ],
)
def test_folders_named_like_splits_with_class_folders_inside_are_splits(tmp_path, folders, splits):
    touch(tmp_path, *(f"{name}/{category}/a.jpg" for name in folders.split() for category in ("mug", "bag")))
    touch(tmp_path, "annotations/all.json", "__MACOSX/x/a.jpg", "notes.txt")
    assert list(find_splits(tmp_path).items()) == list(splits.items())
    assert find_splits(tmp_path, by_name=False).keys() >= splits.keys()


def test_images_of_a_folder_of_splits_have_splits_and_the_classes_of_all(tmp_path):
    touch(tmp_path, "train/mug/a.jpg", "train/bag/b.jpg", "test/mug/deeper/c.jpg", "test/cup/d.jpg", "test/note.txt")
    (tmp_path / "test" / "bag").mkdir()  # a class without test images
    found = list_sources(tmp_path, splits=find_splits(tmp_path))
    assert [(image.name, image.category, image.split) for image in found.images] == [
        ("train/bag/b.jpg", "bag", "train"),
        ("train/mug/a.jpg", "mug", "train"),
        ("test/cup/d.jpg", "cup", "test"),
        ("test/mug/deeper/c.jpg", "mug", "test"),
    ]
    assert found.class_names == ("bag", "cup", "mug")
    assert found.ignored == 1


def test_test_images_without_labels_are_no_class(tmp_path):
    touch(tmp_path, "train/mug/a.jpg", "train/bag/b.jpg", "test/c.jpg", "more/d.txt")
    splits = find_splits(tmp_path)
    assert splits == {"train": "train"}
    assert find_unlabeled(tmp_path, splits) == [tmp_path / "test"]


def test_a_class_called_train_beside_others_is_a_class(tmp_path):
    touch(tmp_path, "train/a.jpg", "car/b.jpg", "plane/c.jpg")
    assert find_splits(tmp_path) == {}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("train/mug/a.jpg", "car/b.jpg"), "'train'.*'car'.*--images=.*train.*--folders=classes"),
        (("train/a.jpg", "test/b.jpg"), "'test', 'train'.*--manifest=CSV.*--folders=classes"),
        (("val/mug/a.jpg", "dev/mug/b.jpg"), "'dev'.*'val'.*'validation'.*--split=NAME"),
    ],
)
def test_folders_that_could_be_splits_or_classes_are_refused(tmp_path, files, message):
    touch(tmp_path, *files)
    with pytest.raises(DataError, match=message):
        find_splits(tmp_path)


def test_csv_names_images_in_any_subfolders_and_other_files_are_ignored(tmp_path):
    images = touch(tmp_path / "images", "x.jpg", "03/y.jpg", "03/z.jpg", "10/z.jpg", "10/unnamed.jpg")
    rows = manifest(tmp_path / "train.csv", "filename,category", "x.jpg,10", "y.jpg,03", "10/z.jpg,10")
    found = list_sources(images, Table(rows))
    assert {image.name: image.category for image in found.images} == {"x.jpg": "10", "03/y.jpg": "03", "10/z.jpg": "10"}
    assert found.class_names == ("03", "10")
    assert (found.ignored, found.stray) == (2, ("03/z.jpg", "10/unnamed.jpg"))


def test_csv_may_have_a_byte_order_mark_and_other_column_names(tmp_path):
    images = touch(tmp_path / "images", "a.jpg", "b.jpg")
    rows = manifest(
        tmp_path / "t.csv", "id,path,kind", '1,a.jpg,"Tea, green"', "2,b.jpg,Käse", "", encoding="utf-8-sig"
    )
    found = list_sources(images, Table(rows, filename_column="path", category_column="kind"))
    assert found.class_names == ("Käse", "Tea, green")
    rows = manifest(tmp_path / "u.csv", "filename,category", "a.jpg,1", encoding="utf-8-sig")
    assert list_sources(images, Table(rows)).class_names == ("1",)


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (b"filename;category\na.jpg;3,5\n", {}),
        ("filename\tcategory\r\na.jpg\t3,5\r\n".encode("utf-16"), {}),
        (b"filename|category\na.jpg|3,5", {}),
        (b'filename,category\r"a.jpg","3,5"\r', {}),
        ("größe:filename:category\n1:a.jpg:3,5\n".encode("cp1252"), {"delimiter": ":", "encoding": "cp1252"}),
    ],
)
def test_csv_dialects_of_spreadsheets_are_read(tmp_path, content, options):
    images = touch(tmp_path / "images", "a.jpg")
    (tmp_path / "t.csv").write_bytes(content)
    assert [image.category for image in list_sources(images, Table(tmp_path / "t.csv", **options)).images] == ["3,5"]


def test_names_match_in_any_unicode_form_and_with_backslashes(tmp_path):
    images = touch(tmp_path / "images", "Ka\u0308se/a b.jpg", "03/line\nbreak.jpg")
    rows = tmp_path / "t.csv"
    rows.write_text(
        'filename,category\nK\u00e4se\\a b.jpg,1\n"./03//line\nbreak.jpg",2\n', encoding="utf-8", newline=""
    )
    assert {image.name: image.category for image in list_sources(images, Table(rows)).images} == {
        "Ka\u0308se/a b.jpg": "1",
        "03/line\nbreak.jpg": "2",
    }


@pytest.mark.parametrize("name", ["../secret.jpg", "a/../../secret.jpg", "/etc/secret.jpg", ".."])
def test_name_outside_the_folder_is_rejected(tmp_path, name):
    images = touch(tmp_path / "images", "a.jpg")
    touch(tmp_path, "secret.jpg")
    rows = manifest(tmp_path / "t.csv", "filename,category", "a.jpg,1", f"{name},1")
    assert_rejected(f"1 file name .*images: {name!r}", images, Table(rows, skip_missing=True))


def test_missing_files_can_be_skipped_and_are_listed(tmp_path):
    images = touch(tmp_path / "images", "a.jpg")
    rows = manifest(tmp_path / "t.csv", "filename,category", "a.jpg,1", "b.jpg,2", "c.jpg,1")
    found = list_sources(images, Table(rows, skip_missing=True))
    assert found.missing == (("b.jpg", "2"), ("c.jpg", "1"))
    assert found.class_names == ("1",)
    assert_rejected("3 of 3 files ", touch(tmp_path / "none", "x.jpg"), Table(rows, skip_missing=True))


def test_missing_folder_is_reported_with_a_suggestion(tmp_path):
    touch(tmp_path, "photos/a/a.jpg")
    assert_rejected("phtos .*'photos'", tmp_path / "phtos")
    assert_rejected("a.jpg .*folder", tmp_path / "photos/a/a.jpg")


def test_an_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"PK")
    assert_rejected("photos.zip is an archive. Unpack it", tmp_path / "photos.zip")


def test_folder_without_class_folders_is_rejected(tmp_path):
    assert_rejected("2 images.*--manifest", touch(tmp_path, "a.jpg", "b.jpg"))


def test_classes_without_images_are_listed(tmp_path):
    touch(tmp_path, "mug/a.jpg", "hat/readme.txt")
    (tmp_path / "bag").mkdir()
    assert_rejected("2 classes .*: 'bag', 'hat'", tmp_path)


def test_missing_manifest_is_reported_with_a_suggestion(tmp_path):
    images = touch(tmp_path / "images", "a.jpg")
    manifest(tmp_path / "train.csv", "filename,category", "a.jpg,1")
    assert_rejected("tran.csv .*'train.csv'", images, Table(tmp_path / "tran.csv"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file_name,category", "a.jpg,1"], "'filename' .*'file_name'"),
        (["filename;kind", "a.jpg;1"], "'category'.*'filename,kind'"),
        (["filename,category,category", "a.jpg,1,2"], "more than one .*'category'"),
        (["filename,category"], "no rows"),
        ([], "empty.*'filename,category'"),
        (["filename,category", "a.jpg,"], r"line 2: empty category \(a.jpg,\)"),
        (["filename,category", ",1"], "line 2: empty filename"),
        (["filename,category", "a.jpg,1", "b.jpg"], "line 3 has 1 field, .* 2 "),
        (["filename,category", "a.jpg,1", "a.jpg,2"], "'a.jpg' in line 2 as '1', line 3 as '2'"),
        (["filename,category", "a.jpg,1", "./a.jpg,1"], "line 3: './a.jpg' .*a.jpg"),
        (["filename,category", "a.jpg,1", '"b.jpg,1'], "cannot be read"),
        (['"filename\nof it",category', "a.jpg"], r"1 field, .*filename\\nof it"),
        (["filename,category,note", 'a.jpg,,"two\nlines"'], r"line 3: empty category \(a.jpg,,two\\nlines\)"),
    ],
)
def test_malformed_csv_is_rejected_with_its_line(tmp_path, lines, message):
    images = touch(tmp_path / "images", "a.jpg", "b.jpg")
    assert_rejected(message, images, Table(manifest(tmp_path / "t.csv", *lines)))


def test_csv_that_is_not_utf8_is_rejected(tmp_path):
    images = touch(tmp_path / "images", "a.jpg")
    rows = manifest(tmp_path / "t.csv", "filename,category", "a.jpg,Käse", encoding="latin-1")
    assert_rejected("not UTF-8.*--csv_encoding=cp1252", images, Table(rows))
    for wrong in ({"encoding": "klingon"}, {"encoding": "hex"}, {"delimiter": "::"}):
        with pytest.raises(UsageError, match="--csv_(encoding=(klingon|hex)|delimiter='::')"):
            list_sources(images, Table(rows, **wrong))


def test_missing_files_of_a_csv_are_listed_and_counted(tmp_path):
    images = touch(tmp_path / "images", "a.jpg", "b.jpg")
    rows = manifest(tmp_path / "t.csv", "filename,category", "a.jpg,1", *(f"n{i}.jpg,1" for i in range(5)))
    assert_rejected("5 of 6 files .*: 'n0.jpg', 'n1.jpg', 'n2.jpg' and 2 more", images, Table(rows))
    rows = manifest(tmp_path / "t.csv", "filename,category", "b.jpeg,1")
    assert_rejected("'b.jpg'", images, Table(rows))


def test_base_name_in_two_class_folders_is_ambiguous(tmp_path):
    images = touch(tmp_path / "images", "03/a.jpg", "10/a.jpg")
    rows = manifest(tmp_path / "t.csv", "filename,category", "a.jpg,03")
    assert_rejected("line 2: 'a.jpg' .*03/a.jpg and 10/a.jpg", images, Table(rows))


@pytest.mark.parametrize("name", ["a", "03/a", "b/03/a", "photos/03/a.jpg", "photos\\03\\a", " a.jpg "])
def test_names_of_a_csv_may_lack_suffix_and_have_the_folder(tmp_path, name):
    images = touch(tmp_path / "photos", "03/a.jpg", "03/c.png", "b/03/a.txt")
    if name.startswith("b/"):
        images = touch(tmp_path / "photos", "b/03/a.png", "03/a.png")
    rows = manifest(tmp_path / "ids.csv", "filename,category", f"{name},1", "c, 2 ")
    found = list_sources(images, Table(rows))
    assert [image.category for image in found.images] == ["1", "2"] or name.startswith("b/")
    assert found.class_names == ("1", "2")
    assert found.without_suffix == 1 + (not name.strip().endswith(".jpg"))


def test_a_name_in_another_folder_or_with_two_suffixes_is_not_guessed(tmp_path):
    images = touch(tmp_path / "photos", "dog/a.jpg", "b.jpg", "b.png")
    for name, message in (("cat/a.jpg", "missing.*cat/a.jpg"), ("b", "'b'.*b.jpg and b.png")):
        rows = manifest(tmp_path / "names.csv", "filename,category", f"{name},1")
        assert_rejected(message, images, Table(rows))


def test_categories_in_two_unicode_forms_are_one_class(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    images = touch(tmp_path / "images", "1.jpg", "2.jpg", "3.jpg")
    rows = manifest(tmp_path / "t.csv", "filename,category", f"1.jpg,{composed}", f"2.jpg,{decomposed}", "3.jpg,x")
    found = list_sources(images, Table(rows))
    assert found.class_names == ("x", composed)
    assert [image.category for image in found.images] == [composed, composed, "x"]
    # One spelling is kept as it is, also that of an existing dataset.
    rows = manifest(tmp_path / "u.csv", "filename,category", f"2.jpg,{decomposed}")
    alone = list_sources(images, Table(rows))
    assert alone.class_names == (decomposed,)
    assert one_spelling(alone, known=(composed, "x")).class_names == (composed,)
