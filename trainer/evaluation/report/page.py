"""Writes the report of a run: its page, its confusion matrix as a picture, and its model card.

    write_report(RunDirectory("run"))        # report.html, confusion_matrix.png, MODEL_CARD.md

Reads the run directory, and the dataset for thumbnails only. The page is one file without scripts; its
Content-Security-Policy allows only its own style and pictures.
"""

import dataclasses
import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.core.files import write_whole, written_whole
from convoy.core.html.templates import page_template
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.dataset.recorded_view import view_of
from convoy.input_pipeline.dataset.source import check_source_owner
from convoy.input_pipeline.report import pictures
from convoy.trainer.evaluation import heat_maps, label_predictions, predictions
from convoy.trainer.evaluation.lettering import legend, names_in_pictures
from convoy.trainer.evaluation.pictures import confusion_matrix, heat_colors
from convoy.trainer.evaluation.predictions import Evaluation
from convoy.trainer.evaluation.report import analysis, label_section, model_card, plots
from convoy.trainer.evaluation.report.folds import FoldOfReport, fold_curves, over_folds, read_folds
from convoy.trainer.evaluation.report.history import History, read_history
from convoy.trainer.evaluation.report.insights import AnyEvaluated, Evaluated, derive_insights
from convoy.trainer.evaluation.report.label_section import LabelEvaluated
from convoy.trainer.evaluation.report.matrix import matrix_plot
from convoy.trainer.evaluation.report.plots import coverage_chart, learning_curve_chart, line_chart, reliability_chart
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.records import EvaluationRow
from convoy.trainer.run.task import Decision, capitalized

# Limits that keep the page small and readable; all counts are over everything.
_MATRIX_CLASSES = 40
_CLASSES, _WORST, _BEST = 100, 40, 10
_PAIRS, _PAIR_PICTURES = 12, 4
_LABELS, _EVENTS = 24, 20
_COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
_ACCURACIES = (0.9, 0.95, 0.99)
_LEGEND_COLORS = 9
_SECTIONS = {  # of an evaluation: titles by id
    "classes": "Classes",
    "confusion": "Confusion",
    "errors": "Errors",
    "labels": "Labels",
    "calibration": "Calibration",
}
_FIRST_SPLITS = ("train", "validation", "test")


def write_report(run: RunDirectory, *, output: Path | None = None, data: str | None = None) -> list[str]:
    """Writes the report of a run, with the last evaluation of each split; the newest of them comes first.

    Args:
      run: the run directory.
      output: path of the page, which is then the only file written; None for all files, in the run directory.
      data: directory of the evaluated dataset; None for the one it was evaluated from.

    Returns:
      Lines for the user: what was written, and what could not be shown.

    Raises:
      DataError: it is not a run directory, a file in it is damaged, or a file cannot be written.
    """
    history, folds = read_history(run), read_folds(run)
    page, notes = output or run.report, []
    evaluations = predictions.evaluations(run)
    evaluated = _evaluated(run, history, evaluations[0]) if evaluations else None
    older = []
    for evaluation in evaluations[1:]:
        try:
            older.append(_evaluation(run, history, _evaluated(run, history, evaluation), data))
        except DataError as error:
            notes.append(f"No details on {evaluation.split}: {error}")
    try:
        results = _results(history, evaluated)
        if isinstance(evaluated, Evaluated) and not output:
            _draw_matrix(run, history, evaluated)
        # The models of a cross-validation have their own.
        if not output and not folds and not model_card.write(run, history, results, evaluated):
            notes.append(f"{run.model_card} was edited by hand: not overwritten.")
        details = [_evaluation(run, history, evaluated, data), *older] if evaluated else []
        write_whole(page, _page(history, folds, results, evaluated, details).encode("utf-8"))
    except OSError as error:
        raise DataError(
            f"{error.filename or run.path} cannot be written ({error.strerror}). Free disk space, or check that its "
            "folder exists and is writable."
        ) from None
    if run.learning_curve.exists() and not history.learning_curve:
        notes.append(f"No learning curve: {run.learning_curve} is of another result. --learning_curve renews it.")
    reasons = dict.fromkeys(shown["why_no_pictures"] for shown in details)
    notes += [f"No thumbnails: {reason}" for reason in reasons if reason]
    return [*notes, f"Report: {page}"]


def _evaluated(run: RunDirectory, history: History, evaluation: Evaluation) -> AnyEvaluated:
    if history.task.multi_label:
        decision = Decision(history.class_names, evaluation.thresholds, history.dataset.get("label_delimiter", ""))
        return LabelEvaluated.of(evaluation, label_predictions.load(run, evaluation, decision))
    found = predictions.load(run, evaluation, history.class_names)
    return Evaluated.of(evaluation, found, len(history.class_names))


def _draw_matrix(run: RunDirectory, history: History, evaluated: Evaluated) -> None:
    classes = evaluated.classes.most_errors_first()[:_MATRIX_CLASSES]
    names = names_in_pictures(history.class_names)
    title = f"{evaluated.evaluation.split}, {evaluated.evaluation.weights}"
    counts = analysis.confusion_matrix(evaluated.predictions, classes)
    shares = counts[:, :-1] / np.maximum(1, counts.sum(1, keepdims=True))
    with written_whole(run.confusion_matrix) as file:
        confusion_matrix(shares, [names[label] for label in classes], title).save(file, "PNG")


def _results(history: History, evaluated: AnyEvaluated | None) -> list[EvaluationRow]:
    """Returns the newest result on each split, preferably with the weights that were evaluated."""
    weights = (evaluated.evaluation.step, evaluated.evaluation.checkpoint) if evaluated else (None,)
    splits = sorted({row.split for row in history.results}, key=_split_order)
    results = (history.newest_result(split, *weights) for split in splits)
    return [result for result in results if result]


def _page(
    history: History,
    folds: Sequence[FoldOfReport],
    results: Sequence[EvaluationRow],
    evaluated: AnyEvaluated | None,
    details: Sequence[Mapping[str, Any]],
) -> str:
    """Returns the page. `details`: values of `_evaluation` for each split, first for that of `evaluated`."""
    return page_template(Path(__file__).with_name("report.html.j2")).render(
        plots=plots,
        task=history.task,
        sections=label_section.SECTIONS if history.task.multi_label else _SECTIONS,
        name=history.name,
        class_names=history.class_names,
        dataset=history.dataset,
        dataset_name=history.dataset_name,
        evaluation=details[0] if details else None,
        evaluations=details,
        insights=derive_insights(history, evaluated),
        results=results,
        shown_result=_shown_result(evaluated, results),
        last_step=history.last_step,
        result=history.result,
        learning_curve=history.learning_curve,
        learning_curve_chart=history.learning_curve and learning_curve_chart(history.learning_curve),
        folds=folds,
        over_folds=over_folds(folds),
        curves=fold_curves(folds) if folds else _curves(history),
        speed_curve=line_chart({"train": history.curve("train", "perf/images_per_s")}, x_label="step"),
        speed=_speed(history),
        seconds=(history.result or {}).get("seconds") or {},
        limits=dict(_flat((history.result or {}).get("limits") or {})),
        config=dict(_flat(history.config)),
        environment=dict(_flat(history.environment)),
        command=history.command,
        events=_events(history),
        label_smoothing=history.config.get("label_smoothing", 0),
        mixes=any(history.config.get("mix", {}).get(name) for name in ("mixup", "cutmix")),
    )


def _split_order(split: str) -> tuple[int, str]:
    return (_FIRST_SPLITS.index(split) if split in _FIRST_SPLITS else len(_FIRST_SPLITS), split)


def _shown_result(evaluated: AnyEvaluated | None, results: Sequence[EvaluationRow]) -> EvaluationRow | None:
    """Returns the result in the page's header: the evaluation, else the newest result of the last split."""
    if evaluated:
        evaluation = evaluated.evaluation
        quality = {name: np.nan if value is None else value for name, value in evaluation.quality.items()}
        return EvaluationRow(evaluation.split, evaluation.step, quality, evaluation.checkpoint)
    return results[-1] if results else None


def _evaluation(run: RunDirectory, history: History, evaluated: AnyEvaluated, data: str | None) -> dict[str, Any]:
    """Returns the template's values for an evaluation."""
    evaluation = evaluated.evaluation
    facts = {
        "evaluation": evaluation,
        "time": _time_text(evaluation.time),
        "parameters": _rounded(evaluation.parameters),
    }
    if isinstance(evaluated, Evaluated):
        return {**facts, **_error_analysis(run, history, evaluated, data)}

    def thumbnails(wanted: Sequence[int]) -> tuple[dict[int, pictures.Picture], str]:
        return _thumbnails(run, history, evaluation, wanted, data)

    why_none = heat_maps.load(run, evaluation, evaluated.predictions).obstacle
    values = label_section.values_of(evaluated, history.class_names, thumbnails)
    return {**facts, **values, "why_no_heat_maps": why_none}


def _error_analysis(run: RunDirectory, history: History, evaluated: Evaluated, data: str | None) -> dict[str, Any]:
    """Returns the template's values for an evaluation with one label per image."""
    evaluation, found, classes = evaluated.evaluation, evaluated.predictions, evaluated.classes
    names = history.class_names
    in_matrix = classes.most_errors_first()
    shown_in_matrix = in_matrix[:_MATRIX_CLASSES]
    pairs = [(pair, pair.members[:_PAIR_PICTURES]) for pair in evaluated.pairs[:_PAIRS]]
    mistakes = found.mistakes()
    shown_mistakes = mistakes[: heat_maps.NUM_ERRORS]
    heat = heat_maps.load(run, evaluation, found)
    members = [shown_mistakes, evaluated.label_errors[:_LABELS], *(some for _, some in pairs)]
    thumbnails, why_none = _thumbnails(run, history, evaluation, np.concatenate(members).tolist(), data)
    doubtful = set(evaluated.label_errors.tolist())

    def image(i: int) -> dict[str, Any]:
        picture = thumbnails.get(i) or pictures.Picture("", found.filename[i], "", evaluation.split)
        explained = heat.pictures.get(i)
        return {
            "picture": picture,
            "seen": explained and dataclasses.replace(picture, uri=explained["seen"]),
            "heat": explained,
            "label": names[found.label[i]],
            "predicted": names[found.predicted[i]],
            "label_probability": found.label_probability[i],
            "predicted_probability": found.predicted_probability[i],
            "doubtful": i in doubtful,
        }

    coverage = analysis.risk_coverage(found)
    order = classes.worst_first()
    is_cut = len(order) > _CLASSES
    return {
        "num_mistakes": len(mistakes),
        "why_no_pictures": why_none,
        "classes": classes.rows(names, order[:_WORST] if is_cut else order),
        "best_classes": classes.rows(names, order[::-1][:_BEST] if is_cut else order[:0]),
        "num_classes": len(order),
        "matrix": matrix_plot(
            analysis.confusion_matrix(found, shown_in_matrix),
            [names[label] for label in shown_in_matrix],
            complete=len(shown_in_matrix) == len(in_matrix),
        ),
        "matrix_classes": len(shown_in_matrix),
        "class_numbers": legend(names),
        "num_pairs": len(evaluated.pairs),
        "pairs": [
            (names[pair.label], names[pair.predicted], pair.images, classes.support[pair.label], list(map(image, some)))
            for pair, some in pairs
        ],
        "mistakes": [image(i) for i in shown_mistakes.tolist()],
        "heat_colors": heat_colors(_LEGEND_COLORS) if heat.pictures else [],
        "why_no_heat_maps": heat.obstacle,
        "num_doubtful": len(doubtful),
        "label_errors_unreliable": evaluated.label_errors_unreliable,
        "doubtful": [image(i) for i in evaluated.label_errors[:_LABELS].tolist()],
        "reliability": reliability_chart(evaluated.reliability),
        "overconfidence": evaluated.reliability.overconfidence,
        "coverage": coverage_chart(coverage),
        "coverages": [coverage.at_coverage(share) for share in _COVERAGES],
        "accuracies": [(least, coverage.at_accuracy(least)) for least in _ACCURACIES],
    }


def _rounded(number: int) -> str:
    """Returns a count with three significant digits: `1.19 M`."""
    rounded = float(f"{number:.3g}")
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if rounded >= size:
            return f"{rounded / size:.3g} {unit}"
    return str(number)


def _thumbnails(
    run: RunDirectory, history: History, evaluation: Evaluation, wanted: Sequence[int], data: str | None
) -> tuple[dict[int, pictures.Picture], str]:
    """Returns thumbnails by index in the evaluated split, and why there are none."""
    try:
        if not data:
            check_source_owner(evaluation.data, run.evaluation(evaluation.split))
    except UsageError:
        return {}, f"{evaluation.data} is code of another user. Pass --data={evaluation.data} if you trust it."
    try:
        dataset = open_dataset(data or evaluation.data, RecordFormat.from_dict(evaluation.record_format))
        view = view_of(dataset, history.dataset)
        if evaluation.split in view.splits and view.digest(evaluation.split) == evaluation.digest:
            dataset = view
        elif dataset.digest(evaluation.split) != evaluation.digest:
            return {}, f"{dataset.directory} has changed since the evaluation. Evaluate again, or pass --data=DATA."
        split = dataset.split(evaluation.split)
    except ConvoyError as error:
        return {}, f"{error} If the dataset has moved, pass --data=DATA."
    numbered, delimiter = [(split.name, i) for i in wanted], dataset.label_delimiter
    found = pictures.of_records({split.name: split}, history.class_names, numbered, delimiter=delimiter)
    return {i: picture for (_, i), picture in found.items()}, ""


def _curves(history: History) -> list[tuple[str, Any]]:
    task = history.task
    shown = [
        (capitalized(task.score_title), f"quality/{task.score}", True),
        ("Loss", "quality/loss", False),
        ("Macro F1", "quality/macro_f1", True),
        ("Learning rate", "optim/lr", False),
    ]
    charts = []
    for title, tag, percent in shown:
        series = {split: history.curve(split, tag) for split in ("train", "validation")}
        charts.append((title, line_chart(series, x_label="step", percent=percent)))
    return [(title, chart) for title, chart in charts if chart]


def _speed(history: History) -> dict[str, str]:
    """Returns the rows of the page's throughput table."""
    last, result = history.last_values("train"), history.result or {}
    rows = {
        "images/s, steady state": result.get("images_per_second"),
        "images/s, last log line": last.get("perf/images_per_s"),
        "images/s per replica": last.get("perf/images_per_s_per_replica"),
        "step time, median, ms": last.get("perf/step_ms_p50"),
        "step time, 95th percentile, ms": last.get("perf/step_ms_p95"),
        "input wait, % of step time": last.get("perf/input_wait_pct"),
        "model FLOPs utilization": last.get("perf/model_flops_utilization"),
        "replicas": result.get("replicas"),
        "virtual replicas": result.get("virtual_replicas"),
        "workers": result.get("workers"),
        "images seen": result.get("images_seen"),
        "epochs": result.get("epoch"),
    }
    return {name: f"{value:,.4g}" if abs(value) < 1e3 else f"{value:,.0f}" for name, value in rows.items() if value}


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the leaves of a nested JSON object as dotted name and text."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            items = item if isinstance(item, list) else [item]
            yield f"{prefix}{key}", ", ".join(f"{i:.6g}" if isinstance(i, float) else str(i) for i in items)


def _events(history: History) -> list[tuple[str, str, str]]:
    """Returns time, name and details of the last events other than checkpoints."""
    events = [event for event in history.events if event["event"] != "checkpoint"][-_EVENTS:]
    rows = []
    for event in events:
        details = {name: value for name, value in event.items() if name not in ("event", "time")}
        text = ", ".join(f"{name} {value}" for name, value in _flat(details))
        rows.append((_time_text(event.get("time", 0)), event["event"], text))
    return rows


def _time_text(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
