"""`convoy export`: exports a trained model and verifies each format.

convoy export --workdir=run --format=saved_model,onnx --output=exported
"""

import sys
from pathlib import Path

from absl import flags as absl_flags

from convoy.cli.evaluate import CHECKPOINT_HELP, define_trust_flag
from convoy.cli.tables import print_table
from convoy.core.errors import ConvoyError
from convoy.core.flags import FlagDefiner
from convoy.core.processes import terminable
from convoy.core.text import counted
from convoy.input_pipeline.tf_startup import define_verbosity_flag, start_tensorflow
from convoy.trainer.export.loaders import FILES
from convoy.trainer.export.request import Request

REQUIRED = ("workdir", "format", "output")


def define_flags(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Defines the command's flags."""
    define = FlagDefiner(flags)
    define.string("workdir", None, "run directory of `convoy train`")
    define.list("format", None, f"one or more of {','.join(FILES)}")
    define.string("output", None, "folder to create; an existing export is replaced")
    define.string("checkpoint", "best", CHECKPOINT_HELP)
    define.string(
        "data", None, "dataset directory with the images to verify the export on; default: the run's own dataset"
    )
    define_trust_flag(define)
    define_verbosity_flag(flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> int:
    """Exports the model and prints the result of the comparison, and a line for each format that is left out.

    Returns:
      0, or the exit code of what kept a format from being exported.

    Raises:
      UsageError: as `export`.
      DataError: as `export`.
    """
    failures: list[ConvoyError] = []

    def leave_out(error: ConvoyError) -> None:
        failures.append(error)
        print(f"convoy: {error}", file=sys.stderr, flush=True)

    request = Request(
        flags.workdir,
        Path(flags.output),
        tuple(name.strip() for name in flags.format),
        checkpoint=flags.checkpoint,
        data=flags.data,
        trust_code=flags.trust_code,
    )
    start_tensorflow()
    from convoy.trainer.export.exporter import export

    with terminable():
        exported = export(request, leave_out)
    print_table(
        ("format", "file"),
        ("MB", "largest difference"),
        [
            (name, FILES[name], exported.bytes[name] / 1e6, f"{difference:.1e}")
            for name, difference in exported.largest_differences.items()
        ],
    )
    reference = exported.reference
    samples = reference.samples
    print(
        f"Exported step {exported.step} to {flags.output}: reloaded in new processes and compared with a float32 "
        f"evaluation of {counted(len(samples.images) - samples.others, 'image')} of split {samples.split!r}."
    )
    if reference.precision != "float32":
        print(
            f"The run computes in {reference.precision}: `convoy evaluate` differs from float32 by up to "
            f"{reference.largest_difference:.2g} in probability, with the same prediction for "
            f"{reference.same_top1} of these images."
        )
    return max((error.exit_code for error in failures), default=0)
