"""Reduction over virtual replicas: the order of additions on any number of devices and processes."""

import math
import signal

import numpy as np
import pytest
import tensorflow as tf

from convoy.trainer.step.reduction import add, aligned_blocks, combine_blocks, reduce_over_virtual_replicas, sum_block
from tests.trainer.reduction_program import SIMILAR, VALUES, term, tree_sum

UP_TO = 24
WORKERS = 3
PROGRAM = "tests.trainer.reduction_program"


class Expression:
    """A term that records how it was added up."""

    def __init__(self, text: str):
        self.text = text

    def __add__(self, other: "Expression") -> "Expression":
        return Expression(f"({self.text}+{other.text})")


def written_tree(start: int, size: int, total: int) -> str:
    """Returns the tree by its definition: halve the next power of two; leaves from `total` on are left out."""
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
            # Within a block the tree is complete.
            blocks[start, size] = [Expression(written_tree(start, size, start + size))]
    (result,) = combine_blocks(blocks, total)
    return result.text


def divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


@pytest.mark.parametrize("total", range(1, UP_TO + 1))
def test_the_order_of_additions_does_not_depend_on_the_number_of_devices(total):
    expected = written_tree(0, 1 << (total - 1).bit_length(), total)
    for replicas in divisors(total):
        assert expression(total, replicas) == expected, replicas


@pytest.mark.parametrize("total", range(1, UP_TO + 1))
def test_each_virtual_replica_is_added_once(total):
    text = expression(total, divisors(total)[-1])
    names = text.replace("(", " ").replace(")", " ").replace("+", " ").split()
    assert sorted(names) == sorted(f"v{number}" for number in range(total))


def test_aligned_blocks_are_the_fewest_that_cover_a_slice():
    for start in range(40):
        for stop in range(start + 1, 60):
            blocks = aligned_blocks(start, stop)
            assert [number for first, size in blocks for number in range(first, first + size)] == list(
                range(start, stop)
            )
            for first, size in blocks:
                assert size & (size - 1) == 0 and first % size == 0
            # No two neighbors form an aligned block of twice the size.
            for (first, size), (second, next_size) in zip(blocks, blocks[1:], strict=False):
                assert not (size == next_size and first % (2 * size) == 0 and second == first + size)


def test_an_empty_slice_has_no_aligned_blocks():
    assert aligned_blocks(3, 3) == []


def test_add_is_elementwise_and_rejects_lists_of_different_length():
    left, right = [tf.constant(1.0), tf.constant([2.0, 3.0])], [tf.constant(10.0), tf.constant([20.0, 30.0])]
    assert [value.numpy().tolist() for value in add(left, right)] == [11.0, [22.0, 33.0]]
    with pytest.raises(ValueError):
        add(left, right[:1])


@pytest.fixture(autouse=True)
def no_reordering_of_additions():
    """Stops Grappler from merging additions, as in deterministic runs."""
    before = tf.config.optimizer.get_experimental_options().get("arithmetic_optimization", True)
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    yield
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": before})


def test_sums_of_the_test_values_depend_on_the_order_of_additions():
    in_a_row = VALUES[0]
    for row in VALUES[1:16]:
        in_a_row = in_a_row + row
    assert (in_a_row != tree_sum(0, 16, 16)).any()


@pytest.mark.parametrize(("start", "size"), [(5, 1), (2, 2), (4, 4), (0, 8), (8, 8), (0, 16), (32, 32), (0, 64)])
def test_a_block_is_summed_along_the_tree_unrolled_and_in_a_loop(start, size):
    total = tf.function(lambda: sum_block(term, start, size), autograph=False)()
    assert np.array_equal(total[0].numpy(), tree_sum(start, size, start + size))
    smaller = (VALUES[:, :6] * np.float32(3)).astype(np.float32)
    assert np.array_equal(total[1].numpy().ravel(), tree_sum(start, size, start + size, smaller))


def test_the_graph_does_not_grow_with_the_size_of_a_block():
    def times_traced(size):
        traced = []

        def counting_term(virtual_replica):
            traced.append(virtual_replica)
            return term(virtual_replica)

        tf.function(lambda: sum_block(counting_term, 0, size), autograph=False).get_concrete_function()
        return len(traced)

    assert times_traced(4) == 4
    assert times_traced(8) == times_traced(64) <= 4


def test_virtual_replicas_are_computed_once_and_in_turn():
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


@pytest.fixture(scope="module")
def on_logical_devices(forks):
    return forks.run(PROGRAM, "devices").report()


@pytest.fixture(scope="module")
def on_workers(cluster, tmp_path_factory):
    return cluster("worker", module=PROGRAM, processes=WORKERS, output=tmp_path_factory.mktemp("reduction"))


def assert_exchanged_in_bfloat16(result: list, devices: int) -> None:
    """Asserts that the first tensor was exchanged in bfloat16 and the second in float32."""
    virtual_replicas = 2 * devices
    exact = SIMILAR[:virtual_replicas].astype(np.float64).sum(0)
    scale = np.abs(SIMILAR[:virtual_replicas]).sum(0)
    narrow_error, error = (np.abs(np.array(value) - exact) / scale for value in result)
    # The sum of each device, and each addition, rounds to 8 bits.
    assert 1e-4 < narrow_error.max() <= devices * 2**-8
    assert error.max() < 1e-6


@pytest.mark.slow
def test_all_methods_sum_along_the_tree_in_one_process(on_logical_devices):
    assert on_logical_devices["wrong"] == []  # [method, devices, virtual replicas]


@pytest.mark.slow
def test_logical_devices_reduce_the_first_terms_in_bfloat16(on_logical_devices):
    for devices, results in on_logical_devices["bfloat16"].items():
        assert all(result == results[0] for result in results)
        assert_exchanged_in_bfloat16(results[0], int(devices))


@pytest.mark.slow
def test_processes_sum_along_the_tree_between_other_collectives(on_workers):
    for survivor in range(WORKERS - 1):
        report = on_workers.report(survivor)
        assert report["wrong"] == []  # virtual replicas
        assert_exchanged_in_bfloat16(report["bfloat16"], WORKERS)


@pytest.mark.slow
def test_the_death_of_a_process_during_the_exchange_is_detected_at_once(on_workers):
    assert on_workers.processes[-1].returncode == -signal.SIGKILL
    for survivor in range(WORKERS - 1):
        report = on_workers.report(survivor)
        assert report["error"] == "UnavailableError"
        assert report["seconds"] < 20
