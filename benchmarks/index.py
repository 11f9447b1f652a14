"""`convoy bench index`: time to open a dataset index, its memory, and the time to draw a batch, by number of records.

Each size is a dataset directory in a temporary folder with a complete manifest and index; its shards are sparse files
of the right size that take no disk space. Each is opened in a new process, so that its memory can be measured. 100
million records take about 3 GB of disk and as much memory.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from benchmarks import measure
from convoy.core.errors import ConvoyError, UsageError
from convoy.core.memory import peak_memory, resident_memory

_RECORDS_PER_SHARD = 100_000
_CLASSES = 1000
_PAYLOAD_BYTES = 2000  # on average
_BATCH = 1024
_VIRTUAL_REPLICAS = 8  # of the striped shuffle
_DRAWN_BATCHES = 50
_PROMISED_BYTES = 32  # per record


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this benchmark."""
    absl_flags.DEFINE_list(
        "records",
        ["1000000", "10000000", "100000000"],
        "Benchmark index: numbers of records, comma-separated.",
        flag_values=flags,
    )


def run(flags: absl_flags.FlagValues) -> None:
    """Creates and opens each index in turn, prints the table and writes the JSON file.

    Raises:
      UsageError: `--records` contains anything but positive integers.
    """
    sizes = [_number(text) for text in flags.records]
    console, about = measure.begin()
    rows = []
    for records in sizes:
        with tempfile.TemporaryDirectory(prefix="convoy-bench-") as folder:
            measure.say(f"creating an index of {records:,} records")
            _make(Path(folder), records)
            rows.append({"records": records, **_opened(Path(folder))})
    console.print(f"\nIndexes, and batches of {_BATCH} drawn from them:")
    columns = ("records", "open", "bytes per record", "peak while opening", "batch, global", "batch, striped")
    lines = [
        (
            f"{row['records']:,}",
            f"{row['open_seconds']:.2f} s",
            f"{row['bytes_a_record']:.1f}",
            f"{row['peak_bytes_a_record']:.1f}",
            f"{row['global_seconds'] * 1e3:.2f} ms",
            f"{row['striped_seconds'] * 1e3:.2f} ms",
        )
        for row in rows
    ]
    measure.print_table(console, columns, lines)
    content = {
        "benchmark": "index",
        "environment": about,
        "promised_bytes_a_record": _PROMISED_BYTES,
        "settings": {"batch_size": _BATCH, "records_a_shard": _RECORDS_PER_SHARD},
        "rows": rows,
    }
    measure.write_json(flags.json, content)


def _number(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UsageError(f"--records={text}: pass positive integers, such as --records=1000000,10000000.")
    return int(text)


def _make(folder: Path, records: int) -> None:
    """Writes a dataset directory with empty shards."""
    import numpy as np

    from convoy.input_pipeline.dataset.open import FORMAT_VERSION, INDEX_TYPES, MANIFEST, index_path
    from convoy.input_pipeline.dataset.records import FRAME_OVERHEAD

    numbers = np.arange(records, dtype=np.int64)
    first_of_shard = numbers % _RECORDS_PER_SHARD == 0
    arrays = {"shard": (numbers // _RECORDS_PER_SHARD).astype(np.int32)}
    lengths = _PAYLOAD_BYTES - 500 + numbers * 7919 % 1000
    ends = np.cumsum(lengths + FRAME_OVERHEAD)
    starts = ends - (lengths + FRAME_OVERHEAD)
    offsets = starts - starts[first_of_shard][arrays["shard"]]
    labels = (numbers % _CLASSES).astype(np.int32)
    arrays |= {"offset": offsets, "length": lengths, "label": labels, "crc": numbers.astype(np.uint32)}
    sizes = np.bincount(arrays["shard"], weights=lengths + FRAME_OVERHEAD).astype(np.int64).tolist()
    shards = []
    for number, size in enumerate(sizes):
        name = f"bench-train.tfrecord-{number:05d}-of-{len(sizes):05d}"
        with open(folder / name, "wb") as file:
            file.truncate(size)
        held = min(_RECORDS_PER_SHARD, records - number * _RECORDS_PER_SHARD)
        digest = hashlib.sha256(name.encode()).hexdigest()
        shards.append({"file": name, "bytes": size, "records": held, "images": held, "sha256": digest})
    np.savez(index_path(folder, "train"), **{name: arrays[name].astype(dtype) for name, dtype in INDEX_TYPES.items()})
    counts = np.bincount(labels, minlength=_CLASSES).tolist()
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": "bench",
        "class_names": [f"{number:04d}" for number in range(_CLASSES)],
        "splits": {"train": {"num_images": records, "counts": counts, "shards": shards}},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _opened(folder: Path) -> dict[str, Any]:
    """Opens a dataset directory in a new process and returns the measurements."""
    command = [sys.executable, "-m", "benchmarks.index", str(folder)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConvoyError(f"opening the index failed with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)


# The rest runs in the process that opens the index.


def _measure(folder: str) -> dict[str, Any]:
    import numpy as np

    from convoy.input_pipeline.dataset.open import open_dataset
    from convoy.input_pipeline.reading import order
    from convoy.input_pipeline.reading.windows import make_stripes

    before = resident_memory()
    began = time.perf_counter()
    split = open_dataset(folder).split("train")
    seconds = time.perf_counter() - began
    after, peak = resident_memory(), peak_memory()
    records = split.num_images
    stripes = make_stripes(split, virtual_replicas=_VIRTUAL_REPLICAS, global_batch_size=_BATCH)

    def of_all(positions: np.ndarray) -> np.ndarray:
        return order.positions_to_images(positions, num_images=records, seed=0)[0]

    def striped(positions: np.ndarray) -> np.ndarray:
        return order.striped_positions_to_images(positions, stripes=stripes, seed=0)[0]

    def batch_seconds(images_at: Any) -> float:  # noqa: ANN401
        taken = []
        for batch in range(_DRAWN_BATCHES):
            start = time.perf_counter()
            indices = images_at(np.arange(batch * _BATCH, (batch + 1) * _BATCH))
            for column in (split.shard, split.offset, split.length, split.label, split.crc):
                column[indices]
            taken.append(time.perf_counter() - start)
        return float(np.median(taken))

    return {
        "open_seconds": seconds,
        "bytes_a_record": (after - before) / records,
        "peak_bytes_a_record": (peak - before) / records,
        "global_seconds": batch_seconds(of_all),
        "striped_seconds": batch_seconds(striped),
    }


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
