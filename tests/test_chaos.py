"""The chaos test with few faults, for every test run."""

import random
from collections import Counter

import pytest

from tests.chaos_injection import Kind, plan_faults

# SIGKILL comes with several of them, and SIGUSR1 and SIGHUP have the handler of SIGTERM.
_KINDS = (Kind.SIGSTOP, Kind.SIGTERM, Kind.PIPE_CLOSED, Kind.CLOCK_SET_BACK, Kind.PORT_TAKEN, Kind.FSYNC_REFUSED)


def test_plan_has_all_kinds_in_equal_shares():
    counts = Counter(fault.kind for fault in plan_faults(100, random.Random(1)))
    assert set(counts) == set(Kind) and max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.slow
@pytest.mark.timeout(2000)  # each fault has a deadline of its own
def test_result_after_faults_is_that_of_the_reference_run(python):
    kinds = [kind.name for kind in _KINDS]
    result = python("-m", "tests.chaos", str(len(kinds)), "--seed=1", "--kinds", *kinds, timeout=1900)
    assert result.returncode == 0, result.stdout + result.stderr
