import threading
import time

import numpy as np
import pytest

from convoy.core.errors import DataError
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.checkpoint.saver import CheckpointSaver
from convoy.trainer.step.state import model_sha256


class SlowStore(CheckpointStore):
    """A store whose writes block until `proceed` is set.

    Attributes:
      proceed: unblocks all writes.
      started: steps of all writes so far.
    """

    def __init__(self, folder, keep=3):
        super().__init__(folder, keep)
        self.proceed = threading.Event()
        self.started = []

    def save(self, values, *, step, **details):
        self.started.append(step)
        assert self.proceed.wait(20)
        return super().save(values, step=step, **details)


@pytest.fixture
def store(tmp_path):
    store = SlowStore(tmp_path)
    yield store
    store.proceed.set()


@pytest.fixture
def failures():
    return []


@pytest.fixture
def saver(store, failures):
    return CheckpointSaver(store, on_failure=failures.append)


def values(seed=0):
    random = np.random.default_rng(seed)
    return {"model/dense/kernel": random.normal(size=(4, 3)).astype(np.float32), "loss_scale/scale": np.float32(2)}


def save(saver, step, score=None):
    saver.save(values(step), step=step, metadata={"config": {"seed": 3}}, score=score)


def test_save_returns_before_the_checkpoint_is_written(store, saver, failures):
    save(saver, 5)
    assert store.steps() == []
    store.proceed.set()
    saver.finish()
    loaded, metadata = store.load(5)
    assert loaded["model/dense/kernel"].tobytes() == values(5)["model/dense/kernel"].tobytes()
    assert metadata["config"] == {"seed": 3}
    assert metadata["weights_sha256"] == model_sha256(values(5))
    assert not failures


def test_second_save_waits_for_the_first(store, saver):
    save(saver, 5)
    second = threading.Thread(target=save, args=(saver, 6))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    assert store.started == [5]
    store.proceed.set()
    second.join(20)
    saver.finish()
    assert store.started == store.steps() == [5, 6]


def test_best_score_includes_the_save_in_progress(store, saver):
    save(saver, 5, score=0.5)
    assert saver.best_score == 0.5
    store.proceed.set()
    for step, score in ((6, 0.7), (7, None), (8, 0.6)):
        save(saver, step, score)
    assert saver.best_score == 0.7
    saver.finish()
    assert (store.best(), store.best_score()) == (6, 0.7)


def test_best_score_of_a_resumed_run_comes_from_its_checkpoints(store, saver, tmp_path):
    store.proceed.set()
    save(saver, 5, score=0.5)
    saver.finish()
    assert CheckpointSaver(CheckpointStore(tmp_path), on_failure=pytest.fail).best_score == 0.5


class TestFailedSave:
    @pytest.fixture(autouse=True)
    def save_step_5_and_block_step_6(self, store, saver, tmp_path):
        store.proceed.set()
        save(saver, 5, score=0.5)
        saver.finish()
        (tmp_path / "step-000000006.npz").mkdir()  # blocks the name of the file

    def test_is_reported_by_the_next_save_and_keeps_older_checkpoints(self, store, saver, failures, tmp_path):
        save(saver, 6)
        save(saver, 7)
        saver.finish()
        (failure,) = failures
        assert str(tmp_path / "step-000000006.npz") in str(failure)
        (tmp_path / "step-000000006.npz").rmdir()
        assert [store.load(step)[1]["step"] for step in store.steps()] == [5, 7]

    def test_of_the_last_checkpoint_is_an_error(self, store, saver, failures, tmp_path):
        save(saver, 6)
        with pytest.raises(DataError, match=r"step-000000006\.npz"):
            saver.finish()
        saver.finish()  # does not raise again
        assert failures == []
        assert store.load(5)[1]["step"] == 5

    def test_does_not_count_for_the_best_score(self, saver):
        save(saver, 6, score=0.9)
        with pytest.raises(DataError):
            saver.finish()
        assert saver.best_score == 0.5

    def test_reports_any_exception_of_the_thread(self, saver, failures, monkeypatch, store):
        def fail(*arguments, **options):
            raise MemoryError("no more")

        monkeypatch.setattr(store, "save", fail)
        save(saver, 7)
        with pytest.raises(DataError, match=r"step 7.*MemoryError: no more"):
            saver.finish()


def test_saves_the_state_at_the_time_of_the_call(store, saver):
    """Training updates variables in place while a checkpoint is written, so the values must be copies."""
    from tests.trainer.step_program import distribute, make_batch, make_step

    train_step, state, _ = make_step("plain", optimizer="adam", global_batch_size=8)
    batch = distribute(state.strategy, make_batch(8))
    train_step(batch, 0.01)
    before = {name: value.tobytes() for name, value in state.values().items()}
    saver.save(state.values(), step=1, metadata={}, score=None)
    for _ in range(3):
        train_step(batch, 0.01)
    assert state.values()["model/conv1/kernel"].tobytes() != before["model/conv1/kernel"]
    store.proceed.set()
    saver.finish()
    loaded, metadata = store.load(1)
    assert {name: value.tobytes() for name, value in loaded.items()} == before
    assert metadata["weights_sha256"] == model_sha256(loaded)


def test_finish_without_a_save_returns_at_once(saver):
    began = time.monotonic()
    saver.finish()
    assert time.monotonic() - began < 20  # instead of waiting for a save
