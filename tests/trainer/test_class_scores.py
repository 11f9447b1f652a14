"""Exact metrics of several labels per image, against scikit-learn."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve

from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.evaluation import class_scores
from convoy.trainer.evaluation.class_pictures import LabelCounts
from convoy.trainer.evaluation.class_scores import ScoreCollector, best_threshold
from convoy.trainer.evaluation.counts import CURVES, MISTAKES
from convoy.trainer.run.task import MULTI_LABEL, SINGLE_LABEL, Decision, task_of

RANDOM = np.random.default_rng(0)
TARGETS = RANDOM.random((300, 6)) < np.array([0.5, 0.3, 0.2, 0.1, 0.02, 0.0])
# Rounded, so that there are ties.
PROBABILITIES = np.round(0.6 * RANDOM.random(TARGETS.shape) + 0.3 * TARGETS, 2).astype(np.float32)
OCCURS = TARGETS.any(0)


def collected(*parts):
    collector = ScoreCollector()
    for part in parts:
        collector.add(TARGETS[part].astype(np.float32), PROBABILITIES[part])
    return collector


class Exchanging:
    """Two workers in one process, in the place of a `WorkerGroup`."""

    num_workers = 2

    def __init__(self):
        self._values, self._barrier = {}, threading.Barrier(2)

    def at(self, rank):
        worker = Exchanging.__new__(Exchanging)
        worker.__dict__ = {**self.__dict__, "rank": rank}
        return worker

    def exchange(self, name, value, *, seconds=None):
        self._values[self.rank] = value
        self._barrier.wait()
        gathered = [self._values[rank] for rank in range(2)]
        self._barrier.wait()
        return gathered


def on_two_workers(work):
    """Returns the results of `work` on two workers with a part of the images each."""
    group, found = Exchanging(), {}

    def run(rank, part):
        found[rank] = work(part, group.at(rank))

    threads = [threading.Thread(target=run, args=args) for args in ((0, slice(0, 170)), (1, slice(170, 300)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[0], found[1]]


def test_average_precision_and_f1_are_those_of_scikit_learn():
    scores = collected(slice(0, 100), slice(100, 300)).gather(WorkerGroup(None))
    predicted = scores.thresholds <= PROBABILITIES
    expected = average_precision_score(TARGETS[:, OCCURS], PROBABILITIES[:, OCCURS], average=None)
    np.testing.assert_allclose(scores.average_precision[OCCURS], expected)
    assert np.isnan(scores.average_precision[~OCCURS]).all()
    quality = scores.quality()
    assert quality["mean_average_precision"] == pytest.approx(expected.mean())
    assert quality["micro_f1"] == pytest.approx(f1_score(TARGETS, predicted, average="micro"))
    occurs = OCCURS | predicted.any(0)
    assert quality["macro_f1"] == pytest.approx(f1_score(TARGETS[:, occurs], predicted[:, occurs], average="macro"))


def test_thresholds_have_the_highest_f1():
    for label in np.flatnonzero(OCCURS):
        precision, recall, _ = precision_recall_curve(TARGETS[:, label], PROBABILITIES[:, label])
        best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))
        threshold = best_threshold(TARGETS[:, label], PROBABILITIES[:, label])
        assert f1_score(TARGETS[:, label], PROBABILITIES[:, label] >= threshold) == pytest.approx(best)
        assert np.abs(PROBABILITIES[:, label] - threshold).min() > 1e-3  # between two probabilities
    assert best_threshold(TARGETS[:, ~OCCURS][:, 0], PROBABILITIES[:, 0]) == 0.5


@pytest.mark.parametrize("at_once", [2**20, 500])
def test_workers_get_what_one_process_gets(monkeypatch, at_once):
    monkeypatch.setattr(class_scores, "_EXCHANGED", at_once)
    alone = collected(slice(0, 300)).gather(WorkerGroup(None))
    for scores in on_two_workers(lambda part, worker: collected(part).gather(worker)):
        assert scores.quality() == alone.quality()
        np.testing.assert_array_equal(scores.thresholds, alone.thresholds)
        np.testing.assert_array_equal(scores.histograms, alone.histograms)


def test_pictures_are_of_the_most_confident_mistakes_of_all_workers():
    scores = collected(slice(0, 300)).gather(WorkerGroup(None))

    def gathered(part, worker):
        counts = LabelCounts(SimpleNamespace(scores=scores))  # the evaluator
        counts.add(np.arange(300)[part], TARGETS[part].astype(np.float32), PROBABILITIES[part])
        return counts.gather(worker)

    is_label = scores.thresholds <= PROBABILITIES
    worst = np.where(is_label != TARGETS, np.where(is_label, PROBABILITIES, 1 - PROBABILITIES), 0).max(1)
    expected = np.argsort(-worst, kind="stable")[:MISTAKES]
    first, second = on_two_workers(gathered)
    assert [mistake.index for mistake in first.mistakes] == expected.tolist()
    for mistake in first.mistakes:
        assert mistake.is_extra == is_label[mistake.index, mistake.label] != TARGETS[mistake.index, mistake.label]
    assert first.mistakes == second.mistakes == gathered(slice(0, 300), WorkerGroup(None)).mistakes
    shown = sorted(np.flatnonzero(OCCURS), key=lambda label: scores.f1[label])[:CURVES]
    assert list(first.curves) == [-1, *shown]
    assert first.curves[-1].sum() == TARGETS.size


def test_decisions():
    probabilities = np.float32([0.2, 0.9, 0.6])
    one, several = Decision(("a", "b", "c")), Decision(("a", "b", "c"), [0.1, 0.95, 0.5], ";")
    assert (one.labels(probabilities), one.text(probabilities)) == ([1], "b")
    assert (several.labels(probabilities), several.text(probabilities)) == ([2, 0], "a;c")
    assert several.text(np.zeros(3)) == ""


def test_tasks():
    assert task_of({}) is SINGLE_LABEL
    assert task_of({"multi_label": True}) is MULTI_LABEL
