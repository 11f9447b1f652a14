"""Records through few long reads: what object stores and hard disks are fast at, where a read a record is not.

    records = LongReads(split, shards)
    records.read(indices)                           # one read a run of neighbours
    records.read_windows(numbers, indices, seed=0)  # windows of windowed order; the next one is fetched ahead

A window is read whole by every process that needs any record of it: with n workers each record is read n times an
epoch, once by each. What is held in memory is three windows at most: one in use, the one before, which another thread
may still take from, and the next.
"""

import collections
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.dataset.records import FRAME_OVERHEAD
from convoy.input_pipeline.dataset.storage import Shards
from convoy.input_pipeline.reading.order import Windows

# Long enough that asking takes little of the time, and a window still makes several at a time.
_READ_BYTES = 8 * 2**20
_READS_AT_A_TIME = 8
_SKIPPED_BYTES = 2**16  # reading on over such a gap takes less than asking again
_HELD_WINDOWS = 3
# Of windows whose size a run does not give. Runs resume by these numbers: they stay.
_WINDOW_BYTES, _LARGEST_WINDOW_BYTES = 2**26, 2**29
_WINDOW_RECORDS = 1024


def windows_of(split: Split, size: int = 0) -> Windows:
    """Returns a split's windows.

    Args:
      split: its records in the order of the shards.
      size: records of a window. 0 for 64 MiB of them, but at least 1024, which shuffles several batches together, as
        far as that is no more than 512 MiB.
    """
    if not size:
        record_bytes = max(1.0, split.length.mean())
        most = max(1, int(_LARGEST_WINDOW_BYTES // record_bytes))
        size = max(int(_WINDOW_BYTES // record_bytes), min(_WINDOW_RECORDS, most))
    # Of the shards' own type, since numpy would copy the column to another one.
    firsts = np.searchsorted(split.shard, np.arange(len(split.shard_paths) + 1, dtype=split.shard.dtype))
    return Windows(np.diff(firsts), min(size, split.num_images))


class LongReads:
    """Reads a split's records by ranges of its shards."""

    def __init__(self, split: Split, shards: Shards, windows: Windows | None = None):
        """Reads nothing yet.

        Args:
          split: whose records; in the order of the shards.
          shards: its files.
          windows: what `read_windows` reads.
        """
        self._split = split
        self._shards = shards
        self._windows = windows
        self._pool = ThreadPoolExecutor(_READS_AT_A_TIME, thread_name_prefix="long-reads")
        self._held: collections.OrderedDict[tuple[int, int], _Range] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, indices: np.ndarray) -> Iterator[bytes]:
        """Yields the frames of records, in the order asked for.

        Args:
          indices: [n] int64.

        Raises:
          ConvoyError: a shard cannot be read.
        """
        return _Range(self._split, self._shards, self._pool, np.unique(indices)).frames(indices)

    def read_windows(self, numbers: np.ndarray, indices: np.ndarray, *, seed: int) -> Iterator[bytes]:
        """As `read`, of records that lie in windows.

        Args:
          numbers: [n] int64, ascending: the window of each record, as `Windows.numbers`.
          indices: [n] int64.
          seed: the run's seed.
        """
        for number in np.unique(numbers):
            window = self._window(int(number), seed)
            self._window(int(number) + 1, seed)
            yield from window.frames(indices[numbers == number])

    def close(self) -> None:
        """Gives up what is on its way."""
        self._pool.shutdown(cancel_futures=True)
        self._held.clear()

    def _window(self, number: int, seed: int) -> "_Range":
        key = (seed, number)
        with self._lock:
            if key not in self._held:
                images = np.sort(self._windows.images(number, seed=seed))
                self._held[key] = _Range(self._split, self._shards, self._pool, images)
            self._held.move_to_end(key)
            while len(self._held) > _HELD_WINDOWS:
                self._held.popitem(last=False)
            return self._held[key]


class _Range:
    """Some records, in memory or on their way there."""

    def __init__(self, split: Split, shards: Shards, pool: ThreadPoolExecutor, indices: np.ndarray):
        """Starts to read the records `indices`, [n] int64, ascending."""
        self._indices = indices
        shard, starts = split.shard[indices], split.offset[indices]
        sizes = split.length[indices] + FRAME_OVERHEAD
        ends = starts + sizes
        # A read ends where the shard does, where the next record is far, and where it is long enough.
        begins = np.diff(shard, prepend=-1) != 0
        begins[1:] |= starts[1:] - ends[:-1] > _SKIPPED_BYTES
        begins |= np.diff(np.cumsum(sizes) // _READ_BYTES, prepend=0) != 0
        self._read_of = np.cumsum(begins) - 1
        first = np.flatnonzero(begins)
        last = np.append(first[1:], len(indices)) - 1
        self._from = starts - starts[first][self._read_of]
        self._to = self._from + sizes
        ranges = zip(shard[first].tolist(), starts[first].tolist(), (ends[last] - starts[first]).tolist(), strict=True)
        self._reads: list[Future[bytes]] = [pool.submit(shards.read, *each) for each in ranges]

    def frames(self, indices: np.ndarray) -> Iterator[bytes]:
        places = np.searchsorted(self._indices, indices)
        columns = (self._read_of[places], self._from[places], self._to[places])
        for read, start, end in zip(*(column.tolist() for column in columns), strict=True):
            yield self._reads[read].result()[start:end]
