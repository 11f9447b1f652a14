"""Users' Python files: what they import from their folder, and what of it is kept apart from other files."""

import os
import sys

import pytest

from convoy.core.errors import UsageError
from convoy.core.user_code import check_owner, first_on_path, run_file


@pytest.fixture(autouse=True)
def imports(monkeypatch):
    """Undoes changes of the import path and of imported modules."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


def write(folder, **files):
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/', 1)}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_file_imports_modules_and_packages_beside_it(tmp_path):
    write(tmp_path, main="import beside\nfrom configs.mine import A\nTWO = beside.TWO", beside="TWO = 2")
    write(tmp_path, configs__mine="A = 1", configs____init__="", unused="")
    code = run_file(tmp_path / "main.py")
    assert (code.names["TWO"], code.names["A"]) == (2, 1)
    assert list(code.files()) == ["beside.py", "configs/__init__.py", "configs/mine.py", "main.py"]
    assert code.files()["beside.py"] == (tmp_path / "beside.py").resolve()
    assert len(set(code.digests().values())) == 4


def test_imports_in_functions_work_later_and_count(tmp_path):
    write(tmp_path, main="def later():\n    import beside_later\n    return beside_later.NAME", beside_later="NAME = 7")
    code = run_file(tmp_path / "main.py")
    assert list(code.files()) == ["main.py"]
    assert code.names["later"]() == 7
    assert list(code.files()) == ["beside_later.py", "main.py"]


def test_files_of_the_same_name_in_two_folders_are_not_mixed_up(tmp_path):
    for folder, value in (("one", 1), ("two", 2), ("one", 3)):
        write(tmp_path / folder, main="import beside\nVALUE = beside.VALUE", beside=f"VALUE = {value}")
        sys.dont_write_bytecode = True
        code = run_file(tmp_path / folder / "main.py")
        assert code.names["VALUE"] == value
        assert code.files()["beside.py"].parent.name == folder


def test_the_folder_hides_no_module_after_the_file_was_run(tmp_path):
    write(tmp_path, main="", colorsys="raise RuntimeError", mine_alone="")
    run_file(tmp_path / "main.py")
    import colorsys

    assert not colorsys.__file__.startswith(str(tmp_path))
    import mine_alone  # noqa: F401

    assert sys.path.index(str(tmp_path)) > max(k for k, entry in enumerate(sys.path) if "site-packages" in entry)


def test_the_folder_comes_after_what_libraries_append_to_the_path(tmp_path):
    run_file(write(tmp_path / "one", main="") / "main.py")
    sys.path.append(str(tmp_path / "library"))
    run_file(write(tmp_path / "two", main="") / "main.py")
    assert sys.path[-2:] == [str(tmp_path / "library"), str(tmp_path / "two")]


def test_a_folder_that_was_on_the_path_stays_where_it_was(tmp_path):
    sys.path.insert(1, str(tmp_path))
    before = list(sys.path)
    with first_on_path(tmp_path):
        assert sys.path[0] == str(tmp_path)
    assert sys.path == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_code_of_another_user_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "models.py"
    path.touch()
    check_owner(path, "this test")
    os.chown(path, 4321, -1)
    with pytest.raises(UsageError, match="4321.*--trust_code"):
        check_owner(path, "this test")
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    check_owner(path, "this test")
