"""Names of checkpoints and attempts, which the trainer writes and launchers read."""

import pytest

from convoy.core.run_layout import RunLayout, attempt_number, checkpoint_name, checkpoint_step


@pytest.mark.parametrize("step", [0, 120, 999_999_999])
def test_checkpoint_names_are_read_back(step):
    assert checkpoint_step(checkpoint_name(step)) == step


@pytest.mark.parametrize("name", ["step-12.npz", "step-000000012.npz.tmp", "last.npz", ""])
def test_other_names_are_not_checkpoints(name):
    assert checkpoint_step(name) is None


def test_attempt_folders_are_read_back():
    assert attempt_number(RunLayout("run").attempt(12).name) == 12
    assert attempt_number("attempt-x") is None and attempt_number("slurm-1.out") is None
