"""The stamps of Tux Paint as folders of images: photographs and drawings of real things without a download.

    apt install tuxpaint-stamps-default
    python -m benchmarks.stamps stamps          # stamps/{birds,clothes,coins,...}/*.png

418 pictures in 15 classes, drawings and photographs, by many authors (GPL 2). They are copied as they are: up to 2,348
pixels, cut out on transparent ground, in color, gray or with a palette. Stamps that are others mirrored are left out.
"""

import shutil
import sys
from pathlib import Path

from benchmarks.image_folders import draft_folder
from convoy.core.errors import ConvoyError, UsageError

STAMPS = Path("/usr/share/tuxpaint/stamps")
# Folders of the stamps by class. Letters, digits and holidays are left out: they are typefaces, or mixtures.
CLASSES = {
    "birds": ("animals/birds",),
    "clothes": ("clothes",),
    "coins": ("symbols/money/canadian", "symbols/money/euro", "symbols/money/japanese", "symbols/money/us"),
    "fish": ("animals/fish", "animals/shellfish"),
    "flowers": ("plants/flowers",),
    "fruit": ("food/fruit",),
    "household": ("household",),
    "houses": ("town/houses",),
    "insects": ("animals/insects",),
    "instruments": ("hobbies/music",),
    "mammals": ("animals/mammals", "animals/marsupials"),
    "planets": ("space/moon", "space/planets"),
    "signs": ("town/roadsigns",),
    "vegetables": ("food/vegetables",),
    "vehicles": ("military/vehicles", "vehicles"),
}


def write_stamps(output: Path, source: Path = STAMPS) -> None:
    """Copies the images; the folder appears when it is complete.

    Args:
      output: a folder that does not exist yet.
      source: the folder of the stamps.

    Raises:
      UsageError: `output` exists, or the stamps are not installed.
    """
    if not source.is_dir():
        raise UsageError(f"{source} does not exist: install Debian's package tuxpaint-stamps-default.")
    with draft_folder(output) as draft:
        for category, folders in CLASSES.items():
            (draft / category).mkdir()
            for path in sorted(path for folder in folders for path in (source / folder).rglob("*.png")):
                if "_mirror" not in path.name:
                    shutil.copyfile(path, draft / category / "-".join(path.relative_to(source).parts[1:]))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.stamps FOLDER")
    try:
        write_stamps(Path(sys.argv[1]))
    except ConvoyError as error:
        sys.exit(f"convoy: {error}")
