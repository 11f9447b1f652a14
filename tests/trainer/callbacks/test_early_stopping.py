"""When a run that no longer improves stops."""

import math
from types import SimpleNamespace

import pytest

from convoy.core.errors import UsageError
from convoy.trainer.callbacks.callback import Evaluation
from convoy.trainer.callbacks.early_stopping import EarlyStopping
from convoy.trainer.step.metrics import MetricSet


class FakeTraining:
    def __init__(self, splits=("train", "validation")):
        objective = SimpleNamespace(metrics=MetricSet({"mine": None}))
        self.session = SimpleNamespace(dataset=SimpleNamespace(splits=splits), objective=objective)
        self.stops = []

    def request_stop(self, reason, *, resumable):
        self.stops.append(resumable)


def stops_at(stopping, values, *, training=None):
    """Returns the number of the evaluation after which the run stops; None if it does not."""
    training = training or FakeTraining()
    for number, value in enumerate(values, 1):
        metrics = {stopping._metric: value}
        stopping.on_evaluation(training, Evaluation(10 * number, 0.0, "validation", metrics, {}, False, value))
        if training.stops:
            assert training.stops == [False]
            return number
    return None


@pytest.mark.parametrize(
    ("options", "values", "stop"),
    [
        ({"patience": 2}, [0.1, 0.2, 0.3, 0.4], None),
        ({"patience": 2}, [0.1, 0.3, 0.2, 0.25, 0.4], 4),
        ({"patience": 1}, [0.3, 0.3], 2),  # the same is no improvement
        ({"patience": 2}, [0.3, 0.2, 0.4, 0.3, 0.3], 5),  # an improvement starts the count again
        ({"patience": 1, "min_delta": 0.1}, [0.3, 0.45, 0.5], 3),
        ({"patience": 1, "metric": "loss"}, [2.0, 1.0, 1.5], 3),  # a lower loss is better
        ({"patience": 1, "metric": "mine", "mode": "min"}, [2.0, 1.0, 0.5], None),
        ({"patience": 2}, [0.2, float("nan"), float("nan")], 3),
    ],
)
def test_stops_after_evaluations_without_improvement(options, values, stop):
    assert stops_at(EarlyStopping(**options), values) == stop


def test_a_resumed_run_counts_on():
    before = EarlyStopping(3)
    assert stops_at(before, [0.5, 0.4]) is None
    after = EarlyStopping(3)
    after.restore(before.state())
    assert stops_at(after, [0.4, 0.45]) == 2


def test_a_run_that_was_stopped_stops_at_its_start_unless_it_may_wait_longer():
    before = EarlyStopping(1)
    assert stops_at(before, [0.5, 0.4]) == 2
    for patience, stops in ((1, [False]), (2, [])):
        after, training = EarlyStopping(patience), FakeTraining()
        after.restore(before.state())
        after.on_start(training)
        assert training.stops == stops


def test_what_cannot_be_watched_is_refused():
    with pytest.raises(UsageError, match="validation split"):
        EarlyStopping(1).on_start(FakeTraining(splits=("train",)))
    EarlyStopping(1, metric="mine").on_start(FakeTraining())
    with pytest.raises(UsageError, match="'top5'"):
        EarlyStopping(1, metric="top2").on_start(FakeTraining())


@pytest.mark.parametrize(
    "wrong", [{"patience": 0}, {"patience": "3"}, {"min_delta": -1.0}, {"min_delta": math.nan}, {"mode": "lower"}]
)
def test_values_out_of_range_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UsageError, match=f"{name}={value!r}"):
        EarlyStopping(**{"patience": 1, **wrong})
