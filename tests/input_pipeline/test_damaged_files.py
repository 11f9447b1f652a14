"""Fuzz test of shards, indexes, manifests and descriptions: damage gives a DataError or the original records.

Each case damages one file of a small dataset, opens the directory, reads every record in the index, and verifies the
dataset. Memory is limited, so that trusting a damaged length fails.
"""

import contextlib
import json
import resource

import numpy as np
import pytest

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset import external, records
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.verify import verify as verifier
from convoy.input_pipeline.verify.shard import check_shard
from tests.input_pipeline.datasets import read_payloads, write_dataset
from tests.input_pipeline.images import pixels

pytestmark = pytest.mark.slow

KINDS = ("flip", "cut", "splice", "insert")
SHARDS, DESCRIPTIONS = 250, 60  # cases per kind and test
SHARD = "made-train.tfrecord-00000-of-00002"
VALUES = (
    None,
    True,
    -1,
    0,
    1.5,
    2**31,
    2**60,
    2**64,
    1e308,
    "",
    "..",
    "../..",
    "\0",
    "x" * 300,
    [],
    {},
    [[]],
    [None],
)


@pytest.fixture
def data(tmp_path):
    images = [pixels(number, size=6) for number in range(9)]
    return write_dataset(tmp_path / "data", {"train": images[:6], "validation": images[6:]}, ("cup", "fork", "jar"))


@pytest.fixture
def payloads(data):
    """The payloads of all records."""
    found = set()
    for path in data.glob("*.tfrecord-*-of-00002"):
        content = path.read_bytes()
        found |= {content[offset + 12 : offset + 12 + length] for offset, length, _ in records.walk(path)}
    return found


@pytest.fixture(autouse=True)
def limited_memory(monkeypatch):
    """Checks shards in this process, and limits its address space to 1 GiB more than it uses."""
    from convoy.input_pipeline.verify import image

    image.decoded(_png())  # start TensorFlow first
    monkeypatch.setattr(verifier, "_work", lambda tasks, *_: list(map(check_shard, tasks)))
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def _png():
    from tests.input_pipeline.datasets import encode

    return encode(pixels(0, size=6), "png")


def damaged(content, random, kind):
    """Returns a file's bytes with damage: flipped bits, truncated, a piece copied or moved, or bytes inserted."""
    content = bytearray(content)
    place, other = sorted(random.integers(0, len(content) + 1, 2).tolist())
    if kind == "flip":
        for _ in range(random.integers(1, 4)):
            content[random.integers(len(content))] ^= 1 << random.integers(8)
    elif kind == "cut":
        del content[place:]
    elif kind == "splice":
        piece = content[place:other]
        if random.random() < 0.5:
            del content[place:other]
        at = random.integers(len(content) + 1)
        content[at:at] = piece
    else:
        content[place:place] = random.bytes(random.integers(1, 40))
    return bytes(content)


def read_all(directory, payloads):
    """Opens a directory and reads all records; returns their number, after checking that each is in `payloads`."""
    count = 0
    dataset = open_dataset(directory)
    for name in dataset.splits:
        with contextlib.suppress(DataError):
            split = dataset.split(name)
            assert dataset.digest(name)
            for record in range(split.num_images):
                with contextlib.suppress(DataError):
                    (payload,) = read_payloads(split, [record])
                    assert payload in payloads
                    count += 1
    return count


@pytest.mark.slow
def test_damaged_shards(data, payloads, capfd):
    random = np.random.default_rng(0)
    whole = (data / SHARD).read_bytes()
    manifest = (data / "manifest.json").read_text()
    index = (data / "index-train.npz").read_bytes()
    detected = rejected = 0
    for kind in KINDS * SHARDS:
        content = damaged(whole, random, kind)
        (data / SHARD).write_bytes(content)
        # In half of the cases the manifest has the damaged size; in a quarter there is no index.
        adjusted = random.random() < 0.5
        entry = json.loads(manifest)
        if adjusted:
            entry["splits"]["train"]["shards"][0]["bytes"] = len(content)
        (data / "manifest.json").write_text(json.dumps(entry))
        if random.random() < 0.25:
            (data / "index-train.npz").unlink(missing_ok=True)
        else:
            (data / "index-train.npz").write_bytes(index)
        try:
            read_all(data, payloads)
        except DataError as error:
            assert "\n" not in str(error)
            rejected += 1
        if content != whole:
            assert any(fault.split == "train" for fault in verifier.verify(data).faults)
            detected += 1
        capfd.readouterr()
    assert detected > 3.8 * SHARDS and rejected > SHARDS


def test_damaged_external_shards(tmp_path, data, payloads, capfd, monkeypatch):
    random = np.random.default_rng(1)
    whole = (data / SHARD).read_bytes()
    folder = tmp_path / "external"
    folder.mkdir()
    monkeypatch.setattr(external, "_kept_paths", lambda directory, split: [])  # faster
    rejected = 0
    for kind in KINDS * SHARDS:
        content = damaged(whole, random, kind)
        (folder / "train.tfrecord").write_bytes(content)
        try:
            read_all(folder, payloads)
            faults = verifier.verify(folder).faults
            found = {content[offset + 12 : offset + 12 + n] for offset, n, _ in records.walk(folder / "train.tfrecord")}
            assert faults or found <= payloads
        except DataError as error:
            assert "\n" not in str(error)
            rejected += 1
        capfd.readouterr()
    assert rejected > SHARDS


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**60, 2**63, 2**64 - 1])
def test_wrong_length_with_a_correct_checksum_is_detected(data, payloads, length, capfd):
    header = length.to_bytes(8, "little")
    content = bytearray((data / SHARD).read_bytes())
    content[:12] = header + records.masked_crc(header).to_bytes(4, "little")
    (data / SHARD).write_bytes(content)
    assert read_all(data, payloads) == 8  # the index has the correct lengths
    (data / "index-train.npz").unlink()
    with pytest.raises(DataError):
        read_all(data, payloads)
    assert any(fault.offset == 0 for fault in verifier.verify(data).faults)


@pytest.mark.parametrize(
    "file",
    ["index-train.npz", f"{SHARD}.idx", "manifest.json", "dataset_info.json", "features.json"],
)
def test_damaged_descriptions(data, payloads, file, capfd, monkeypatch):
    random = np.random.default_rng(2)
    as_tfds = file in ("dataset_info.json", "features.json")
    manifest = (data / "manifest.json").read_bytes()
    whole = (data / file).read_bytes()
    monkeypatch.setattr(external, "_kept_paths", lambda directory, split: [])  # faster
    for kind in KINDS * DESCRIPTIONS:
        changed = damaged(whole, random, kind)
        if file.endswith("json") and random.random() < 0.7:
            changed = json.dumps(with_one_change(json.loads(whole), random)).encode()
        (data / file).write_bytes(changed)
        for hidden in (False, True) if as_tfds else (False,):
            if hidden:
                (data / "manifest.json").unlink()
            for use in (lambda: read_all(data, payloads), lambda: verifier.verify(data)):
                try:
                    use()
                except DataError as error:
                    assert "\n" not in str(error)
            if file.endswith((".npz", ".idx")):
                assert read_all(data, payloads) == 9
            (data / "manifest.json").write_bytes(manifest if file != "manifest.json" else changed)
        capfd.readouterr()


def test_damaged_stored_index(tmp_path, data, payloads, capfd):
    random = np.random.default_rng(3)
    folder = tmp_path / "external"
    folder.mkdir()
    (folder / "train.tfrecord").write_bytes((data / SHARD).read_bytes())
    number = read_all(folder, payloads)
    stored = folder / ".convoy" / "index-train.npz"
    whole = stored.read_bytes()
    for kind in KINDS * DESCRIPTIONS:
        stored.write_bytes(damaged(whole, random, kind))
        assert read_all(folder, payloads) == number
        capfd.readouterr()


def with_one_change(value, random):
    """Returns JSON data with one value in it replaced, renamed or removed."""
    containers = []

    def collect(node):
        if isinstance(node, dict | list) and node:
            containers.append(node)
            for inner in node.values() if isinstance(node, dict) else node:
                collect(inner)

    collect(value)
    container = containers[random.integers(len(containers))]
    keys = list(container) if isinstance(container, dict) else list(range(len(container)))
    key = keys[random.integers(len(keys))]
    if random.random() < 0.2:
        del container[key]
    elif random.random() < 0.2 and isinstance(container, dict):
        container[str(VALUES[random.integers(len(VALUES))])] = container.pop(key)
    else:
        container[key] = VALUES[random.integers(len(VALUES))]
    return value
