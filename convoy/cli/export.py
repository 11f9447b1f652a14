"""`convoy export`: exports a trained model and verifies each format.

convoy export --workdir=run --format=saved_model,onnx --output=exported
convoy export --workdir=run --format=litert --quantize=int8 --output=exported_int8
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from convoy.cli.evaluate import CHECKPOINT_HELP, define_trust_flag
from convoy.cli.tables import print_table
from convoy.core.errors import ConvoyError
from convoy.core.flags import FlagDefiner
from convoy.core.processes import terminable
from convoy.core.text import counted, share, weights_text
from convoy.input_pipeline.tf_startup import define_verbosity_flag, start_tensorflow
from convoy.trainer.export.loaders import FILES
from convoy.trainer.export.request import QUANTIZABLE, QUANTIZATIONS, Request

if TYPE_CHECKING:
    from convoy.trainer.export.exporter import Exported

REQUIRED = ("workdir", "format", "output")


def define_flags(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Defines the command's flags."""
    define = FlagDefiner(flags)
    define.string("workdir", None, "run directory of `convoy train`")
    define.list("format", None, f"one or more of {','.join(FILES)}")
    define.string("output", None, "folder to create; an existing export is replaced")
    define.enum(
        "quantize",
        "none",
        QUANTIZATIONS,
        f"int8: weights and activations in 8 bits, a quarter of the size, for {' and '.join(QUANTIZABLE)}; calibrated "
        "on training images, with the accuracy before and after on validation",
    )
    define.string("checkpoint", "best", CHECKPOINT_HELP)
    define.string(
        "data",
        None,
        "dataset directory with the images to verify and quantize the export on; default: the run's own dataset",
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
        quantize=flags.quantize,
        trust_code=flags.trust_code,
    )
    start_tensorflow()
    from convoy.trainer.export.exporter import export

    with terminable():
        exported = export(request, leave_out)
    (_print_int8 if exported.int8 else _print_float32)(exported, flags.output)
    reference = exported.reference
    if reference.precision != "float32":
        print(
            f"The run computes in {reference.precision}: `convoy evaluate` differs from float32 by up to "
            f"{reference.largest_difference:.2g} in probability, with the same prediction for "
            f"{reference.same_top1} of these images."
        )
    return max((error.exit_code for error in failures), default=0)


def _print_float32(exported: "Exported", output: str) -> None:
    print_table(
        ("format", "file"),
        ("MB", "largest difference"),
        [
            (name, FILES[name], exported.bytes[name] / 1e6, f"{difference:.1e}")
            for name, difference in exported.largest_differences.items()
        ],
    )
    print(
        f"Exported {weights_text(exported.step, exported.checkpoint)} to {output}: reloaded in new processes and "
        f"compared with a float32 evaluation of {_samples(exported)}."
    )


def _print_int8(exported: "Exported", output: str) -> None:
    print_table(
        ("format", "file"),
        ("MB", "MB in float32", "top-1", "top-1 in float32", "same class"),
        [
            (
                name,
                FILES[name],
                exported.bytes[name] / 1e6,
                int8.float32_bytes / 1e6,
                share(int8.top1),
                share(int8.float32_top1),
                f"{int8.same_top1}",
            )
            for name, int8 in exported.int8.items()
        ],
    )
    int8 = next(iter(exported.int8.values()))
    print(
        f"Exported {weights_text(exported.step, exported.checkpoint)} to {output} in int8, calibrated on "
        f"{counted(exported.calibration_images, 'training image')}. Top-1: of the files, on all "
        f"{counted(int8.images, 'image')} of split {int8.split!r}. Same class: reloaded in new processes and compared "
        f"with a float32 evaluation of {_samples(exported)}."
    )


def _samples(exported: "Exported") -> str:
    samples = exported.reference.samples
    return f"{counted(len(samples.images) - samples.others, 'image')} of split {samples.split!r}"
