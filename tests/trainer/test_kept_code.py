"""The code of users' pieces in RUN: kept, found again, and compared with the checkpoint's."""

import os
import sys
from types import SimpleNamespace

import keras
import pytest

from convoy.core.errors import UsageError
from convoy.core.registry import Registry
from convoy.core.user_code import run_file
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.session import kept_code

LOSS = "import beside_of_kept\ndef mine(): return beside_of_kept.VALUE\n"


@pytest.fixture
def registry():
    return Registry("loss", field="config.loss.name")


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    run = RunDirectory(tmp_path / "run")
    run.config.write_text("{}")
    return run


@pytest.fixture
def find(tmp_path, registry):
    """Writes a loss and what it imports, and finds it."""

    def find(loss=LOSS, beside="VALUE = 1\n"):
        (tmp_path / "losses.py").write_text(loss)
        (tmp_path / "beside_of_kept.py").write_text(beside)
        return registry.find(f"{tmp_path}/losses.py:mine")

    return find


@pytest.fixture
def checkpoint(run):
    """Keeps a piece, as a run with a checkpoint has; returns a function that compares another with it."""

    def checkpoint(before, folder="loss"):
        kept_code.keep_code(run, {folder: before}, None)
        model = {"digest": "", "files": {}}
        metadata = {
            "step": 3,
            "place": {"keras": keras.__version__},
            "model": {**model, "pieces": kept_code.piece_digests({folder: before})},
        }

        def check(now):
            identity = {**model, "pieces": kept_code.piece_digests({folder: now})}
            kept_code.check_same_code(metadata, identity, {folder: now}, "convnet", run)

        return check

    return checkpoint


def test_another_loss_is_refused_and_another_comment_is_not(find, checkpoint):
    check = checkpoint(find())
    check(find(loss="# Comment\n" + LOSS))
    for changed in ({"loss": LOSS.replace("VALUE", "VALUE + 1")}, {"beside": "VALUE = 2\n"}):
        with pytest.raises(UsageError, match="step 3.*another loss.*(losses|beside_of_kept).py changed.*code/loss"):
            check(find(**changed))


def test_another_metric_is_not_refused(find, checkpoint):
    check = checkpoint(find(), folder="metric-0")
    check(find(beside="VALUE = 2\n"))


def test_a_registered_loss_is_compared_by_its_text(registry, checkpoint):
    registry.register("mine")(lambda: 1)
    check = checkpoint(registry.find("mine"))
    check(registry.find("mine"))
    registry.register("mine")(lambda: 2)
    with pytest.raises(UsageError, match="another loss 'mine'"):
        check(registry.find("mine"))


def test_checkpoints_of_earlier_versions_have_no_pieces(find, run):
    found = find()
    identity = {"digest": "", "files": {}, "pieces": kept_code.piece_digests({"loss": found})}
    for metadata in ({"step": 3}, {"step": 3, "model": {"digest": "", "files": {}}}):
        kept_code.check_same_code(metadata, identity, {"loss": found}, "convnet", run)


def test_the_kept_code_is_found_whatever_became_of_the_original(find, run, registry, tmp_path, caplog):
    found = find()
    kept_code.keep_code(run, {"loss": found}, None)
    (tmp_path / "losses.py").write_text("raise RuntimeError")
    kept = kept_code.find_kept(run, registry, found.name, "loss", trust_code=False)
    assert kept.value() == 1 and "differs from" in caplog.text
    assert {path.name for path in (run.code / "loss").iterdir()} == {"losses.py", "beside_of_kept.py"}


def test_a_piece_that_a_recipe_registers_is_found_by_its_name(run, registry, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from registry_of_test import registry\n@registry.register('mine')\ndef mine(): return 5\n")
    monkeypatch.setitem(sys.modules, "registry_of_test", SimpleNamespace(registry=registry))
    code = run_file(recipe)
    kept_code.keep_code(run, {"loss": registry.find("mine")}, code)
    another = Registry("loss", field="config.loss.name")  # as in another process
    monkeypatch.setitem(sys.modules, "registry_of_test", SimpleNamespace(registry=another))
    recipe.unlink()
    assert kept_code.find_kept(run, another, "mine", "loss", trust_code=False).value() == 5


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_code_of_others_runs_only_if_it_is_trusted(find, run, registry):
    found = find()
    kept_code.keep_code(run, {"loss": found}, None)
    os.chown(run.code / "loss" / "losses.py", 4321, -1)
    with pytest.raises(UsageError, match="--trust_code"):
        kept_code.find_kept(run, registry, found.name, "loss", trust_code=False)
    assert kept_code.find_kept(run, registry, found.name, "loss", trust_code=True).value() == 1
