import math

import pytest

from convoy.trainer.config.schedules import SCALINGS, SCHEDULES, learning_rate, scaled_peak

BUILT_IN = ("constant", "cosine", "step")


def rate_of(step, *, name="constant", total_steps, peak, warmup_steps=0, **fields):
    return learning_rate(
        SCHEDULES.find(name), step, total_steps=total_steps, peak=peak, warmup_steps=warmup_steps, fields=fields
    )


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_schedule_warms_up_linearly_to_the_peak(name):
    rates = [rate_of(step, total_steps=100, peak=0.8, name=name, warmup_steps=4) for step in range(5)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])


def test_without_warmup_the_first_step_uses_the_peak_rate():
    for name in BUILT_IN:
        assert rate_of(0, total_steps=10, peak=0.5, name=name) == 0.5


def test_constant_stays_at_the_peak():
    assert {rate_of(step, total_steps=50, peak=0.3, warmup_steps=5) for step in range(5, 50)} == {0.3}


def test_cosine_falls_from_the_peak_to_the_final_fraction():
    def rate(step):
        return rate_of(step, total_steps=110, peak=2.0, name="cosine", warmup_steps=10, final_fraction=0.1)

    assert rate(10) == pytest.approx(2.0)
    assert rate(60) == pytest.approx((2.0 + 0.2) / 2)  # halfway
    assert rate(35) == pytest.approx(0.2 + 1.8 * (1 + math.sqrt(0.5)) / 2)  # a quarter of the way
    assert rate(110) == pytest.approx(0.2)
    rates = [rate(step) for step in range(10, 110)]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 100


def test_cosine_ends_at_zero_and_stays_there_after_the_end():
    assert rate_of(99, total_steps=100, peak=1.0, name="cosine") == pytest.approx(0.000246720, rel=1e-4)
    assert rate_of(100, total_steps=100, peak=1.0, name="cosine") == pytest.approx(0.0, abs=1e-15)
    assert rate_of(150, total_steps=100, peak=1.0, name="cosine") == pytest.approx(0.0, abs=1e-15)


def test_a_run_of_only_warmup_is_possible():
    rates = [rate_of(step, total_steps=5, peak=1.0, name="cosine", warmup_steps=5) for step in range(5)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_step_decay_multiplies_by_the_factor_at_each_boundary():
    def rate(step):
        return rate_of(
            step, total_steps=100, peak=1.0, name="step", boundaries=(0.3, 0.6, 0.9), factor=0.1, warmup_steps=2
        )

    expected = {2: 1.0, 29: 1.0, 30: 0.1, 59: 0.1, 60: 0.01, 89: 0.01, 90: 0.001, 99: 0.001}
    for step, value in expected.items():
        assert rate(step) == pytest.approx(value), step


def test_the_rate_scales_with_the_batch_size():
    scaled = {
        scaling: scaled_peak(0.1, scaling=scaling, batch_size=1024, reference_batch_size=256) for scaling in SCALINGS
    }
    assert scaled == pytest.approx({"none": 0.1, "linear": 0.4, "sqrt": 0.2})


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_reference_batch_size_keeps_the_rate(scaling):
    assert scaled_peak(0.3, scaling=scaling, batch_size=64, reference_batch_size=64) == 0.3


def test_a_smaller_batch_gets_a_smaller_rate():
    assert scaled_peak(0.4, scaling="linear", batch_size=64, reference_batch_size=256) == pytest.approx(0.1)
