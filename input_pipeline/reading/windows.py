"""Reads records through a few long range reads, which object stores and hard disks serve faster than single records.

    reader = RangeReader(split, shards)
    reader.read(indices)                                       # one read per run of neighboring records
    reader.read_windows(stripes, positions, indices, seed=0)   # windows of a shuffle; the next ones are prefetched

In memory are the windows of the virtual replicas that this process feeds, and the next window of each. While a batch
crosses from one window to the next, there are three of each.
"""

import collections
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from convoy.core.remote import PARALLEL_REQUESTS
from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.dataset.records import FRAME_OVERHEAD
from convoy.input_pipeline.dataset.storage import Shards
from convoy.input_pipeline.reading.order import Stripes, striped_positions_to_images

# Long enough to hide the request latency; a window still takes several parallel reads.
_READ_BYTES = 8 * 2**20
_PARALLEL_READS = 8  # of local files
_SKIPPED_BYTES = 2**16  # reading through a gap up to this size is faster than a new request
_PARALLEL_CALLS = 2  # of `read_windows`, by the reader's pipeline
# Sizes of windows and of their pieces. Do not change: resumed runs must compute the same sample order.
_SMALLEST_WINDOW_BYTES, _WINDOW_BYTES, _ALL_WINDOWS_BYTES = 2**25, 2**26, 2**31
_ALL_WINDOWS_RECORDS, _RAISED_TO_BYTES = 1024, 2**29
_PIECE_BYTES = 2**22


def make_stripes(split: Split, *, virtual_replicas: int, global_batch_size: int, window_size: int = 0) -> Stripes:
    """Returns the stripes of a split.

    Args:
      split: its records in shard order.
      virtual_replicas: V, 1 or more.
      global_batch_size: positions per step, a multiple of V.
      window_size: records per window, in pieces of at least 4 MiB. 0 chooses 64 MiB of records, and less for more than
        32 virtual replicas, so that all their windows together have 2 GiB, but at least 32 MiB. All windows together
        have at least 1024 records, so that several batches are shuffled together, if these fit into 512 MiB.
    """
    record_bytes = max(1.0, split.length.mean())
    if not window_size:
        window_bytes = min(_WINDOW_BYTES, max(_SMALLEST_WINDOW_BYTES, _ALL_WINDOWS_BYTES // virtual_replicas))
        at_least = min(_ALL_WINDOWS_RECORDS, int(_RAISED_TO_BYTES // record_bytes)) // virtual_replicas
        window_size = max(1, int(window_bytes // record_bytes), at_least)
    # Search with the column's own dtype: numpy would otherwise convert (copy) the whole column.
    firsts = np.searchsorted(split.shard, np.arange(len(split.shard_paths) + 1, dtype=split.shard.dtype))
    pieces = max(1, int(window_size * record_bytes // _PIECE_BYTES))
    return Stripes(np.diff(firsts), window_size, virtual_replicas, global_batch_size, pieces)


class RangeReader:
    """Reads records of a split by byte ranges of its shards."""

    def __init__(self, split: Split, shards: Shards):
        """Starts the reader threads; reads nothing yet.

        Args:
          split: the records, in shard order.
          shards: the split's files.
        """
        self._split = split
        self._shards = shards
        parallel = PARALLEL_REQUESTS if shards.are_remote else _PARALLEL_READS
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="range-reads")
        self._windows: dict[tuple[int, int], _Range] = {}  # by seed and first position
        self._recent: collections.deque[set[tuple[int, int]]] = collections.deque(maxlen=_PARALLEL_CALLS)
        self._lock = threading.Lock()

    @property
    def window_bytes(self) -> int:
        """Size of the windows in memory and being read."""
        with self._lock:
            return sum(window.num_bytes for window in self._windows.values())

    def read(self, indices: np.ndarray) -> Iterator[bytes]:
        """Yields the frames of records, in the given order.

        Args:
          indices: [n] int64.

        Raises:
          ConvoyError: a shard cannot be read.
        """
        if not len(indices):  # all images are cached
            return iter(())
        return _Range(self._split, self._shards, self._pool, np.unique(indices)).frames(indices)

    def read_windows(
        self, stripes: Stripes, positions: np.ndarray, indices: np.ndarray, *, seed: int
    ) -> Iterator[bytes]:
        """As `read`, through whole windows.

        Args:
          stripes: the stripes of a striped shuffle, the same in all calls.
          positions: [n] int64.
          indices: [n] int64: the images at these positions.
          seed: the run's seed.

        Raises:
          ConvoyError: a shard cannot be read.
        """
        windows = stripes.windows(positions)
        firsts, chosen, of = np.unique(windows.first, return_index=True, return_inverse=True)
        opened = self._open(stripes, firsts, windows.sizes[chosen], seed)
        frames = [window.frames(indices[of == number]) for number, window in enumerate(opened)]
        for number in of.tolist():
            yield next(frames[number])

    def close(self) -> None:
        """Cancels pending reads and frees the windows in memory."""
        self._pool.shutdown(cancel_futures=True)
        self._windows.clear()

    def _open(self, stripes: Stripes, firsts: np.ndarray, sizes: np.ndarray, seed: int) -> "list[_Range]":
        """Returns windows and prefetches those that follow them; frees those that no call needs any more."""
        ends = np.array([stripes.following(*window)[-1] for window in zip(firsts, sizes + 1, strict=True)], np.int64)
        firsts = np.append(firsts, ends)
        sizes = np.append(sizes, stripes.windows(ends).sizes)
        keys = [(seed, first) for first in firsts.tolist()]
        with self._lock:
            self._recent.append(set(keys))
            needed = set().union(*self._recent)
            self._windows = {key: window for key, window in self._windows.items() if key in needed}
            for key, size in zip(keys, sizes.tolist(), strict=True):
                if key not in self._windows:
                    positions = stripes.following(key[1], size)
                    images = np.sort(striped_positions_to_images(positions, stripes=stripes, seed=seed)[0])
                    self._windows[key] = _Range(self._split, self._shards, self._pool, images)
            return [self._windows[key] for key in keys[: len(ends)]]


class _Range:
    """Records in memory, or being read; `num_bytes` is the size of their reads."""

    def __init__(self, split: Split, shards: Shards, pool: ThreadPoolExecutor, indices: np.ndarray):
        """Starts reading the records `indices`, [n] int64, ascending."""
        self._indices = indices
        shard, starts = split.shard[indices], split.offset[indices]
        sizes = split.length[indices] + FRAME_OVERHEAD
        ends = starts + sizes
        # A new read begins at a new shard, after a large gap, and when the read is long enough.
        begins = np.diff(shard, prepend=-1) != 0
        begins[1:] |= starts[1:] - ends[:-1] > _SKIPPED_BYTES
        in_stretch = starts - starts[begins][np.cumsum(begins) - 1]
        begins |= np.diff(in_stretch // _READ_BYTES, prepend=0) != 0
        self._read_numbers = np.cumsum(begins) - 1
        first = np.flatnonzero(begins)
        last = np.append(first[1:], len(indices)) - 1
        self._starts = starts - starts[first][self._read_numbers]
        self._ends = self._starts + sizes
        ranges = zip(shard[first].tolist(), starts[first].tolist(), (ends[last] - starts[first]).tolist(), strict=True)
        self.num_bytes = int((ends[last] - starts[first]).sum())
        self._reads: list[Future[bytes]] = [pool.submit(shards.read, *each) for each in ranges]

    def frames(self, indices: np.ndarray) -> Iterator[bytes]:
        places = np.searchsorted(self._indices, indices)
        columns = (self._read_numbers[places], self._starts[places], self._ends[places])
        for number, start, end in zip(*(column.tolist() for column in columns), strict=True):
            yield self._reads[number].result()[start:end]
