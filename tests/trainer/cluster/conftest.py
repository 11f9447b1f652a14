"""Workers of a cluster as threads of this process."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from convoy.core.cluster import Cluster
from convoy.launch.ports import reserved_ports
from convoy.trainer.cluster import liveness, rendezvous, worker_group
from convoy.trainer.cluster.worker_group import WorkerGroup


@pytest.fixture
def quick(monkeypatch):
    """Workers report often, and count as silent early."""
    monkeypatch.setattr(worker_group, "_TICK_SECONDS", 0.02)
    monkeypatch.setattr(liveness, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(rendezvous, "_RETRY_SECONDS", 0.02)


@pytest.fixture
def make_workers() -> Iterator[Callable[..., list[WorkerGroup]]]:
    """Creates workers of one cluster, before the rendezvous; closes their connections after the test.

    `keys` and `workdirs` are theirs by rank; `host` is in all addresses.
    """
    with contextlib.ExitStack() as made:

        def make(number, *, startup_seconds=20.0, keys=None, workdirs=None, host="127.0.0.1"):
            with reserved_ports(number) as ports:
                addresses = tuple(f"{host}:{port}" for port in ports)
            jobs = tuple(("worker", rank) for rank in range(number))
            clusters = [Cluster(addresses, rank, "flags", jobs) for rank in range(number)]
            return [
                made.enter_context(
                    WorkerGroup(replace(cluster, key=key), startup_seconds=startup_seconds, workdir=workdir)
                )
                for cluster, key, workdir in zip(
                    clusters, keys or [""] * number, workdirs or [""] * number, strict=True
                )
            ]

        yield make
