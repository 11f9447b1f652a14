"""What to export, checked without TensorFlow."""

from dataclasses import dataclass
from pathlib import Path

from convoy.core.errors import UsageError, did_you_mean
from convoy.trainer.export.loaders import FILES


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
      workdir: the run directory.
      output: the folder to create.
      formats: keys of `loaders.FILES`.
      checkpoint: `best`, `last`, `mean:N` or a step, as in `open_run`.
      data: dataset directory with the images for the comparison; None for the run's own.
      trust_code: as in `open_run`.
    """

    workdir: str
    output: Path
    formats: tuple[str, ...]
    checkpoint: str = "best"
    data: str | None = None
    trust_code: bool = False

    def __post_init__(self) -> None:
        """Raises a UsageError for an unknown format, or for none."""
        for name in self.formats or ("",):
            if name not in FILES:
                raise UsageError(
                    f"--format={name}: unknown format{did_you_mean(name, FILES)}. Pass one or more of "
                    f"{', '.join(FILES)}."
                )
