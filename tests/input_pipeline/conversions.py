"""Helpers of the tests of `convoy convert`."""

import contextlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

from convoy import cli
from convoy.core.errors import DataError
from convoy.input_pipeline.convert.request import Request
from convoy.input_pipeline.convert.source_kinds import options_of
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import open_dataset
from tests.input_pipeline.datasets import read_payloads

ROOT = Path(__file__).parents[2]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def examples(data, split="train"):
    """Returns the records of a split by file name, each as {key: value}."""
    import tensorflow as tf

    found = {}
    for payload in read_payloads(open_dataset(data).split(split)):
        features = tf.train.Example.FromString(payload).features.feature
        example = {key: (f.bytes_list.value or f.int64_list.value)[0] for key, f in features.items()}
        found[example["image/filename"].decode()] = example
    return found


def quarantined(data):
    return {
        (entry["path"], entry["reason"])
        for entry in map(json.loads, (data / "quarantine.jsonl").read_text().splitlines())
    }


def start(*flags, file=subprocess.PIPE):
    """Starts `convoy convert`, with stdout and stderr going to `file`."""
    command = [sys.executable, "-m", "convoy", "convert", *map(str, flags)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=file, stderr=file, start_new_session=True)


def assert_rejected(capsys, named, *flags, code):
    """Asserts that the command exits with `code` and an error of up to two lines that names the given value."""
    assert cli.main(["convoy", "convert", *map(str, flags)]) == code
    error = capsys.readouterr().err.strip()
    assert named in error
    assert len(error.splitlines()) <= 2


@contextlib.contextmanager
def listed(output, logged=None, class_names=(), **origin):
    """Yields what a conversion from the given source would convert: its options and its images, which can be read."""
    request = Request(output=str(output), origin=origin, record_format=RecordFormat(class_names=class_names))
    log = (logged if logged is not None else []).append
    with options_of(request, log) as options, options.listing() as found:
        yield options, found


def reasons(found):
    """Returns why images of a listing cannot be used, by name."""
    return {image.name: reason for image, reason in found.bad}


def outcomes_of_damage(path, output, number, **origin):
    """Damages a file in many ways; returns how often the listing of its images succeeds and fails with an error."""
    whole, random, outcomes = path.read_bytes(), Random(0), Counter()
    for _ in range(number):
        data = bytearray(whole)
        for _ in range(random.choice((1, 2, 20))):
            data[random.randrange(len(data))] = random.choice((0, 255, ord("0"), random.randrange(256)))
        path.write_bytes(data[: random.choice((len(data), random.randrange(len(data))))])
        try:
            with listed(output, **origin) as (_, found):
                assert all(len(image.read()) == image.size for image in found.images)
            outcomes["listed"] += 1
        except DataError as error:
            assert "\n" not in str(error)
            outcomes["error"] += 1
    return outcomes
