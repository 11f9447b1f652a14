import numpy as np
import pytest

from convoy.trainer.evaluation.report.power_law import LEVEL, fit

IMAGES = (250, 500, 1000)


def errors_of(factor, exponent, evaluated, images=IMAGES):
    """Returns the expected number of errors of each point, rounded."""
    return [round(evaluated * factor * number**-exponent) for number in images]


@pytest.mark.parametrize(("factor", "exponent"), [(2.0, 0.3), (1.5, 0.5), (0.9, 0.05), (20.0, 1.0)])
def test_exact_points_give_their_power_law(factor, exponent):
    evaluated = 10**8
    law = fit(IMAGES, errors_of(factor, exponent, evaluated), [evaluated] * 3)
    assert law.exponent == pytest.approx(exponent, rel=1e-3)
    assert law.factor == pytest.approx(factor, rel=1e-2)
    for images in (2000, 4000):
        expected = 1 - factor * images**-exponent
        low, high = law.interval(images)
        assert law.accuracy(images) == pytest.approx(expected, abs=1e-3)
        assert low < law.accuracy(images) < high < low + 0.01
    assert law.falling == 1.0


def test_two_points_are_fitted_exactly():
    law = fit([100, 400], [400_000, 200_000], [10**6] * 2)
    assert law.accuracy(1600) == pytest.approx(0.9, abs=1e-4)


def test_a_point_on_more_images_counts_more():
    evaluated = 10**4
    exact = errors_of(2.0, 0.3, evaluated)
    few = [exact[0], exact[1], 12]
    law = fit(IMAGES, few, [evaluated, evaluated, 50])
    equally = fit(IMAGES, [exact[0], exact[1], 12 * evaluated // 50], [evaluated] * 3)
    assert abs(law.exponent - 0.3) < abs(equally.exponent - 0.3)


def test_intervals_contain_the_truth_as_often_as_they_say():
    rng, truth, evaluated, hits, trials = np.random.default_rng(0), 1 - 3.0 * 2000**-0.4, 400, 0, 300
    rates = 3.0 * np.array(IMAGES, float) ** -0.4
    for _ in range(trials):
        low, high = fit(IMAGES, rng.binomial(evaluated, rates).tolist(), [evaluated] * 3).interval(2000)
        hits += low <= truth <= high
    assert LEVEL - 0.05 <= hits / trials <= 1.0


def test_an_extrapolation_is_less_certain_the_further_it_is():
    law = fit(IMAGES, errors_of(3.0, 0.4, 500), [500] * 3)
    widths = [np.diff(law.interval(images))[0] / (1 - law.accuracy(images)) for images in (1000, 2000, 4000)]
    assert widths == sorted(widths)


def test_points_off_the_line_widen_the_interval():
    on_line, off_line = ([200, 140, 98], [200, 98, 140])
    widths = [np.diff(fit(IMAGES, errors, [1000] * 3).interval(2000))[0] for errors in (on_line, off_line)]
    assert widths[1] > 2 * widths[0]


@pytest.mark.parametrize("errors", [[5, 2, 0], [0, 0, 0], [40, 0, 0], [50, 50, 50]])
def test_any_counts_give_finite_accuracies(errors):
    law = fit(IMAGES, errors, [50] * 3)
    for images in (1000, 2000, 4000):
        low, high = law.interval(images)
        assert 0 <= low <= high <= 1 and 0 <= law.accuracy(images) <= 1


def test_an_error_that_rises_is_not_said_to_fall():
    law = fit(IMAGES, [20, 30, 45], [300] * 3)
    assert law.exponent < 0 and law.falling < 0.05


def test_it_is_the_same_each_time():
    first, second = (fit(IMAGES, [60, 41, 30], [300] * 3) for _ in range(2))
    assert first.interval(2000) == second.interval(2000)
