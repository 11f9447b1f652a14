import math

import numpy as np
import pytest
import tensorflow as tf

from trainer.reduction import add, aligned_blocks, climb, reduce_over_virtual_replicas, sum_block

UP_TO = 24


class Expression:
    """A term that remembers how it was added up."""

    def __init__(self, text: str):
        self.text = text

    def __add__(self, other: "Expression") -> "Expression":
        return Expression(f"({self.text}+{other.text})")


def written_tree(start: int, size: int, total: int) -> str:
    """The tree of the definition: halve the next power of two; what lies beyond `total` is not there."""
    if size == 1:
        return f"v{start}"
    left = written_tree(start, size // 2, total)
    middle = start + size // 2
    return f"({left}+{written_tree(middle, size // 2, total)})" if middle < total else left


def expression(total: int, replicas: int) -> str:
    """Returns how `replicas` devices add the terms of `total` virtual replicas."""
    share = total // replicas
    blocks = {}
    for replica in range(replicas):
        for start, size in aligned_blocks(replica * share, (replica + 1) * share):
            # Within a block every tree is the full one.
            blocks[start, size] = [Expression(written_tree(start, size, start + size))]
    (result,) = climb(blocks, total)
    return result.text


def divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


@pytest.mark.parametrize("total", range(1, UP_TO + 1))
def test_any_number_of_devices_adds_the_same_pairs_in_the_same_order(total):
    expected = written_tree(0, 1 << (total - 1).bit_length(), total)
    for replicas in divisors(total):
        assert expression(total, replicas) == expected, replicas


@pytest.mark.parametrize("total", range(1, UP_TO + 1))
def test_every_virtual_replica_is_added_once(total):
    text = expression(total, divisors(total)[-1])
    names = text.replace("(", " ").replace(")", " ").replace("+", " ").split()
    assert sorted(names) == sorted(f"v{number}" for number in range(total))


def test_aligned_blocks_cover_a_slice_with_the_fewest_aligned_powers_of_two():
    for start in range(40):
        for stop in range(start + 1, 60):
            blocks = aligned_blocks(start, stop)
            assert [number for first, size in blocks for number in range(first, first + size)] == list(
                range(start, stop)
            )
            for first, size in blocks:
                assert size & (size - 1) == 0 and first % size == 0
            # Two blocks that make up an aligned one twice as large would have been that one.
            for (first, size), (second, next_size) in zip(blocks, blocks[1:], strict=False):
                assert not (size == next_size and first % (2 * size) == 0 and second == first + size)


def test_aligned_blocks_of_nothing_are_none():
    assert aligned_blocks(3, 3) == []


def test_add_keeps_tensors_apart_and_refuses_lists_of_different_length():
    left, right = [tf.constant(1.0), tf.constant([2.0, 3.0])], [tf.constant(10.0), tf.constant([20.0, 30.0])]
    assert [value.numpy().tolist() for value in add(left, right)] == [11.0, [22.0, 33.0]]
    with pytest.raises(ValueError):
        add(left, right[:1])


@pytest.fixture(autouse=True)
def additions_as_written():
    """Keeps Grappler from merging additions, as deterministic runs do."""
    before = tf.config.optimizer.get_experimental_options().get("arithmetic_optimization", True)
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    yield
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": before})


# Sums of these depend on the order of the additions: sizes differ by up to 2**30, so that each addition rounds.
_generator = np.random.default_rng(0)
VALUES = (_generator.standard_normal((64, 50)) * 2.0 ** _generator.integers(-15, 15, (64, 50))).astype(np.float32)


def term(virtual_replica: tf.Tensor) -> list[tf.Tensor]:
    row = tf.constant(VALUES)[virtual_replica]
    return [row, tf.reshape(row[:6] * 3.0, [2, 3])]


def tree_sum(start: int, size: int, total: int, values: np.ndarray = VALUES) -> np.ndarray:
    """The tree in numpy, one float32 addition at a time."""
    if size == 1:
        return values[start]
    left = tree_sum(start, size // 2, total, values)
    middle = start + size // 2
    return left + tree_sum(middle, size // 2, total, values) if middle < total else left


def test_the_values_of_these_tests_show_the_order_of_additions():
    in_a_row = VALUES[0]
    for row in VALUES[1:16]:
        in_a_row = in_a_row + row
    assert (in_a_row != tree_sum(0, 16, 16)).any()


@pytest.mark.parametrize(("start", "size"), [(5, 1), (2, 2), (4, 4), (0, 8), (8, 8), (0, 16), (32, 32), (0, 64)])
def test_a_block_is_summed_along_the_tree_in_a_loop_as_unrolled(start, size):
    total = tf.function(lambda: sum_block(term, start, size), autograph=False)()
    assert np.array_equal(total[0].numpy(), tree_sum(start, size, start + size))
    smaller = (VALUES[:, :6] * np.float32(3)).astype(np.float32)
    assert np.array_equal(total[1].numpy().ravel(), tree_sum(start, size, start + size, smaller))


def test_a_long_block_holds_the_computation_no_more_often_than_a_short_one():
    def times_traced(size):
        traced = []

        def counting_term(virtual_replica):
            traced.append(virtual_replica)
            return term(virtual_replica)

        tf.function(lambda: sum_block(counting_term, 0, size), autograph=False).get_concrete_function()
        return len(traced)

    assert times_traced(4) == 4
    assert times_traced(8) == times_traced(64) <= 4


def test_each_virtual_replica_is_computed_once_in_turn():
    seen = tf.Variable(tf.zeros([32], tf.int32))
    turn = tf.Variable(0)

    def recording_term(virtual_replica):
        number = turn.assign_add(1)
        recorded = seen.scatter_nd_update(tf.reshape(virtual_replica, [1, 1]), [number])
        with tf.control_dependencies([recorded]):
            return [tf.identity(tf.constant(VALUES)[virtual_replica])]

    for start, size in ((0, 4), (0, 16), (16, 16)):
        seen.assign(tf.zeros([32], tf.int32))
        turn.assign(0)
        tf.function(lambda s=start, n=size: sum_block(recording_term, s, n), autograph=False)()
        assert seen.numpy()[start : start + size].tolist() == list(range(1, size + 1))


@pytest.mark.parametrize("total", [1, 2, 3, 5, 6, 7, 12, 15, 16, 24])
@pytest.mark.parametrize("deterministic", [False, True])
def test_one_device_sums_all_virtual_replicas(total, deterministic):
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")

    def in_replica():
        return reduce_over_virtual_replicas(term, virtual_replicas=total, deterministic=deterministic)

    result = tf.function(lambda: strategy.run(in_replica), autograph=False)()
    size = 1 << math.ceil(math.log2(total))
    assert np.array_equal(result[0].numpy(), tree_sum(0, size, total))
