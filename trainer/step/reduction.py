"""Deterministic sums over virtual replicas: one packed reduction per step, in an order independent of the devices.

The terms of a run's `V` virtual replicas are summed along one fixed binary tree: its nodes are the aligned blocks `[i
* 2**k, (i + 1) * 2**k)`, cut off at `V`. A device sums the largest aligned blocks in its own slice; the reduction
combines these partial sums along the rest of the tree. Any number of devices that divides `V` therefore adds the same
pairs in the same order, and the result is bit-identical.

Devices of one process read each other's sums in place. Between processes, each device adds one chunk of all sums and
sends it to the others, which causes as much traffic as an `all_reduce`. Where the order does not matter
(`deterministic=False`), processes and GPUs use one `all_reduce` instead.
"""

import functools
from collections.abc import Callable

import tensorflow as tf

from convoy.trainer.cluster.strategy import runs_on_gpu
from convoy.trainer.tf_compat.internals import all_gather, all_to_all

Terms = list[tf.Tensor]
Block = tuple[int, int]  # (first virtual replica, number of virtual replicas: a power of two)

# Largest block that is unrolled in the graph; larger ones run in a loop, so that the graph does not grow with them.
_UNROLLED = 4


def aligned_blocks(start: int, stop: int) -> list[Block]:
    """Returns the largest aligned power-of-two blocks that cover `[start, stop)`, in order."""
    blocks: list[Block] = []
    while start < stop:
        size = (start & -start) if start else 1 << (stop - start).bit_length()
        while start + size > stop:
            size //= 2
        blocks.append((start, size))
        start += size
    return blocks


def combine_blocks(blocks: dict[Block, Terms], total: int) -> Terms:
    """Returns the sum of blocks that cover `[0, total)`, along the fixed tree.

    Args:
      blocks: sum of the terms of each block; all values are lists of tensors of the same shapes.
      total: number of virtual replicas.
    """

    def node(start: int, size: int) -> Terms:
        if (start, size) in blocks:
            return blocks[start, size]
        left = node(start, size // 2)
        middle = start + size // 2
        return add(left, node(middle, size // 2)) if middle < total else left

    return node(0, 1 << (total - 1).bit_length())


def add(left: Terms, right: Terms) -> Terms:
    """Returns the elementwise sums of two lists of tensors."""
    return [a + b for a, b in zip(left, right, strict=True)]


def sum_block(term: Callable[[tf.Tensor], Terms], start: int, size: int) -> Terms:
    """Returns the sum of `term(v)` over the virtual replicas of one aligned block, computed in turn, along the tree.

    Args:
      term: computes the terms of one virtual replica from its number, an int32 scalar.
      start: first virtual replica.
      size: number of virtual replicas, a power of two.
    """
    if size <= _UNROLLED:
        return _sum_unrolled(term, start, size)
    # A binary counter: `partial[k]` is the sum of 2**k terms while bit k of the number of finished terms is set.
    # Another term carries through the lowest set bits, which is how the tree pairs them.
    levels = size.bit_length()
    carries = tf.constant([_lowest_clear_bit(finished) for finished in range(size)])

    def carry_through(ones: int, partial: list[Terms], value: Terms) -> list[Terms]:
        for level in range(ones):
            value = add(partial[level], value)
        return [*partial[:ones], value, *partial[ones + 1 :]]

    def body(finished: tf.Tensor, partial: list[Terms]) -> tuple[tf.Tensor, list[Terms]]:
        value = term(start + finished)
        branches = [lambda k=k: carry_through(k, partial, value) for k in range(levels)]
        return finished + 1, tf.switch_case(carries[finished], branches)

    # Outside the loop, because the loop variables need the shapes of the terms.
    first = term(tf.constant(start))
    zeros = [[tf.zeros_like(t) for t in first] for _ in range(levels - 1)]
    _, partial = tf.while_loop(
        lambda finished, partial: finished < size,
        body,
        (tf.constant(1), [first, *zeros]),
        parallel_iterations=1,
    )
    return partial[-1]


def _lowest_clear_bit(number: int) -> int:
    return (~number & number + 1).bit_length() - 1


def _sum_unrolled(term: Callable[[tf.Tensor], Terms], start: int, size: int) -> Terms:
    sums: dict[Block, Terms] = {}
    previous: Terms = []
    for v in range(start, start + size):
        # In turn, so that only one set of activations is in memory at a time. The control edges apply to the number
        # only: what all terms compute from shared values, such as the cast of a weight, is then computed once.
        with tf.control_dependencies(previous):
            number = tf.identity(v)
        sums[v, 1] = previous = term(number)
    while len(sums) > 1:
        (left_start, width), *_ = sums
        sums = {(v, 2 * width): add(sums[v, width], sums[v + width, width]) for v, _ in list(sums)[::2]}
    return next(iter(sums.values()))


def reduce_over_virtual_replicas(
    term: Callable[[tf.Tensor], Terms],
    *,
    virtual_replicas: int,
    deterministic: bool,
    bfloat16_terms: int = 0,
    before_exchange: Callable[[list[tf.Tensor]], None] = lambda values: None,
) -> Terms:
    """Returns the sum of `term(v)` over all virtual replicas, the same on every device. Call it in replica context.

    Args:
      term: computes the float32 terms of one virtual replica from its number, an int32 scalar.
      virtual_replicas: number of virtual replicas, V, divisible by the number of replicas.
      deterministic: whether the order of all additions is fixed.
      bfloat16_terms: number of leading tensors that devices exchange and add in bfloat16, with half the traffic.
      before_exchange: called with all values of this device that go into the exchange.

    Raises:
      ValueError: `deterministic` with `bfloat16_terms`: such sums depend on the number of devices.
    """
    if deterministic and bfloat16_terms:
        raise ValueError(f"bfloat16_terms={bfloat16_terms} with deterministic=True: set one of them to 0 or False.")
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    share = virtual_replicas // replicas
    blocks_of = [aligned_blocks(r * share, (r + 1) * share) for r in range(replicas)]
    replica = tf.get_static_value(tf.convert_to_tensor(context.replica_id_in_sync_group))
    sums = [sum_block(term, *block) for block in blocks_of[replica]]
    before_exchange([value for terms in sums for value in terms])
    if replicas == 1:
        return combine_blocks(dict(zip(blocks_of[0], sums, strict=True)), virtual_replicas)
    in_one_process = len(context.strategy.extended.worker_devices) == replicas
    on_gpu = runs_on_gpu(context.strategy)
    # Without GPUs a collective copies what other devices could read in place, and takes three times as long.
    if in_one_process and not bfloat16_terms and (deterministic or not on_gpu):
        return _add_on_devices(context, sums, blocks_of, virtual_replicas, cut=on_gpu)
    one_block_each = all(len(blocks) == 1 for blocks in blocks_of)
    if not deterministic or (replicas == 2 and one_block_each):  # the sum of two does not depend on their order
        return _all_reduce(context, functools.reduce(add, sums), bfloat16_terms)
    return _exchange_chunks(context, sums, blocks_of, virtual_replicas)


def _all_reduce(context: tf.distribute.ReplicaContext, terms: Terms, bfloat16_terms: int) -> Terms:
    narrow = [tf.cast(value, tf.bfloat16) for value in terms[:bfloat16_terms]]
    total: Terms = []
    for values in (narrow, terms[bfloat16_terms:]):  # a packed reduction has one dtype
        if values:
            # All in one pack: `bytes_per_pack` stays 0. With packs of 1 to 64 MiB neither the reduction nor the step is
            # faster. There is nothing to overlap with: XLA returns all gradients at once, and CPU cores are busy.
            # Tensors larger than a pack, such as dense kernels, are not split anyway.
            total += context.all_reduce(tf.distribute.ReduceOp.SUM, values)
    return [tf.cast(value, tf.float32) for value in total]


def _add_on_devices(
    context: tf.distribute.ReplicaContext,
    sums: list[Terms],
    blocks_of: list[list[Block]],
    virtual_replicas: int,
    *,
    cut: bool,
) -> Terms:
    """Combines the blocks of the devices of one process, which read each other's sums, without a collective.

    Args:
      cut: whether to split tensors larger than an even share per device, so that all devices send, receive and add
        about as much as in a ring. CPU devices share memory and cores: splitting costs them a copy and gains nothing.
    """
    longest = -(-sum(value.shape.num_elements() for value in sums[0]) // len(blocks_of)) if cut else None
    pieces_of = [[_cut(value, longest) for value in terms] for terms in sums]  # [blocks][tensors][pieces]
    # `merge_call` needs equally many from every device; the padding is ignored.
    pieces_of += [pieces_of[-1]] * (max(map(len, blocks_of)) - len(pieces_of))

    def combine_each(strategy: tf.distribute.Strategy, pieces_of: list[list[list[tf.Tensor]]]) -> list[Terms]:
        devices = strategy.extended.worker_devices
        total: Terms = []
        for number, pieces in enumerate(zip(*map(tf.nest.flatten, pieces_of), strict=True)):
            by_device = [strategy.experimental_local_results(piece) for piece in pieces]
            with tf.device(devices[number % len(devices)]):
                block_sums = {
                    block: [by_device[k][r]] for r, blocks in enumerate(blocks_of) for k, block in enumerate(blocks)
                }
                total += combine_blocks(block_sums, virtual_replicas)
        return tf.nest.pack_sequence_as(pieces_of[0], total)

    total = context.merge_call(combine_each, args=(pieces_of,))
    return [_join(pieces, value.shape) for pieces, value in zip(total, sums[0], strict=True)]


def _cut(value: tf.Tensor, longest: int | None) -> list[tf.Tensor]:
    if longest is None or value.shape.num_elements() <= longest:
        return [value]
    flat = tf.reshape(value, [-1])
    return [flat[start : start + longest] for start in range(0, flat.shape[0], longest)]


def _join(pieces: list[tf.Tensor], shape: tf.TensorShape) -> tf.Tensor:
    # The identity makes it a value of this replica; on a CPU it does not copy.
    return tf.identity(pieces[0]) if len(pieces) == 1 else tf.reshape(tf.concat(pieces, 0), shape)


def _exchange_chunks(
    context: tf.distribute.ReplicaContext, sums: list[Terms], blocks_of: list[list[Block]], virtual_replicas: int
) -> Terms:
    """Combines the blocks of several processes with the traffic of a ring: 2 (R - 1) / R of the values.

    Device `r` receives the `r`-th chunk of all sums and adds them; then all devices gather the chunks.
    """
    replicas = len(blocks_of)
    shapes = [value.shape for value in sums[0]]
    sizes = [shape.num_elements() for shape in shapes]
    width = -(-sum(sizes) // replicas)
    padding = width * replicas - sum(sizes)
    rows = [
        tf.reshape(
            tf.concat([tf.reshape(value, [-1]) for value in terms] + [tf.zeros([padding])], 0), [replicas, width]
        )
        for terms in sums
    ]
    # Every device must send equally many rows; the padding is ignored.
    rows += [rows[-1]] * (max(map(len, blocks_of)) - len(rows))
    received = all_to_all(context, tf.stack(rows, 1))  # [replicas, rows, width] float32
    chunks = {block: [received[r, k]] for r, blocks in enumerate(blocks_of) for k, block in enumerate(blocks)}
    gathered = all_gather(context, combine_blocks(chunks, virtual_replicas)[0])  # [replicas * width]
    parts = tf.split(gathered, [*sizes, padding])
    return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=False)]
