import threading
import time

import numpy as np
import pytest

from convoy.core.errors import DataError
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.checkpoint.saver import CheckpointSaver
from convoy.trainer.step.state import model_sha256


class SlowStore(CheckpointStore):
    """A store whose disk waits until it is told to go on; `begun` are the steps it was asked to write."""

    def __init__(self, folder, keep=3):
        super().__init__(folder, keep)
        self.go_on = threading.Event()
        self.begun = []

    def save(self, values, *, step, **details):
        self.begun.append(step)
        assert self.go_on.wait(20)
        return super().save(values, step=step, **details)


@pytest.fixture
def store(tmp_path):
    store = SlowStore(tmp_path)
    yield store
    store.go_on.set()


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


def test_saving_returns_before_the_checkpoint_is_written(store, saver, failures):
    save(saver, 5)
    assert store.steps() == []
    store.go_on.set()
    saver.finish()
    loaded, metadata = store.load(5)
    assert loaded["model/dense/kernel"].tobytes() == values(5)["model/dense/kernel"].tobytes()
    assert metadata["config"] == {"seed": 3}
    assert metadata["weights_sha256"] == model_sha256(values(5))
    assert not failures


def test_a_second_checkpoint_waits_for_the_first(store, saver):
    save(saver, 5)
    second = threading.Thread(target=save, args=(saver, 6))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    assert store.begun == [5]
    store.go_on.set()
    second.join(20)
    saver.finish()
    assert store.begun == store.steps() == [5, 6]


def test_the_best_score_is_known_before_it_is_written(store, saver):
    save(saver, 5, score=0.5)
    assert saver.best_score == 0.5
    store.go_on.set()
    for step, score in ((6, 0.7), (7, None), (8, 0.6)):
        save(saver, step, score)
    assert saver.best_score == 0.7
    saver.finish()
    assert (store.best(), store.best_score()) == (6, 0.7)


def test_the_best_score_of_a_run_that_goes_on_is_that_of_its_checkpoints(store, saver, tmp_path):
    store.go_on.set()
    save(saver, 5, score=0.5)
    saver.finish()
    assert CheckpointSaver(CheckpointStore(tmp_path), on_failure=pytest.fail).best_score == 0.5


class TestACheckpointThatCannotBeWritten:
    @pytest.fixture(autouse=True)
    def one_is_there(self, store, saver, tmp_path):
        store.go_on.set()
        save(saver, 5, score=0.5)
        saver.finish()
        (tmp_path / "step-000000006.npz").mkdir()  # what the file cannot take the name of

    def test_is_told_with_the_next_one_and_the_older_ones_are_whole(self, store, saver, failures, tmp_path):
        save(saver, 6)
        save(saver, 7)  # training has gone on
        saver.finish()
        (failure,) = failures
        assert f"{tmp_path / 'step-000000006.npz'} cannot be written" in str(failure)
        (tmp_path / "step-000000006.npz").rmdir()
        assert [store.load(step)[1]["step"] for step in store.steps()] == [5, 7]

    def test_is_an_error_where_it_is_the_last(self, store, saver, failures, tmp_path):
        save(saver, 6)
        with pytest.raises(DataError, match=r"step-000000006\.npz cannot be written .*Older ones are untouched"):
            saver.finish()
        saver.finish()  # told once
        assert failures == []
        assert store.load(5)[1]["step"] == 5

    def test_takes_its_score_with_it(self, saver):
        save(saver, 6, score=0.9)
        with pytest.raises(DataError):
            saver.finish()
        assert saver.best_score == 0.5

    def test_for_any_other_reason_is_named_too(self, saver, failures, monkeypatch, store):
        def fail(*arguments, **options):
            raise MemoryError("no more")

        monkeypatch.setattr(store, "save", fail)
        save(saver, 7)
        with pytest.raises(DataError, match=r"checkpoint of step 7 was not written \(MemoryError: no more\)"):
            saver.finish()


def test_what_is_saved_is_the_state_as_it_was_however_slow_the_disk(store, saver):
    """Training goes on in place while a checkpoint is written: the copy must be one."""
    from tests.trainer.step_program import distribute, make_batch, make_step

    train_step, state, _ = make_step("plain", optimizer="adam", global_batch_size=8)
    batch = distribute(state.strategy, make_batch(8))
    train_step(batch, 0.01)
    before = {name: value.tobytes() for name, value in state.values().items()}
    saver.save(state.values(), step=1, metadata={}, score=None)
    for _ in range(3):
        train_step(batch, 0.01)
    assert state.values()["model/conv1/kernel"].tobytes() != before["model/conv1/kernel"]
    store.go_on.set()
    saver.finish()
    loaded, metadata = store.load(1)
    assert {name: value.tobytes() for name, value in loaded.items()} == before
    assert metadata["weights_sha256"] == model_sha256(loaded)


def test_finishing_with_nothing_to_write_returns_at_once(saver):
    began = time.monotonic()
    saver.finish()
    assert time.monotonic() - began < 1
