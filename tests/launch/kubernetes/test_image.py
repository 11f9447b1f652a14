"""The Dockerfile, checked without building it."""

import fnmatch
import re
import runpy
import shutil
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
FOLDER = REPOSITORY / "launch" / "kubernetes"


def instructions():
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def of_kind(kind):
    return [value for name, value in instructions() if name == kind]


def is_ignored(path):
    """Returns whether .dockerignore excludes a path; the last pattern that matches it or a parent folder decides."""
    ignored = False
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        names = [path, *(parent for parent in path.parents if parent != Path("."))]
        if any(fnmatch.fnmatch(str(name), pattern.removeprefix("**/")) for name in names) or (
            pattern.startswith("**/") and pattern[3:] in path.parts
        ):
            ignored = not line.startswith("!")
    return ignored


def packages(monkeypatch):
    """Yields the packages in setup.py with their folders."""
    about = {}
    monkeypatch.setattr("setuptools.setup", lambda **arguments: about.update(arguments))
    runpy.run_path(str(REPOSITORY / "setup.py"))
    for package in about["packages"]:
        part = ".".join(package.split(".")[:2])
        yield package, Path(about["package_dir"].get(part, part.replace(".", "/")), *package.split(".")[2:])


def test_user_is_numeric_and_not_root():
    *_, user = of_kind("USER")
    assert user == "10001:10001"  # the pods' fsGroup; see test_manifests.py
    assert instructions().index(("USER", user)) > max(
        index for index, (kind, _) in enumerate(instructions()) if kind == "RUN"
    )


def test_copied_files_exist_and_are_not_ignored():
    copied = [source for value in of_kind("COPY") for source in value.split()[:-1]]
    assert copied[-1] == "."
    for source in copied[:-1]:
        assert (REPOSITORY / source).is_file() and not is_ignored(Path(source)), source


def test_image_contains_all_packages_and_no_other_folders(monkeypatch):
    folders = dict(packages(monkeypatch))
    assert {"convoy", "convoy.cli", "convoy.trainer.cluster", "convoy.launch.kubernetes"} <= folders.keys()
    for package, folder in folders.items():
        assert (REPOSITORY / folder / "__init__.py").is_file(), package
        assert not is_ignored(folder / "__init__.py"), package
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        assert not is_ignored(Path(name)), name
    for name in (".git/config", ".venv/bin/python", "run/checkpoints/step-1.npz", "data/a", "launch/__pycache__/a.pyc"):
        assert is_ignored(Path(name)), name


def test_requirements_are_installed_before_the_code_is_copied():
    before, _, after = (FOLDER / "Dockerfile").read_text().partition("COPY . .")
    assert "pip install -r requirements.txt" in before
    assert "pip install --no-deps ." in after


def test_requirements_match_setup_py(python, tmp_path):
    for path in (REPOSITORY / "setup.py", FOLDER / "requirements.py"):
        shutil.copy(path, tmp_path)
    plain, cuda = (python("requirements.py", extras, cwd=tmp_path).stdout.split() for extras in ("", "[cuda]"))
    assert "tensorflow>=2.20,<2.22" in plain and "pyyaml>=6" in plain
    assert [line for line in cuda if line not in plain] == ["tensorflow[and-cuda]>=2.20,<2.22"]
