"""`convoy bench convert`: from a folder of JPEGs to TFRecords, against TFDS, the common script, and decoding alone.

    convoy bench convert --images=photos/train --rounds=3

A round of a peer converts the whole folder once, from the page cache into an empty folder, and is over when the files
are there. What is counted:

- "the whole command" is `convoy convert` as a user starts it: Python, TensorFlow's import, worker processes, all.
- "TensorFlow imported" is the same conversion where that import has been done; workers still start, the plan is made,
  every image is decoded in full, and the shards are flushed to the disk.
- TFDS is a `GeneratorBasedBuilder` and `download_and_prepare` in one process, after its imports. A builder that yields
  paths copies bytes and looks at no pixel; one that decodes each image first finds what our check finds; one that
  yields arrays has TFDS encode them anew.
- The common script is one process that reads, decodes, and writes `tf.train.Example` with a `TFRecordWriter`, after its
  imports.
- Decoding alone has the encoded images in memory and uses all cores; no converter that decodes in full is faster.

With `--resize` the images are resized and encoded anew. Pillow alone then bounds it: all cores read, decode, resize and
encode, and nothing is checked or written.

"a core" is images a second of computing, over all processes of a peer.
"""

import contextlib
import functools
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from benchmarks import jpegs, measure
from benchmarks.workers import Prepared, Round, Stopwatch, adopt_orphans, serve, session_cpu_seconds
from convoy.core.errors import ConvoyError, UsageError
from convoy.core.processes import follow_parent, usable_cores

PASSED_THROUGH = {
    "convoy-command": "convoy convert, the whole command",
    "convoy": "Convoy, TensorFlow imported",
    "tfds": "TFDS, paths, nothing decoded",
    "tfds-checked": "TFDS, paths, each image decoded",
    "tfds-arrays": "TFDS, arrays, encoded anew",
    "script": "one process, TFRecordWriter",
    "decode": "decoding alone, all cores",
}
RESIZED = {
    "convoy-resize": "Convoy, TensorFlow imported",
    "pillow-resize": "Pillow alone, all cores",
}
_COMPARED = {"tfds": "to TFDS", "tfds-checked": "to TFDS decoding", "decode": "to decoding"}
_BOUND = {"pillow-resize": "to Pillow"}
_COUNTS = {"small": 8000, "medium": 0, "large": 1000}
_SUFFIXES = (".jpg", ".jpeg")
_JPEG_QUALITY = 92  # the converter's
_IMAGES_A_CALL = 16
_DECODED_BATCH = 64
_LEAD_BATCHES, _LEAST_DECODED_BATCHES = 4, 16


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines this benchmark's own flags."""
    jpegs.define_flags(flags)
    absl_flags.DEFINE_string(
        "images", None, "Benchmark convert: a folder of JPEGs, a folder a class. Left out: drawn.", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "resize",
        128,
        "Benchmark convert: also resizes to N x N pixels; 0 leaves that out.",
        lower_bound=0,
        flag_values=flags,
    )


def run(flags: absl_flags.FlagValues) -> None:
    """Measures each folder in turn, prints the tables, writes the JSON."""
    known = PASSED_THROUGH | (RESIZED if flags.resize else {})
    peers = {name: known[name] for name in measure.chosen_peers(flags.peers, known)}
    settings = {"threads": flags.threads, "resize": flags.resize}
    about = measure.environment()
    console = measure.console()
    measure.print_environment(console, about)
    tables = []
    with _folders(flags) as folders:
        for label, folder in folders:
            options = settings | {"images": str(folder)}
            rows = measure.measure("benchmarks.convert", peers, options, flags.rounds).rows
            lines = [_line(row, rows) | {"images": label} for row in rows.values()]
            _print(console, label, flags.resize, lines)
            tables += lines
    content = {
        "benchmark": "convert",
        "unit": "images/s",
        "environment": about,
        "settings": settings | {"rounds": flags.rounds},
        "rows": tables,
    }
    measure.write_json(flags.json, content)


@contextlib.contextmanager
def _folders(flags: absl_flags.FlagValues) -> Iterator[list[tuple[str, Path]]]:
    if flags.images:
        folder = Path(flags.images).absolute()
        yield [(f"{len(_jpegs_in(folder)):,} JPEGs of {flags.images}", folder)]
        return
    counts = jpegs.chosen_counts(flags, _COUNTS)
    if not counts:
        raise UsageError("--small=0 and --large=0 leave nothing to convert; give --images=DIR, or draw some images.")
    with jpegs.drawn(counts) as folders:
        yield [(label, folder) for label, folder, _ in folders]


def _jpegs_in(folder: Path) -> list[Path]:
    """Returns the JPEGs of the class folders, in the order of their names.

    Raises:
      UsageError: there are none.
    """
    found = sorted(path for path in folder.glob("*/**/*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise UsageError(f"--images={folder}: no JPEGs in class folders (FOLDER/CATEGORY/NAME.jpg).")
    return found


def _line(row: measure.Row, rows: dict[str, measure.Row]) -> dict[str, Any]:
    compared = _BOUND if row.peer in RESIZED else _COMPARED
    return row.as_json() | {"ratios": {peer: row.ratio_to(rows.get(peer)) for peer in compared}}


def _print(console: Any, label: str, resize: int, lines: list[dict[str, Any]]) -> None:  # noqa: ANN401
    for peers, compared, title in (
        (PASSED_THROUGH, _COMPARED, f"\n{label}, bytes passed through:"),
        (RESIZED, _BOUND, f"\n{label}, resized to {resize}x{resize}:"),
    ):
        chosen = [line for line in lines if line["peer"] in peers]
        if not chosen:
            continue
        console.print(title)
        shown = [
            (
                line["label"],
                *(f"{line[name]:,.0f}" for name in ("median", "min", "max", "median_per_core")),
                f"{line['busy_cores']:.1f}",
                *(measure.as_times(line["ratios"][peer]) for peer in compared),
            )
            for line in chosen
        ]
        columns = ("images/s", "median", "min", "max", "a core", "cores busy", *compared.values())
        measure.print_table(console, columns, shown)


# What follows runs in the worker processes.


def prepare(name: str, options: dict[str, Any]) -> Prepared:
    """Prepares a peer.

    Args:
      name: one of PASSED_THROUGH or RESIZED.
      options: images, resize, threads.
    """
    images = Path(options["images"])
    paths = _jpegs_in(images)
    if name == "decode":
        return Prepared(_decoding(paths))
    if name == "pillow-resize":
        return Prepared(_pillow(paths, options["resize"]))
    if name == "convoy-command":
        adopt_orphans()
    image_of = {"tfds": lambda path: path, "tfds-checked": _checked, "tfds-arrays": _array}
    if name in image_of:
        return Prepared(_timed(_tfds(paths, image_of[name]), len(paths)))
    conversions = {
        "convoy-command": functools.partial(_convoy_command, images),
        "convoy": functools.partial(_convoy, images, 0),
        "convoy-resize": functools.partial(_convoy, images, options["resize"]),
        "script": functools.partial(_script, paths),
    }
    return Prepared(_timed(conversions[name], len(paths)))


def _timed(convert: Callable[[Path], None], images: int) -> Callable[[], Round]:
    """Returns what times a conversion into an empty folder, which is removed afterwards."""

    def time_round() -> Round:
        scratch = Path(tempfile.mkdtemp())
        watch = Stopwatch(session_cpu_seconds)
        convert(scratch / "data")
        result = watch.stop(images)
        shutil.rmtree(scratch)
        return result

    return time_round


def _convoy_command(images: Path, output: Path) -> None:
    command = [sys.executable, "-m", "convoy", "convert", f"--images={images}", f"--output={output}"]
    done = subprocess.run([*command, "--validation_fraction=0"], capture_output=True, text=True)
    if done.returncode:
        raise ConvoyError(f"convoy convert ended with exit code {done.returncode}: {done.stderr}")


def _convoy(images: Path, image_size: int, output: Path) -> None:
    from convoy.input_pipeline.convert.convert import Options, convert

    # The server of worker processes, which has imported TensorFlow, stays from one round to the next.
    convert(Options(images=images, output=output, validation_fraction=0.0, image_size=image_size))


def _tfds(paths: Sequence[Path], image: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Returns what prepares a data set as TFDS's guide writes it: https://www.tensorflow.org/datasets/add_dataset."""
    import tensorflow_datasets as tfds

    class Folder(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent  # where TFDS looks for a description

        def _info(self) -> tfds.core.DatasetInfo:
            kind = {"encoding_format": "jpeg"} if image is _array else {}
            features = {
                "image": tfds.features.Image(**kind),
                "label": tfds.features.ClassLabel(names=sorted({path.parent.name for path in paths})),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _: tfds.download.DownloadManager) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
            for path in paths:
                yield str(path), {"image": image(path), "label": path.parent.name}

    tfds.disable_progress_bar()
    return lambda output: Folder(data_dir=str(output)).download_and_prepare()


def _checked(path: Path) -> Path:
    import tensorflow as tf

    tf.io.decode_image(path.read_bytes())
    return path


def _array(path: Path) -> Any:  # noqa: ANN401
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _script(paths: Sequence[Path], output: Path) -> None:
    import tensorflow as tf

    def bytes_feature(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def int_feature(value: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    label_of = {name: label for label, name in enumerate(sorted({path.parent.name for path in paths}))}
    with tf.io.TFRecordWriter(str(output)) as writer:
        for path in paths:
            data = path.read_bytes()
            height, width, channels = tf.io.decode_image(data).shape
            feature = {
                "image/encoded": bytes_feature(data),
                "image/format": bytes_feature(b"jpeg"),
                "image/height": int_feature(height),
                "image/width": int_feature(width),
                "image/channels": int_feature(channels),
                "image/class/label": int_feature(label_of[path.parent.name]),
                "image/class/text": bytes_feature(path.parent.name.encode()),
                "image/filename": bytes_feature(path.name.encode()),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())


def _decoding(paths: Sequence[Path]) -> Callable[[], Round]:
    encoded = [path.read_bytes() for path in paths]
    steps = max(_LEAST_DECODED_BATCHES, -(-len(encoded) // _DECODED_BATCH))
    batches = iter(jpegs.decode_unrolled(encoded, _DECODED_BATCH))

    def time_round() -> Round:
        for _ in range(_LEAD_BATCHES):  # what was decoded ahead while other peers had their turn
            next(batches)
        watch = Stopwatch()
        for _ in range(steps):
            next(batches)
        return watch.stop(steps * _DECODED_BATCH)

    return time_round


def _pillow(paths: Sequence[Path], size: int) -> Callable[[], Round]:
    pool = ProcessPoolExecutor(usable_cores(), multiprocessing.get_context("spawn"), initializer=follow_parent)

    def time_round() -> Round:
        watch = Stopwatch(session_cpu_seconds)
        for _ in pool.map(functools.partial(_resized, size=size), paths, chunksize=_IMAGES_A_CALL):
            pass
        return watch.stop(len(paths))

    return time_round


def _resized(path: Path, size: int) -> int:
    """Decodes, resizes and encodes as the converter does; returns the bytes' number."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.draft(image.mode, (2 * size, 2 * size))
        image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.tell()


if __name__ == "__main__":
    serve(prepare)
