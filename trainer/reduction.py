"""Sums over virtual replicas: one packed reduction a step, in an order that does not depend on who holds what.

The terms of a run's `V` virtual replicas are summed along one fixed binary tree: its nodes are the aligned blocks `[i
* 2**k, (i + 1) * 2**k)`, cut off at `V`. A device sums the largest aligned blocks inside its own slice; those few
partial sums meet in the reduction, where the rest of the tree is climbed. So any number of devices that divides `V`
adds the same pairs in the same order, and the result is the same to the last bit. Where order does not matter
(`deterministic=False`) devices reduce with one `all_reduce` instead.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

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
    term: Callable[[tf.Tensor], Terms], *, virtual_replicas: int, deterministic: bool
) -> Terms:
    """Returns the sum of `term(v)` over all virtual replicas, the same on every device. Called in replica context.

    Args:
      term: float32 tensors of one virtual replica, given its number.
      virtual_replicas: V, divisible by the number of replicas.
      deterministic: whether the order of every addition is fixed.
    """
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    share = virtual_replicas // replicas
    own = [aligned_blocks(r * share, (r + 1) * share) for r in range(replicas)]
    replica = tf.get_static_value(tf.convert_to_tensor(context.replica_id_in_sync_group))
    sums = {block: sum_block(term, *block) for block in own[replica]}
    if replicas == 1:
        return climb(sums, virtual_replicas)
    one_each = all(len(blocks) == 1 for blocks in own)
    if not deterministic or (replicas == 2 and one_each):  # the sum of two is the same in either order
        return context.all_reduce(tf.distribute.ReduceOp.SUM, _add_all(list(sums.values())))
    return _gather_and_climb(context, list(sums.values()), own, virtual_replicas)


def _add_all(sums: Sequence[Terms]) -> Terms:
    total = sums[0]
    for terms in sums[1:]:
        total = add(total, terms)
    return total


def _gather_and_climb(
    context: tf.distribute.ReplicaContext, sums: list[Terms], own: list[list[Block]], virtual_replicas: int
) -> Terms:
    shapes = [term.shape for term in sums[0]]
    rows = [tf.concat([tf.reshape(term, [1, -1]) for term in terms], 1) for terms in sums]
    most = max(map(len, own))
    packed = tf.concat(rows + [tf.zeros_like(rows[0])] * (most - len(rows)), 0)  # [most, values] float32
    gathered = context.all_gather(packed, axis=0)  # [replicas * most, values]
    blocks = {block: [gathered[r * most + k]] for r, blocks in enumerate(own) for k, block in enumerate(blocks)}
    parts = tf.split(climb(blocks, virtual_replicas)[0], [shape.num_elements() for shape in shapes])
    return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]
