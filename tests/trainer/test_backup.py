"""`--backup`: a copy of RUN in an object store, and resuming from it on another machine."""

import json

import pytest

from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.core.remote import RemotePath, download_folder, in_parallel
from convoy.core.run_layout import RunLayout, checkpoint_name
from convoy.trainer.callbacks.backup_writer import BackupWriter
from convoy.trainer.callbacks.callback import Checkpoint
from convoy.trainer.run import backup as backups
from convoy.trainer.run.backup import MARKER, Backup


@pytest.fixture
def target(tmp_path):
    return RemotePath(f"file://{tmp_path}/store/run")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", 10, 20)


def make_run(path, *steps, time=1.0):
    """Makes the files of a run with checkpoints at these steps."""
    layout = RunLayout(path)
    layout.checkpoints.mkdir(parents=True)
    (path / "tensorboard" / "train").mkdir(parents=True)
    layout.events.write_text(json.dumps({"event": "start", "time": time}) + "\n")
    layout.config.write_text("{}")
    (path / "tensorboard" / "train" / "events.out").write_bytes(b"curves")
    layout.lock_file.touch()
    (path / "logs").mkdir()
    (path / "logs" / "worker-0.log").write_text("of this machine")
    (layout.checkpoints / "step-000000030.npz.tmp").write_bytes(b"unfinished")
    for step in steps:
        add_checkpoint(layout, step)
    return layout


def add_checkpoint(layout, step):
    (layout.checkpoints / checkpoint_name(step)).write_bytes(f"weights of step {step}".encode())


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(target):
    return set(target.files())


def test_empty_run_becomes_the_one_that_was_uploaded(run, target, tmp_path):
    Backup(target, run).upload()
    expected = contents(run.path)
    for local in (".lock", "logs/worker-0.log", "checkpoints/step-000000030.npz.tmp"):
        del expected[local]
    assert names(target) == expected.keys() | {MARKER}
    other = RunLayout(tmp_path / "other")
    restored = Backup(target, other)
    restored.restore()
    assert contents(other.path) == expected
    assert restored.pending() == {}


def test_only_changes_are_uploaded_and_deleted_files_are_deleted(run, target, monkeypatch):
    backup = Backup(target, run)
    backup.upload()
    sent = []
    upload = backups.upload
    monkeypatch.setattr(backups, "upload", lambda source, place: (sent.append(source.name), upload(source, place)))
    backup.upload()
    assert sent == []
    (run.checkpoints / checkpoint_name(10)).unlink()
    (run.tensorboard / "train" / "events.out").unlink()
    add_checkpoint(run, 30)
    with run.events.open("a") as file:
        file.write('{"event": "checkpoint"}\n')
    assert backup.pending().keys() == {"events.jsonl", "checkpoints/step-000000030.npz"}
    backup.upload()
    assert sent == ["events.jsonl", "step-000000030.npz"]  # the checkpoint last
    checkpoints = {"checkpoints/step-000000020.npz", "checkpoints/step-000000030.npz"}
    assert names(target) == {"config.json", "events.jsonl", MARKER} | checkpoints
    assert json.loads((target / MARKER).read_text())["step"] == 30


def test_interrupted_upload_leaves_the_earlier_checkpoint(run, target, tmp_path, monkeypatch):
    backup = Backup(target, run)
    backup.upload()
    add_checkpoint(run, 30)
    with monkeypatch.context() as patch:
        patch.setattr(backup, "_write_content", lambda content: (_ for _ in ()).throw(ConvoyError("killed")))
        with pytest.raises(ConvoyError):
            backup.upload()
    assert "checkpoints/step-000000030.npz" in names(target)
    other = RunLayout(tmp_path / "other")
    Backup(target, other).restore()
    steps = {path.name for path in other.checkpoints.iterdir()}
    assert steps == {checkpoint_name(10), checkpoint_name(20)}
    (run.checkpoints / checkpoint_name(30)).unlink()  # the machine is lost: the resumed run is at step 20
    Backup(target, run).upload()
    assert "checkpoints/step-000000030.npz" not in names(target)


def test_interrupted_restore_is_repeated(run, target, tmp_path, monkeypatch):
    Backup(target, run).upload()
    other = RunLayout(tmp_path / "other")
    with monkeypatch.context() as patch:

        def interrupted(source, folder, files):
            download_folder(source, folder, {name: size for name, size in files.items() if "000020" not in name})
            raise KeyboardInterrupt

        patch.setattr(backups, "download_folder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Backup(target, other).restore()
    Backup(target, other).restore()
    assert (other.checkpoints / checkpoint_name(20)).exists()
    assert not [name for name in contents(other.path) if name.endswith(".tmp")]


def test_run_that_is_at_least_as_far_wins(run, target):
    Backup(target, run).upload()
    add_checkpoint(run, 30)
    before = contents(run.path)
    for _ in range(2):
        backup = Backup(target, run)
        backup.restore()
        assert contents(run.path) == before
        backup.upload()


def test_run_that_is_behind_its_backup_is_refused_with_both_steps(run, target):
    Backup(target, run).upload()
    (run.checkpoints / checkpoint_name(20)).unlink()
    with pytest.raises(DataError, match="step 20 .* step 10"):
        Backup(target, run).restore()


def test_backup_of_another_run_is_refused_with_both_steps(run, target, tmp_path):
    Backup(target, run).upload()
    other = make_run(tmp_path / "other", 40, time=2.0)
    with pytest.raises(DataError, match="another run, at step 20.* at step 40"):
        Backup(target, other).restore()


def test_folder_with_other_files_is_refused(run, target):
    (target / "photo.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=str(target)):
        Backup(target, run).restore()


def test_files_of_a_launcher_do_not_make_a_run(run, target, tmp_path):
    Backup(target, run).upload()
    other = RunLayout(tmp_path / "other")
    (other.path / "logs").mkdir(parents=True)
    other.launch.write_text("{}")
    other.events.write_text('{"event": "restart", "time": 3}\n')
    Backup(target, other).restore()
    assert other.events.read_bytes() == run.events.read_bytes()


def test_nothing_is_uploaded_before_the_run_has_begun(run, target):
    run.events.unlink()
    Backup(target, run).upload()
    assert names(target) == set()


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2}', '{"format": 1, "run": "a", "checkpoints": [1]}'])
def test_damaged_marker_is_named(run, target, content):
    (target / MARKER).write_bytes(content.encode())
    with pytest.raises(DataError, match=MARKER):
        Backup(target, run).restore()


def test_missing_checkpoint_is_named(run, target, tmp_path):
    Backup(target, run).upload()
    (target / "checkpoints" / checkpoint_name(20)).unlink()
    with pytest.raises(DataError, match=checkpoint_name(20)):
        Backup(target, RunLayout(tmp_path / "other")).restore()


class TestWriter:
    """The thread that uploads; a run is only its files here."""

    @pytest.fixture
    def writer(self, run, target):
        return BackupWriter(Backup(target, run))

    def test_uploads_after_a_checkpoint_without_waiting(self, writer, run, target, wait_until):
        writer.on_start(None)
        writer.on_checkpoint(None, Checkpoint(20, run.checkpoints, None))
        wait_until(lambda: MARKER in names(target) and "20" in (target / MARKER).read_text(), "the upload")
        add_checkpoint(run, 30)
        writer.close()
        assert json.loads((target / MARKER).read_text())["step"] == 30

    def test_failing_store_is_a_warning_and_is_tried_again(self, writer, target, caplog, monkeypatch, wait_until):
        upload, failures = writer._backup.upload, []

        def fail_twice():
            if len(failures) < 2:
                failures.append(1)
                raise ConvoyError("the store does not answer")
            upload()

        monkeypatch.setattr(writer._backup, "upload", fail_twice)
        writer.on_start(None)
        for count in (1, 2):
            writer._wanted.set()
            wait_until(lambda count=count: len(failures) == count, "a failed upload")
        writer.close()
        assert json.loads((target / MARKER).read_text())["step"] == 20
        assert sum("does not answer" in record.message for record in caplog.records) == 1

    def test_store_that_stays_down_does_not_fail_the_run(self, writer, caplog, monkeypatch):
        def fail():
            raise ConvoyError("the store does not answer")

        monkeypatch.setattr(writer._backup, "upload", fail)
        writer.close()
        assert any("not complete" in record.message for record in caplog.records)


def test_first_error_of_parallel_calls_is_raised():
    def fail(item):
        raise ConvoyError(str(item))

    with pytest.raises(ConvoyError, match="0"):
        in_parallel(fail, range(3))
