"""ImageNet (ILSVRC 2012) as it is downloaded, in archives or folders, also as Kaggle has it.

    ILSVRC2012_img_train.tar                            with one archive per class; also unpacked to those
    train/n01440764/n01440764_10026.JPEG                also in ILSVRC/Data/CLS-LOC
    ILSVRC2012_img_val.tar, val/ILSVRC2012_val_*.JPEG   with a file of ground truth (`imagenet_labels`)
    val/n01440764/ILSVRC2012_val_00000293.JPEG

Images are named as in folders of classes, whatever they are read from: the dataset is the same. Labels are in the order
of the synsets, like those of Keras and torchvision.
"""

import contextlib
import os
import posixpath
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from convoy.core.errors import DataError
from convoy.core.text import counted
from convoy.input_pipeline.convert.folders import check_folder, first, is_hidden, is_image_name, list_files, subfolders
from convoy.input_pipeline.convert.imagenet_labels import GROUND_TRUTHS, MAPPINGS, SYNSET, LabelFiles
from convoy.input_pipeline.convert.options import VALIDATION, Options
from convoy.input_pipeline.convert.request import Log, Request
from convoy.input_pipeline.convert.sources import Source, Sources
from convoy.input_pipeline.convert.tar_members import TarError, read_members

# Where images are, by split: folders and archives, in order of preference.
_PLACES = {
    "train": ("train", "ILSVRC2012_img_train", "ILSVRC2012_img_train.tar"),
    VALIDATION: ("val", "validation", "ILSVRC2012_img_val", "ILSVRC2012_img_val.tar"),
    "test": ("test", "ILSVRC2012_img_test", "ILSVRC2012_img_test_v10102019.tar", "ILSVRC2012_img_test.tar"),
}
_FOLDERS = {"train": "train", VALIDATION: "val"}  # in the names of images
_CLOSED = {"Annotations"}.union(*_PLACES.values())  # not searched for these and for files of labels
_DEPTH = 4  # of ILSVRC/Data/CLS-LOC/train
_ARCHIVE = ".tar"
_NO_TRAINING = "no training image has its class"


class _File(NamedTuple):
    """A file, or a member of an archive: its path in the folder or archive of its split, and where it is."""

    name: str
    path: str
    size: int
    modified: int
    offset: int | None = None


@contextlib.contextmanager
def opened_imagenet(request: Request, log: Log) -> Iterator[Options]:
    """Yields the options for the images of ImageNet in a folder."""
    folder = Path(request.text("imagenet"))
    check_folder(folder)
    entries = _entries(folder)
    places = _places(folder, entries)
    if test := places.pop("test", None):
        log(f"{test}: left out, because test images have no labels.")
    own = request.own_splits("imagenet", list(places))
    listing = partial(_listed, folder, places, LabelFiles(entries), request.skip_missing, log)
    yield request.options(folder, split_folders=own, prepared=True, listing=listing)


def _entries(folder: Path) -> dict[str, Path]:
    """Returns the files and folders in a folder and below it by name; of equal names the highest."""
    found: dict[str, Path] = {}
    level = [folder]
    try:
        for _ in range(_DEPTH):
            paths = [path for parent in level for path in sorted(parent.iterdir()) if path.exists()]
            paths = [path for path in paths if not is_hidden(path.name) and not _class_of(path.name)]
            found = {path.name: path for path in reversed(paths)} | found
            level = [path for path in paths if path.name not in _CLOSED and path.is_dir()]
    except OSError as error:
        raise DataError(f"--imagenet={folder}: {error.filename} cannot be read ({error.strerror})") from None
    return found


def _places(folder: Path, entries: Mapping[str, Path]) -> dict[str, Path]:
    """Returns the folder or archive of the images of each split, train first; also of "test".

    Raises:
      DataError: there are none with labels.
    """
    places = {split: next(filter(None, map(entries.get, names)), None) for split, names in _PLACES.items()}
    if not places["train"] and any(map(_class_of, os.listdir(folder))):
        places["train"] = folder
    if not (places["train"] or places[VALIDATION]):
        raise DataError(
            f"--imagenet={folder} has no images of ImageNet: no train/n01440764/*.JPEG, ILSVRC2012_img_train.tar, "
            "val/*.JPEG or ILSVRC2012_img_val.tar. Pass the folder that has them; other classes as --images"
        )
    return {split: place for split, place in places.items() if place}


@contextlib.contextmanager
def _listed(
    folder: Path, places: Mapping[str, Path], labels: LabelFiles, skip_missing: bool, log: Log
) -> Iterator[Sources]:
    """Yields the images; logs what they are from."""
    names = labels.class_names()
    truth: Mapping[str, str] = {}  # read if images are not in folders of classes
    images: dict[str, tuple[str, Source]] = {}  # with the synset, by name
    stray: list[str] = []
    for split, place in places.items():
        for file in _files(place, only_classes=place == folder):
            synset, rest = _class_and_rest(file.name)
            if not is_image_name(rest) or (split == "train" and not synset):
                stray.append(f"{_FOLDERS[split]}/{file.name}")
                continue
            if not synset:
                truth = truth or _ground_truth(labels, place)
                synset = _true_class(truth, rest, labels)
            name = f"{_FOLDERS[split]}/{synset}/{rest}"
            if name in images:
                raise DataError(f"{place} has the image {rest} of {synset} twice. Remove one of them")
            category = names.get(synset, synset)
            images[name] = synset, Source(file.path, name, category, file.size, file.modified, file.offset, split)
        _check_classes(place, {synset for synset, image in images.values() if image.split == split})
    first_split = next(iter(places))
    synsets = {synset for synset, image in images.values() if image.split == first_split}
    ordered = sorted(images.values(), key=lambda image: (image[1].split != first_split, image[1].name))
    excluded = [(image, _NO_TRAINING) for synset, image in ordered if synset not in synsets]
    missing = _missing(truth, synsets, images, labels, skip_missing)
    _log_origin(folder, places, labels, synsets - names.keys(), used_truth=bool(truth), log=log)
    if excluded:
        log(f"{places[VALIDATION]}: {counted(len(excluded), 'image')} left out, whose classes have no training images.")
    yield Sources(
        images=tuple(image for synset, image in ordered if synset in synsets),
        class_names=tuple(names.get(synset, synset) for synset in sorted(synsets)),
        ignored=len(stray) + len(excluded),
        stray=tuple(sorted(stray)),
        missing=tuple((name, names.get(synset, synset)) for name, synset in missing.items()),
        excluded=tuple(excluded),
    )


def _files(place: Path, *, only_classes: bool) -> Iterator[_File]:
    """Yields the files in a folder or archive, and the members of archives of classes in it.

    Args:
      place: the folder or archive.
      only_classes: whether other folders and files in the folder are left alone.
    """
    if place.is_file():
        yield from _members(place)
        return
    archives = {path.name for path in place.iterdir() if path.suffix == _ARCHIVE and _class_of(path.name)}
    for folder in filter(_class_of, subfolders(place)) if only_classes else [""]:
        for file in list_files(place, folder):
            top = file.name.split("/", 1)[0]
            # Where both are there, the folder may be incomplete: who unpacks an archive deletes it afterwards.
            if top not in archives and f"{top}{_ARCHIVE}" not in archives:
                yield _File(file.name, file.path, file.size, file.modified)
    for name in sorted(archives):
        for member in _members(place / name):
            yield member._replace(name=f"{_class_of(name)}/{member.name}")


def _members(path: Path) -> Iterator[_File]:
    """Yields the members of an archive, and of archives of classes in it."""
    try:
        with open(path, "rb") as file:
            modified = os.fstat(file.fileno()).st_mtime_ns
            for member in read_members(file):
                name = posixpath.normpath(member.name)
                if member.kind or any(map(is_hidden, name.split("/"))):
                    continue
                if not name.endswith(_ARCHIVE):
                    yield _File(name, str(path), member.size, modified, member.offset)
                    continue
                for inner in read_members(file, member.offset, member.offset + member.size):
                    if not inner.kind:
                        inside = f"{name.removesuffix(_ARCHIVE)}/{posixpath.normpath(inner.name)}"
                        yield _File(inside, str(path), inner.size, modified, inner.offset)
    except TarError as error:
        raise DataError(f"{path} {error}. Download it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None


def _class_of(name: str) -> str:
    """Returns the synset that a folder or an archive is named after, or ""."""
    synset = name.removesuffix(_ARCHIVE)
    return synset if SYNSET.fullmatch(synset) else ""


def _class_and_rest(name: str) -> tuple[str, str]:
    """Returns the synset of the folder of a class that a file is in, and its path there; or "" and its base name."""
    parts = name.split("/")
    for i, part in enumerate(parts[:-1]):
        if SYNSET.fullmatch(part):
            return part, "/".join(parts[i + 1 :])
    return "", parts[-1]


def _check_classes(place: Path, synsets: set[str]) -> None:
    """Raises a DataError if there are none, or folders of others."""
    if not synsets:
        raise DataError(
            f"{place} has no images in folders or archives of classes, such as n01440764. Folders of other classes are "
            "converted with --images"
        )
    if place.is_dir() and (empty := sorted({*filter(_class_of, subfolders(place))} - synsets)):
        raise DataError(
            f"{counted(len(empty), 'class', 'classes')} without images in {place}: {first(empty)}. Add them, or remove "
            f"the folder{'s' * (len(empty) > 1)}"
        )


def _ground_truth(labels: LabelFiles, place: Path) -> Mapping[str, str]:
    if not labels.truth:
        raise DataError(
            f"{place} has images without folders of classes, and there is no file of their classes. Add {GROUND_TRUTHS}"
        )
    return labels.ground_truth()


def _true_class(truth: Mapping[str, str], name: str, labels: LabelFiles) -> str:
    synset = truth.get(posixpath.splitext(name)[0])
    if not synset:
        raise DataError(f"{labels.truth} has no class for {name}. Remove the image, or use the file that belongs to it")
    return synset


def _missing(
    truth: Mapping[str, str],
    synsets: set[str],
    images: Mapping[str, tuple[str, Source]],
    labels: LabelFiles,
    skip_missing: bool,
) -> dict[str, str]:
    """Returns the synsets of images of these classes that only the ground truth has, by their names.

    Raises:
      DataError: there are some, and they are not to be skipped.
    """
    there = {posixpath.splitext(posixpath.basename(name))[0] for name in images}
    wanted = {stem: synset for stem, synset in truth.items() if synset in synsets}
    missing = {f"val/{synset}/{stem}.JPEG": synset for stem, synset in wanted.items() if stem not in there}
    if missing and not skip_missing:
        raise DataError(
            f"{len(missing):,} of {counted(len(wanted), 'validation image')} of {labels.truth} missing: "
            f"{first(sorted(missing))}. Copy them again, or pass --missing=skip"
        )
    return missing


def _log_origin(
    folder: Path, places: Mapping[str, Path], labels: LabelFiles, unnamed: set[str], *, used_truth: bool, log: Log
) -> None:
    parts = [f"{split} from {os.path.relpath(place, folder)}" for split, place in places.items()]
    if used_truth and labels.truth:
        parts[-1] += f" with {labels.truth.name}"
    if labels.mapping:
        parts.append(f"class names from {labels.mapping.name}")
    log(f"{folder}: {', '.join(parts)}.")
    if not labels.mapping:
        log(f"{folder}: classes are named by their synsets, because there is no {' or '.join(MAPPINGS)}.")
    elif unnamed:
        log(f"{labels.mapping} does not name {first(sorted(unnamed))}: synsets are the names of these classes.")
