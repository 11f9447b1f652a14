"""`convoy bench augment`: from shards to augmented batches, compared with Keras layers and torchvision.

All peers read the same 64x64 JPEGs from the page cache and return batches of square images that were cropped, flipped,
changed by one operation of the TrivialAugment space and partly erased: the pipeline
`crop(scale=0.35..1) | flip | trivial | erase(0.25)`, including the operations that Convoy runs on the device. Keras has
neither a random resized crop layer that samples per image nor TrivialAugment: its peer uses `RandomCrop`, `RandomFlip`,
`RandAugment` with one operation and `RandomErasing`, per batch in `tf.data`. torchvision reads the image files in one
worker process per core, as is usual; it is skipped if it is not installed. The same reader with a pipeline of simple
operations, and without augmentation, is measured for comparison.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from absl import flags as absl_flags

from benchmarks import input as input_benchmark
from benchmarks import measure
from benchmarks.workers import Prepared, SkippedError, serve
from convoy.input_pipeline.augment.pipeline import parse_pipeline
from convoy.input_pipeline.dataset.open import Split, open_dataset

WHOLE = "crop(scale=0.35..1) | flip | trivial | erase(0.25)"
SIMPLE = "crop(scale=0.4..1) | flip | brightness(0.2) | contrast(0.4) | saturation(0.4)"
PEERS = {
    "line": "Convoy, whole pipeline",
    "simple": "Convoy, crop, flip and color",
    "none": "Convoy, no augmentation",
    "keras": "Keras layers in tf.data",
    "torchvision": "torchvision v2, DataLoader",
}
_COUNTS = {"small": 4000, "medium": 0, "large": 0}


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this benchmark."""
    input_benchmark.define_data_flags(flags)
    absl_flags.DEFINE_string("line", WHOLE, "Benchmark augment: pipeline of the peer `line`.", flag_values=flags)


def run(flags: absl_flags.FlagValues) -> None:
    """Runs the benchmark, prints the table and writes the JSON file."""
    peers = {name: PEERS[name] for name in measure.chosen_peers(flags.peers, PEERS)}
    settings = {name: getattr(flags, name) for name in ("batch_size", "threads", "round_seconds", "line")}
    console, about = measure.begin()
    rows = []
    with input_benchmark.datasets(flags, _COUNTS) as found:
        for *_, image_size in found:
            parse_pipeline(flags.line, image_size=image_size, called="--line")
        for label, directory, split, image_size in found:
            options = settings | {"data": str(directory), "split": split, "image_size": image_size}
            measured = measure.measure("benchmarks.augment", peers, options, flags.rounds).rows
            line = measured.get("line")
            made = [row.as_json() | {"line_ratio": line and line.ratio_to(row)} for row in measured.values()]
            console.print(f"\n{label} to augmented batches of {flags.batch_size} at {image_size}x{image_size}:")
            lines = [(*measure.rate_cells(row), measure.as_times(row["line_ratio"])) for row in made]
            measure.print_table(console, (*measure.RATE_COLUMNS, "line to it"), lines)
            rows += [row | {"images": label, "image_size": image_size} for row in made]
    content = {
        "benchmark": "augment",
        "unit": "images/s",
        "environment": about,
        "settings": settings | {"rounds": flags.rounds},
        "rows": rows,
    }
    measure.write_json(flags.json, content)


# The rest runs in the worker processes.


def prepare(name: str, options: dict[str, Any]) -> Prepared:
    """Prepares a peer.

    Args:
      name: one of PEERS.
      options: data, split, batch_size, image_size, round_seconds, line.
    """
    split = open_dataset(options["data"]).split(options["split"])
    makers = {
        "line": partial(_convoy, line=options["line"]),
        "simple": partial(_convoy, line=SIMPLE),
        "none": partial(_convoy, line=""),
        "keras": _keras,
        "torchvision": _torchvision,
    }
    return Prepared(input_benchmark.time_batches(iter(makers[name](split, options)), options))


def _convoy(split: Split, options: dict[str, Any], line: str) -> Iterator[Any]:
    import tensorflow as tf

    from convoy.input_pipeline.augment.apply import on_device
    from convoy.input_pipeline.reading.decode import Crop
    from convoy.input_pipeline.reading.reader import BatchSlice, Reader

    parsed = parse_pipeline(line, image_size=options["image_size"])
    crop = Crop(options["image_size"], *parsed.scale)
    reader = Reader(split, crop, draws=parsed.draws, operations=parsed.host)
    step = tf.function(partial(on_device, steps=parsed.device), autograph=False)
    for batch in reader.training(BatchSlice(options["batch_size"]), seed=0):
        yield step(batch["image"], batch["randomness"])


def _keras(split: Split, options: dict[str, Any]) -> Any:  # noqa: ANN401
    import keras
    import tensorflow as tf

    size = options["image_size"]
    augment = keras.Sequential(
        [
            keras.layers.RandomCrop(size, size),
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandAugment(value_range=(0, 255), num_ops=1),
            keras.layers.RandomErasing(0.25, value_range=(0, 255)),
        ]
    )
    batches = input_benchmark.tfdata(split, options | {"image_size": size + size // 4})
    return batches.map(
        lambda images, labels: (augment(tf.cast(images, tf.float32), training=True), labels),
        num_parallel_calls=tf.data.AUTOTUNE,
    ).prefetch(3)


def _torchvision(split: Split, options: dict[str, Any]) -> Iterator[Any]:
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision was built for another version of PyTorch
        raise SkippedError(f"torchvision cannot be imported: {error}") from None
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(options["image_size"], scale=(0.35, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.TrivialAugmentWide(),
            v2.PILToTensor(),
            v2.RandomErasing(0.25),
        ]
    )
    return input_benchmark.torch_loader(split, options, transform)


if __name__ == "__main__":
    serve(prepare)
