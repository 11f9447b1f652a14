"""Conversion from and to an object store: an S3 server on this machine."""

import json

import pytest

from convoy import cli
from convoy.core import downloads
from convoy.core.remote import RemotePath
from convoy.input_pipeline.convert import publish
from convoy.input_pipeline.dataset.open import MANIFEST, open_dataset
from tests.input_pipeline.images import draw_classes
from tests.object_stores import environment, make_bucket, s3_server, s3_variables, upload_folder

pytestmark = pytest.mark.slow

CLASSES = {"cup": 9, "mug": 8}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as url, environment(s3_variables(url)):
        make_bucket("s3://bucket")
        yield RemotePath("s3://bucket")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw_classes(tmp_path_factory.mktemp("photos") / "photos", CLASSES)


@pytest.fixture(scope="module")
def local(photos):
    """The same conversion without a store."""
    output = photos.parent / "data"
    assert convert(photos, output) == 0
    return output


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(downloads.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def convert(images, output, *flags):
    return cli.main(["convoy", "convert", f"--images={images}", f"--output={output}", "--workers=1", *flags])


def described(directory):
    return {name: entry["shards"] for name, entry in open_dataset(directory).manifest["splits"].items()}


def copies(cache):
    return [path for path in cache.rglob("*") if path.is_file()]


def test_bucket_to_bucket_gives_the_shards_of_local_folders(bucket, photos, local, cache):
    upload_folder(photos, bucket / "photos")
    target = bucket / "both" / "data"
    assert convert(bucket / "photos", target) == 0
    assert described(target) == described(local)
    assert copies(cache) == []
    assert {name for name in target.files() if "tfrecord" in name} <= {path.name for path in local.iterdir()}


def test_csv_in_a_bucket_names_the_images(bucket, photos, local, tmp_path):
    upload_folder(photos, bucket / "flat")
    rows = [f"{path.name},{path.parent.name}" for path in sorted(photos.rglob("*.jpg"))]
    (bucket / "flat.csv").write_bytes("\n".join(["filename,category", *rows]).encode())
    assert convert(bucket / "flat", tmp_path / "data", f"--manifest={bucket / 'flat.csv'}") == 0
    counts = [
        {name: entry["counts"] for name, entry in open_dataset(data).manifest["splits"].items()}
        for data in (tmp_path / "data", local)
    ]
    assert counts[0] == counts[1]


def test_further_split_joins_the_dataset(bucket, photos, tmp_path):
    target = bucket / "split" / "data"
    assert convert(photos, target) == 0
    before = described(target)
    more = draw_classes(tmp_path / "more", {"cup": 3, "mug": 2}, first=500)
    assert convert(more, target, "--split=test") == 0
    assert described(target) == before | {"test": described(target)["test"]}
    assert open_dataset(target).split("test").num_images == 5
    assert convert(more, target, "--split=test") == 2


def test_interrupted_upload_leaves_no_manifest_and_is_resumed(bucket, photos, local, cache, monkeypatch, capsys):
    target = bucket / "interrupted" / "data"
    upload = publish.upload

    def interrupted(source, place):
        if place.name == "index-train.npz":
            raise KeyboardInterrupt
        upload(source, place)

    with monkeypatch.context() as patch:
        patch.setattr(publish, "upload", interrupted)
        assert convert(photos, target) == 130
    assert not {MANIFEST, "index-train.npz"} & set(target.files())
    capsys.readouterr()
    assert convert(photos, target) == 0
    assert "reus" in capsys.readouterr().err
    assert described(target) == described(local)
    assert copies(cache) == []


def test_dataset_that_another_machine_has_changed_is_not_overwritten(bucket, photos, tmp_path, monkeypatch):
    target = bucket / "changed" / "data"
    assert convert(photos, target) == 0
    manifest = json.loads((target / MANIFEST).read_text())
    from convoy.input_pipeline.convert import convert as module

    write_shards = module.write_shards

    def meanwhile(*arguments, **options):
        (target / MANIFEST).write_bytes(json.dumps(manifest | {"name": "other"}).encode())
        return write_shards(*arguments, **options)

    monkeypatch.setattr(module, "write_shards", meanwhile)
    more = draw_classes(tmp_path / "more", {"cup": 3, "mug": 2}, first=500)
    assert convert(more, target, "--split=test") == 2
    assert json.loads((target / MANIFEST).read_text())["splits"].keys() == manifest["splits"].keys()


def test_empty_prefix_and_unsupported_flag_are_named(bucket, tmp_path, capsys):
    assert convert(bucket / "none", tmp_path / "data") == 3
    assert "--images=s3://bucket/none" in capsys.readouterr().err
    assert cli.main(["convoy", "convert", "--tfds=s3://bucket/x", f"--output={tmp_path / 'data'}"]) == 2
    assert "--tfds=s3://bucket/x" in capsys.readouterr().err
