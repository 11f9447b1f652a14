"""The chaos test with few faults, for every test run."""

import pytest


@pytest.mark.slow
@pytest.mark.timeout(2000)  # each fault has a deadline of its own
def test_result_after_a_fault_of_each_kind_is_that_of_the_reference_run(python):
    result = python("-m", "tests.chaos", "4", "--seed=1", timeout=1900)
    assert result.returncode == 0, result.stdout + result.stderr
