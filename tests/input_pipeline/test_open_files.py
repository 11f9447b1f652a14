"""More shards than a process may open files by default."""

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


def answer_with(folder, soft, hard, program):
    """Runs a program on the paths `folder` and `paths` in a process that may open so many files."""
    program = (
        f"import pathlib, resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        f"folder = pathlib.Path({str(folder)!r}); paths = sorted(folder.glob('train-*'))\n{program}"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert not result.returncode, result.stderr
    return result.stdout


def test_more_shards_than_a_process_may_open_at_first_are_opened(folder):
    program = (
        "from convoy.input_pipeline.dataset.storage import Shards\n"
        "one, other = Shards(paths), Shards(paths)\n"  # to train and to evaluate
        "print(len({shards.read(shard, 0, 100) for shards in (one, other) for shard in range(len(paths))}))\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    read, limit = answer_with(folder, 64, 4096, program).split()
    assert read == "1"
    assert 2 * SHARDS + 200 < int(limit) < 4096  # with room for others, and no more than it takes


def test_more_shards_than_a_process_may_ever_open_are_an_error_that_names_the_limit(folder):
    program = (
        "from convoy.core.errors import DataError\n"
        "from convoy.input_pipeline.dataset.storage import Shards\n"
        "try:\n    Shards(paths)\nexcept DataError as error:\n    print(error)"
    )
    said = answer_with(folder, 32, 64, program)
    assert "Too many open files" in said and "100 shards" in said
    assert "64 open files" in said and "`ulimit -n 712`" in said


def test_images_of_more_shards_than_may_be_open_are_listed_for_a_conversion(folder):
    program = (
        "from convoy.input_pipeline.convert.tfds_sources import list_prepared\n"
        "images = list_prepared(folder, ['train']).images\n"
        "print(len(images), images[7].name, pathlib.Path(images[7].path) == paths[7])"
    )
    assert answer_with(folder, 64, 64, program) == f"{SHARDS} train-00007-of-00100/0000000 True\n"
