"""`convoy bench order`: striped shuffle at the scale of a cluster, simulated with the real order and range reader.

No image is read: records have a size and a place only. Each virtual replica has a device, and each host up to 8. By
number of virtual replicas, the table has

- reads: what one host requests from the storage per epoch, and how often all hosts together read the dataset;
- window memory: the most bytes that one host has in memory or is reading;
- moved: how far an image moves between two epochs, as a share of the epoch;
- met again: share of the images in the slice of a virtual replica that an image meets again in the next epoch;
- class mix: the variance of the classes of a global batch, relative to independent draws, for images in shards in
  random order, as `convoy convert` writes them, and for shards sorted by class.

The first row is the global shuffle, the aim of the others. 100 million images take about 2 GB of memory.
"""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags as absl_flags

from benchmarks import measure
from convoy.core.errors import UsageError
from convoy.input_pipeline.dataset.records import FRAME_OVERHEAD
from convoy.input_pipeline.dataset.split import Split
from convoy.input_pipeline.dataset.storage import Shards
from convoy.input_pipeline.reading.order import Stripes, image_randomness, striped_positions_to_images
from convoy.input_pipeline.reading.sampler import BatchSlice, Sampler
from convoy.input_pipeline.reading.windows import RangeReader, make_stripes

_PAYLOAD_BYTES = 110_000  # as ImageNet's
_RECORDS_PER_SHARD = 1200  # 128 MiB
_CLASSES = 1000
_DEVICES_PER_HOST = 8
_IMAGES_PER_CALL = 512
_READ_IMAGES = 500_000  # of one host
_FOLLOWED_IMAGES = 20_000
_MIXED_IMAGES = 2**21
_CHUNK = 2**20  # positions located at a time

_ImagesAt = Callable[[np.ndarray], np.ndarray]


class _CountedShards(Shards):
    """Files of the right size that do not exist: reading counts, and returns nothing."""

    def __init__(self) -> None:
        super().__init__(())
        self.requests, self.bytes = 0, 0
        self._counting = threading.Lock()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        del shard, offset
        with self._counting:
            self.requests += 1
            self.bytes += size
        return b""


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this benchmark."""
    absl_flags.DEFINE_integer(
        "images_simulated", 100_000_000, "Benchmark order: number of images.", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_list(
        "virtual_replicas",
        ["8", "64", "512"],
        "Benchmark order: numbers of virtual replicas, comma-separated.",
        flag_values=flags,
    )


def run(flags: absl_flags.FlagValues) -> None:
    """Simulates each number of virtual replicas, prints the table and writes the JSON file.

    Raises:
      UsageError: `--virtual_replicas` contains anything but positive integers, or there are fewer images than in two
        batches.
    """
    counts = [_number(text, flags.images_simulated, flags.batch_size) for text in flags.virtual_replicas]
    console, about = measure.begin()
    split = _split(flags.images_simulated)
    rows = []
    for virtual_replicas in (0, *counts):
        measure.say(
            f"simulating {virtual_replicas} virtual replicas" if virtual_replicas else "simulating global shuffle"
        )
        batch_size = (virtual_replicas or max(counts)) * flags.batch_size
        rows.append(_simulated(split, virtual_replicas, batch_size, flags.batch_size))
    console.print(
        f"\n{split.num_images:,} images of {_PAYLOAD_BYTES:,} bytes, {flags.batch_size} per step and virtual replica:"
    )
    columns = ("order", "hosts", "window", "window memory", "reads per host", "times read", "moved", "met again")
    measure.print_table(console, (*columns, "class mix", "class mix, sorted"), [_line(row) for row in rows])
    settings = {"images": split.num_images, "payload_bytes": _PAYLOAD_BYTES, "records_a_shard": _RECORDS_PER_SHARD}
    settings |= {"images_per_virtual_replica": flags.batch_size, "devices_per_host": _DEVICES_PER_HOST}
    measure.write_json(flags.json, {"benchmark": "order", "environment": about, "settings": settings, "rows": rows})


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    storage = ("global", "any", "", "", "one per image", "1")
    if row["virtual_replicas"]:
        storage = (
            f"striped, V = {row['virtual_replicas']}",
            f"{row['hosts']}",
            f"{row['window_size']:,}",
            f"{row['window_bytes'] / 2**30:.2f} GiB",
            f"{row['reads_per_host']:,.0f}",
            f"{row['times_read']:.2f}",
        )
    mix = (f"{row['class_mix']:.2f}", f"{row['class_mix_sorted']:.2f}")
    return (*storage, f"{row['moved']:.3f}", f"{row['met_again']:.2%}", *mix)


def _number(text: str, images: int, batch_size: int) -> int:
    if not text.isdecimal() or not int(text):
        raise UsageError(f"--virtual_replicas={text}: pass positive integers, such as --virtual_replicas=8,64.")
    if images < 2 * int(text) * batch_size:
        raise UsageError(
            f"--images_simulated={images}: fewer than in two batches of --virtual_replicas={text} times "
            f"--batch_size={batch_size}. Pass more."
        )
    return int(text)


def _split(images: int) -> Split:
    """Returns a split of images of one size."""
    numbers = np.arange(images, dtype=np.int32)
    shards = -(-images // _RECORDS_PER_SHARD)
    constant = np.broadcast_to(np.int64(_PAYLOAD_BYTES), images)
    offset = numbers % _RECORDS_PER_SHARD * np.int64(_PAYLOAD_BYTES + FRAME_OVERHEAD)
    return Split("train", ("",) * shards, numbers // _RECORDS_PER_SHARD, offset, constant, numbers, constant)


def _simulated(split: Split, virtual_replicas: int, batch_size: int, slice_size: int) -> dict[str, Any]:
    """Returns the measurements of a striped shuffle; of a global shuffle for 0 virtual replicas."""
    stripes, storage = None, {}
    if virtual_replicas:
        stripes = make_stripes(split, virtual_replicas=virtual_replicas, global_batch_size=batch_size)
        storage = _storage(split, stripes)
    sampler = Sampler(split, stripes=stripes)

    def images_at(positions: np.ndarray) -> np.ndarray:
        return sampler.locate(positions, 0)[0]

    row = {"virtual_replicas": virtual_replicas, "global_batch_size": batch_size, **storage}
    row |= _movement(images_at, split.num_images, slice_size)
    return row | _class_mix(images_at, split.num_images, batch_size)


def _storage(split: Split, stripes: Stripes) -> dict[str, Any]:
    """Returns what the first host reads in the first steps of a run."""
    virtual_replicas = stripes.virtual_replicas
    local = min(_DEVICES_PER_HOST, virtual_replicas)
    slices = BatchSlice(stripes.global_batch_size, virtual_replicas, local_replicas=local)
    per_step = local * slices.replica_batch_size
    steps = max(1, min(split.num_images // slices.global_batch_size, _READ_IMAGES // per_step))
    steps_per_call = max(1, _IMAGES_PER_CALL // per_step)
    shards, window_bytes = _CountedShards(), 0
    with contextlib.closing(RangeReader(split, shards)) as reader:
        for first in range(0, steps, steps_per_call):
            of_steps = [slices.positions(step) for step in range(first, min(first + steps_per_call, steps))]
            positions = np.concatenate(of_steps)
            indices, _ = striped_positions_to_images(positions, stripes=stripes, seed=0)
            for _ in reader.read_windows(stripes, positions, indices, seed=0):
                pass
            window_bytes = max(window_bytes, reader.window_bytes)
    return {
        "hosts": -(-virtual_replicas // _DEVICES_PER_HOST),
        "window_size": stripes.window_size,
        "window_bytes": window_bytes,
        "reads_per_host": shards.requests / steps / slices.global_batch_size * split.num_images,
        "times_read": shards.bytes / steps / per_step / (_PAYLOAD_BYTES + FRAME_OVERHEAD),
    }


def _movement(images_at: _ImagesAt, num_images: int, slice_size: int) -> dict[str, float]:
    """Returns how far images move between the first two epochs, and how many of their slice they meet again."""
    number = min(num_images // slice_size, max(1, _FOLLOWED_IMAGES // slice_size))
    slices = np.random.default_rng(0).choice(num_images // slice_size, number, replace=False)
    before = (slices[:, np.newaxis] * slice_size + np.arange(slice_size)).ravel()
    images = images_at(before)
    by_image = np.argsort(images)
    ordered, after = images[by_image], np.empty_like(before)
    for first in range(num_images, 2 * num_images, _CHUNK):
        positions = np.arange(first, min(first + _CHUNK, 2 * num_images))
        found = images_at(positions)
        places = np.searchsorted(ordered, found).clip(max=len(ordered) - 1)
        followed = ordered[places] == found
        after[by_image[places[followed]]] = positions[followed]
    met = [np.bincount(row - row.min()) for row in (after // slice_size).reshape(-1, slice_size)]
    pairs = sum(int((counts * (counts - 1)).sum()) for counts in met)
    return {
        "moved": float(np.abs(after - num_images - before).mean() / num_images),
        "met_again": pairs / max(1, number * slice_size * (slice_size - 1)),
    }


def _class_mix(images_at: _ImagesAt, num_images: int, batch_size: int) -> dict[str, float]:
    """Returns the variance of the classes of global batches, relative to that of independent draws."""
    batches = num_images // batch_size
    chosen = np.random.default_rng(0).choice(batches, min(batches, max(1, _MIXED_IMAGES // batch_size)), replace=False)
    at_random, by_class = [], []
    expected = batch_size / _CLASSES
    for batch in chosen:
        images = images_at(np.arange(batch * batch_size, (batch + 1) * batch_size))
        drawn = image_randomness(images, np.zeros_like(images), seed=1, draws=1)[:, 0]
        for labels, ratios in (
            ((drawn * _CLASSES).astype(int), at_random),
            (images * _CLASSES // num_images, by_class),
        ):
            counts = np.bincount(labels, minlength=_CLASSES)
            ratios.append(float(((counts - expected) ** 2).sum() / expected / (_CLASSES - 1)))
    return {"class_mix": float(np.mean(at_random)), "class_mix_sorted": float(np.mean(by_class))}
