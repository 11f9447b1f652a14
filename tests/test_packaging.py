"""What an installation puts on the import path, and that packages of the user's own do not disturb it."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import markdown
import pytest
import yaml

from convoy import __version__
from tests.processes import write_foreign_packages

REPOSITORY = Path(__file__).parents[1]
PARTS = ("configs", "input_pipeline", "launch", "trainer")
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "setup.py", "convoy", *PARTS)


def pip(*arguments, cwd):
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--quiet", "--disable-pip-version-check"]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def files_of_wheel(path):
    with zipfile.ZipFile(path) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def source_tree(folder):
    """Copies what a distribution is built from, so that the build leaves nothing in the checkout."""
    folder.mkdir()
    subprocess.run(["cp", "-a", *SOURCES, str(folder)], cwd=REPOSITORY, check=True)
    return folder


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The wheel of a checkout, and the wheel of its sdist."""
    folder = tmp_path_factory.mktemp("distributions")
    source = source_tree(folder / "source")
    pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder / 'wheel'}", source, cwd=folder)
    build = "from setuptools import build_meta; import sys; print(build_meta.build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, folder / "sdist"], cwd=source, check=True, capture_output=True)
    (sdist,) = (folder / "sdist").iterdir()
    pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder / 'from_sdist'}", sdist, cwd=folder)
    (wheel,), (from_sdist,) = (folder / "wheel").iterdir(), (folder / "from_sdist").iterdir()
    return wheel, sdist, from_sdist


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """A folder that holds the installed wheel alone."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", f"--target={folder}", distributions[0], cwd=folder)
    return folder


@pytest.fixture
def users_folder(tmp_path):
    """A folder with packages of the user's own that have the names of Convoy's folders."""
    write_foreign_packages(tmp_path)
    return tmp_path


def run(folder, site, *command, **variables):
    """Runs a command in the user's folder, which is first on the import path too."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{site}", "CUDA_VISIBLE_DEVICES": "-1", **variables}
    return subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )


def test_the_wheel_holds_one_package_with_all_its_files(distributions):
    files = files_of_wheel(distributions[0])
    assert {name.split("/")[0] for name in files} == {"convoy"}
    tracked = subprocess.run(["git", "ls-files", *PARTS, "convoy"], cwd=REPOSITORY, capture_output=True, text=True)
    for name in tracked.stdout.split():
        path = Path(name)
        if (REPOSITORY / path).is_dir() or path.suffix in (".sh", "") or path.name == "requirements.py":
            continue
        expected = path if path.parts[0] == "convoy" else "convoy" / path
        assert expected.as_posix() in files, name


def test_the_package_index_shows_no_relative_link_and_all_code(distributions):
    """Nor pictures of the repository, whose URL the distribution does not know."""
    with zipfile.ZipFile(distributions[0]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        description = archive.read(name).decode().partition("\n\n")[2]
    readme = (REPOSITORY / "README.md").read_text()
    fences = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    assert fences.findall(description) == fences.findall(readme)
    page = markdown.markdown(description, extensions=["fenced_code", "tables"])
    targets = re.findall(r'(?:href|src|srcset)="([^"]*)"', page)
    assert [target for target in targets if not target.startswith("https://")] == []
    headings = re.compile(r"^#+ .+$", re.MULTILINE)
    assert headings.findall(fences.sub("", description)) == headings.findall(fences.sub("", readme))


def test_the_sdist_gives_the_same_wheel(distributions):
    wheel, sdist, from_sdist = distributions
    assert files_of_wheel(wheel) == files_of_wheel(from_sdist)
    with tarfile.open(sdist) as archive:
        assert not any("benchmarks" in name for name in archive.getnames())


@pytest.mark.slow
def test_a_checkout_without_links_gives_the_same_wheel(distributions, tmp_path):
    """As from a zip of the repository, or on a file system that has none."""
    source = source_tree(tmp_path / "source")
    for part in PARTS:
        (source / "convoy" / part).unlink()
    pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={tmp_path / 'wheel'}", source, cwd=tmp_path)
    (wheel,) = (tmp_path / "wheel").iterdir()
    assert files_of_wheel(wheel) == files_of_wheel(distributions[0])


def test_versions_agree(distributions):
    """Of the package, the distribution and the citation."""
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__
    assert distributions[0].name.startswith(f"convoy_train-{__version__}-")


def test_typed_marker_is_installed(installed):
    assert (installed / "convoy" / "py.typed").is_file()


@pytest.mark.parametrize("program", [["bin/convoy"], ["-m", "convoy"]], ids=["convoy", "python -m convoy"])
def test_commands_run_beside_packages_of_the_same_names(installed, users_folder, program):
    command = [installed / program[0]] if len(program) == 1 else [sys.executable, *program]
    assert run(users_folder, installed, *command, "--version").stdout == f"convoy {__version__}\n"
    result = run(users_folder, installed, *command, "train", "--print_config", "--config=smoke")
    assert (result.returncode, "config.steps = 20" in result.stdout) == (0, True), result.stderr


def test_bench_without_a_checkout_says_where_the_benchmarks_are(installed, users_folder):
    result = run(users_folder, installed, sys.executable, "-m", "convoy", "bench", "step")
    assert result.returncode == 2
    assert "checkout" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_whole_run_beside_packages_of_the_same_names(installed, users_folder):
    """Convert with worker processes, then train on two workers of a launcher: forks, spawned and started processes."""

    def convoy(*arguments):
        result = run(users_folder, installed, sys.executable, "-m", "convoy", *arguments)
        assert result.returncode == 0, result.stdout + result.stderr

    convoy("sample", "--output=photos", "--categories=3", "--per_category=20", "--test_per_category=1", "--size=32")
    convoy("convert", "--images=photos/train", "--output=data", "--workers=2")
    train = ("train", "--config=smoke", "--config.steps=2", "--data=data", "--workdir=run", "--devices=cpu:1")
    convoy("launch", "local", "--processes=2", "--", *train)
    assert json.loads((users_folder / "run" / "result.json").read_text())["step"] == 2
    convoy("evaluate", "--workdir=run", "--split=validation", "--devices=cpu:1")


@pytest.mark.parametrize("part", PARTS)
def test_importing_a_part_without_its_package_names_the_right_import(part):
    """As a recipe for an earlier version does where the checkout is on the import path."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run([sys.executable, "-c", f"import {part}"], env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"import convoy.{part}" in result.stderr.splitlines()[-1]


def test_a_checkout_runs_uninstalled(users_folder):
    """Through the links in `convoy/`."""
    result = run(users_folder, REPOSITORY, sys.executable, "-m", "convoy", "--version")
    assert result.stdout == f"convoy {__version__}\n"
