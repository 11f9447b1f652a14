"""`convoy export`: exports a trained model and verifies each format.

convoy export --workdir=run --format=saved_model,onnx --output=exported
"""

import importlib.util
import sys
from pathlib import Path

from absl import flags as absl_flags

from convoy.cli.evaluate import CHECKPOINT_HELP, define_trust_flag
from convoy.cli.tables import print_table
from convoy.core.errors import ConvoyError, UsageError, did_you_mean
from convoy.core.flags import FlagDefiner
from convoy.core.processes import terminable
from convoy.core.text import counted
from convoy.input_pipeline.tf_startup import define_verbosity_flag, start_tensorflow
from convoy.trainer.export.loaders import FILES

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
      UsageError: a format is unknown, or the library of the only one is not installed; and as `export`.
      DataError: as `export`.
    """
    formats = tuple(dict.fromkeys(name.strip() for name in flags.format))
    for name in formats or ("",):
        if name not in FILES:
            raise UsageError(
                f"--format={name}: unknown format{did_you_mean(name, FILES)}. Pass one or more of {', '.join(FILES)}."
            )
    failures: list[ConvoyError] = []

    def leave_out(error: ConvoyError) -> None:
        failures.append(error)
        print(f"convoy: {error}", file=sys.stderr, flush=True)

    missing = [name for name in ("tf2onnx", "onnxruntime") if not importlib.util.find_spec(name)]
    if "onnx" in formats and missing:
        error = UsageError(f"--format=onnx: needs {' and '.join(missing)}. Run `pip install 'convoy-train[onnx]'`.")
        formats = tuple(name for name in formats if name != "onnx")
        if not formats:
            raise error
        leave_out(error)
    start_tensorflow()
    from convoy.trainer.export.exporter import Request, export

    request = Request(
        flags.workdir,
        Path(flags.output),
        formats,
        checkpoint=flags.checkpoint,
        data=flags.data,
        trust_code=flags.trust_code,
    )
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
            f"{reference.largest_difference:.2g} in probability, with the same top-1 class for "
            f"{reference.same_top1} of these images."
        )
    return max((error.exit_code for error in failures), default=0)
