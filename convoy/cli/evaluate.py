"""`convoy evaluate`: evaluates a trained run on a split, each image once, and writes its report."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from convoy.cli.foreign_records import define_record_flags, record_format
from convoy.core.devices import parse_devices
from convoy.core.errors import DataError
from convoy.core.files import check_output_file, json_value, write_whole
from convoy.core.flags import FlagDefiner
from convoy.core.text import counted
from convoy.input_pipeline.tf_startup import define_verbosity_flag, start_tensorflow

if TYPE_CHECKING:
    from convoy.trainer.run.directory import RunDirectory

REQUIRED = ("workdir", "split")
CHECKPOINT_HELP = (
    "best (by its score on validation, such as top-1), last, mean:N (the mean of the last N), or the step of a "
    "checkpoint"
)
WORKDIR_HELP = "run directory of `convoy train`; several, comma-separated, and a cross-validation predict together"
RENAMED_FLAGS = {"tta": "flip_tta"}


def define_flags(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Defines the flags."""
    define = FlagDefiner(flags)
    define.string("workdir", None, WORKDIR_HELP)
    define.string(
        "split", None, "split to evaluate on; out_of_fold for the images of a cross-validation, each by its fold's run"
    )
    define.string("data", None, "dataset directory; default: the one the run was trained on")
    define_record_flags(flags)
    define.string("json", None, "file to write the metrics to, as JSON")
    define_flip_flag(flags)
    define_model_flags(flags)


def define_flip_flag(flags: absl_flags.FlagValues) -> None:
    """Defines `--flip_tta`."""
    FlagDefiner(flags).bool(
        "flip_tta",
        None,
        "test-time augmentation: average over each image and its mirror image; default: config.flip_tta",
    )


def define_model_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags that choose a run's weights and the devices to run them on."""
    define = FlagDefiner(flags)
    define.string("checkpoint", "best", CHECKPOINT_HELP)
    define_verbosity_flag(flags)
    define.string("devices", "auto", "auto (all GPUs, else the CPU), cpu:N or gpu:0,1")
    define_trust_flag(define)


def define_trust_flag(define: FlagDefiner) -> None:
    """Defines `--trust_code`."""
    define.bool("trust_code", False, "run the code of a run or an export that another user owns")


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Evaluates, prints the metrics and writes the report."""
    if flags.json:
        check_output_file(Path(flags.json), flag="json")
    devices = parse_devices(flags.devices)
    start_tensorflow()
    from convoy.input_pipeline.dataset.folds import OUT_OF_FOLD
    from convoy.trainer.callbacks.console import quality_row
    from convoy.trainer.cross_validation.out_of_fold import evaluate_out_of_fold
    from convoy.trainer.evaluation.report.page import write_report
    from convoy.trainer.evaluation.split import evaluate_split
    from convoy.trainer.run.directory import RunDirectory
    from convoy.trainer.session.restore import open_runs

    workdirs = split_workdirs(flags.workdir)
    run = RunDirectory(workdirs[0])
    model: dict[str, Any] = {"checkpoint": flags.checkpoint, "trust_code": flags.trust_code}
    data: dict[str, Any] = {"data": flags.data, "record_format": record_format(flags, flags.data)}
    save: Callable[[], None]
    if flags.split == OUT_OF_FOLD and len(workdirs) == 1 and run.folds:
        found = evaluate_out_of_fold(run, devices, flip_tta=flags.flip_tta, **model, **data)
        evaluated, save, files = found.together, found.save, found.files()
        weights = ", each with the weights of the run that was not trained on it"
        print(found.figures())
    else:
        trained = open_runs(workdirs, devices, **model)
        flip_tta = trained.flip_tta if flags.flip_tta is None else flags.flip_tta
        evaluated = evaluate_split(trained, flags.split, flip_tta=flip_tta, **data)
        save, files = evaluated.save, [f"Predictions: {run.predictions(flags.split)}"]
        weights = f" with {trained.weights_text}"
    evaluation = evaluated.evaluation
    tta = " and flip test-time augmentation" if evaluation.flip_tta else ""
    print(f"Evaluated {counted(evaluation.images, 'image')} of {flags.split}{weights}{tta}.")
    print(quality_row(flags.split, evaluation.quality))
    if flags.json:
        names = ("split", "step", "images", "flip_tta")
        facts = {name: getattr(evaluation, name) for name in names} | evaluation.quality
        facts |= {"checkpoint": evaluation.checkpoint} if evaluation.checkpoint else {}
        try:
            write_whole(Path(flags.json), (json.dumps(json_value(facts), indent=1) + "\n").encode())
        except OSError as error:
            raise DataError(f"--json={flags.json} cannot be written ({error.strerror}).") from None
    if why_not := _why_not_saved(workdirs, run):
        print(
            f"{why_not}: the metrics are only printed, without predictions and report. --json=FILE writes the metrics."
        )
        return
    save()
    print(f"Metrics: {run.results_table}")
    print("\n".join([*files, *write_report(run)]))


def _why_not_saved(workdirs: Sequence[str], run: "RunDirectory") -> str:
    if len(workdirs) > 1:
        return "Several runs have no run directory in common"
    unwritable = run.write_error()
    return f"{run.path} cannot be written ({unwritable.strerror})" if unwritable else ""


def split_workdirs(text: str) -> list[str]:
    """Returns the run directories of `--workdir`; a path may contain commas."""
    return [text] if Path(text).exists() else [name for name in text.split(",") if name] or [text]
