import pytest

from benchmarks import cost_model
from benchmarks.cost_model import Link
from benchmarks.scaling import predicted


def test_ring_of_four():
    assert cost_model.all_reduce_bytes(4, 1e6) == 1.5e6
    assert cost_model.all_reduce_messages(4) == 6
    # 1.5 MB at 1 GB/s, and six times 100 us.
    assert cost_model.all_reduce_seconds(4, 1e6, Link(1e9, 1e-4)) == pytest.approx(1.5e-3 + 0.6e-3)


def test_two_devices_send_each_value_once():
    # 45 MB at 100 Mbit/s = 12.5 MB/s, and two times 1 ms.
    link = Link.of_gigabits(0.1, latency_seconds=1e-3)
    assert cost_model.all_reduce_seconds(2, 45e6, link) == pytest.approx(3.6 + 2e-3)


def test_halving_sends_as_many_bytes_in_logarithmically_many_messages():
    assert [cost_model.all_reduce_messages(devices, "halving") for devices in (1, 2, 8, 512)] == [0, 2, 6, 18]
    assert cost_model.all_reduce_messages(6, "halving") == 6
    # 2 * 7/8 * 8 MB at 1 GB/s, and six times 1 ms; a ring takes fourteen.
    link = Link(1e9, 1e-3)
    assert cost_model.all_reduce_seconds(8, 8e6, link, "halving") == pytest.approx(14e-3 + 6e-3)
    assert cost_model.all_reduce_seconds(8, 8e6, link) == pytest.approx(14e-3 + 14e-3)


def test_one_device_needs_no_reduction():
    assert cost_model.all_reduce_seconds(1, 1e9, Link(1.0, 1.0)) == 0
    assert cost_model.all_reduce_seconds(1, 1e9, Link(1.0, 1.0), "halving") == 0
    assert cost_model.efficiency(0.1, cost_model.step_seconds(0.1, 0.0)) == 1


def test_reduction_adds_to_the_step_unless_overlapped():
    assert cost_model.step_seconds(0.1, 0.025) == pytest.approx(0.125)
    assert cost_model.efficiency(0.1, 0.125) == pytest.approx(0.8)
    assert cost_model.step_seconds(0.1, 0.025, overlap=0.2) == pytest.approx(0.105)
    assert cost_model.step_seconds(0.1, 0.025, overlap=0.5) == 0.1


def test_bfloat16_halves_the_bytes():
    assert cost_model.reduced_bytes(11_253_258, 4) == 45_013_032
    assert cost_model.reduced_bytes(11_253_258, 2) == 22_506_516


def test_measured_link_explains_the_measurements():
    link = cost_model.measured_link(2, 4e6, reduction_seconds=0.012, tiny_seconds=0.002)
    assert link.latency_seconds == pytest.approx(1e-3)
    assert link.bytes_per_second == pytest.approx(4e8)
    assert cost_model.all_reduce_seconds(2, 4e6, link) == pytest.approx(0.012)


def test_prediction_follows_from_its_assumptions():
    rows = list(predicted(1_000_000, images_per_second=10_000, batch_size=100, latency_seconds=1e-5))
    assert len(rows) == 3 * 2 * 2 * 3
    chosen = {(r["devices"], r["shape"], r["precision"], r["gigabits_per_second"]): r for r in rows}
    # 2 * 7/8 * 4 MB at 12.5 GB/s = 0.56 ms, 14 messages of 10 us; the step computes for 10 ms.
    row = chosen[8, "ring", "float32", 100]
    assert row["reduction_seconds"] == pytest.approx(0.56e-3 + 0.14e-3)
    assert row["efficiency"] == pytest.approx(10 / 10.7)
    # 2 * 511/512 * 2 MB at 3.125 GB/s = 1.2775 ms, 18 messages.
    row = chosen[512, "halving", "bfloat16", 25]
    assert row["reduction_seconds"] == pytest.approx(1.2775e-3 + 0.18e-3)
