"""Flags of the limits of image files, for the commands that read files from anywhere: convert and predict."""

from typing import TYPE_CHECKING

from absl import flags as absl_flags

from convoy.core.flags import FlagDefiner

if TYPE_CHECKING:
    from convoy.input_pipeline.images.pixels import Limits

_FLAGS = ("max_megapixels", "max_file_mib", "max_metadata_mib")


def define_limit_flags(define: FlagDefiner) -> None:
    """Defines `--max_megapixels`, `--max_file_mib` and `--max_metadata_mib`."""
    define.float(
        "max_megapixels",
        None,
        "largest image, width x height in millions; larger ones count as decompression bombs; default: 89.5",
    )
    define.integer("max_file_mib", None, "largest image file in MiB; default: 1024")
    define.integer(
        "max_metadata_mib",
        None,
        "largest text or color profile of a PNG in MiB, decompressed; all texts together may have four times as much; "
        "default: 64",
    )


def limits_of(flags: absl_flags.FlagValues) -> "Limits":
    """Returns the limits that the flags set.

    Raises:
      UsageError: a limit is not positive.
    """
    from convoy.input_pipeline.images.pixels import Limits

    return Limits.with_defaults(**{name: flags[name].value for name in _FLAGS})
