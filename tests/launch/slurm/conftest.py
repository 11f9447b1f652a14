"""A SLURM cluster of two nodes for a test."""

import pytest

from tests.slurm import SlurmCluster, missing_for_slurm


@pytest.fixture
def slurm(network, tmp_path, monkeypatch):
    """Starts nodes n1 and n2, and `head` for client commands. All commands of the test use this cluster."""
    if reason := missing_for_slurm():
        pytest.skip(reason)
    with SlurmCluster(tmp_path / "slurm", network("n1", "n2"), {"n1": 2, "n2": 2}) as cluster:
        monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        yield cluster
