"""Cross-validation: `convoy train --folds=5` trains a run per fold in RUN/fold-1, RUN/fold-2, ..., one after another.

content = train_folds(config, folds=5, data="data", workdir="run", devices=parse_devices("auto"))
content["mean"]["top1"], content["sd"]["top1"]

Each is an ordinary run on a view of the dataset (`folds.View`), so that it resumes by itself: the same command goes
through all folds again, of which those that are done end at once. RUN has what belongs to all of them.
"""

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from convoy.core.cluster import Cluster
from convoy.core.devices import Devices
from convoy.core.errors import DataError, UsageError
from convoy.core.files import write_whole
from convoy.core.reading import read_file
from convoy.core.text import counted
from convoy.core.user_code import UserCode
from convoy.input_pipeline.dataset.folds import OUT_OF_FOLD, Folds, make_folds
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import Data
from convoy.input_pipeline.reading.pixel_store import DiskSpace
from convoy.trainer.callbacks.callback import Callback, Training
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.cluster.interface import over_interface
from convoy.trainer.cluster.strategy import make_strategy
from convoy.trainer.cluster.watchdog import Deadlines
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.cross_validation.out_of_fold import OutOfFold, evaluate_folds
from convoy.trainer.evaluation.report.folds import deviation
from convoy.trainer.evaluation.report.page import write_report
from convoy.trainer.loop import train
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.records import read_json_object
from convoy.trainer.session.agreement import wait_until_visible
from convoy.trainer.session.chosen_steps import steps_by_model
from convoy.trainer.session.prepare import open_training_data
from convoy.trainer.session.restore import TrainedRun, open_steps
from convoy.trainer.tf_compat.keras_state import retracing_advice_left_out

Say = Callable[[str], None]


@retracing_advice_left_out()
def train_folds(
    config: ml_collections.ConfigDict,
    *,
    folds: int,
    data: Data,
    workdir: str,
    devices: Devices,
    strategy_name: str = "auto",
    cluster: Cluster | None = None,
    deadlines: Deadlines | None = None,
    interface: str = "",
    make_callbacks: Callable[[], Sequence[Callback]] = tuple,
    recipe: UserCode | None = None,
    record_format: RecordFormat | None = None,
    extend: bool = False,
    virtual_replicas: int | None = None,
    backup: str = "",
    cache_space: DiskSpace | None = None,
    command: str = "",
    owns_process: bool = False,
    say: Say,
) -> dict[str, Any]:
    """Trains the run of each fold to its end, evaluates each on its fold, and writes what they say together.

    Args:
      config: as in `loop.train`.
      folds: number of folds, 2 or more.
      data: as in `loop.train`.
      workdir: folder of the cross-validation, shared by all workers.
      devices: as in `loop.train`.
      strategy_name: as in `loop.train`.
      cluster: as in `loop.train`.
      deadlines: as in `loop.train`.
      interface: as in `loop.train`.
      make_callbacks: makes the callbacks of a fold's run.
      recipe: as in `loop.train`.
      record_format: as in `loop.train`.
      extend: as in `loop.train`, of each fold's run.
      virtual_replicas: must be None: it is that of all folds.
      backup: must be empty: it is of one run.
      cache_space: as in `loop.train`.
      command: as in `loop.train`.
      owns_process: as in `loop.train`.
      say: shows a line to the user; called on the chief.

    Returns:
      The content of RUN/result.json; that of a cross-validation which was asked to stop has `stop`, and is not written.

    Raises:
      UsageError: as `loop.train`, `workdir` has another number of folds, or the virtual replicas would change.
      DataError: as `loop.train`, or there are too few images.
      ConvoyError: the others of `loop.train`.
    """
    if virtual_replicas is not None:
        raise UsageError(
            f"--virtual_replicas={virtual_replicas}: all folds of a cross-validation train with the same number. Use "
            "devices that divide it, or start a new one in another --workdir with "
            f"--config.virtual_replicas={virtual_replicas}."
        )
    if backup:
        raise UsageError(f"--backup={backup}: is for a single run, not for --folds={folds}. Omit it.")
    deadlines = deadlines or Deadlines()
    run, results = RunDirectory(workdir), list[dict[str, Any]]()
    with WorkerGroup(cluster, startup_seconds=deadlines.startup, workdir=workdir) as worker_group:
        if worker_group.is_chief:
            run.check(folds=folds)
        known = RunDirectory(run.fold(1)).record_format(record_format or RecordFormat())
        divided = make_folds(open_training_data(config, data, known), folds)
        if not run.folds:  # one that earlier versions have begun can be ended
            divided.check()
        if worker_group.is_chief:
            for line in _description(divided):
                say(line)
        for number in range(1, folds + 1):
            gc.collect()  # frees the model of the fold before
            worker_group.report(0, f"preparing fold {number}")
            if worker_group.is_chief:
                say(f"Fold {number} of {folds}: {run.fold(number)}")
            records = _FoldRecords(run, divided, number, sum(result["step"] for result in results))
            result = train(
                config,
                data=divided.without(number),
                workdir=str(run.fold(number)),
                devices=devices,
                strategy_name=strategy_name,
                worker_group=worker_group,
                deadlines=deadlines,
                interface=interface,
                callbacks=[*make_callbacks(), records],
                recipe=recipe,
                extend=extend,
                cache_space=cache_space,
                command=command,
                owns_process=owns_process,
            )
            results.append(result)
            if result["stop"] and result["stop"]["resumable"]:
                return _content(results, None) | {"stop": result["stop"]}
        before, steps = read_json_object(run.result), list[Sequence[int]]()
        if worker_group.is_chief and not _is_of(before, results):
            steps = [*steps_by_model(run, "best")]
        steps = worker_group.exchange("checkpoints of the folds", steps)[0]
        if not steps:
            if worker_group.is_chief and not run.report.exists():  # ended before it was written
                for line in write_report(run):
                    say(line)
            return before
        for number, of_fold in enumerate(steps, 1):
            for step in of_fold:
                wait_until_visible(CheckpointStore(RunDirectory(run.fold(number)).checkpoints), step)
        moved = over_interface(worker_group, interface)
        strategy = make_strategy(devices, strategy_name, cluster=moved, heartbeat_seconds=deadlines.heartbeat)

        def open_fold(number: int) -> TrainedRun:
            # The code that it may run was just trained with.
            return open_steps(RunDirectory(run.fold(number)), steps[number - 1], strategy, trust_code=True)

        found = evaluate_folds(run, divided, open_fold, worker_group=worker_group)
        if worker_group.is_chief:
            _write(run, results, found, say)
        worker_group.exchange("written")
    return _content(results, found)


def _write(run: RunDirectory, results: Sequence[Mapping[str, Any]], found: OutOfFold, say: Say) -> None:
    found.save()
    try:
        run.write_json(run.result, _content(results, found))
    except OSError as error:
        raise DataError(
            f"{run.result} cannot be written ({error.strerror}). All folds are trained: free disk space and rerun the "
            "same command."
        ) from None
    for line in [found.figures(), *found.files(), *write_report(run)]:
        say(line)


def _description(folds: Folds) -> list[str]:
    sizes = sorted(len(folds.images(number)) for number in range(1, folds.number + 1))
    images = f"{sizes[0]:,}" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,}"
    lines = [
        f"Cross-validation: {counted(len(folds.of), 'labelled image')} in {folds.number} folds of {images} images."
    ]
    if few := folds.small_classes():
        name, rest = few[0], f" and {len(few) - 1} more" if len(few) > 1 else ""
        lines.append(
            f"Warning: class {name!r}{rest}: fewer images, or groups of images that stay together, than folds, so that "
            "not every fold has one. Pass fewer --folds, or add images."
        )
    if alike := folds.alike_across_folds():
        lines.append(
            f"Warning: {counted(alike, 'image looks', 'images look')} like an image of another fold, so the folds may "
            "be too easy. Convert with --group_similar to keep them together."
        )
    return lines


def _content(results: Sequence[Mapping[str, Any]], found: OutOfFold | None) -> dict[str, Any]:
    """Returns the content of result.json."""
    of_folds: list[dict[str, Any]] = [{"fold": number, "result": result} for number, result in enumerate(results, 1)]
    if not found:
        return {"folds": of_folds, "mean": None, "sd": None, "out_of_fold": None, "label_errors": None, "stop": None}
    for fold, evaluation in zip(of_folds, (one.evaluation for one in found.folds), strict=True):
        fold |= {"checkpoint": evaluation.step, "images": evaluation.images, "metrics": evaluation.quality}
    return {
        "folds": of_folds,
        "mean": found.over_folds(statistics.fmean),
        "sd": found.over_folds(deviation),
        "out_of_fold": found.together.evaluation.quality,
        "label_errors": len(found.label_errors),
        "stop": None,
    }


def _is_of(content: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether a result.json is of these results of the folds."""
    recorded = [fold.get("result", {}).get("weights_sha256") for fold in content.get("folds", ())]
    return recorded == [result["weights_sha256"] for result in results]


class _FoldRecords(Callback):
    """Writes the files of RUN that every run has, and its events: with steps that are counted over all folds."""

    def __init__(self, run: RunDirectory, folds: Folds, number: int, steps_before: int):
        self._run, self._folds, self._number, self._steps_before = run, folds, number, steps_before

    def on_start(self, training: Training) -> None:
        """Copies what describes the fold's run, and drops the result of all folds, which no longer holds.

        Raises:
          DataError: a file cannot be written.
        """
        run, fold = self._run, training.session.run
        together = self._folds.together()
        dataset = {
            name: value for name, value in fold.read_dataset().items() if name not in ("fold", "validation_images")
        }
        dataset |= {"train_images": len(self._folds.of), "train_digest": together.digest(OUT_OF_FOLD)[:16]}
        try:
            run.result.unlink(missing_ok=True)
            for name in ("config", "environment", "command"):
                write_whole(getattr(run, name), read_file(getattr(fold, name)))
            run.write_json(run.dataset, dataset)
        except OSError as error:
            raise DataError(f"--workdir={run.path}: cannot be written ({error.strerror}).") from None

    def on_event(self, training: Training, name: str, details: Mapping[str, Any]) -> None:
        """Adds a line to RUN/events.jsonl."""
        steps = {"step": self._steps_before + details["step"]} if "step" in details else {}
        self._run.append_event(name, **{**details, **steps, "fold": self._number})
