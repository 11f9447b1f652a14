"""`convoy bench input`: from shards to batches, against plain `tf.data`, TFDS, and decoding alone.

All peers read the same shards, from the page cache, and hand over batches of square uint8 images and labels. The decode
loops have the encoded images in memory and do nothing but decode them: as a `tf.data` map of one image does it, which
the others are compared with, and many images in one graph, which spares the map's cost an image. With `--with_step` the
seed model trains on a batch that stays in memory, and on what the reader delivers.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from benchmarks import measure
from benchmarks.workers import Prepared, Stopwatch, serve
from input_pipeline.dataset import Split, open_dataset
from input_pipeline.errors import UsageError
from input_pipeline.processes import usable_cores

INPUT_PEERS = {
    "decode": "decode loop, image by image",
    "decode-batch": "decode loop, 64 in one graph",
    "reader": "Convoy's reader",
    "tfdata": "tf.data, TFRecordDataset",
    "tfds": "TFDS, builder_from_directory",
}
STEP_PEERS = {
    "step-memory": "training, one batch in memory",
    "step-reader": "training, Convoy's reader",
}
_BOUND, _STEP_BOUND = "decode", "step-memory"
# Buffers fill while a peer waits for its turn: so many batches, untimed, bring them to the level they have in use.
_LEAD_BATCHES = 12
_SHUFFLED_RECORDS = 1024
# With a call a core in flight, calls wait for each other to hand over their images in order.
_CALLS_PER_CORE = 4
_UNROLLED = 64
_DRAWN = {"64x64": (64, 64), "500x375": (500, 375)}


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines this benchmark's own flags."""
    text, integer = absl_flags.DEFINE_string, absl_flags.DEFINE_integer
    text("data", None, "Benchmark input: a dataset directory. Left out: drawn and converted.", flag_values=flags)
    text("split", "train", "Benchmark input: the split of --data to read.", flag_values=flags)
    integer("small", 4000, "Benchmark input: how many 64x64 images to draw.", lower_bound=0, flag_values=flags)
    integer("large", 400, "Benchmark input: how many 500x375 images to draw.", lower_bound=0, flag_values=flags)
    absl_flags.DEFINE_float(
        "round_seconds", 2.0, "Benchmark input: about how long a round is.", lower_bound=0.05, flag_values=flags
    )
    absl_flags.DEFINE_boolean(
        "with_step", False, "Benchmark input: also trains on what is read, and on memory.", flag_values=flags
    )


def run(flags: absl_flags.FlagValues) -> None:
    """Measures each dataset in turn, prints the tables, writes the JSON."""
    known = INPUT_PEERS | STEP_PEERS
    named = measure.chosen_peers(flags.peers, known)
    peers = {name: known[name] for name in named if flags.peers or flags.with_step or name in INPUT_PEERS}
    names = ("batch_size", "image_size", "threads", "round_seconds")
    settings = {name: getattr(flags, name) for name in names}
    about = measure.environment()
    console = measure.console()
    measure.print_environment(console, about)
    tables = []
    with _datasets(flags) as datasets:
        for label, directory, split in datasets:
            options = settings | {"data": str(directory), "split": split}
            measurement = measure.measure("benchmarks.input", peers, options, flags.rounds)
            rows = [_line(row, measurement.rows) | {"images": label} for row in measurement.rows.values()]
            _print(console, label, settings, rows)
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
    return row.as_json() | {"ratio": row.ratio_to(baseline)}


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
                measure.as_percent(row["ratio"]),
                f"{row['busy_cores']:.1f}",
            )
            for row in chosen
        ]
        columns = ("images/s", "median", "min", "max", "a core", bound, "cores busy")
        measure.print_table(console, columns, lines)


@contextlib.contextmanager
def _datasets(flags: absl_flags.FlagValues) -> Iterator[list[tuple[str, Path, str]]]:
    """Gives (label, directory, split) of every dataset to measure; those it draws are removed at the end."""
    if flags.data:
        split = open_dataset(flags.data).split(flags.split)
        yield [(f"{flags.data} ({split.num_images:,} images)", Path(flags.data).absolute(), split.name)]
        return
    counts = {"64x64": flags.small, "500x375": flags.large}
    if not any(counts.values()):
        raise UsageError("--small=0 and --large=0 leave nothing to read; give --data=DATA, or draw some images.")
    with tempfile.TemporaryDirectory(prefix="convoy-bench-") as folder:
        yield [
            (f"{count:,} JPEGs of {label}", _drawn(Path(folder) / label, count, *_DRAWN[label]), "train")
            for label, count in counts.items()
            if count
        ]


def _drawn(folder: Path, count: int, width: int, height: int) -> Path:
    """Draws JPEGs with the smooth shapes and the noise of photographs; returns the dataset directory made of them."""
    import numpy as np
    from PIL import Image

    from input_pipeline.converter.convert import Options, convert

    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / "images" / str(number % 2) / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shapes = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
        pixels = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noise = random.integers(-12, 13, (height, width, 1), np.int16)
        Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(path, quality=90)
    convert(Options(images=folder / "images", output=folder / "data", validation_fraction=0.0))
    return folder / "data"


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
        "decode": _decode_loop,
        "decode-batch": _decode_unrolled,
        "reader": _reader,
        "tfdata": _tfdata,
        "tfds": _tfds,
    }
    return Prepared(_timed(iter(makers[name](split, options)), lambda batch: None, options))


def _timed(
    batches: Iterator[Any], consume: Callable[[Any], Any], options: dict[str, Any], lead: int = _LEAD_BATCHES
) -> Callable[[], Any]:
    """Returns what times about `round_seconds` of taking batches and consuming them."""

    def time_round():  # noqa: ANN202
        for _ in range(lead):
            consume(next(batches))
        watch = Stopwatch()
        taken = 0
        while watch.seconds < options["round_seconds"]:
            consume(next(batches))
            taken += 1
        return watch.stop(taken * options["batch_size"])

    return time_round


def _reader(split: Split, options: dict[str, Any]) -> Any:  # noqa: ANN401
    from input_pipeline.crop import Crop
    from input_pipeline.reader import Reader, Slices
    from trainer.preprocess import DRAWS

    reader = Reader(split, Crop(options["image_size"]), draws=DRAWS)
    return reader.training(Slices(options["batch_size"]), seed=0)


def _decode_loop(split: Split, options: dict[str, Any]) -> Any:  # noqa: ANN401
    batches = _encoded(split).map(_decoded_shape, num_parallel_calls=_CALLS_PER_CORE * usable_cores())
    return batches.batch(options["batch_size"], drop_remainder=True).prefetch(2)


def _decode_unrolled(split: Split, options: dict[str, Any]) -> Any:  # noqa: ANN401
    import tensorflow as tf

    def decode(images: tf.Tensor) -> tf.Tensor:
        return tf.stack([_decoded_shape(image) for image in tf.unstack(images)])

    groups = _encoded(split).batch(_UNROLLED, drop_remainder=True).map(decode, num_parallel_calls=usable_cores())
    if options["batch_size"] != _UNROLLED:
        groups = groups.rebatch(options["batch_size"], drop_remainder=True)
    return groups.prefetch(2)


def _encoded(split: Split) -> Any:  # noqa: ANN401
    """Returns the endless dataset of encoded images, held in memory."""
    import numpy as np
    import tensorflow as tf

    payloads = _payloads(split, np.arange(min(split.num_images, 4096)))
    encoded = [_feature(payload, "image/encoded").bytes_list.value[0] for payload in payloads]
    return tf.data.Dataset.from_tensor_slices(encoded).cache().repeat()


def _decoded_shape(image: Any) -> Any:  # noqa: ANN401
    """Decodes, and returns only the shape: pixels are computed and dropped, and batching costs nothing."""
    import tensorflow as tf

    return tf.shape(tf.io.decode_image(image, channels=3, expand_animations=False))


def _payloads(split: Split, indices: Any) -> list[bytes]:  # noqa: ANN401
    from input_pipeline.crop import Crop
    from input_pipeline.reader import Reader

    return Reader(split, Crop(1)).read(indices)


def _tfdata(split: Split, options: dict[str, Any]) -> Any:  # noqa: ANN401
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
    batches = records.map(decode, num_parallel_calls=_CALLS_PER_CORE * usable_cores()).batch(
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
        images.repeat().shuffle(_SHUFFLED_RECORDS).map(chosen, num_parallel_calls=_CALLS_PER_CORE * usable_cores())
    )
    return batches.batch(options["batch_size"], drop_remainder=True).prefetch(3)


def _resize(split: Split, options: dict[str, Any]) -> Callable[[Any], Any]:
    """Returns what brings an image to the batch's size: as Convoy does it, or nothing where all have it already."""
    import numpy as np
    import tensorflow as tf

    size = options["image_size"]
    payloads = _payloads(split, np.arange(min(split.num_images, 256)))
    sides = {
        _feature(payload, f"image/{side}").int64_list.value[0] for payload in payloads for side in ("height", "width")
    }
    if sides == {size}:
        return lambda image: tf.ensure_shape(image, [size, size, 3])
    return lambda image: tf.cast(tf.image.resize(image, [size, size], "area"), tf.uint8)


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

    return Prepared(_timed(iter(batches), train, options, lead=4))


if __name__ == "__main__":
    serve(prepare)
