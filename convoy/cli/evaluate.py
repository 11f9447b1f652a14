"""`convoy evaluate`: evaluates a trained run on a split, each image once, and writes its report."""

import json
from pathlib import Path

from absl import flags as absl_flags

from convoy.cli.foreign_records import define_record_flags, record_format
from convoy.core.devices import parse_devices
from convoy.core.errors import DataError
from convoy.core.files import check_output_file, json_value, write_whole
from convoy.core.flags import FlagDefiner
from convoy.core.text import counted
from convoy.input_pipeline.tf_startup import define_verbosity_flag, start_tensorflow

REQUIRED = ("workdir", "split")
CHECKPOINT_HELP = "best (by its score on validation, such as top-1), last, or the step of a checkpoint"
RENAMED_FLAGS = {"tta": "flip_tta"}


def define_flags(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Defines the flags."""
    define = FlagDefiner(flags)
    define.string("workdir", None, "run directory of `convoy train`")
    define.string("split", None, "split to evaluate on")
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
    from convoy.trainer.callbacks.console import quality_row
    from convoy.trainer.evaluation.report.page import write_report
    from convoy.trainer.evaluation.split import evaluate_split
    from convoy.trainer.session.restore import open_run

    trained = open_run(flags.workdir, devices, checkpoint=flags.checkpoint, trust_code=flags.trust_code)
    flip_tta = trained.flip_tta if flags.flip_tta is None else flags.flip_tta
    unwritable = trained.run.write_error()
    if unwritable:
        print(
            f"{trained.run.path} cannot be written ({unwritable.strerror}): the metrics are only printed, without "
            "predictions and report. --json=FILE writes the metrics.",
            flush=True,
        )
    evaluated = evaluate_split(
        trained, flags.split, data=flags.data, flip_tta=flip_tta, record_format=record_format(flags, flags.data)
    )
    images, quality = evaluated.evaluation.images, evaluated.evaluation.quality
    tta = " and flip test-time augmentation" if flip_tta else ""
    print(f"Evaluated {counted(images, 'image')} of {flags.split} with the weights of step {trained.step}{tta}.")
    print(quality_row(flags.split, quality))
    if flags.json:
        facts = {"split": flags.split, "step": trained.step, "images": images, "flip_tta": flip_tta}
        try:
            write_whole(Path(flags.json), (json.dumps(json_value({**facts, **quality}), indent=1) + "\n").encode())
        except OSError as error:
            raise DataError(f"--json={flags.json} cannot be written ({error.strerror}).") from None
    if unwritable:
        return
    evaluated.save()
    print(f"Metrics: {trained.run.results_table}")
    print(f"Predictions: {trained.run.predictions(flags.split)}")
    print("\n".join(write_report(trained.run)))
