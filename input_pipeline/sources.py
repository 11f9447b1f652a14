"""What there is to convert: a folder a class, or a CSV of `filename,category` beside a folder of images.

    found = list_sources(Path("photos/train"))                                # photos/train/CATEGORY/*.jpg
    found = list_sources(Path("photos/train"), manifest=Path("train.csv"))    # a CSV says which image is what

Listing looks at names and sizes only. Whether a file is an image is found out when it is decoded.
"""

import csv
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.errors import DataError, did_you_mean

# Without a CSV a file's name is all that tells an image from a stray file before it is opened.
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".mpo")
)
_NAMED = 3  # how many offenders an error names before it only counts
_SEARCHED = 5_000  # looking for similar names takes a second per 100,000 of them


@dataclass(frozen=True, slots=True)
class Source:
    """One image to convert: `name` is its path under the folder of images, with `/`; `size` is in bytes."""

    path: str
    name: str
    category: str
    size: int


@dataclass(frozen=True)
class Sources:
    """What a folder, or a CSV and a folder, hold.

    Attributes:
      images: in the order of their names.
      class_names: every category of `images`, sorted; a label is an index into them.
      ignored: how many files were left aside: those a CSV does not name, or those that are no image by their name.
      stray: of the ignored, those that lie in class folders and whose names are not an image's. Empty with a CSV.
    """

    images: tuple[Source, ...]
    class_names: tuple[str, ...]
    ignored: int = 0
    stray: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file: `name` is its path under the folder of images, with `/`; `size` is in bytes."""

    path: str
    name: str
    size: int


def list_sources(
    images: Path,
    manifest: Path | None = None,
    *,
    filename_column: str = "filename",
    category_column: str = "category",
) -> Sources:
    """Lists the images of a folder a class, or those that a CSV names.

    Args:
      images: the folder. Without a CSV each folder in it is a class, named after it, with its images directly in it or
        in folders of it. With one the images lie in it in any folders.
      manifest: a CSV, UTF-8, with a header. A file name is a path under `images`, or a bare name that only one file
        there has.
      filename_column: the CSV's column of file names.
      category_column: the CSV's column of categories, kept as text: `03` stays `03`.

    Returns:
      The images in the order of their names, and the sorted class names.

    Raises:
      DataError: something is missing, empty, doubled or ambiguous; names it and the mend.
    """
    _check_folder(images)
    if manifest is None:
        return _from_folders(images)
    return _from_manifest(images, manifest, filename_column, category_column)


def _from_folders(images: Path) -> Sources:
    with os.scandir(images) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in visible if entry.is_dir())
    loose = [entry.name for entry in visible if not entry.is_dir()]
    if not folders:
        number = sum(map(_is_image_name, loose))
        raise DataError(
            f"{images} has no class folders ({number} images lie directly in it): put the images of each class in a "
            "folder named after it, or say which is what with --manifest=CSV (filename,category)"
        )
    _check_class_names(folders, where=str(images))
    found, stray, empty = [], [], []
    for category in folders:
        files = _list_files(images, category)
        of_class = [file for file in files if _is_image_name(file.name)]
        stray.extend(file.name for file in files if not _is_image_name(file.name))
        found.extend(Source(file.path, file.name, category, file.size) for file in of_class)
        if not of_class:
            empty.append(category)
    if empty:
        raise DataError(
            f"{_classes(len(empty))} without images in {images}: {_first(empty)}. Add images "
            f"({', '.join(sorted(IMAGE_SUFFIXES)[:4])}, ...), or remove the folder{'s' * (len(empty) > 1)}"
        )
    found.sort(key=lambda source: source.name)
    return Sources(tuple(found), tuple(folders), len(stray) + len(loose), tuple(sorted(stray)))


def _from_manifest(images: Path, manifest: Path, filename_column: str, category_column: str) -> Sources:
    rows = _read_rows(manifest, filename_column, category_column)
    files = _list_files(images, "")
    matched = _match(images, files, [filename for _, filename, _ in rows], manifest)
    found: dict[str, Source] = {}
    for (line, filename, category), file in zip(rows, matched, strict=True):
        if file.name in found:
            raise DataError(
                f"{manifest} line {line}: {filename!r} is the same file as another row's, {file.name}; remove one row"
            )
        found[file.name] = Source(file.path, file.name, category, file.size)
    ordered = tuple(sorted(found.values(), key=lambda source: source.name))
    class_names = tuple(sorted({source.category for source in ordered}))
    return Sources(ordered, class_names, ignored=len(files) - len(ordered))


def list_images(images: Path) -> list[ImageFile]:
    """Returns every image by its name's suffix, in the folder and in folders of it, in the order of their names.

    Raises:
      DataError: no such folder, or no image in it.
    """
    _check_folder(images)
    found = sorted((file for file in _list_files(images, "") if _is_image_name(file.name)), key=lambda file: file.name)
    if not found:
        raise DataError(f"no images in {images} ({', '.join(sorted(IMAGE_SUFFIXES)[:4])}, ...)")
    return found


def match_files(images: Path, filenames: Sequence[str], manifest: Path) -> list[ImageFile]:
    """Returns the file that each name stands for: a path under `images`, or a bare name that only one file there has.

    Args:
      images: the folder.
      filenames: as a CSV has them.
      manifest: the CSV, for the text of an error.

    Raises:
      DataError: no such folder; names that are missing or ambiguous, the first few listed.
    """
    _check_folder(images)
    return _match(images, _list_files(images, ""), filenames, manifest)


def read_table(manifest: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Returns a CSV's header and its rows with their line numbers, blank rows left out.

    Raises:
      DataError: missing, not UTF-8, no CSV, no rows, or a row with another number of fields than the header.
    """
    try:
        # -sig: spreadsheet programs put a byte order mark first, which would become part of the first column's name.
        with open(manifest, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [column.strip() for column in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
    except FileNotFoundError:
        folder = manifest.parent
        known = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise DataError(f"manifest {manifest} does not exist{did_you_mean(manifest.name, known)}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"manifest {manifest} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (csv.Error, OSError) as error:
        raise DataError(f"manifest {manifest} cannot be read ({error})") from None
    if header and not rows:
        raise DataError(f"manifest {manifest} has a header and no rows: it must name every image")
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{manifest} line {line} has {len(row)} fields and the header {len(header)} ({','.join(header)}); "
                "quote a field that holds a comma"
            )
    return header, rows


def _match(images: Path, files: Sequence[ImageFile], filenames: Sequence[str], manifest: Path) -> list[ImageFile]:
    by_name = {file.name: file for file in files}
    by_base_name: dict[str, list[str]] = {}
    for name in by_name:
        by_base_name.setdefault(posixpath.basename(name), []).append(name)
    matched, missing, ambiguous = [], [], []
    for filename in filenames:
        named = filename if filename in by_name else posixpath.normpath(filename)
        matches = [named] if named in by_name else by_base_name.get(filename, [])
        if not matches:
            missing.append(filename)
        elif len(matches) > 1:
            ambiguous.append((filename, sorted(matches)))
        else:
            matched.append(by_name[matches[0]])
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(filenames)} files that {manifest} names are not in {images}: {_first(missing)}"
            f"{_nearest_file(missing[0], by_name, by_base_name)}"
        )
    if ambiguous:
        filename, matches = ambiguous[0]
        raise DataError(
            f"{len(ambiguous)} file names of {manifest} stand for more than one file in {images}: {filename!r} is "
            f"{' and '.join(matches[:_NAMED])}. Write the folder too in the CSV: {matches[0]}"
        )
    return matched


def _read_rows(manifest: Path, filename_column: str, category_column: str) -> list[tuple[int, str, str]]:
    """Returns (line, filename, category) of every row of the CSV, checked."""
    header, rows = read_table(manifest)
    mend = "; or name its columns with --filename_column and --category_column"
    columns = column_indices(manifest, header, (filename_column, category_column), mend)
    parsed = []
    for line, row in rows:
        filename, category = row[columns[0]], row[columns[1]]
        for column, value in ((filename_column, filename), (category_column, category)):
            if not value.strip():
                raise DataError(
                    f"{manifest} line {line}: empty {column} ({','.join(row)}); fill it in, or remove the row"
                )
        parsed.append((line, filename, category))
    counts = Counter(filename for _, filename, _ in parsed)
    doubled = [filename for filename, number in counts.items() if number > 1]
    if doubled:
        lines = [(line, category) for line, filename, category in parsed if filename == doubled[0]]
        raise DataError(
            f"{len(doubled)} file names stand more than once in {manifest}: {doubled[0]!r} in "
            f"{', '.join(f'line {line} as {category!r}' for line, category in lines[:_NAMED])}. Keep one row each"
        )
    _check_class_names({category for _, _, category in parsed}, where=str(manifest))
    return parsed


def column_indices(manifest: Path, header: Sequence[str], wanted: Sequence[str], mend: str = "") -> list[int]:
    """Returns where the wanted columns stand in a CSV's header.

    Raises:
      DataError: one is not there; names the nearest.
    """
    if not header:
        raise DataError(f"{manifest} is empty. Wanted: a CSV with the columns {','.join(wanted)!r}{mend}")
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            raise DataError(f"{manifest} separates its columns by {name}: save it with commas")
    absent = [column for column in wanted if column not in header]
    if absent:
        raise DataError(
            f"{manifest} has the header {','.join(header)!r} and no column {absent[0]!r}"
            f"{did_you_mean(absent[0], header)}. Wanted: {','.join(wanted)!r}{mend}"
        )
    return [header.index(column) for column in wanted]


def _check_class_names(names: Iterable[str], where: str) -> None:
    for name in sorted(names):
        # Class names stand one a line in the dataset's label file, whose readers strip the lines and drop empty ones.
        if name != name.strip() or len(name.splitlines()) > 1:
            raise DataError(f"category {name!r} of {where} has white space around it or a line break in it; rename it")
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"category {ascii(name)} of {where} is not UTF-8; rename it") from None


def _list_files(root: Path, folder: str) -> list[ImageFile]:
    """Returns every visible file in `folder` of `root` and in the folders of it, unsorted. Follows links to files."""
    files, folders = [], [folder]
    while folders:
        current = folders.pop()
        try:
            with os.scandir(root / current) as entries:
                for entry in entries:
                    name = f"{current}/{entry.name}" if current else entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(name)
                    elif entry.is_file():
                        files.append(ImageFile(entry.path, name, entry.stat().st_size))
        except OSError as error:
            raise DataError(f"folder {root / current} cannot be read ({error.strerror})") from None
    return files


def _check_folder(images: Path) -> None:
    if not images.is_dir():
        kind = "is not a folder" if images.exists() else "does not exist"
        siblings = [entry.name for entry in images.parent.iterdir() if entry.is_dir()] if images.parent.is_dir() else []
        raise DataError(f"image folder {images} {kind}{did_you_mean(images.name, siblings)}")


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _nearest_file(missing: str, files: Mapping[str, ImageFile], by_base_name: Mapping[str, list[str]]) -> str:
    stem = posixpath.basename(missing)
    for suffix in sorted(IMAGE_SUFFIXES):
        for candidate in (stem + suffix, os.path.splitext(stem)[0] + suffix):
            if candidate in by_base_name:
                return f" (did you mean {by_base_name[candidate][0]!r}?)"
    return did_you_mean(missing, sorted(files)[:_SEARCHED])


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + more


def _classes(number: int) -> str:
    return "1 class" if number == 1 else f"{number} classes"
