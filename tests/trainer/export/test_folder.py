import fcntl
import os

import pytest

from convoy.core.errors import DataError, UsageError
from convoy.trainer.export.folder import export_folder, read_description, write_description


def make_export(output, name="first"):
    with export_folder(output) as folder:
        (folder / name).write_text(name)
        write_description(folder, {"step": 1})
    return output


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folder_appears_only_when_complete(tmp_path):
    output = tmp_path / "deep" / "exported"
    with export_folder(output) as folder:
        (folder / "model").write_text("model")
        write_description(folder, {"step": 7})
        assert not output.exists()
    assert names(output) == ["export.json", "model"]
    assert read_description(output)["step"] == 7
    assert names(output.parent) == ["exported"]


def test_replaces_an_earlier_export(tmp_path):
    output = make_export(make_export(tmp_path / "exported"), "second")
    assert names(output) == ["export.json", "second"]
    assert names(tmp_path) == ["exported"]


def test_failure_keeps_the_earlier_export_and_leaves_nothing_else(tmp_path):
    output = make_export(tmp_path / "exported")
    with pytest.raises(ZeroDivisionError), export_folder(output) as folder:
        (folder / "second").write_text("half")
        raise ZeroDivisionError
    assert names(output) == ["export.json", "first"]
    with pytest.raises(ZeroDivisionError), export_folder(tmp_path / "deep" / "other"):
        raise ZeroDivisionError
    assert names(tmp_path) == ["exported"]


@pytest.mark.parametrize("kind", ["folder", "file", "link", "invalid export"])
def test_refuses_to_replace_anything_but_an_export(tmp_path, kind):
    output, target = tmp_path / "mine", make_export(tmp_path / "target")
    if kind == "file":
        output.write_text("letters")
    elif kind == "link":
        output.symlink_to(target)
    else:
        output.mkdir()
        (output / ("export.json" if kind == "invalid export" else "thesis.txt")).write_text("letters")
    with pytest.raises(UsageError, match="--output=.*mine.* not an export"), export_folder(output):
        raise AssertionError("must not be reached")
    assert names(tmp_path) == ["mine", "target"]
    assert names(target) == ["export.json", "first"]


def test_replaces_leftovers_of_a_killed_export_but_nothing_else(tmp_path):
    (tmp_path / "exported.partial" / "new").mkdir(parents=True)
    (tmp_path / "exported.partial" / "new" / "half").write_text("half")
    assert names(make_export(tmp_path / "exported")) == ["export.json", "first"]
    (tmp_path / "exported.partial").mkdir()
    (tmp_path / "exported.partial" / "thesis.txt").write_text("letters")
    with pytest.raises(UsageError, match=r"exported\.partial"):
        make_export(tmp_path / "exported")
    assert names(tmp_path / "exported.partial") == ["thesis.txt"]


def test_restores_the_earlier_export_after_a_kill_during_replacement(tmp_path):
    output = make_export(tmp_path / "exported")
    (tmp_path / "exported.partial").mkdir()
    os.rename(output, tmp_path / "exported.partial" / "before")  # killed here
    with pytest.raises(ZeroDivisionError), export_folder(output):
        raise ZeroDivisionError
    assert names(output) == ["export.json", "first"]


def test_second_process_exporting_to_the_same_folder_is_refused(tmp_path):
    partial = tmp_path / "exported.partial"
    partial.mkdir()
    descriptor = os.open(partial, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="--output=.*another process"):
        make_export(tmp_path / "exported")
    os.close(descriptor)
    make_export(tmp_path / "exported")


def test_unwritable_output_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"--output=.*/file/exported.*Not a directory"):
        make_export(tmp_path / "file" / "exported")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--export=.*export.json"),
        ("{", "export.json: cannot be read"),
        ("[1]", "export.json: cannot be read"),
        ('{"format_version": 99}', "export.json: .*99"),
    ],
)
def test_reading_a_folder_that_is_not_an_export_names_the_file(tmp_path, content, message):
    if content:
        (tmp_path / "export.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_description(tmp_path)
