"""Class names, an image size and a writer for the export tests."""

from pathlib import Path
from typing import TYPE_CHECKING

from convoy.trainer.export.loaders import FILES

if TYPE_CHECKING:
    from convoy.trainer.export.formats import ServingModel

SIZE = 32
NAMES = ("-1", "cat", "<script>alert(1)</script>", "=1+1", "\N{CAT FACE}", "../x", "NaN")


def write_model(file_format: str, model: "ServingModel", folder: Path) -> Path:
    from convoy.trainer.export.formats import write

    (folder / "labels.txt").write_text(model.labels, encoding="utf-8")
    write(file_format, model, folder / FILES[file_format])
    return folder / FILES[file_format]
