"""JPEGs for measurements, generated identically for every benchmark, and loops that only decode them.

    with drawn(chosen_counts(flags, {"small": 4000, "medium": 0, "large": 400})) as folders:
        for label, folder, (width, height) in folders:
            ...  # folder/CATEGORY/NUMBER.jpg

The decode loops are the lower bound of every reader and converter: encoded images are in memory, and their pixels are
computed and discarded.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from convoy.core.processes import usable_cores

SIZES = {"small": (64, 64), "medium": (256, 256), "large": (500, 375)}
# With one call per core in flight, calls wait for each other to return their images in order.
CALLS_PER_CORE = 4
_UNROLLED = 64


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags for the number of images of each size."""
    for name, (width, height) in SIZES.items():
        if name not in flags:
            absl_flags.DEFINE_integer(
                name,
                None,
                f"Benchmarks input, augment and convert: number of {width}x{height} JPEGs to generate.",
                lower_bound=0,
                flag_values=flags,
            )


def chosen_counts(flags: absl_flags.FlagValues, usual: Mapping[str, int]) -> dict[str, int]:
    """Returns the number of images per size, from the flags or else from `usual`, without sizes that have none."""
    given = {name: getattr(flags, name) for name in SIZES}
    counts = {name: usual[name] if number is None else number for name, number in given.items()}
    return {name: count for name, count in counts.items() if count}


@contextlib.contextmanager
def drawn(counts: Mapping[str, int]) -> Iterator[list[tuple[str, Path, tuple[int, int]]]]:
    """Generates images, and removes them on exit.

    Args:
      counts: number of images by the name of their size in `SIZES`.

    Yields:
      (label, folder, (width, height)) for each size; each folder contains two class folders.
    """
    with tempfile.TemporaryDirectory(prefix="convoy-bench-") as scratch:
        folders = []
        for name, count in counts.items():
            width, height = SIZES[name]
            folder = Path(scratch) / name / "images"
            draw(folder, count, width, height)
            folders.append((f"{count:,} JPEGs of {width}x{height}", folder, (width, height)))
        yield folders


def draw(folder: Path, count: int, width: int, height: int) -> None:
    """Writes JPEGs with smooth shapes and noise, like photographs, into two class folders of `folder`."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / str(number % 2) / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shapes = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
        pixels = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noise = random.integers(-12, 13, (height, width, 1), np.int16)
        Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(path, quality=90)


def decode_loop(encoded: Sequence[bytes], batch_size: int) -> Any:  # noqa: ANN401 (a tf.data.Dataset)
    """Returns endless batches of image shapes, decoded on all cores by a `tf.data` map over single images."""
    batches = _endless(encoded).map(_decoded_shape, num_parallel_calls=CALLS_PER_CORE * usable_cores())
    return batches.batch(batch_size, drop_remainder=True).prefetch(2)


def decode_unrolled(encoded: Sequence[bytes], batch_size: int) -> Any:  # noqa: ANN401
    """Returns the same, with many images in one graph, which avoids the overhead of the map per image."""
    import tensorflow as tf

    def decode(images: tf.Tensor) -> tf.Tensor:
        return tf.stack([_decoded_shape(image) for image in tf.unstack(images)])

    groups = _endless(encoded).batch(_UNROLLED, drop_remainder=True).map(decode, num_parallel_calls=usable_cores())
    if batch_size != _UNROLLED:
        groups = groups.rebatch(batch_size, drop_remainder=True)
    return groups.prefetch(2)


def _endless(encoded: Sequence[bytes]) -> Any:  # noqa: ANN401
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(list(encoded)).cache().repeat()


def _decoded_shape(image: Any) -> Any:  # noqa: ANN401
    """Decodes an image and returns only its shape: pixels are discarded, and batching is free."""
    import tensorflow as tf

    return tf.shape(tf.io.decode_image(image, channels=3, expand_animations=False))
