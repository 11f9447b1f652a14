"""Local copies of what a conversion reads from an object store, and the order of what it uploads to one."""

import pytest

from convoy.core import downloads
from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.core.remote import RemotePath
from convoy.input_pipeline.convert import publish
from convoy.input_pipeline.convert.request import Request
from convoy.input_pipeline.convert.staging import staged
from convoy.input_pipeline.dataset.open import MANIFEST


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv(downloads.CACHE_VARIABLE, str(tmp_path / "cache"))
    return RemotePath(f"file://{tmp_path}/store")


@pytest.mark.parametrize(
    ("flag", "pattern", "copied"),
    [
        ("images", "", {"cup/a.jpg", "mug/b.jpg", "x-000.tar", "x-001.tar"}),
        ("images", "/cup", {"a.jpg"}),
        ("tar", "/x-{000..001}.tar", {"x-000.tar", "x-001.tar"}),
        ("tar", "/x-*1.tar", {"x-001.tar"}),
        ("tar", "/x-000.tar", {"x-000.tar"}),
    ],
)
def test_what_a_url_names_is_copied_until_the_end(store, tmp_path, flag, pattern, copied):
    for name in ("cup/a.jpg", "mug/b.jpg", "x-000.tar", "x-001.tar"):
        (store / name).write_bytes(name.encode())
    request = Request(output=str(tmp_path / "data"), origin={flag: f"{store}{pattern}", "labels": None})
    modified = []
    for _ in range(2):
        with staged(request, print) as local:
            folder = tmp_path / "data.source" / flag
            found = [path for path in folder.rglob("*") if path.is_file()]
            assert {path.relative_to(folder).as_posix() for path in found} == copied
            last = pattern.rpartition("/")[2]
            assert local.origin[flag] == str(folder / last if flag == "tar" else folder)
            modified.append({path.name: path.stat().st_mtime_ns for path in found})
        assert not folder.parent.exists()
    assert modified[0] == modified[1]  # an interrupted conversion resumes with its finished shards


def test_missing_files_and_unsupported_flags_are_named(store, tmp_path):
    with pytest.raises(DataError, match=f"--images={store}/none"):
        staged(Request(output=str(tmp_path / "data"), origin={"images": f"{store}/none"}), print).__enter__()
    with pytest.raises(UsageError, match=f"--tfds={store}"):
        staged(Request(output=str(tmp_path / "data"), origin={"tfds": str(store)}), print).__enter__()


def test_manifest_is_uploaded_when_everything_else_is_there(store, tmp_path, monkeypatch):
    output, upload = store / "data", publish.upload

    def failing(source, target):
        if target.name == "a.tfrecord":
            raise ConvoyError("the store does not answer")
        upload(source, target)

    with publish.working_directory(output, "train") as work:
        for name in (MANIFEST, "a.tfrecord", "b.tfrecord"):
            (work.dataset / name).write_text(name)
        with monkeypatch.context() as patch, pytest.raises(ConvoyError):
            patch.setattr(publish, "upload", failing)
            publish.publish(work, output)
        assert not {MANIFEST, "a.tfrecord"} & set(output.files())
        publish.publish(work, output)
    assert set(output.files()) == {MANIFEST, "a.tfrecord", "b.tfrecord"}
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
