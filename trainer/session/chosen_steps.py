"""Which checkpoints `--checkpoint` names.

chosen_steps(RunDirectory("run"), "mean:3")       # (80, 90, 100)
steps_by_model(RunDirectory("folds"), "best")     # [(80,), (100,)]
"""

from collections.abc import Sequence
from pathlib import Path

from convoy.core.errors import DataError, UsageError
from convoy.core.run_layout import RunLayout
from convoy.core.text import counted, is_count
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.records import read_json_object


def steps_by_model(run: RunDirectory, checkpoint: str) -> list[tuple[int, ...]]:
    """Returns `chosen_steps` of a run, of a cross-validation those of each fold.

    Raises:
      UsageError: as `open_run`.
      DataError: as `open_run`, or a fold is not trained yet.
    """
    for number in range(1, run.folds + 1):
        result = read_json_object(RunLayout(run.fold(number)).result)
        if not result or (result.get("stop") or {}).get("resumable"):
            raise DataError(
                f"--workdir={run.path}: fold {number} of {run.folds} is not trained yet. Rerun its command to finish, "
                f"or pass one fold: --workdir={run.fold(1)}."
            )
    return [chosen_steps(RunDirectory(folder), checkpoint) for folder in model_folders(run)]


def model_folders(run: RunDirectory) -> list[Path]:
    """Returns the run directories of the models of a run: its own, of a cross-validation those of the folds."""
    return [Path(run.fold(number)) for number in range(1, run.folds + 1)] or [run.path]


def chosen_steps(run: RunDirectory, checkpoint: str) -> tuple[int, ...]:
    """Returns the steps of the checkpoints that `open_run` opens of a single run; raises its errors about them."""
    if not run.path.is_dir():
        raise DataError(f"--workdir={run.path}: no such folder. Pass the --workdir of `convoy train`.")
    store = CheckpointStore(run.checkpoints)
    steps = store.steps()
    if not steps:
        run.read_config()  # raises an error that says so if the folder is not a run directory
        raise DataError(f"--workdir={run.path}: no checkpoint yet. Train it with `convoy train` first.")
    if checkpoint == "last":
        return (steps[-1],)
    if checkpoint == "best":
        return (store.chosen() or steps[-1],)
    if is_count(checkpoint) and int(checkpoint) in steps:
        return (int(checkpoint),)
    kind, _, count = checkpoint.partition(":")
    if kind == "mean" and is_count(count) and int(count) > 1:
        return _last_steps(run, steps, int(count))
    raise UsageError(
        f"--checkpoint={checkpoint}: no such checkpoint in {run.path}. Pass best, last, mean:N with an N above 1, or a "
        f"step ({', '.join(map(str, steps))})."
    )


def _last_steps(run: RunDirectory, steps: Sequence[int], count: int) -> tuple[int, ...]:
    """Returns the last `count` steps, without an older one that is kept because it is the best."""
    keeps = run.read_config().get("keep_checkpoints", len(steps))
    last = tuple(steps[-keeps:])
    if len(last) < count:
        raise UsageError(
            f"--checkpoint=mean:{count}: the run has the last {counted(len(last), 'checkpoint')}, of "
            f"{'steps' if len(last) > 1 else 'step'} {', '.join(map(str, last))}, and keeps up to {keeps} "
            f"(config.keep_checkpoints). Pass a smaller number, or train with --config.keep_checkpoints={count}."
        )
    return last[-count:]
