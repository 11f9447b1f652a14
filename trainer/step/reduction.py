"""Sums over virtual replicas: one packed reduction a step, in an order that does not depend on who holds what.

The terms of a run's `V` virtual replicas are summed along one fixed binary tree: its nodes are the aligned blocks `[i
* 2**k, (i + 1) * 2**k)`, cut off at `V`. A device sums the largest aligned blocks inside its own slice; those few
partial sums meet in the reduction, where the rest of the tree is climbed. So any number of devices that divides `V`
adds the same pairs in the same order, and the result is the same to the last bit.

Devices of one process read each other's sums in place. Between processes each device adds one chunk of all sums and
sends it to the others, which is as much traffic as an `all_reduce`. Where order does not matter
(`deterministic=False`), processes, and GPUs, reduce with one `all_reduce` instead.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from convoy.trainer.cluster.strategy import runs_on_gpu
from convoy.trainer.tf_compat.internals import all_gather, all_to_all

Terms = list[tf.Tensor]
Block = tuple[int, int]  # (first virtual replica, how many: a power of two)

# Up to so many virtual replicas on a device the graph holds each; above, it loops, so that it does not grow with them.
_UNROLLED = 4


def aligned_blocks(start: int, stop: int) -> list[Block]:
    """Returns the largest aligned power-of-two blocks that make up `[start, stop)`, in order."""
    blocks = []
    while start < stop:
        size = (start & -start) if start else 1 << (stop - start).bit_length()
        while start + size > stop:
            size //= 2
        blocks.append((start, size))
        start += size
    return blocks


def climb(blocks: dict[Block, Terms], total: int) -> Terms:
    """Sums blocks that together make up `[0, total)` along the fixed tree.

    Args:
      blocks: the sum of each block's terms; every value a list of tensors of the same shapes.
      total: how many virtual replicas there are.
    """

    def node(start: int, size: int) -> Terms:
        if (start, size) in blocks:
            return blocks[start, size]
        left = node(start, size // 2)
        middle = start + size // 2
        return add(left, node(middle, size // 2)) if middle < total else left

    return node(0, 1 << (total - 1).bit_length())


def add(left: Terms, right: Terms) -> Terms:
    """Returns the sum, tensor by tensor."""
    return [a + b for a, b in zip(left, right, strict=True)]


def sum_block(term: Callable[[tf.Tensor], Terms], start: int, size: int) -> Terms:
    """Returns the sum of `term(v)` for the virtual replicas of one aligned block, one after another, along the tree.

    Args:
      term: computes the terms of one virtual replica, given its number as an int32 scalar.
      start: the first one.
      size: how many, a power of two.
    """
    if size <= _UNROLLED:
        return _sum_unrolled(term, start, size)
    # A binary counter: `partial[k]` holds the sum of 2**k terms while bit k of the number of finished terms is set.
    # One more term carries through the lowest set bits, just as the tree pairs them.
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

    # The first term, outside the loop, tells the shapes.
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
        # One after another, so that one set of activations lives at a time. The control edges reach the number alone:
        # what a term makes of values that all terms share, such as a weight's cast, is then computed once for all.
        with tf.control_dependencies(previous):
            number = tf.identity(v)
        sums[v, 1] = previous = term(number)
    while len(sums) > 1:
        (left_start, width), *_ = sums
        sums = {(v, 2 * width): add(sums[v, width], sums[v + width, width]) for v, _ in list(sums)[::2]}
    return next(iter(sums.values()))


def reduce_over_virtual_replicas(
    term: Callable[[tf.Tensor], Terms], *, virtual_replicas: int, deterministic: bool, bfloat16_terms: int = 0
) -> Terms:
    """Returns the sum of `term(v)` over all virtual replicas, the same on every device. Called in replica context.

    Args:
      term: float32 tensors of one virtual replica, given its number.
      virtual_replicas: V, divisible by the number of replicas.
      deterministic: whether the order of every addition is fixed.
      bfloat16_terms: how many of the first tensors devices send each other, and add, in bfloat16, with half the
        traffic; 0 where `deterministic`.

    Raises:
      ValueError: `bfloat16_terms` where `deterministic`: those sums depend on the number of devices.
    """
    if deterministic and bfloat16_terms:
        raise ValueError("A deterministic reduction in bfloat16.")
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    share = virtual_replicas // replicas
    own = [aligned_blocks(r * share, (r + 1) * share) for r in range(replicas)]
    replica = tf.get_static_value(tf.convert_to_tensor(context.replica_id_in_sync_group))
    sums = [sum_block(term, *block) for block in own[replica]]
    if replicas == 1:
        return climb(dict(zip(own[0], sums, strict=True)), virtual_replicas)
    in_one_process = len(context.strategy.extended.worker_devices) == replicas
    on_gpu = runs_on_gpu(context.strategy)
    # Without GPUs a collective copies what the other device can read in place, and takes three times as long.
    if in_one_process and not bfloat16_terms and (deterministic or not on_gpu):
        return _add_on_devices(context, sums, own, virtual_replicas, cut=on_gpu)
    one_each = all(len(blocks) == 1 for blocks in own)
    if not deterministic or (replicas == 2 and one_each):  # the sum of two is the same in either order
        return _all_reduce(context, _add_all(sums), bfloat16_terms)
    return _exchange_chunks(context, sums, own, virtual_replicas)


def _add_all(sums: Sequence[Terms]) -> Terms:
    total = sums[0]
    for terms in sums[1:]:
        total = add(total, terms)
    return total


def _all_reduce(context: tf.distribute.ReplicaContext, terms: Terms, bfloat16_terms: int) -> Terms:
    narrow = [tf.cast(value, tf.bfloat16) for value in terms[:bfloat16_terms]]
    total: Terms = []
    for values in (narrow, terms[bfloat16_terms:]):  # a packed reduction has one dtype
        if values:
            # All in one pack: `bytes_per_pack` stays 0. With packs of 1 to 64 MiB the reduction and the whole step take
            # as long. There is nothing to send beside: XLA gives all gradients at once, a CPU's cores are busy; and a
            # tensor larger than a pack, such as a dense kernel, is not cut.
            total += context.all_reduce(tf.distribute.ReduceOp.SUM, values)
    return [tf.cast(value, tf.float32) for value in total]


def _add_on_devices(
    context: tf.distribute.ReplicaContext,
    sums: list[Terms],
    own: list[list[Block]],
    virtual_replicas: int,
    *,
    cut: bool,
) -> Terms:
    """Climbs the tree where the devices of one process read each other's sums, without a collective.

    Args:
      cut: whether tensors larger than a device's even share are cut, so that all devices send, receive and add about
        as much as in a ring. CPU devices share memory and cores: cutting costs them a copy and gains nothing.
    """
    longest = -(-sum(value.shape.num_elements() for value in sums[0]) // len(own)) if cut else None
    held = [[_cut(value, longest) for value in terms] for terms in sums]  # [blocks][tensors][pieces]
    # `merge_call` takes as many of every device; the repeated ones are not looked at.
    held += [held[-1]] * (max(map(len, own)) - len(held))

    def climb_each(strategy: tf.distribute.Strategy, held: list) -> list:
        devices = strategy.extended.worker_devices
        total: Terms = []
        for number, pieces in enumerate(zip(*map(tf.nest.flatten, held), strict=True)):
            of_device = [strategy.experimental_local_results(piece) for piece in pieces]
            with tf.device(devices[number % len(devices)]):
                blocks = {block: [of_device[k][r]] for r, blocks in enumerate(own) for k, block in enumerate(blocks)}
                total += climb(blocks, virtual_replicas)
        return tf.nest.pack_sequence_as(held[0], total)

    total = context.merge_call(climb_each, args=(held,))
    return [_join(pieces, value.shape) for pieces, value in zip(total, sums[0], strict=True)]


def _cut(value: tf.Tensor, longest: int | None) -> list[tf.Tensor]:
    if longest is None or value.shape.num_elements() <= longest:
        return [value]
    flat = tf.reshape(value, [-1])
    return [flat[start : start + longest] for start in range(0, flat.shape[0], longest)]


def _join(pieces: list[tf.Tensor], shape: tf.TensorShape) -> tf.Tensor:
    # The identity makes it this replica's own value; on a CPU it copies nothing.
    return tf.identity(pieces[0]) if len(pieces) == 1 else tf.reshape(tf.concat(pieces, 0), shape)


def _exchange_chunks(
    context: tf.distribute.ReplicaContext, sums: list[Terms], own: list[list[Block]], virtual_replicas: int
) -> Terms:
    """Climbs the tree where processes send each other as much as in a ring: 2 (R - 1) / R of the values.

    Device `r` receives the `r`-th chunk of every device's sums and adds those; then all gather the chunks.
    """
    replicas = len(own)
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
    # Every device sends as many; the repeated ones are not looked at.
    rows += [rows[-1]] * (max(map(len, own)) - len(rows))
    received = all_to_all(context, tf.stack(rows, 1))  # [replicas, most, width] float32
    blocks = {block: [received[r, k]] for r, blocks in enumerate(own) for k, block in enumerate(blocks)}
    gathered = all_gather(context, climb(blocks, virtual_replicas)[0])  # [replicas * width]
    parts = tf.split(gathered, [*sizes, padding])
    return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=False)]
