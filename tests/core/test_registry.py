import sys

import pytest

from convoy.core.errors import UsageError
from convoy.core.registry import Registry, accepted, is_code
from convoy.core.user_code import run_file


@pytest.fixture
def registry():
    return Registry("loss", field="config.loss.name")


def test_names_that_users_register(registry):
    registry.register("mine")(first := lambda: 1)
    assert registry.find("mine").value is first
    digest = registry.find("mine").digests
    registry.register("mine")(second := lambda: 2)  # as when a notebook's cell is run again
    assert registry.find("mine").value is second
    assert registry.find("mine").digests != digest
    assert registry.names == ["mine"]


@pytest.mark.parametrize("given", [3, lambda logits, labels: logits])
def test_a_decorator_without_its_name_says_so(registry, given):
    with pytest.raises(UsageError, match="@register_loss"):
        registry.register(given)


def test_a_piece_of_a_users_file(registry, tmp_path):
    file = tmp_path / "pieces.py"
    file.write_text("def mine(): return 3\n")
    found = registry.find(f"{file}:mine")
    assert found.value() == 3
    assert found.code.path == file
    before = found.digests
    file.write_text("def mine(): return 4\n")
    found = registry.find(f"{file}:mine")
    assert found.value() == 4
    assert found.digests.keys() == before.keys() == {"pieces.py"}
    assert found.digests != before


def test_a_piece_of_a_module(registry, tmp_path, monkeypatch):
    (tmp_path / "my_pieces_of_a_module.py").write_text("def mine(): return 5\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = registry.find("my_pieces_of_a_module:mine")
    del sys.modules["my_pieces_of_a_module"]
    assert found.value() == 5
    assert list(found.digests) == ["my_pieces_of_a_module"]


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("min", "'mine'"),
        ("nothing.py:mine", "nothing.py"),
        ("no_such_module:mine", "no_such_module"),
        ("json:lods", "loads"),
    ],
)
def test_unknown_names_name_the_field_and_the_nearest(registry, name, named):
    registry.register("mine")(lambda: 1)
    with pytest.raises(UsageError, match="config.loss.name=") as caught:
        registry.find(name)
    assert named in str(caught.value)


def test_a_file_that_fails(registry, tmp_path):
    (tmp_path / "pieces.py").write_text("1 / 0\n")
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        registry.find(f"{tmp_path}/pieces.py:mine")


@pytest.mark.parametrize("name", ["", "a:b", "a,b"])
def test_names_that_could_be_something_else_are_refused(registry, name):
    with pytest.raises(UsageError):
        registry.register(name)


def test_names_are_checked_without_running_code(registry):
    registry.register("mine")(lambda: 1)
    for name in ("mine", "no_such.py:f", "no_such_module:f"):
        registry.check(name)
    with pytest.raises(UsageError, match="'mine'"):
        registry.check("min")
    assert [is_code(name) for name in ("mine", "a.py:f", "a.b:f")] == [False, True, True]


def test_a_piece_registered_by_a_users_file_or_beside_it_has_the_file_as_its_code(registry, tmp_path):
    text = (
        "from __main__ import registry_of_test as registry\n@registry.register('{}')\nclass {}:\n    def f(self): {}\n"
    )
    sys.modules["__main__"].registry_of_test = registry
    (tmp_path / "recipe.py").write_text(text.format("one", "One", "return 1") + "import registered_beside\n")
    (tmp_path / "registered_beside.py").write_text(text.format("two", "Two", "return 2"))
    run_file(tmp_path / "recipe.py")
    one, two = registry.find("one"), registry.find("two")
    assert one.code.path == two.code.path == tmp_path / "recipe.py"
    assert one.digests["one"] != two.digests["two"]


def test_options_that_a_function_takes():
    options = {"a": 1, "b": 2}
    assert accepted(lambda x, a: None, options) == {"a": 1}
    assert accepted(lambda **others: None, options) == options
