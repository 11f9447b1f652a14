import errno
import json
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest

from convoy.core.errors import DataError
from convoy.trainer.checkpoint.checkpoints import CheckpointStore, DamagedError, load_latest_valid

METADATA = {"config": {"seed": 3}, "text": "Käse"}


def values(seed=0):
    random = np.random.default_rng(seed)
    return {
        "model/conv1/kernel": random.normal(size=(3, 3, 3, 4)).astype(np.float32),
        "model/norm1/moving_mean": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
        "loss_scale/good_steps": np.array(7, np.int32),
        "empty": np.zeros((0, 3), np.float32),
    }


def same_bits(first, second):
    return first.keys() == second.keys() and all(
        (first[name].dtype, first[name].shape, first[name].tobytes())
        == (second[name].dtype, second[name].shape, second[name].tobytes())
        for name in first
    )


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path, keep=2)


def save(store, *steps, score=None):
    for step in steps:
        store.save(values(step), step=step, metadata=METADATA, score=score)


def damage(path):
    """Flips a bit in the middle of the file, where the values are."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class TestRoundTrip:
    def test_values_are_restored_bit_for_bit_by_name(self, store):
        store.save(values(), step=12, metadata=METADATA)
        loaded, metadata = store.load(12)
        assert same_bits(loaded, values())
        assert metadata == {**METADATA, "step": 12, "score": None}

    def test_numpy_can_read_the_file(self, store):
        path = store.save(values(), step=12, metadata=METADATA)
        with np.load(path) as archive:
            np.testing.assert_array_equal(archive["model/conv1/kernel"], values()["model/conv1/kernel"])

    def test_saving_a_step_again_replaces_it(self, store):
        store.save(values(1), step=12, metadata=METADATA)
        store.save(values(2), step=12, metadata=METADATA)
        assert same_bits(store.load(12)[0], values(2))


class TestRetention:
    def test_keeps_the_latest_k(self, store):
        save(store, 1, 2, 3, 10)
        assert store.steps() == [3, 10]
        assert store.latest() == 10

    def test_keeps_the_best_until_a_later_one_is_as_good(self, store):
        for step, score in ((1, 0.5), (2, 0.9), (3, 0.9), (4, 0.4), (5, None)):
            save(store, step, score=score)
        assert store.steps() == [3, 4, 5]
        assert (store.best(), store.best_score()) == (3, 0.9)
        save(store, 6, score=0.9)
        assert store.steps() == [5, 6]
        assert (store.best(), store.best_score()) == (6, 0.9)

    def test_a_store_opened_later_finds_the_best(self, store, tmp_path):
        save(store, 1, score=0.5)
        save(store, 2, 3, 4)
        later = CheckpointStore(tmp_path, keep=2)
        assert (later.best(), later.best_score()) == (1, 0.5)
        assert later.steps() == [1, 3, 4]

    def test_saving_deletes_checkpoints_of_later_steps(self, tmp_path):
        store = CheckpointStore(tmp_path, keep=1)
        save(store, 1, score=0.9)
        save(store, 4, score=0.1)
        damage(tmp_path / "step-000000004.npz")
        save(store, 2, score=0.3)  # restored from step 1
        assert store.steps() == [1, 2]
        assert store.best() == 1

    def test_unreadable_best_is_reported_and_another_one_chosen(self, store, tmp_path, caplog):
        save(store, 1, score=0.5)
        save(store, 2, score=0.9)
        path = tmp_path / "step-000000002.npz"
        path.write_bytes(path.read_bytes()[:-50])
        assert (store.best(), store.best_score()) == (1, 0.5)
        assert not caplog.records
        assert store.chosen() == 1
        (record,) = caplog.records
        assert str(path) in record.getMessage()

    def test_empty_or_absent_folder_has_no_checkpoints(self, tmp_path):
        for folder in (tmp_path, tmp_path / "absent"):
            store = CheckpointStore(folder)
            assert (store.steps(), store.latest(), store.best(), store.best_score()) == ([], None, None, None)


class TestCrashes:
    def test_partial_file_is_ignored_and_deleted_by_the_next_save(self, store, tmp_path):
        save(store, 1)
        leftover = tmp_path / "step-000000002.npz.tmp"
        leftover.write_bytes(b"half")
        assert store.steps() == [1]
        save(store, 3)
        assert not leftover.exists()
        assert sorted(os.listdir(tmp_path)) == ["step-000000001.npz", "step-000000003.npz"]

    def test_other_files_are_ignored_and_kept(self, store, tmp_path):
        others = ["step-1.npz", "step-000000007.npz.bak", "notes.txt"]
        for name in others:
            (tmp_path / name).write_text("")
        save(store, 1, 2, 3)
        assert store.steps() == [2, 3]
        assert set(others) < set(os.listdir(tmp_path))

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
    def test_truncated_file_is_named(self, store, share):
        path = store.save(values(), step=12, metadata=METADATA)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match=f"checkpoint {re.escape(str(path))}: damaged"):
            store.load(12)

    def test_any_flipped_bit_is_detected_or_harmless(self, store):
        path = store.save(values(), step=12, metadata=METADATA)
        whole, detected = path.read_bytes(), 0
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            path.write_bytes(damaged)
            try:
                loaded, metadata = store.load(12)
            except DataError as error:
                assert str(path) in str(error)
                detected += 1
            else:
                assert same_bits(loaded, values()), f"byte {position}"
                assert metadata == {**METADATA, "step": 12, "score": None}, f"byte {position}"
        assert detected > sum(value.nbytes for value in values().values())

    def test_an_unreadable_file_does_not_count_as_damaged(self, store, tmp_path):
        (tmp_path / "step-000000012.npz").mkdir()
        with pytest.raises(DataError, match=r"step-000000012\.npz.*Is a directory") as caught:
            store.load(12)
        assert not isinstance(caught.value, DamagedError)

    def test_missing_step_is_named_with_the_existing_ones(self, store):
        save(store, 1, 2)
        with pytest.raises(DataError, match=r"step-000000007\.npz.*\[1, 2\]"):
            store.load(7)

    def test_failed_save_keeps_older_checkpoints_and_leaves_no_partial_file(self, store, tmp_path):
        save(store, 1, 2)
        (tmp_path / "step-000000003.npz").mkdir()  # blocks the name of the new file
        with pytest.raises(DataError, match=r"step-000000003\.npz: cannot be written"):
            save(store, 3)
        (tmp_path / "step-000000003.npz").rmdir()
        assert sorted(os.listdir(tmp_path)) == ["step-000000001.npz", "step-000000002.npz"]
        assert same_bits(store.load(2)[0], values(2))

    def test_save_into_an_absent_folder_names_it(self, tmp_path):
        with pytest.raises(DataError, match=r"checkpoint .*absent.*No such file"):
            save(CheckpointStore(tmp_path / "absent"), 1)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root ignores permissions")
    def test_save_into_a_read_only_folder_is_refused(self, store, tmp_path):
        save(store, 1)
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(DataError, match="Permission denied"):
                save(store, 2)
        finally:
            tmp_path.chmod(0o700)
        assert store.steps() == [1]

    def test_metadata_is_stored_as_json(self, store):
        path = store.save(values(), step=12, metadata=METADATA)
        assert json.dumps({**METADATA, "step": 12, "score": None}).encode() in path.read_bytes()


class TestLoadLatestValid:
    """Steps 1 and 2 were saved; the tests damage step 2."""

    @pytest.fixture(autouse=True)
    def saved(self, store):
        save(store, 1, 2)

    def load(self, store, caplog):
        """Returns the loaded step and what was logged."""
        loaded, metadata = load_latest_valid(store)
        assert same_bits(loaded, values(metadata["step"]))
        return metadata["step"], caplog.messages

    def test_loads_the_latest(self, store, caplog):
        assert self.load(store, caplog) == (2, [])

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
    def test_skips_a_truncated_file(self, store, caplog, tmp_path, share):
        path = tmp_path / "step-000000002.npz"
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        step, logged = self.load(store, caplog)
        assert step == 1
        (line,) = logged
        assert line.startswith(f"checkpoint {path}: damaged")

    @pytest.mark.parametrize("name", [*values(), "metadata.json"])
    def test_skips_a_file_with_a_flipped_bit(self, store, caplog, tmp_path, name):
        path = tmp_path / "step-000000002.npz"
        content = bytearray(path.read_bytes())
        member = name if name == "metadata.json" else f"{name}.npy"
        # After the member's name in its local header. An empty array still has NumPy's header.
        content[content.index(member.encode()) + len(member) + 40] ^= 4
        path.write_bytes(content)
        step, logged = self.load(store, caplog)
        assert step == 1
        assert f"{path}: damaged" in logged[0]

    def test_ignores_a_partial_file(self, store, caplog, tmp_path):
        path = tmp_path / "step-000000002.npz"
        half = path.read_bytes()[: path.stat().st_size // 2]
        path.unlink()
        path.with_name(f"{path.name}.tmp").write_bytes(half)
        assert self.load(store, caplog) == (1, [])  # not reported: it was never a checkpoint

    def test_raises_if_all_are_damaged(self, store, caplog, tmp_path):
        for step in (1, 2):
            damage(tmp_path / f"step-{step:09d}.npz")
        with pytest.raises(DataError, match=re.escape(str(tmp_path))):
            load_latest_valid(store)
        latest, earlier = caplog.messages
        assert "step-000000002.npz: damaged" in latest
        assert "step-000000001.npz: damaged" in earlier

    def test_returns_none_without_checkpoints(self, tmp_path):
        assert load_latest_valid(CheckpointStore(tmp_path / "absent")) is None


class TestOtherFileSystems:
    def test_without_fsync_of_folders_the_checkpoint_is_saved(self, store, tmp_path, monkeypatch):
        fsync = os.fsync

        def refuse_folders(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", refuse_folders)
        save(store, 1)
        assert store.load(1)[1]["step"] == 1

    def test_old_checkpoint_that_is_read_stays_until_a_later_save(self, tmp_path, monkeypatch):
        store = CheckpointStore(tmp_path, keep=1)
        save(store, 1)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", busy)
            save(store, 2)
        assert store.steps() == [1, 2]
        save(store, 3)
        assert store.steps() == [3]

    def test_later_checkpoint_that_cannot_be_removed_is_an_error(self, tmp_path, monkeypatch):
        store = CheckpointStore(tmp_path, keep=3)
        save(store, 5)
        monkeypatch.setattr(Path, "unlink", busy)
        with pytest.raises(DataError, match="busy"):
            save(store, 4)


def busy(*_, **__):
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
