"""`convoy report`: writes the report page of a run, from the last evaluation of each split."""

import functools
import shlex
import sys
from pathlib import Path

from absl import flags as absl_flags

from convoy.cli.evaluate import define_model_flags
from convoy.core.devices import Devices, parse_devices
from convoy.core.errors import DataError, UsageError
from convoy.core.files import check_output_file
from convoy.core.flags import FlagDefiner
from convoy.core.processes import ending_on_interrupt
from convoy.input_pipeline.tf_startup import start_tensorflow

REQUIRED = ("workdir",)


def define_flags(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Defines the flags."""
    define = FlagDefiner(flags)
    define.string("workdir", None, "run directory of `convoy train`")
    define.string("output", None, "HTML file to write, as the only one; default: all files, in WORKDIR")
    define.string("data", None, "dataset directory; default: the one the run was trained on")
    define.bool(
        "learning_curve",
        False,
        "train the run's config on a quarter and a half of the training images, in WORKDIR/learning_curve, and show "
        "what more images would bring; the same command resumes it",
    )
    define.float(
        "max_hours",
        None,
        "hours of this process after which the training of --learning_curve is saved and ends",
        lower_bound=0.0,
    )
    define.string("split", None, "split that --learning_curve evaluates on; default: test, without it validation")
    define_model_flags(flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Writes the report, after a learning curve if asked for.

    Evaluates the validation split, or the folds, first if nothing was evaluated yet.
    """
    from convoy.trainer.evaluation.predictions import evaluations
    from convoy.trainer.evaluation.report.history import read_history
    from convoy.trainer.evaluation.report.page import write_report
    from convoy.trainer.run.directory import RunDirectory

    if given := [name for name in ("max_hours", "split") if flags[name].value is not None and not flags.learning_curve]:
        raise UsageError(f"--{given[0]}: is for a learning curve. Pass --learning_curve too, or no --{given[0]}.")
    devices = parse_devices(flags.devices)
    output = Path(flags.output) if flags.output else None
    if output:
        check_output_file(output)
    run_directory = RunDirectory(flags.workdir)
    read_history(run_directory)  # reports a wrong --workdir before TensorFlow starts
    if unwritable := run_directory.write_error():
        reason = f"--workdir={flags.workdir} cannot be written ({unwritable.strerror})"
        if flags.learning_curve:
            raise DataError(f"{reason}. Make it writable: the runs of a learning curve are kept in it.")
        if not output:
            raise DataError(f"{reason}. Pass --output=FILE.")
    if flags.learning_curve:
        _measure_learning_curve(flags, devices)
    elif not evaluations(run_directory):
        try:
            if unwritable:
                raise DataError(f"{reason}.")
            _evaluate(flags, devices)
        except DataError as error:  # no checkpoint yet, no validation split, the dataset is gone
            print(f"Not evaluated: {error}")
    print("\n".join(write_report(run_directory, output=output, data=flags.data)))


def _measure_learning_curve(flags: absl_flags.FlagValues, devices: Devices) -> None:
    from convoy.trainer.callbacks.time_limit import TimeLimit

    time_limit = [] if flags.max_hours is None else [TimeLimit(flags.max_hours)]
    with ending_on_interrupt():
        start_tensorflow()
        from convoy.trainer.callbacks.console import Console
        from convoy.trainer.learning_curve.training import measure_learning_curve

        curve = measure_learning_curve(
            flags.workdir,
            devices=devices,
            split=flags.split or "",
            data=flags.data,
            checkpoint=flags.checkpoint,
            trust_code=flags.trust_code,
            make_callbacks=lambda: [Console(), *time_limit],
            command=shlex.join(sys.argv),
            owns_process=True,
            say=functools.partial(print, flush=True),
        )
    for finding in curve.findings():
        print(f"{finding.text} {finding.fix}")


def _evaluate(flags: absl_flags.FlagValues, devices: Devices) -> None:
    start_tensorflow()
    from convoy.input_pipeline.dataset.folds import OUT_OF_FOLD
    from convoy.trainer.callbacks.console import quality_row
    from convoy.trainer.cross_validation.out_of_fold import evaluate_out_of_fold
    from convoy.trainer.evaluation.split import evaluate_split
    from convoy.trainer.run.directory import RunDirectory
    from convoy.trainer.session.restore import open_run

    run = RunDirectory(flags.workdir)
    if run.folds:
        found = evaluate_out_of_fold(
            run, devices, checkpoint=flags.checkpoint, data=flags.data, trust_code=flags.trust_code
        )
        found.save()
        print(quality_row(OUT_OF_FOLD, found.together.evaluation.quality))
        return
    trained = open_run(flags.workdir, devices, checkpoint=flags.checkpoint, trust_code=flags.trust_code)
    evaluated = evaluate_split(trained, "validation", data=flags.data, flip_tta=trained.flip_tta)
    evaluated.save()
    print(quality_row("validation", evaluated.evaluation.quality))
