"""The chaos proof, in the size that fits into every run of the tests."""

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_whose_workers_are_injured_20_times_ends_as_if_nothing_had_happened(python):
    proof = python("-m", "tests.chaos", "20", "--seed=1", timeout=1100)
    assert proof.returncode == 0, proof.stdout + proof.stderr
