"""What workers compare before they train, in threads of this process: all stop, with the same words, or none does."""

import contextlib
import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from convoy.core.cluster import Cluster
from convoy.core.downloads import RemoteFile
from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.launch.ports import reserved_ports
from convoy.trainer import config as configs
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.session import agreement, weights
from convoy.trainer.session.agreement import (
    agree_on_checkpoint,
    agree_on_code,
    agree_on_hardware,
    agree_on_run,
    agree_on_weights,
)
from tests.file_server import FileServer

WORKERS = 3
DATASET = {"name": "photos", "train_images": 82, "train_digest": "abc"}
VERSIONS = {"tensorflow": "2.21.0", "keras": "3.15.0"}
FLAGS = {"extend": False}
CONFIG = {"seed": 0, "optimizer": {"name": "adam", "beta_1": 0.9}}


@pytest.fixture
def everyone():
    """Three workers that have met."""
    with reserved_ports(WORKERS) as ports:
        addresses = tuple(f"127.0.0.1:{port}" for port in ports)
    jobs = tuple(("worker", rank) for rank in range(WORKERS))
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(WORKERS) as pool:
        made = [
            stack.enter_context(WorkerGroup(Cluster(addresses, rank, "flags", jobs), startup_seconds=20))
            for rank in range(WORKERS)
        ]
        list(pool.map(WorkerGroup.rendezvous, made))
        yield made


@pytest.fixture
def stores(tmp_path):
    """A folder of checkpoints for each worker, all empty."""
    folders = [tmp_path / str(rank) for rank in range(WORKERS)]
    for folder in folders:
        folder.mkdir()
    return [CheckpointStore(folder) for folder in folders]


def outcomes(everyone, function):
    """Calls `function(peers)` on all workers at once; returns what each returned or raised."""

    def call(worker_group):
        try:
            return function(worker_group)
        except ConvoyError as error:
            return error

    with ThreadPoolExecutor(len(everyone)) as pool:
        return list(pool.map(call, everyone))


def refusal(everyone, function, kind):
    """Returns the words with which all workers stop."""
    errors = outcomes(everyone, function)
    assert [type(error) for error in errors] == [kind] * len(everyone), errors
    assert len({str(error) for error in errors}) == 1, errors
    return str(errors[0])


def test_published_weights_are_downloaded_by_one_worker(everyone, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("CONVOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    (tmp_path / "weights.h5").write_bytes(b"weights")
    config = configs.configured("smoke", {"model": {"name": "keras_applications:VGG16", "weights": "imagenet"}})
    with FileServer(tmp_path) as server:
        file = RemoteFile(server.url("weights.h5"), "vgg16.h5", hashlib.sha256(b"weights").hexdigest())
        monkeypatch.setattr(weights, "published_file", lambda name, image_size: file)
        path = str(tmp_path / "cache/weights/vgg16.h5")
        for _ in range(2):
            assert outcomes(everyone, lambda worker_group: weights.fetch_weights(worker_group, config)) == [path] * 3
        assert server.requests == ["/weights.h5"]
    (tmp_path / "cache/weights/vgg16.h5").unlink()
    errors = outcomes(everyone, lambda worker_group: weights.fetch_weights(worker_group, config))
    assert [type(error) for error in errors] == [DataError] * 3
    assert all(path in str(error) and file.url in str(error) for error in errors)
    assert "worker 0" in str(errors[2]) and len(server.requests) == 1
    config.model.weights = "own.h5"
    assert outcomes(everyone, lambda worker_group: weights.fetch_weights(worker_group, config)) == ["own.h5"] * 3


def test_different_weights_file_is_refused_by_all(everyone):
    error = refusal(
        everyone,
        lambda worker_group: agree_on_weights(worker_group, "ab" if worker_group.rank < 2 else "cd"),
        DataError,
    )
    assert error.startswith(f"the workers differ in weights.sha256: 'ab' on {everyone[0].address(0)}, 'cd' on")
    assert outcomes(everyone, lambda worker_group: agree_on_weights(worker_group, "ab")) == [None] * WORKERS


def test_different_code_is_refused_by_all(everyone):
    text = refusal(
        everyone,
        lambda group: agree_on_code(group, {"loss": {"losses.py": "abc" if group.rank == 1 else "abd"}}),
        UsageError,
    )
    assert "losses.py" in text and everyone[1].address(1) in text


def agree_with(everyone, rank, kind=UsageError, **different):
    def agree(worker_group):
        own = {"config": CONFIG, "dataset": DATASET, "versions": VERSIONS, "flags": FLAGS}
        agree_on_run(worker_group, **(own | different if worker_group.rank == rank else own))

    return refusal(everyone, agree, kind)


def save(store, step, seed=0, virtual_replicas=2):
    values = {"model/dense/kernel": np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)}
    metadata = {"weights_sha256": f"{seed:064x}", "config": {"virtual_replicas": virtual_replicas}}
    store.save(values, step=step, metadata=metadata)


class TestTheRun:
    def test_equal_on_all_workers(self, everyone):
        def agree(worker_group):
            agree_on_run(worker_group, config=CONFIG, dataset=DATASET, versions=VERSIONS, flags=FLAGS)
            agree_on_hardware(worker_group, precision="bfloat16", use_xla=False, devices=2)

        assert outcomes(everyone, agree) == [None] * WORKERS

    @pytest.mark.parametrize("rank", range(WORKERS))
    def test_different_config_names_field_values_and_workers(self, everyone, rank):
        error = agree_with(everyone, rank, config={"seed": 0, "optimizer": {"name": "adam", "beta_1": 0.8}})
        values = (0.8, 0.9) if rank == 0 else (0.9, 0.8)
        assert error == (
            f"the workers differ in config.optimizer.beta_1: {values[0]} on {everyone[0].address(0)}, {values[1]} on "
            f"{everyone[0].address(rank or 1)}. Start all workers with the same flags."
        )

    @pytest.mark.parametrize("rank", [0, 1])
    def test_field_on_one_worker_only(self, everyone, rank):
        assert "config.new" in agree_with(everyone, rank, config={**CONFIG, "new": 1})

    def test_different_dataset_is_a_data_error(self, everyone):
        error = agree_with(everyone, 2, DataError, dataset={**DATASET, "train_digest": "xyz"})
        assert "dataset.train_digest: 'abc' on worker 0" in error
        assert "--data" in error

    def test_different_library_version_names_both(self, everyone):
        error = agree_with(everyone, 1, versions={**VERSIONS, "keras": "3.14.0"})
        assert "versions.keras: '3.15.0' on worker 0" in error
        assert "'3.14.0' on worker 1" in error

    def test_different_resolved_auto(self, everyone):
        error = refusal(
            everyone,
            lambda worker_group: agree_on_hardware(
                worker_group, precision="float32" if worker_group.rank == 1 else "bfloat16", use_xla=False, devices=1
            ),
            UsageError,
        )
        assert "config.precision: 'bfloat16' on worker 0" in error
        assert "auto" in error

    def test_different_device_counts(self, everyone):
        error = refusal(
            everyone,
            lambda worker_group: agree_on_hardware(
                worker_group, precision="float32", use_xla=False, devices=2 if worker_group.rank == 2 else 1
            ),
            UsageError,
        )
        assert "devices per worker.number: 1 on worker 0" in error
        assert "--devices" in error


class TestTheCheckpoint:
    @pytest.fixture(autouse=True)
    def short_patience(self, monkeypatch):
        monkeypatch.setattr(agreement, "_VISIBLE_SECONDS", 3.0)
        monkeypatch.setattr(agreement, "_POLL_SECONDS", 0.01)

    def test_no_checkpoint(self, everyone, stores):
        assert outcomes(everyone, lambda worker_group: agree_on_checkpoint(worker_group, stores[0])) == [None] * WORKERS

    def test_newest_on_all(self, everyone, stores):
        save(stores[0], 3), save(stores[0], 6, seed=1)
        for _, metadata in outcomes(everyone, lambda worker_group: agree_on_checkpoint(worker_group, stores[0])):
            assert (metadata["step"], metadata["weights_sha256"]) == (6, f"{1:064x}")

    def test_newest_valid_on_all(self, everyone, stores, caplog):
        save(stores[0], 3), save(stores[0], 6)
        newest = stores[0].folder / "step-000000006.npz"
        newest.write_bytes(newest.read_bytes()[:-60])
        found = outcomes(everyone, lambda worker_group: agree_on_checkpoint(worker_group, stores[0]))
        assert [metadata["step"] for _, metadata in found] == [3] * WORKERS
        assert caplog.text.count(str(newest)) == 1  # reported by the chief only

    def test_late_checkpoint_is_awaited(self, everyone, stores):
        save(stores[0], 6)

        def agree(worker_group):
            if worker_group.rank == 0:
                return agree_on_checkpoint(worker_group, stores[0])
            with ThreadPoolExecutor(1) as pool:
                agreed = pool.submit(agree_on_checkpoint, worker_group, stores[worker_group.rank])
                save(stores[worker_group.rank], 6)
                return agreed.result(20)

        assert [metadata["step"] for _, metadata in outcomes(everyone, agree)] == [6] * WORKERS

    def test_missing_on_worker_is_refused_by_all(self, everyone, stores):
        for store in stores[:2]:
            save(store, 6)
        error = refusal(
            everyone, lambda worker_group: agree_on_checkpoint(worker_group, stores[worker_group.rank]), DataError
        )
        assert error.startswith(f"{everyone[0].address(2)} ") and f"step 6 of {everyone[0].address(0)}" in error
        assert f"{stores[2].folder}/step-000000006.npz" in error and "--workdir" in error

    def test_missing_on_chief_is_refused_by_all(self, everyone, stores):
        save(stores[1], 6)
        error = refusal(
            everyone, lambda worker_group: agree_on_checkpoint(worker_group, stores[worker_group.rank]), DataError
        )
        assert error.startswith(f"{everyone[0].address(1)} ") and "step 6" in error
        assert "--workdir" in error

    def test_different_weights_at_the_same_step_are_refused_by_all(self, everyone, stores):
        for rank, store in enumerate(stores):
            save(store, 6, seed=int(rank == 1))
        error = refusal(
            everyone, lambda worker_group: agree_on_checkpoint(worker_group, stores[worker_group.rank]), DataError
        )
        assert error.startswith(f"{everyone[0].address(1)} ") and "step 6" in error
        assert f"{1:064x}"[:12] in error

    def test_different_virtual_replicas_at_the_same_step_are_refused_by_all(self, everyone, stores):
        for rank, store in enumerate(stores):
            save(store, 6, virtual_replicas=8 if rank == 2 else 2)
        error = refusal(
            everyone, lambda worker_group: agree_on_checkpoint(worker_group, stores[worker_group.rank]), DataError
        )
        assert error.startswith(f"{everyone[0].address(2)} ") and "8 virtual replicas" in error

    def test_all_damaged_is_refused_by_all(self, everyone, stores):
        save(stores[0], 6)
        (stores[0].folder / "step-000000006.npz").write_bytes(b"half")
        error = refusal(everyone, lambda worker_group: agree_on_checkpoint(worker_group, stores[0]), DataError)
        assert str(stores[0].folder) in error
