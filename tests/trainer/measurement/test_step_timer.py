import pytest

from convoy.trainer.measurement.step_timer import StepTimer


class Clock:
    """A clock that a test advances."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cpu_clock():
    return Clock()


@pytest.fixture
def step_timer(clock, cpu_clock):
    return StepTimer(images_per_step=32, clock=clock, cpu_clock=cpu_clock)


def take_step(step_timer, clock, *, waiting, computing):
    with step_timer.waiting():
        clock.advance(waiting)
    clock.advance(computing)
    step_timer.end_step()


def take_warmup_steps(step_timer, clock):
    for seconds in (20.0, 5.0, 5.0):
        take_step(step_timer, clock, waiting=seconds / 2, computing=seconds / 2)


def test_window_has_throughput_percentiles_and_input_wait(step_timer, clock):
    for waiting, computing in ((1.0, 3.0), (0.5, 1.5), (0.0, 2.0)):
        take_step(step_timer, clock, waiting=waiting, computing=computing)
    window = step_timer.window()
    assert window.steps == 3
    assert window.images_per_second == 3 * 32 / 8.0
    assert window.step_ms_p50 == 2000.0
    assert window.step_ms_p95 == pytest.approx(2000.0 + 0.9 * 2000.0)
    assert window.input_wait_pct == 100 * 1.5 / 8.0


def test_time_before_the_first_wait_does_not_count(step_timer, clock):
    clock.advance(60.0)
    take_step(step_timer, clock, waiting=1.0, computing=1.0)
    assert step_timer.window().step_ms_p50 == 2000.0


def test_window_covers_only_steps_since_the_last_one(step_timer, clock):
    take_step(step_timer, clock, waiting=0.0, computing=9.0)
    step_timer.window()
    take_step(step_timer, clock, waiting=0.25, computing=0.75)
    window = step_timer.window()
    assert (window.steps, window.step_ms_p50, window.input_wait_pct) == (1, 1000.0, 25.0)


def test_pause_between_steps_does_not_count(step_timer, clock):
    take_step(step_timer, clock, waiting=0.0, computing=1.0)
    with step_timer.paused("evaluation"):
        clock.advance(30.0)
    take_step(step_timer, clock, waiting=0.0, computing=1.0)
    assert step_timer.window().images_per_second == 32.0


def test_time_between_steps_counts_for_the_next_step(step_timer, clock):
    take_step(step_timer, clock, waiting=0.0, computing=1.0)
    clock.advance(0.5)
    take_step(step_timer, clock, waiting=0.0, computing=1.0)
    assert step_timer.window().images_per_second == 2 * 32 / 2.5


def test_steady_throughput_excludes_warmup_and_pauses(step_timer, clock):
    for seconds in (20.0, 5.0, 5.0):
        take_step(step_timer, clock, waiting=0.0, computing=seconds)
        assert step_timer.steady_images_per_second() is None
    for _ in range(4):
        take_step(step_timer, clock, waiting=0.1, computing=0.4)
        with step_timer.paused("evaluation"):
            clock.advance(7.0)
    assert step_timer.steady_images_per_second() == pytest.approx(32 / 0.5)


def test_clock_without_progress_causes_no_division_by_zero(step_timer, clock):
    take_step(step_timer, clock, waiting=0.0, computing=0.0)
    window = step_timer.window()
    assert window.step_ms_p50 == 0.0
    assert window.input_wait_pct == 0.0


def test_window_excludes_warmup_if_it_has_other_steps(step_timer, clock):
    take_warmup_steps(step_timer, clock)
    take_step(step_timer, clock, waiting=0.25, computing=0.75)
    window = step_timer.window()
    assert (window.steps, window.step_ms_mean, window.input_wait_pct) == (1, 1000.0, 25.0)


def test_busy_cores_are_measured_without_pauses(step_timer, clock, cpu_clock):
    for _ in range(2):
        cpu_clock.advance(1.5)
        take_step(step_timer, clock, waiting=0.0, computing=1.0)
        with step_timer.paused("evaluation"):
            clock.advance(30.0)
            cpu_clock.advance(45.0)
    assert step_timer.window().cores_busy == pytest.approx(1.5 / 2)  # without CPU time before the first step


def test_steady_covers_all_windows_without_warmup(step_timer, clock):
    take_warmup_steps(step_timer, clock)
    assert (step_timer.steady(), step_timer.steady_steps) == (None, 0)
    for waiting, computing in ((0.0, 1.0), (1.0, 2.0)):
        take_step(step_timer, clock, waiting=waiting, computing=computing)
        step_timer.window()
    steady = step_timer.steady()
    assert (steady.steps, step_timer.steady_steps) == (2, 2)
    assert (steady.step_ms_mean, steady.input_wait_pct) == (2000.0, 25.0)
    assert steady.images_per_second == step_timer.steady_images_per_second() == 16.0


def test_steps_after_warm_up_call_are_excluded_from_steady_throughput(step_timer, clock):
    take_warmup_steps(step_timer, clock)
    take_step(step_timer, clock, waiting=0.0, computing=1.0)
    step_timer.warm_up()
    take_warmup_steps(step_timer, clock)
    take_step(step_timer, clock, waiting=0.0, computing=3.0)
    assert step_timer.steady_images_per_second() == 2 * 32 / 4.0
    assert step_timer.seconds()["steps"] == 64.0
