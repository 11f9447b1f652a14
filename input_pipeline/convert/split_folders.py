"""Folders of splits, each with one folder per class: photos/{train,test}/CATEGORY/*.jpg.

find_splits(Path("photos"))       # {"train": "train", "test": "test"}
"""

from collections.abc import Mapping
from pathlib import Path

from convoy.core.errors import DataError
from convoy.input_pipeline.convert.folders import check_folder, first, has_images, subfolders

# What people call the folders of their splits, by the name of the split.
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


def find_splits(images: Path, *, by_name: bool = True) -> dict[str, str]:
    """Returns the folders of the splits in a folder of splits, by split, train first; {} if its folders are classes.

    Folders with class folders inside are splits if they are called train, training, test, testing, val, valid,
    validation or dev, in any case. Folders without images are not considered.

    Args:
      images: folder of images.
      by_name: whether to go by these names; else every folder with class folders inside is a split.

    Raises:
      DataError: the folder cannot be read, only some of its folders are splits, or two are the same split.
    """
    check_folder(images)
    names = subfolders(images)
    if by_name and not any(map(_split_called, names)):
        return {}
    folders = {name: kind for name in names if (kind := _kind(images / name))}
    named = {name: split for name in folders if (split := _split_called(name))}
    splits = [name for name, kind in folders.items() if kind == "classes" and (name in named or not by_name)]
    others = [name for name in folders if name not in splits]
    if not splits:
        if not by_name:
            raise DataError(f"--folders=splits: {images} has no folders with class folders inside")
        if named and not [name for name in others if name not in named]:
            raise DataError(
                f"{images}: {first(sorted(named))} {'have names' if len(named) > 1 else 'has the name'} of "
                "splits, and no class folders inside. Put the images of each class in a folder named after it, pass "
                "--manifest=CSV (filename,category), or --folders=classes if these are the classes"
            )
        return {}
    if odd := [name for name in others if name not in named]:
        raise DataError(
            f"{images}: {first(splits)} {'look like folders of splits' if len(splits) > 1 else 'looks like a split'}, "
            f"{first(odd)} not. Pass --images={images / splits[0]} for one split, or --folders=classes if all of them "
            "are classes"
        )
    found: dict[str, str] = {}
    for name in sorted(splits, key=lambda name: list(_SPLIT_NAMES).index(named[name]) if name in named else -1):
        split = named.get(name, name)
        if split in found:
            raise DataError(
                f"{images}: {found[split]!r} and {name!r} are both the split {split!r}. Rename one, or convert them in "
                f"turn with --images={images / name} --split=NAME"
            )
        found[split] = name
    return found


def find_unlabeled(images: Path, splits: Mapping[str, str]) -> list[Path]:
    """Returns the other folders that have images, but no class folders, such as the test images of a competition."""
    others = (images / name for name in subfolders(images) if name not in splits.values())
    return [folder for folder in others if _kind(folder) == "images"]


def _split_called(name: str) -> str:
    """Returns the split that a folder is named after, or "" for other names."""
    return next((split for split, names in _SPLIT_NAMES.items() if name.lower() in names), "")


def _kind(folder: Path) -> str:
    """Returns "classes" if subfolders of a folder have images, "images" if only the folder itself has, else ""."""
    if any(has_images(folder / name) for name in subfolders(folder)):
        return "classes"
    return "images" if has_images(folder) else ""
