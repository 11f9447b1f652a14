"""Reads records through a few long range reads, which object stores and hard disks serve faster than single records.

    reader = RangeReader(split, shards)
    reader.read(indices)                                   # one read per run of neighboring records
    reader.read_blocks(blocks, numbers, indices, seed=0)   # blocks of a shuffle; the next block is prefetched

Every process that needs a record of a block reads the whole block: with n workers, each record is read n times per
epoch. At most three blocks are in memory: the current one, the previous one, which another thread may still use, and
the next one.
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
from convoy.input_pipeline.reading.order import Blocks

# Long enough to hide the request latency; a block still takes several parallel reads.
_READ_BYTES = 8 * 2**20
_PARALLEL_READS = 8  # of local files
_SKIPPED_BYTES = 2**16  # reading through a gap up to this size is faster than a new request
_BLOCKS_IN_MEMORY = 3
# Default block size. Do not change: resumed runs must compute the same sample order.
_BLOCK_BYTES, _LARGEST_BLOCK_BYTES = 2**26, 2**29
_BLOCK_RECORDS = 1024


def make_blocks(split: Split, size: int = 0) -> Blocks:
    """Returns the shuffle blocks of a split.

    Args:
      split: its records in shard order.
      size: records per block. 0 chooses 64 MiB of records and at least 1024 records (so that several batches are
        shuffled together), but at most 512 MiB.
    """
    if not size:
        record_bytes = max(1.0, split.length.mean())
        most = max(1, int(_LARGEST_BLOCK_BYTES // record_bytes))
        size = max(int(_BLOCK_BYTES // record_bytes), min(_BLOCK_RECORDS, most))
    # Search with the column's own dtype: numpy would otherwise convert (copy) the whole column.
    firsts = np.searchsorted(split.shard, np.arange(len(split.shard_paths) + 1, dtype=split.shard.dtype))
    return Blocks(np.diff(firsts), min(size, split.num_images))


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
        self._cached: collections.OrderedDict[tuple[int, int], _Range] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, indices: np.ndarray) -> Iterator[bytes]:
        """Yields the frames of records, in the given order.

        Args:
          indices: [n] int64.

        Raises:
          ConvoyError: a shard cannot be read.
        """
        return _Range(self._split, self._shards, self._pool, np.unique(indices)).frames(indices)

    def read_blocks(self, blocks: Blocks, numbers: np.ndarray, indices: np.ndarray, *, seed: int) -> Iterator[bytes]:
        """As `read`, through whole blocks.

        Args:
          blocks: the blocks of a block shuffle, the same in all calls.
          numbers: [n] int64, ascending: the block of each record, from `Blocks.numbers`.
          indices: [n] int64.
          seed: the run's seed.

        Raises:
          ConvoyError: a shard cannot be read.
        """
        for number in np.unique(numbers):
            block = self._block(blocks, int(number), seed)
            self._block(blocks, int(number) + 1, seed)  # prefetch
            yield from block.frames(indices[numbers == number])

    def close(self) -> None:
        """Cancels pending reads and frees the blocks in memory."""
        self._pool.shutdown(cancel_futures=True)
        self._cached.clear()

    def _block(self, blocks: Blocks, number: int, seed: int) -> "_Range":
        key = (seed, number)
        with self._lock:
            if key not in self._cached:
                images = np.sort(blocks.images(number, seed=seed))
                self._cached[key] = _Range(self._split, self._shards, self._pool, images)
            self._cached.move_to_end(key)
            while len(self._cached) > _BLOCKS_IN_MEMORY:
                self._cached.popitem(last=False)
            return self._cached[key]


class _Range:
    """Records in memory, or being read."""

    def __init__(self, split: Split, shards: Shards, pool: ThreadPoolExecutor, indices: np.ndarray):
        """Starts reading the records `indices`, [n] int64, ascending."""
        self._indices = indices
        shard, starts = split.shard[indices], split.offset[indices]
        sizes = split.length[indices] + FRAME_OVERHEAD
        ends = starts + sizes
        # A new read begins at a new shard, after a large gap, and when the read is long enough.
        begins = np.diff(shard, prepend=-1) != 0
        begins[1:] |= starts[1:] - ends[:-1] > _SKIPPED_BYTES
        begins |= np.diff(np.cumsum(sizes) // _READ_BYTES, prepend=0) != 0
        self._read_numbers = np.cumsum(begins) - 1
        first = np.flatnonzero(begins)
        last = np.append(first[1:], len(indices)) - 1
        self._starts = starts - starts[first][self._read_numbers]
        self._ends = self._starts + sizes
        ranges = zip(shard[first].tolist(), starts[first].tolist(), (ends[last] - starts[first]).tolist(), strict=True)
        self._reads: list[Future[bytes]] = [pool.submit(shards.read, *each) for each in ranges]

    def frames(self, indices: np.ndarray) -> Iterator[bytes]:
        places = np.searchsorted(self._indices, indices)
        columns = (self._read_numbers[places], self._starts[places], self._ends[places])
        for number, start, end in zip(*(column.tolist() for column in columns), strict=True):
            yield self._reads[number].result()[start:end]
