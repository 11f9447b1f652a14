"""Losses, metrics and schedules of users: what keeps the contract, and the reason given for what does not."""

import pytest
import tensorflow as tf

import convoy
from convoy.core.errors import UsageError
from convoy.trainer import config as configs
from convoy.trainer.session.objective import find_objective

PROGRAM = """
import random
import numpy as np
import tensorflow as tf

def mean(logits, labels):
    return tf.reduce_mean(good(logits, labels))

def column(logits, labels):
    return good(logits, labels)[:, tf.newaxis]

def half(logits, labels):
    return tf.cast(good(logits, labels), tf.float16)

def an_array(logits, labels):
    return np.zeros(len(labels), np.float32)

def infinite(logits, labels):
    return good(logits, labels) / 0.0

def gradient_nan(logits, labels):
    return tf.sqrt(good(logits, labels) * 0.0)

def argmax(logits, labels):
    return tf.cast(tf.argmax(logits, -1, tf.int32) != labels, tf.float32)

def tf_random(logits, labels):
    return good(logits, labels) + tf.random.uniform(tf.shape(labels))

def python_random(logits, labels):
    return good(logits, labels) * random.random()

state = []

def remembers(logits, labels):
    state.append(1)
    return good(logits, labels) * float(len(state))

def of_the_batch(logits, labels):
    losses = good(logits, labels)
    return losses / tf.reduce_mean(losses)

def in_order(logits, labels):
    return good(logits, labels) * tf.range(1.0, tf.shape(labels)[0] + 1)

def not_in_a_graph(logits, labels):
    return good(logits, labels) if float(logits[0, 0]) > 1e9 else good(logits, labels)

def one_argument(logits):
    return logits[:, 0]

def fails(logits, labels):
    raise RuntimeError("reason")

number = 3

def good(logits, labels):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


class Hits:
    size = 2

    def __init__(self, num_classes):
        pass

    def hits(self, logits, labels):
        return tf.cast(tf.argmax(logits, -1, tf.int32) == labels, tf.float32)

    def batch_sums(self, logits, labels, losses, weights):
        return tf.stack([tf.reduce_sum(weights * self.hits(logits, labels)), tf.reduce_sum(weights)])

    def summarize(self, sums):
        return sums[0] / sums[1]

class Means(Hits):
    def batch_sums(self, *batch):
        sums = super().batch_sums(*batch)
        return sums / sums[1]

class Unweighted(Hits):
    def batch_sums(self, logits, labels, losses, weights):
        return super().batch_sums(logits, labels, losses, tf.ones_like(weights))

class OtherSize(Hits):
    size = 3

class Random(Hits):
    def hits(self, logits, labels):
        return tf.random.uniform(tf.shape(labels))

class NoSize:
    def __init__(self, num_classes):
        pass

class ZeroSize(Hits):
    size = 0

class Nan(Hits):
    def summarize(self, sums):
        return float("nan")

class InADict(Hits):
    def summarize(self, sums):
        return {"hits": sums[0]}

class loss(Hits):
    pass
"""
SCHEDULES = """
import random

calls = []

def nan(step, total_steps, peak):
    return peak if step < 5 else float("nan")

def negative(step, total_steps, peak):
    return peak * (0.5 - step / total_steps)

def text(step, total_steps, peak):
    return "peak"

def drawn(step, total_steps, peak):
    return peak * random.random()

def remembers(step, total_steps, peak):
    calls.append(step)
    return peak / len(calls)

def zero(step, total_steps, peak):
    return 0.0

def needs_more(step, total_steps, peak, cycles):
    return peak * cycles

def good(step, total_steps, peak, factor):
    return peak * factor
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "mine.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def config():
    return configs.default_config()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mean", r"\[\] float32"),
        ("column", r"\[24, 1\] float32"),
        ("half", "float16"),
        ("an_array", "ndarray"),
        ("infinite", "NaN or infinite"),
        ("gradient_nan", "gradient.*NaN"),
        ("argmax", "no gradient"),
        ("tf_random", "not a pure function"),
        ("python_random", "not a pure function"),
        ("remembers", "not a pure function"),
        ("of_the_batch", "virtual replicas"),
        ("in_order", "virtual replicas"),
        ("not_in_a_graph", "fails"),
        ("one_argument", r"\(logits\)"),
        ("fails", "RuntimeError: reason"),
        ("number", "int"),
        ("god", "'good'"),
    ],
)
def test_losses_that_are_refused(program, config, name, reason):
    config.loss.name = f"{program}:{name}"
    with pytest.raises(UsageError, match=rf"config\.loss\.name='.*mine\.py:{name}'.*{reason}") as caught:
        find_objective(config, num_classes=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Means", "add up"),
        ("Unweighted", "weight 0"),
        ("OtherSize", r"\[2\] float32, not \[3\]"),
        ("Random", "not a pure function"),
        ("NoSize", "no size"),
        ("ZeroSize", "size=0"),
        ("Nan", "nan"),
        ("InADict", "hits"),
        ("good", "fails|takes"),
        ("loss", "'loss'"),
    ],
)
def test_metrics_that_are_refused(program, config, name, reason):
    config.metrics = f"mcc, {program}:{name}"
    with pytest.raises(UsageError, match=rf"config\.metrics='.*mine\.py:{name}'.*{reason}") as caught:
        find_objective(config, num_classes=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nan", "nan at step 5"),
        ("negative", "returns -"),
        ("text", "'peak'"),
        ("drawn", "called again"),
        ("remembers", "called again"),
        ("zero", "returns 0"),
        ("needs_more", "cycles"),
    ],
)
def test_schedules_that_are_refused(tmp_path, config, name, reason):
    (tmp_path / "schedules.py").write_text(SCHEDULES)
    config.schedule.name = f"{tmp_path}/schedules.py:{name}"
    with pytest.raises(UsageError, match=rf"config\.schedule\.name='.*{name}'.*{reason}"):
        configs.resolve(config, num_images=640, replicas=1)


def test_pieces_that_keep_their_contracts(program, tmp_path, config):
    (tmp_path / "schedules.py").write_text(SCHEDULES)
    config.loss.name, config.metrics = f"{program}:good", f"brier, {program}:Hits"
    config.schedule.update({"name": f"{tmp_path}/schedules.py:good", "factor": 0.25, "warmup_steps": 2})
    objective = find_objective(config, num_classes=3)
    assert objective.metrics.names == ["brier", "Hits"]
    assert objective.found["loss"].digests.keys() == objective.found["metric-1"].digests.keys() == {"mine.py"}
    plan = configs.resolve(config, num_images=640, replicas=1)
    rates = [configs.learning_rate_of(config, plan, step) / plan.peak_learning_rate for step in range(4)]
    assert rates == pytest.approx([0.5, 1.0, 0.25, 0.25])
    assert "schedule" not in plan.as_dict()


def test_pieces_of_this_process(config):
    loss = convoy.register_loss("loss_of_test")(
        lambda logits, labels: tf.nn.softplus(-tf.gather(logits, labels, batch_dims=1))
    )

    @convoy.register_metric("metric_of_test")
    class Images:
        size = 1

        def __init__(self, num_classes):
            pass

        def batch_sums(self, logits, labels, losses, weights):
            return tf.reduce_sum(weights)[tf.newaxis]

        def summarize(self, sums):
            return sums[0]

    config.loss.name, config.metrics = "loss_of_test", "metric_of_test"
    objective = find_objective(config, num_classes=3)
    assert objective.loss is loss
    logits, labels = tf.zeros([5, 3]), tf.zeros([5], tf.int32)
    sums = objective.metrics.batch_sums(logits, labels, loss(logits, labels)).numpy()
    assert objective.metrics.summarize(sums)["metric_of_test"] == 5


def test_runs_of_earlier_versions_have_neither_loss_nor_metrics(config):
    with config.unlocked():
        del config["loss"], config["metrics"]
    assert find_objective(config, num_classes=3).metrics.names == []
