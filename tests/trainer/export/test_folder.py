import fcntl
import os

import pytest

from convoy.core.errors import DataError, UsageError
from convoy.trainer.export.folder import describe, export_folder, read_description


def make_export(output, name="first"):
    with export_folder(output) as folder:
        (folder / name).write_text(name)
        describe(folder, {"step": 1})
    return output


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_export_takes_its_name_as_a_whole(tmp_path):
    output = tmp_path / "deep" / "exported"
    with export_folder(output) as folder:
        (folder / "model").write_text("model")
        describe(folder, {"step": 7})
        assert not output.exists()
    assert names(output) == ["export.json", "model"]
    assert read_description(output)["step"] == 7
    assert names(output.parent) == ["exported"]


def test_an_export_is_replaced_as_a_whole(tmp_path):
    output = make_export(make_export(tmp_path / "exported"), "second")
    assert names(output) == ["export.json", "second"]
    assert names(tmp_path) == ["exported"]


def test_what_fails_leaves_nothing_and_the_export_before_it(tmp_path):
    output = make_export(tmp_path / "exported")
    with pytest.raises(ZeroDivisionError), export_folder(output) as folder:
        (folder / "second").write_text("half")
        raise ZeroDivisionError
    assert names(output) == ["export.json", "first"]
    with pytest.raises(ZeroDivisionError), export_folder(tmp_path / "deep" / "other"):
        raise ZeroDivisionError
    assert names(tmp_path) == ["exported"]


@pytest.mark.parametrize("kind", ["folder", "file", "link", "nearly an export"])
def test_what_is_no_export_is_left_as_it_is(tmp_path, kind):
    output, target = tmp_path / "mine", make_export(tmp_path / "target")
    if kind == "file":
        output.write_text("letters")
    elif kind == "link":
        output.symlink_to(target)
    else:
        output.mkdir()
        (output / ("export.json" if kind == "nearly an export" else "thesis.txt")).write_text("letters")
    with pytest.raises(UsageError, match="is there and is no export: it is left as it is"), export_folder(output):
        raise AssertionError("must not be reached")
    assert names(tmp_path) == ["mine", "target"]
    assert names(target) == ["export.json", "first"]


def test_what_a_kill_left_is_replaced_and_what_is_no_export_there_is_not(tmp_path):
    (tmp_path / "exported.partial" / "new").mkdir(parents=True)
    (tmp_path / "exported.partial" / "new" / "half").write_text("half")
    assert names(make_export(tmp_path / "exported")) == ["export.json", "first"]
    (tmp_path / "exported.partial").mkdir()
    (tmp_path / "exported.partial" / "thesis.txt").write_text("letters")
    with pytest.raises(UsageError, match=r"exported\.partial.*holds something else"):
        make_export(tmp_path / "exported")
    assert names(tmp_path / "exported.partial") == ["thesis.txt"]


def test_an_export_that_a_kill_kept_from_being_replaced_comes_back(tmp_path):
    output = make_export(tmp_path / "exported")
    (tmp_path / "exported.partial").mkdir()
    os.rename(output, tmp_path / "exported.partial" / "before")  # killed here
    with pytest.raises(ZeroDivisionError), export_folder(output):
        raise ZeroDivisionError
    assert names(output) == ["export.json", "first"]


def test_two_processes_do_not_export_to_one_folder(tmp_path):
    partial = tmp_path / "exported.partial"
    partial.mkdir()
    descriptor = os.open(partial, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="another process is exporting to it"):
        make_export(tmp_path / "exported")
    os.close(descriptor)
    make_export(tmp_path / "exported")


def test_a_disk_that_does_not_take_it_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"--output=.*/file/exported cannot be written \(Not a directory\)"):
        make_export(tmp_path / "file" / "exported")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "it has no export.json. Give the --output of `convoy export`"),
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        ('{"format_version": 99}', "format version 99"),
    ],
)
def test_a_folder_that_is_no_export_is_named(tmp_path, content, told):
    if content:
        (tmp_path / "export.json").write_text(content)
    with pytest.raises(DataError, match=told.replace(".", r"\.")):
        read_description(tmp_path)
