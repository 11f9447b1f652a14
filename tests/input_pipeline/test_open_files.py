"""Datasets with more shards than the limit of open files."""

import subprocess
import sys

import pytest

from convoy.input_pipeline.dataset import records
from tests.input_pipeline.datasets import encode
from tests.input_pipeline.images import pixels

SHARDS = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    record = records.frame(records.example({"image": encode(pixels(0), "png"), "label": 0}))
    for shard in range(SHARDS):
        (folder / f"train-{shard:05d}-of-{SHARDS:05d}").write_bytes(record)
    return folder


def output_of(folder, soft, hard, program):
    """Returns the output of a program with variables `folder` and `paths`, under these limits of open files."""
    program = (
        f"import pathlib, resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        f"folder = pathlib.Path({str(folder)!r}); paths = sorted(folder.glob('train-*'))\n{program}"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert not result.returncode, result.stderr
    return result.stdout


def test_soft_limit_is_raised(folder):
    program = (
        "from convoy.input_pipeline.dataset.storage import Shards\n"
        "one, other = Shards(paths), Shards(paths)\n"  # to train and to evaluate
        "print(len({shards.read(shard, 0, 100) for shards in (one, other) for shard in range(len(paths))}))\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    read, limit = output_of(folder, 64, 4096, program).split()
    assert read == "1"
    assert 2 * SHARDS + 200 < int(limit) < 4096  # with a reserve for other files, but not higher than needed


def test_hard_limit_is_an_error_with_the_limit(folder):
    program = (
        "from convoy.core.errors import DataError\n"
        "from convoy.input_pipeline.dataset.storage import Shards\n"
        "try:\n    Shards(paths)\nexcept DataError as error:\n    print(error)"
    )
    message = output_of(folder, 32, 64, program)
    assert "100 shards" in message and "64 open files" in message and "ulimit -n 712" in message


def test_conversion_lists_images_of_more_shards_than_the_limit(folder):
    program = (
        "from convoy.input_pipeline.convert.tfds_sources import list_prepared\n"
        "from convoy.input_pipeline.dataset.open import open_dataset\n"
        "images = list_prepared(open_dataset(folder), ['train']).images\n"
        "print(len(images), images[7].name, pathlib.Path(images[7].path) == paths[7])"
    )
    assert output_of(folder, 64, 64, program) == f"{SHARDS} train-00007-of-00100/0000000 True\n"
