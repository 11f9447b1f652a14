"""Which of a user's files a launcher sends to workers, and that these run as they do here."""

import os
import subprocess
import sys

import pytest

from convoy.core.errors import UsageError
from convoy.core.user_code import SENT_CODE_INDEX, located, run_file
from convoy.launch.run_files import RunFiles
from convoy.launch.user_files import user_files


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes files into the current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def write(**files):
        for name, text in files.items():
            path = tmp_path / "here" / f"{name.replace('__', '/', 1)}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def sent(*flags):
    files = user_files(["train", "--data=data", *flags])
    return files, set(files.content) - {SENT_CODE_INDEX}


def test_modules_and_packages_that_a_file_imports_are_sent_with_it(write):
    write(recipe="import beside, os, convoy.trainer\nfrom pkg.part import A\ndef f():\n    import later", beside="")
    write(later="", unused="", pkg____init__="", pkg__part="from . import other\nfrom .third import B", pkg__other="")
    write(pkg__third="from .. import nothing", pkg__unused="", convoy____init__="raise", os="X = 1", space__x="")
    assert sent("--config=recipe.py")[1] == {
        *("0/recipe.py", "0/beside.py", "0/later.py", "0/os.py"),
        *("0/pkg/__init__.py", "0/pkg/part.py", "0/pkg/other.py", "0/pkg/third.py"),
    }


def test_a_model_that_a_recipe_names_is_sent_too(write):
    write(models__small="import layers", models__layers="", recipes__mine="NAME = 'models/small.py:small'")
    write(other="from beside import *", beside="")
    files, names = sent("--config=recipes/mine.py", "--config.model.name=other.py:build")
    assert files.names == ("recipes/mine.py", "other.py", "models/small.py")
    assert names == {"0/mine.py", "1/other.py", "1/beside.py", "2/small.py", "2/layers.py"}


def test_files_of_all_pieces_are_sent(write):
    write(losses="import beside", beside="", metrics="", more="", operations="", recipe="METRICS = 'mcc, more.py:b'")
    files, names = sent(
        "--config=recipe.py",
        *("--config.loss.name", "losses.py:mine"),
        "--config.metrics=mcc,metrics.py:a,absent.py:c",
        "--config.augment.ops=flip | operations.py:spots(0.5, sides=2)",
        "--config.model.weights=weights.py",
    )
    assert names == {f"0/{name}.py" for name in ("recipe", "losses", "beside", "metrics", "more", "operations")}
    assert files.missing == ("absent.py",)


def test_operations_and_sources_are_sent_too(write):
    write(recipe="OPS = 'crop | ops/mine.py:noise(0.3, scale=0.5..1) | flip'", ops__mine="", other="", photos="")
    flags = ("--config=recipe.py", "--config.augment.ops=flip|other.py:shade", "--data", "photos.py:sources")
    assert sent(*flags)[1] == {"0/recipe.py", "0/other.py", "0/photos.py", "0/ops/mine.py", "1/mine.py"}
    assert sent("--data=absent.py:sources")[0].missing == ("absent.py",)


def test_a_file_named_relative_to_its_own_folder_stays_beside_it(write):
    write(recipes__mine="NAME = str(Path(__file__).with_name('small.py')) + ':small'", recipes__small="")
    assert sent("--config=recipes/mine.py")[1] == {"0/mine.py", "0/small.py"}


def test_texts_that_are_no_files_do_not_matter(write):
    texts = ["\0.py", f"{'x' * 5000}.py", "/absent/x.py:f", "see other.py", ".py", "a\nb.py"]
    write(recipe=f"TEXTS = {texts!r}")
    assert sent("--config=recipe.py")[1] == {"0/recipe.py"}


def test_shipped_recipes_and_models_need_no_files(write):
    names_of_models = ("keras_applications:ResNet50", "keras_hub:vit_base", "keras_hub:presets/vit")
    for flags in ((), *(("--config=convnet", f"--config.model.name={name}") for name in names_of_models)):
        files, names = sent(*flags)
        assert (names, files.missing, files.content) == (set(), (), {})
    assert sent("--config=absent.py")[0].missing == ("absent.py",)


def test_a_file_that_is_not_python_is_named_with_its_line(write):
    write(recipe="import beside", beside="A = 1\nB = = 2")
    with pytest.raises(UsageError, match="beside.py, line 2"):
        sent("--config=recipe.py")


def test_digest_is_the_same_in_every_process(write):
    write(recipe="import a, b, c, d, e, f", **{name: f"NAME = '{name}x.py'" for name in "abcdef"})
    write(**{f"{name}x": "" for name in "abcdef"})
    code = "from convoy.launch.user_files import user_files; print(user_files(['train', '--config=recipe.py']).digest)"
    digests = {
        subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    }
    assert len(digests) == 1


class TestWorker:
    """A worker in another folder, as on a host without the user's files."""

    @pytest.fixture
    def worker(self, write, tmp_path, monkeypatch):
        """Sends files as `flags` need them and goes to another folder; returns the folder that was sent."""

        def go(*flags):
            files = user_files(["train", *flags])
            run_files = RunFiles(tmp_path / "run")
            run_files.write_code(files)
            ((name, folder),) = run_files.code_variable(files).items()
            monkeypatch.setenv(name, folder)
            (tmp_path / "elsewhere").mkdir()
            monkeypatch.chdir(tmp_path / "elsewhere")
            return tmp_path / "run" / "logs" / folder

        yield go
        sys.path[:] = [entry for entry in sys.path if str(tmp_path) not in entry]

    def test_runs_what_was_sent_with_its_imports(self, worker, write):
        write(mine__recipe="from only_beside import A\nfrom only_pkg import part", mine__only_beside="A = 7")
        write(
            **{"mine__only_pkg/other": "", "mine__only_pkg/__init__": "", "mine__only_pkg/part": "from . import other"}
        )
        worker("--config=mine/recipe.py")
        code = run_file(located("mine/recipe.py"))
        assert code.names["A"] == 7 and "only_pkg/other.py" in code.files()

    def test_uses_its_own_file_if_all_code_is_the_same(self, worker, write, tmp_path, monkeypatch):
        write(recipe="from beside import A", beside="A = 1")
        folder = worker("--config=recipe.py")
        assert located("recipe.py") == folder / "0" / "recipe.py"
        monkeypatch.chdir(tmp_path / "here")
        assert str(located("recipe.py")) == "recipe.py"
        write(beside="A = 2")  # edited while the job waits
        assert located("recipe.py") == folder / "0" / "recipe.py"
        assert run_file(located("recipe.py")).names["A"] == 1

    def test_other_names_are_left_as_they_are(self, worker, write):
        write(recipe="")
        folder = worker("--config=recipe.py")
        assert str(located("other.py")) == "other.py"
        (folder / SENT_CODE_INDEX).write_text("{")
        assert str(located("recipe.py")) == "recipe.py"

    def test_reads_a_config_map_which_consists_of_links(self, worker, write, tmp_path, monkeypatch):
        write(recipe="from linked_beside import A", linked_beside="A = 5")
        folder = worker("--config=recipe.py")
        mount = tmp_path / "mount"
        mount.mkdir()
        folder.rename(mount / "..2026")
        (mount / "..data").symlink_to("..2026")
        for name in ("0", SENT_CODE_INDEX):
            (mount / name).symlink_to(f"..data/{name}")
        monkeypatch.setenv("CONVOY_CODE", str(mount))
        assert run_file(located("recipe.py")).names["A"] == 5
