"""What `import convoy` offers, and what it imports."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import convoy
from tests.processes import process_environment

_HEAVY = ("tensorflow", "keras", "matplotlib", "numpy", "absl", "ml_collections", "PIL", "jinja2", "pandas", "rich")


def heavy_modules(program):
    """Returns which of `_HEAVY` a program imports in a new process."""
    program += f"\nimport json, sys; print(json.dumps([name for name in {_HEAVY} if name in sys.modules]))"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=process_environment())
    return json.loads(result.stdout.splitlines()[-1])


def test_import_is_light():
    assert heavy_modules("import convoy; convoy.UsageError; dir(convoy)") == []


def test_looking_at_runs_and_datasets_does_not_import_tensorflow(tmp_path):
    from tests.trainer.report.made_runs import drawn_predictions, evaluated, made_run

    run = made_run(tmp_path / "run", metrics=[{"step": 2, "split": "train", "quality/loss": 1.0}])
    evaluated(run, drawn_predictions([0, 1, 2, 3] * 3, num_classes=4)[0])
    program = f"""
import convoy
run = convoy.open_run({str(run.path)!r})
run._repr_html_(), run.config, run.metrics(), run.events(), run.evaluations(), run.evaluation("test").per_class()
convoy.list_runs({str(tmp_path)!r})
convoy.load_config("convnet", batch_size=8)
convoy.open_dataset, convoy.convert, convoy.train, convoy.open_export
"""
    assert not {"tensorflow", "keras", "matplotlib"} & set(heavy_modules(program))


def test_lazy_names_are_those_that_type_checkers_see():
    tree = ast.parse(Path(convoy.__file__).read_text(encoding="utf-8"))
    block, _ = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(seen) == sorted(convoy.__all__)
    for name, module in seen.items():
        assert getattr(convoy, name) is getattr(sys.modules[module], name)
    assert set(convoy.__all__) <= set(dir(convoy))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="trian"):
        convoy.trian  # noqa: B018
