"""The import graph: which part and which folder may import which."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FOLDERS = {
    "convoy.core": "convoy/core",
    "convoy.input_pipeline": "input_pipeline",
    "convoy.trainer": "trainer",
    "convoy.configs": "configs",
    "convoy.launch": "launch",
    "convoy.api": "convoy/api",
    "convoy.cli": "convoy/cli",
}
# Each part may import itself and these. Recipes are files that the config loader finds, which no module imports.
MAY_IMPORT = {
    "convoy.core": set(),
    "convoy.input_pipeline": {"convoy.core"},
    "convoy.trainer": {"convoy.core", "convoy.input_pipeline"},
    "convoy.configs": {"convoy.trainer"},
    "convoy.launch": {"convoy.core"},
    "convoy.api": {"convoy.core", "convoy.input_pipeline", "convoy.trainer"},
    "convoy.cli": {"convoy.core", "convoy.input_pipeline", "convoy.trainer", "convoy.launch"},
}


def modules() -> Iterator[tuple[str, Path]]:
    """Yields the name and file of every module of the package."""
    for part, folder in FOLDERS.items():
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            names = path.relative_to(REPOSITORY / folder).with_suffix("").parts
            yield ".".join((part, *(name for name in names if name != "__init__"))), path


MODULES = dict(modules())
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}


def imported(path: Path) -> set[str]:
    """Returns the modules of Convoy that a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & MODULES.keys()
            if node.module in MODULES and names - MODULES.keys():
                found.add(node.module)
    return found


GRAPH = {name: imported(path) - {name} for name, path in MODULES.items()}


def part_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def folder_of(module: str) -> str:
    return module if module in PACKAGES else module.rpartition(".")[0]


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Returns the nodes of a cycle, or nothing where there is none."""
    state: dict[str, int] = {}
    path: list[str] = []

    def visit(node: str) -> list[str]:
        state[node] = 1
        path.append(node)
        for after in sorted(graph.get(node, ())):
            if state.get(after) == 1:
                return path[path.index(after) :]
            if after not in state and (found := visit(after)):
                return found
        state[node] = 2
        path.pop()
        return []

    return next((found for node in sorted(graph) if node not in state and (found := visit(node))), [])


def test_the_graph_is_read():
    assert "convoy.core.cluster" in GRAPH["convoy.trainer.loop"]
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c"]


@pytest.mark.parametrize("part", FOLDERS)
def test_parts_import_downwards_only(part):
    allowed = MAY_IMPORT[part] | {part}
    wrong = {
        (module, target)
        for module, targets in GRAPH.items()
        if part_of(module) == part
        for target in targets
        if part_of(target) not in allowed
    }
    assert not wrong


def test_no_module_imports_in_a_circle():
    assert not cycle_in(GRAPH)


def test_no_folders_import_each_other():
    folders: dict[str, set[str]] = defaultdict(set)
    for module, targets in GRAPH.items():
        folders[folder_of(module)] |= {folder_of(target) for target in targets} - {folder_of(module)}
    assert not cycle_in(folders)


@pytest.mark.parametrize("part", ["convoy.core", "convoy.launch"])
def test_core_and_launch_do_not_import_tensorflow(part):
    for module, path in MODULES.items():
        if part_of(module) == part:
            assert not re.search(r"^\s*(import|from) (tensorflow|keras)\b", path.read_text("utf-8"), re.MULTILINE), (
                module
            )


def test_nothing_imports_a_part_without_its_package():
    """Also not in code inside strings, which lint does not see."""
    bare = re.compile(r"(?:^|[\"';]|\bimport )\s*(?:from|import) (?:trainer|input_pipeline|configs|launch)\b(?! from)")
    allowed = {"tests/test_architecture.py", "tests/test_packaging.py"}
    for path in [*MODULES.values(), *(REPOSITORY / "tests").rglob("*.py"), *(REPOSITORY / "benchmarks").rglob("*.py")]:
        name = path.relative_to(REPOSITORY).as_posix()
        lines = path.read_text("utf-8").splitlines()
        found = [line for line in lines if bare.search(line) and "ImportError" not in line]
        assert not found or name in allowed, (name, found)
