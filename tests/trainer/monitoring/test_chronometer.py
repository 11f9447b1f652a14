import pytest

from convoy.trainer.callbacks.step_timer import Chronometer


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cpu_clock():
    return Clock()


@pytest.fixture
def chronometer(clock, cpu_clock):
    return Chronometer(images_per_step=32, clock=clock, cpu_clock=cpu_clock)


def take_step(chronometer, clock, *, waiting, computing):
    with chronometer.waiting():
        clock.passes(waiting)
    clock.passes(computing)
    chronometer.end_step()


def take_first_steps(chronometer, clock):
    for seconds in (20.0, 5.0, 5.0):
        take_step(chronometer, clock, waiting=seconds / 2, computing=seconds / 2)


def test_a_window_holds_the_speed_the_median_and_the_share_of_waiting(chronometer, clock):
    for waiting, computing in ((1.0, 3.0), (0.5, 1.5), (0.0, 2.0)):
        take_step(chronometer, clock, waiting=waiting, computing=computing)
    window = chronometer.window()
    assert window.steps == 3
    assert window.images_per_second == 3 * 32 / 8.0
    assert window.step_ms_p50 == 2000.0
    assert window.step_ms_p95 == pytest.approx(2000.0 + 0.9 * 2000.0)
    assert window.input_wait_pct == 100 * 1.5 / 8.0


def test_time_before_the_first_wait_is_no_part_of_the_first_step(chronometer, clock):
    clock.passes(60.0)
    take_step(chronometer, clock, waiting=1.0, computing=1.0)
    assert chronometer.window().step_ms_p50 == 2000.0


def test_a_window_forgets_the_one_before(chronometer, clock):
    take_step(chronometer, clock, waiting=0.0, computing=9.0)
    chronometer.window()
    take_step(chronometer, clock, waiting=0.25, computing=0.75)
    window = chronometer.window()
    assert (window.steps, window.step_ms_p50, window.input_wait_pct) == (1, 1000.0, 25.0)


def test_a_pause_between_two_steps_counts_for_neither(chronometer, clock):
    take_step(chronometer, clock, waiting=0.0, computing=1.0)
    with chronometer.paused():
        clock.passes(30.0)
    take_step(chronometer, clock, waiting=0.0, computing=1.0)
    assert chronometer.window().images_per_second == 32.0


def test_time_that_the_loop_spends_between_steps_counts_for_the_next(chronometer, clock):
    take_step(chronometer, clock, waiting=0.0, computing=1.0)
    clock.passes(0.5)
    take_step(chronometer, clock, waiting=0.0, computing=1.0)
    assert chronometer.window().images_per_second == 2 * 32 / 2.5


def test_the_steady_speed_leaves_out_the_first_three_steps_and_pauses(chronometer, clock):
    for seconds in (20.0, 5.0, 5.0):
        take_step(chronometer, clock, waiting=0.0, computing=seconds)
        assert chronometer.steady_images_per_second() is None
    for _ in range(4):
        take_step(chronometer, clock, waiting=0.1, computing=0.4)
        with chronometer.paused():
            clock.passes(7.0)
    assert chronometer.steady_images_per_second() == pytest.approx(32 / 0.5)


def test_a_clock_that_stands_still_gives_no_division_by_zero(chronometer, clock):
    take_step(chronometer, clock, waiting=0.0, computing=0.0)
    window = chronometer.window()
    assert window.step_ms_p50 == 0.0
    assert window.input_wait_pct == 0.0


def test_a_window_leaves_out_the_first_three_steps_where_it_has_others(chronometer, clock):
    take_first_steps(chronometer, clock)
    take_step(chronometer, clock, waiting=0.25, computing=0.75)
    window = chronometer.window()
    assert (window.steps, window.step_ms_mean, window.input_wait_pct) == (1, 1000.0, 25.0)


def test_the_cores_that_computed_are_counted_without_pauses(chronometer, clock, cpu_clock):
    for _ in range(2):
        cpu_clock.passes(1.5)
        take_step(chronometer, clock, waiting=0.0, computing=1.0)
        with chronometer.paused():
            clock.passes(30.0)
            cpu_clock.passes(45.0)
    assert chronometer.window().cores_busy == pytest.approx(1.5 / 2)  # of the first step what came after its start


def test_the_steady_steps_are_those_after_the_first_three_over_all_windows(chronometer, clock):
    take_first_steps(chronometer, clock)
    assert (chronometer.steady(), chronometer.steady_steps) == (None, 0)
    for waiting, computing in ((0.0, 1.0), (1.0, 2.0)):
        take_step(chronometer, clock, waiting=waiting, computing=computing)
        chronometer.window()
    steady = chronometer.steady()
    assert (steady.steps, chronometer.steady_steps) == (2, 2)
    assert (steady.step_ms_mean, steady.input_wait_pct) == (2000.0, 25.0)
    assert steady.images_per_second == chronometer.steady_images_per_second() == 16.0


def test_steps_that_compile_anew_are_no_part_of_the_steady_speed(chronometer, clock):
    take_first_steps(chronometer, clock)
    take_step(chronometer, clock, waiting=0.0, computing=1.0)
    chronometer.warm_up()
    take_first_steps(chronometer, clock)
    take_step(chronometer, clock, waiting=0.0, computing=3.0)
    assert chronometer.steady_images_per_second() == 2 * 32 / 4.0
    assert chronometer.seconds()["steps"] == 64.0
