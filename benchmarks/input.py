"""`convoy bench input`: from shards to batches, against `tf.data`, TFDS, PyTorch, NVIDIA DALI, and decoding alone.

All peers read the same images, from the page cache, shuffle them, and hand over batches of square uint8 images and
labels: from the same shards, but for PyTorch, whose `DataLoader` has a worker process a core that opens image files
with Pillow, as most do. DALI runs on the CPU and finds the records by our `.idx` files; it is skipped where it is not
installed, as is PyTorch. The decode loops have the encoded images in memory and do nothing but decode them: as a
`tf.data` map of one image does it, which the others are compared with, and many images in one graph, which spares the
map's cost an image. With `--with_step` the seed model trains on a batch that stays in memory, and on what the reader
delivers.
"""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from benchmarks import jpegs, measure
from benchmarks.workers import Prepared, SkippedError, Stopwatch, serve, session_cpu_seconds
from convoy.core.errors import UsageError
from convoy.core.processes import usable_cores
from convoy.input_pipeline.dataset.open import Split, open_dataset

INPUT_PEERS = {
    "decode": "decode loop, image by image",
    "decode-batch": "decode loop, 64 in one graph",
    "reader": "Convoy's reader",
    "tfdata": "tf.data, TFRecordDataset",
    "tfds": "TFDS, builder_from_directory",
    "torch": "PyTorch, DataLoader and Pillow",
    "dali": "NVIDIA DALI on the CPU",
}
STEP_PEERS = {
    "step-memory": "training, one batch in memory",
    "step-reader": "training, Convoy's reader",
}
_BOUND, _STEP_BOUND = "decode", "step-memory"
# Buffers fill while a peer waits for its turn: so many batches, untimed, bring them to the level they have in use.
_LEAD_BATCHES = 12
_SHUFFLED_RECORDS = 1024
_MOST_IMAGES = 4096  # that are held in memory, or written as files
_COUNTS = {"small": 4000, "medium": 1000, "large": 400}


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines this benchmark's own flags."""
    define_data_flags(flags)
    absl_flags.DEFINE_boolean(
        "with_step", False, "Benchmark input: also trains on what is read, and on memory.", flag_values=flags
    )


def define_data_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of those benchmarks that read datasets, whose help is listed together."""
    jpegs.define_flags(flags)
    if "round_seconds" in flags:
        return
    which, text = "Benchmarks input and augment: ", absl_flags.DEFINE_string
    text("data", None, f"{which}a dataset directory. Left out: drawn and converted.", flag_values=flags)
    text("split", "train", f"{which}the split of --data to read.", flag_values=flags)
    absl_flags.DEFINE_float(
        "round_seconds", 2.0, f"{which}about how long a round is.", lower_bound=0.05, flag_values=flags
    )


def run(flags: absl_flags.FlagValues) -> None:
    """Measures each dataset in turn, prints the tables, writes the JSON."""
    known = INPUT_PEERS | STEP_PEERS
    named = measure.chosen_peers(flags.peers, known)
    peers = {name: known[name] for name in named if flags.peers or flags.with_step or name in INPUT_PEERS}
    settings = {name: getattr(flags, name) for name in ("batch_size", "threads", "round_seconds")}
    about = measure.environment()
    console = measure.console()
    measure.print_environment(console, about)
    tables = []
    with datasets(flags, _COUNTS) as found:
        for label, directory, split, image_size in found:
            options = settings | {"data": str(directory), "split": split, "image_size": image_size}
            measurement = measure.measure("benchmarks.input", peers, options, flags.rounds)
            rows = [
                _line(row, measurement.rows) | {"images": label, "image_size": image_size}
                for row in measurement.rows.values()
            ]
            _print(console, label, options, rows)
            tables += rows
    content = {
        "benchmark": "input",
        "unit": "images/s",
        "baseline": {"input": _BOUND, "training": _STEP_BOUND},
        "environment": about,
        "settings": settings | {"rounds": flags.rounds},
        "rows": tables,
    }
    measure.write_json(flags.json, content)


def _line(row: measure.Row, rows: dict[str, measure.Row]) -> dict[str, Any]:
    baseline = rows.get(_STEP_BOUND if row.peer in STEP_PEERS else _BOUND)
    reader = rows.get("reader") if row.peer in INPUT_PEERS else None
    return row.as_json() | {"ratio": row.ratio_to(baseline), "reader_ratio": reader and reader.ratio_to(row)}


def _print(console: Any, label: str, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:  # noqa: ANN401
    size = settings["image_size"]
    for peers, bound in ((INPUT_PEERS, "to decode loop"), (STEP_PEERS, "to memory")):
        chosen = [row for row in rows if row["peer"] in peers]
        if not chosen:
            continue
        console.print(f"\n{label} to batches of {settings['batch_size']} at {size}x{size}:")
        lines = [
            (
                row["label"],
                *(f"{row[name]:,.0f}" for name in ("median", "min", "max", "median_per_core")),
                f"{row['busy_cores']:.1f}",
                measure.as_percent(row["ratio"]),
                measure.as_times(row["reader_ratio"]),
            )
            for row in chosen
        ]
        columns = ("images/s", "median", "min", "max", "a core", "cores busy", bound, "reader to it")
        measure.print_table(console, columns, lines)


@contextlib.contextmanager
def datasets(flags: absl_flags.FlagValues, usual: Mapping[str, int]) -> Iterator[list[tuple[str, Path, str, int]]]:
    """Gives the dataset of `--data`, or draws some; those it draws are removed.

    Args:
      flags: of `define_data_flags`.
      usual: how many images of each size to draw where the flags do not say.

    Yields:
      (label, directory, split, side of the batches' images) of every dataset.
    """
    if flags.data:
        split = open_dataset(flags.data).split(flags.split)
        label = f"{flags.data} ({split.num_images:,} images)"
        yield [(label, Path(flags.data).absolute(), split.name, flags.image_size)]
        return
    counts = jpegs.chosen_counts(flags, usual)
    if not counts:
        raise UsageError(
            "--small=0, --medium=0 and --large=0 leave nothing to read; give --data=DATA, or draw some images."
        )
    from convoy.input_pipeline.convert.convert import Options, convert

    with jpegs.drawn(counts) as folders:
        found = []
        for label, folder, (width, height) in folders:
            data = folder.with_name("data")
            convert(Options(images=folder, output=data, validation_fraction=0.0))
            # Squares stay as they are, so that what is measured is reading and decoding.
            size = width if width == height and not flags["image_size"].present else flags.image_size
            found.append((label, data, "train", size))
        yield found


# What follows runs in the worker processes.


def prepare(name: str, options: dict[str, Any]) -> Prepared:
    """Prepares a peer of the tables.

    Args:
      name: one of INPUT_PEERS or STEP_PEERS.
      options: data, split, batch_size, image_size, round_seconds.
    """
    split = open_dataset(options["data"]).split(options["split"])
    if name in STEP_PEERS:
        return _prepare_step(name, split, options)
    makers = {
        "decode": lambda split, options: jpegs.decode_loop(_encoded(split), options["batch_size"]),
        "decode-batch": lambda split, options: jpegs.decode_unrolled(_encoded(split), options["batch_size"]),
        "reader": _reader,
        "tfdata": tfdata,
        "tfds": _tfds,
        "torch": torch_loader,
        "dali": _dali,
    }
    return Prepared(timed(iter(makers[name](split, options)), lambda batch: None, options))


def timed(
    batches: Iterator[Any], consume: Callable[[Any], Any], options: dict[str, Any], lead: int = _LEAD_BATCHES
) -> Callable[[], Any]:
    """Returns what times `round_seconds` of taking batches and consuming them, after `lead` that are not timed."""

    def time_round():  # noqa: ANN202
        for _ in range(lead):
            consume(next(batches))
        watch = Stopwatch(session_cpu_seconds)
        taken = 0
        while watch.seconds < options["round_seconds"]:
            consume(next(batches))
            taken += 1
        return watch.stop(taken * options["batch_size"])

    return time_round


def _reader(split: Split, options: dict[str, Any]) -> Any:  # noqa: ANN401
    from convoy.input_pipeline.reading.decode import Crop
    from convoy.input_pipeline.reading.reader import BatchSlice, Reader

    reader = Reader(split, Crop(options["image_size"]))
    return reader.training(BatchSlice(options["batch_size"]), seed=0)


def _encoded(split: Split) -> list[bytes]:
    """Returns the encoded images, as many as a benchmark needs."""
    import numpy as np

    payloads = _payloads(split, np.arange(min(split.num_images, _MOST_IMAGES)))
    return [_feature(payload, "image/encoded").bytes_list.value[0] for payload in payloads]


def _payloads(split: Split, indices: Any) -> list[bytes]:  # noqa: ANN401
    from convoy.input_pipeline.reading.decode import Crop
    from convoy.input_pipeline.reading.reader import Reader

    return Reader(split, Crop(1)).read(indices)


def tfdata(split: Split, options: dict[str, Any]) -> Any:  # noqa: ANN401
    """Returns endless batches (image, label) as most write them with `tf.data`."""
    import tensorflow as tf

    resized = _resize(split, options)
    keys = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    }

    def decode(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features = tf.io.parse_single_example(record, keys)
        image = tf.io.decode_image(features["image/encoded"], channels=3, expand_animations=False)
        return resized(image), features["image/class/label"]

    # Records are shuffled before they are decoded, which takes less memory and time than after.
    records = tf.data.TFRecordDataset([str(path) for path in split.shard_paths]).repeat().shuffle(_SHUFFLED_RECORDS)
    batches = records.map(decode, num_parallel_calls=jpegs.CALLS_PER_CORE * usable_cores()).batch(
        options["batch_size"], drop_remainder=True
    )
    return batches.prefetch(3)


def _tfds(split: Split, options: dict[str, Any]) -> Any:  # noqa: ANN401
    import tensorflow as tf
    import tensorflow_datasets as tfds

    resized = _resize(split, options)
    # Without the cache in memory that TFDS gives to small datasets: this is about reading.
    config = tfds.ReadConfig(try_autocache=False, shuffle_seed=0)
    images = tfds.builder_from_directory(options["data"]).as_dataset(split.name, shuffle_files=True, read_config=config)

    def chosen(features: dict[str, Any]) -> tuple[tf.Tensor, tf.Tensor]:
        return resized(features["image"]["encoded"]), features["image"]["class"]["label"]

    batches = (
        images.repeat().shuffle(_SHUFFLED_RECORDS).map(chosen, num_parallel_calls=jpegs.CALLS_PER_CORE * usable_cores())
    )
    return batches.batch(options["batch_size"], drop_remainder=True).prefetch(3)


def torch_loader(split: Split, options: dict[str, Any], transform: Callable[[Any], Any] | None = None) -> Iterator[Any]:
    """Loads image files, which are written to the disk first, as `torchvision.datasets.ImageFolder` does.

    Args:
      split: whose images to write.
      options: batch_size, image_size.
      transform: from a Pillow image to what is batched; left out, it is resized.
    """
    try:
        import torch
    except ImportError:
        raise SkippedError("PyTorch is not installed") from None
    from torch.utils import data

    folder = Path(tempfile.mkdtemp())
    files = [(folder / f"{i}.jpg", int(label)) for i, label in enumerate(split.label[:_MOST_IMAGES])]
    for (path, _), encoded in zip(files, _encoded(split), strict=True):
        path.write_bytes(encoded)

    class Order(data.Sampler):
        def __iter__(self) -> Iterator[int]:
            while True:  # no wait for the last batch of an epoch
                yield from torch.randperm(len(files)).tolist()

    loader = data.DataLoader(
        _ImageFiles(files, options["image_size"], transform),
        batch_size=options["batch_size"],
        sampler=Order(),
        num_workers=usable_cores(),
        drop_last=True,
        multiprocessing_context="spawn",  # TensorFlow, which made the files, has threads that a fork leaves behind
    )
    return iter(loader)


class _ImageFiles:
    """A PyTorch dataset: (image [size, size, 3] uint8, or what `transform` makes of it; label) by number."""

    def __init__(self, files: list[tuple[Path, int]], size: int, transform: Callable[[Any], Any] | None):
        self._files, self._size, self._transform = files, size, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        import numpy as np
        import torch
        from PIL import Image

        path, label = self._files[number]
        with Image.open(path) as image:
            pixels = image.convert("RGB")
        if self._transform:
            return self._transform(pixels), label
        if pixels.size != (self._size, self._size):
            pixels = pixels.resize((self._size, self._size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(pixels)), label


def _dali(split: Split, options: dict[str, Any]) -> Iterator[Any]:
    try:
        from nvidia.dali import fn, pipeline_def, tfrecord, types
    except ImportError:
        raise SkippedError("NVIDIA DALI is not installed") from None
    features = {
        "image/encoded": tfrecord.FixedLenFeature([], tfrecord.string, ""),
        "image/class/label": tfrecord.FixedLenFeature([1], tfrecord.int64, -1),
    }
    size = options["image_size"]

    @pipeline_def(batch_size=options["batch_size"], num_threads=usable_cores(), device_id=None, prefetch_queue_depth=3)
    def batches() -> tuple[Any, Any]:
        record = fn.readers.tfrecord(
            path=[str(path) for path in split.shard_paths],
            index_path=[f"{path}.idx" for path in split.shard_paths],
            features=features,
            random_shuffle=True,
            initial_fill=_SHUFFLED_RECORDS,
        )
        image = fn.decoders.image(record["image/encoded"], device="cpu", output_type=types.RGB)
        if _sides(split) != {size}:
            image = fn.resize(image, size=(size, size), interp_type=types.INTERP_LINEAR)
        return image, record["image/class/label"]

    pipeline = batches()
    pipeline.build()
    return (tuple(column.as_array() for column in pipeline.run()) for _ in itertools.count())


def _resize(split: Split, options: dict[str, Any]) -> Callable[[Any], Any]:
    """Returns what brings an image to the batch's size: as Convoy does it, or nothing where all have it already."""
    import tensorflow as tf

    size = options["image_size"]
    if _sides(split) == {size}:
        return lambda image: tf.ensure_shape(image, [size, size, 3])
    return lambda image: tf.cast(tf.image.resize(image, [size, size], "area"), tf.uint8)


def _sides(split: Split) -> set[int]:
    """Returns the widths and heights of the first images."""
    import numpy as np

    payloads = _payloads(split, np.arange(min(split.num_images, 256)))
    return {
        _feature(payload, f"image/{side}").int64_list.value[0] for payload in payloads for side in ("height", "width")
    }


def _feature(payload: bytes, key: str) -> Any:  # noqa: ANN401
    import tensorflow as tf

    return tf.train.Example.FromString(payload).features.feature[key]


def _prepare_step(name: str, split: Split, options: dict[str, Any]) -> Prepared:
    from itertools import repeat

    from benchmarks.step import auto_precision, convoy_step

    train_step, batch, _ = convoy_step(auto_precision(), options["batch_size"], options["image_size"])
    batches = repeat(batch) if name == _STEP_BOUND else iter(_reader(split, options))

    def train(batch: dict[str, Any]) -> None:
        float(train_step({key: batch[key] for key in ("image", "label", "randomness")}, 1e-3).gradient_norm)

    return Prepared(timed(iter(batches), train, options, lead=4))


if __name__ == "__main__":
    serve(prepare)
