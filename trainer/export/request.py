"""What to export, checked without TensorFlow."""

from dataclasses import dataclass
from pathlib import Path

from convoy.core.errors import UsageError, did_you_mean
from convoy.trainer.export.loaders import FILES

QUANTIZATIONS = ("none", "int8")
QUANTIZABLE = ("litert", "onnx")  # formats


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
      workdir: the run directory.
      output: the folder to create.
      formats: keys of `loaders.FILES`.
      checkpoint: `best`, `last`, `mean:N` or a step, as in `open_run`.
      data: dataset directory with the images for calibration and comparison; None for the run's own.
      quantize: one of `QUANTIZATIONS`.
      trust_code: as in `open_run`.
    """

    workdir: str
    output: Path
    formats: tuple[str, ...]
    checkpoint: str = "best"
    data: str | None = None
    quantize: str = "none"
    trust_code: bool = False

    def __post_init__(self) -> None:
        """Raises a UsageError for an unknown format or quantization, for no format, or if both do not go together."""
        for name in self.formats or ("",):
            if name not in FILES:
                raise UsageError(
                    f"--format={name}: unknown format{did_you_mean(name, FILES)}. Pass one or more of "
                    f"{', '.join(FILES)}."
                )
        if self.quantize not in QUANTIZATIONS:
            raise UsageError(
                f"--quantize={self.quantize}: unknown quantization{did_you_mean(self.quantize, QUANTIZATIONS)}. "
                f"Pass one of {', '.join(QUANTIZATIONS)}."
            )
        if self.quantize != "none" and (others := [name for name in self.formats if name not in QUANTIZABLE]):
            raise UsageError(
                f"--quantize={self.quantize}: not available for --format={others[0]}. Pass one or more of "
                f"{', '.join(QUANTIZABLE)}, or export the other formats without --quantize to another folder."
            )
