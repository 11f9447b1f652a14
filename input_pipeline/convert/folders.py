"""Folders of images: their visible files and subfolders, and what is an image by its name."""

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset.storage import similar_folder

# Without a CSV, images are distinguished from other files by these suffixes.
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".mpo")
    + (".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm")
    + (".heic", ".heif", ".jxl")  # not decoded: left out with the reason, rather than ignored
)
# Left behind by archives, file systems and network disks; folders that begin with a dot are hidden in any case.
_SYSTEM_FOLDERS = frozenset(
    ("__macosx", "__pycache__", "@eadir", "@recycle", "#recycle", "$recycle.bin", "lost+found")
    + ("system volume information",)
)
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
_LISTED = 3  # names that an error lists


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file. `name` is its path relative to the folder of images, with `/`; `size` and `modified` as in `Source`."""

    path: str
    name: str
    size: int
    modified: int = 0


def check_folder(images: Path) -> None:
    """Raises a DataError unless `images` is a folder."""
    if not images.is_dir():
        kind = "is not a folder" if images.exists() else "does not exist"
        if images.is_file() and (images.suffix.lower() in _ARCHIVES or zipfile.is_zipfile(images)):
            raise DataError(f"image folder {images} is an archive. Unpack it, and pass the folder with the images")
        raise DataError(f"image folder {images} {kind}{similar_folder(images)}")


def subfolders(folder: Path) -> list[str]:
    """Returns the names of the visible folders in a folder, sorted, without those of operating systems."""
    with os.scandir(folder) as entries:
        # Not entry.is_dir(), which raises at a link to itself.
        return sorted(entry.name for entry in entries if not is_hidden(entry.name) and os.path.isdir(entry.path))


def has_images(folder: Path) -> bool:
    """Returns whether a folder has an image in it or below it."""
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        if any(is_image_name(name) and not is_hidden(name) for name in files):
            return True
    return False


def list_files(root: Path, folder: str) -> list[ImageFile]:
    """Returns the visible files in `folder` of `root` and below it, unsorted. Follows links to files only."""
    files, folders = [], [folder]
    while folders:
        current = folders.pop()
        try:
            with os.scandir(root / current) as entries:
                for entry in entries:
                    name = f"{current}/{entry.name}" if current else entry.name
                    if is_hidden(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(name)
                    elif (status := _status(entry)) is not None:
                        files.append(ImageFile(entry.path, name, *status))
        except OSError as error:
            raise DataError(f"folder {root / current} cannot be read ({error.strerror})") from None
    return files


def _status(entry: os.DirEntry[str]) -> tuple[int, int] | None:
    """Returns size and modification time; zeros for a broken link, reported when it is opened; None for a pipe."""
    try:
        if entry.is_file():
            status = entry.stat()
            return status.st_size, status.st_mtime_ns
        return (0, 0) if entry.is_symlink() and not os.path.exists(entry.path) else None
    except OSError:  # a link to itself, or a file that was just deleted
        return 0, 0


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is hidden, or one of an operating system."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def is_image_name(name: str) -> bool:
    """Returns whether a file name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def first(names: Sequence[str]) -> str:
    """Returns the first names for an error message, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(repr, names[:_LISTED])) + more
