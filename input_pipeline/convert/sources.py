"""What there is to convert: a folder a class, or a CSV of `filename,category` beside a folder of images.

    found = list_sources(Path("photos/train"))                            # photos/train/CATEGORY/*.jpg
    found = list_sources(Path("photos/train"), Table(Path("train.csv")))  # a CSV says which image is what

Listing looks at names and sizes only. Whether a file is an image is found out when it is decoded.
"""

import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convoy.core.errors import DataError, did_you_mean
from convoy.input_pipeline.convert.tables import column_indices, read_table

# Without a CSV a file's name is all that tells an image from a stray file before it is opened.
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".mpo")
)
_NAMED = 3  # how many offenders an error names before it only counts
_SEARCHED = 5_000  # looking for similar names takes a second per 100,000 of them


@dataclass(frozen=True, slots=True)
class Source:
    """One image to convert.

    Attributes:
      path: of the file.
      name: its path under the folder of images, with `/`.
      category: its class.
      size: in bytes.
      modified: when the file last changed, in nanoseconds since 1970.
      offset: where its bytes begin in a file that holds many; None where the file is the image.
      split: that it belongs to already; "" where that is still to be settled.
    """

    path: str
    name: str
    category: str
    size: int
    modified: int = 0
    offset: int | None = None
    split: str = ""

    def read(self) -> bytes:
        """Returns its bytes.

        Raises:
          OSError: they cannot be read.
        """
        with open(self.path, "rb") as file:
            if self.offset is None:
                return file.read()
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Sources:
    """What a folder, or a CSV and a folder, hold.

    Attributes:
      images: in the order of their names.
      class_names: every category of `images`, sorted; a label is an index into them.
      ignored: how many files were left aside: those a CSV does not name, or those that are no image by their name.
      stray: of the ignored, those that lie in class folders and whose names are not an image's; with a CSV, all.
      missing: (file name, category) of the CSV's rows whose file is not there, where that is no error.
    """

    images: tuple[Source, ...]
    class_names: tuple[str, ...]
    ignored: int = 0
    stray: tuple[str, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file: `name` is its path under the folder of images, with `/`; `size` and `modified` are as in `Source`."""

    path: str
    name: str
    size: int
    modified: int = 0


@dataclass(frozen=True)
class Table:
    """A CSV that says which image is what.

    Attributes:
      path: of the CSV, which has a header. A file name in it is a path under the folder of images, or a bare name that
        only one file there has.
      filename_column: the name of its column of file names.
      category_column: the name of its column of categories, kept as text: `03` stays `03`.
      delimiter: as in `read_table`.
      encoding: as in `read_table`.
      skip_missing: whether rows whose file is not there are listed instead of being an error.
    """

    path: Path
    filename_column: str = "filename"
    category_column: str = "category"
    delimiter: str = ""
    encoding: str = ""
    skip_missing: bool = False


def list_sources(images: Path, table: Table | None = None) -> Sources:
    """Lists the images of a folder a class, or those that a CSV names.

    Args:
      images: the folder. Without a CSV each folder in it is a class, named after it, with its images directly in it or
        in folders of it. With one the images lie in it in any folders.
      table: the CSV.

    Returns:
      The images in the order of their names, and the sorted class names.

    Raises:
      UsageError: a delimiter or an encoding that there isn't.
      DataError: something is missing, empty, doubled or ambiguous; names it and the mend.
    """
    _check_folder(images)
    return _from_folders(images) if table is None else _from_table(images, table)


def _from_folders(images: Path) -> Sources:
    with os.scandir(images) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    # Not entry.is_dir(), which raises at a link to itself.
    folders = sorted(entry.name for entry in visible if os.path.isdir(entry.path))
    loose = [entry.name for entry in visible if not os.path.isdir(entry.path)]
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
        found.extend(Source(file.path, file.name, category, file.size, file.modified) for file in of_class)
        if not of_class:
            empty.append(category)
    if empty:
        raise DataError(
            f"{_classes(len(empty))} without images in {images}: {_first(empty)}. Add images "
            f"({', '.join(sorted(IMAGE_SUFFIXES)[:4])}, ...), or remove the folder{'s' * (len(empty) > 1)}"
        )
    found.sort(key=lambda source: source.name)
    return Sources(tuple(found), tuple(folders), len(stray) + len(loose), tuple(sorted(stray)))


def _from_table(images: Path, table: Table) -> Sources:
    rows = _read_rows(table)
    files = _list_files(images, "")
    matched = _match(images, files, [filename for _, filename, _ in rows])
    missing = [filename for (_, filename, _), matches in zip(rows, matched, strict=True) if not matches]
    if missing and (not table.skip_missing or len(missing) == len(rows)):
        raise _missing_error(images, files, missing, len(rows), table.path)
    found: dict[str, Source] = {}
    for (line, filename, category), matches in zip(rows, matched, strict=True):
        if not matches:
            continue
        file = _only(matches, filename, images, f"{table.path} line {line}")
        if file.name in found:
            raise DataError(
                f"{table.path} line {line}: {filename!r} is the same file as another row's, {file.name}; remove one row"
            )
        found[file.name] = Source(file.path, file.name, category, file.size, file.modified)
    ordered = tuple(sorted(found.values(), key=lambda source: source.name))
    return Sources(
        images=ordered,
        class_names=tuple(sorted({source.category for source in ordered})),
        ignored=len(files) - len(ordered),
        stray=tuple(sorted(file.name for file in files if file.name not in found)),
        missing=tuple(
            (name, category) for (_, name, category), matches in zip(rows, matched, strict=True) if not matches
        ),
    )


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
    files = _list_files(images, "")
    matched = _match(images, files, filenames)
    missing = [filename for filename, matches in zip(filenames, matched, strict=True) if not matches]
    if missing:
        raise _missing_error(images, files, missing, len(filenames), manifest)
    pairs = zip(matched, filenames, strict=True)
    return [_only(matches, filename, images, str(manifest)) for matches, filename in pairs]


def _match(images: Path, files: Sequence[ImageFile], filenames: Sequence[str]) -> list[list[ImageFile]]:
    """Returns the files that each name may stand for: one, none, or several of one bare name.

    Raises:
      DataError: a name that leads out of the folder.
    """
    by_name = {_plain(file.name): file for file in files}
    by_base_name: dict[str, list[ImageFile]] = {}
    for name, file in by_name.items():
        by_base_name.setdefault(posixpath.basename(name), []).append(file)
    outside = [name for name in filenames if posixpath.normpath(name).startswith(("../", "/")) or name == ".."]
    if outside:
        raise DataError(
            f"{len(outside)} file names of the CSV lead out of {images}: {_first(outside)}. Write them as paths under "
            "it, or give --images the folder above them"
        )
    matched = []
    for filename in filenames:
        plain = _plain(filename)
        # Spreadsheets on Windows write backslashes, which a name may hold elsewhere.
        spellings = (plain, posixpath.normpath(plain), posixpath.normpath(plain.replace("\\", "/")))
        named = next((by_name[spelling] for spelling in spellings if spelling in by_name), None)
        matched.append([named] if named else by_base_name.get(plain, []))
    return matched


def _plain(name: str) -> str:
    # One accented letter may be one character or two, and file systems and spreadsheets differ in which they write.
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _missing_error(
    images: Path, files: Sequence[ImageFile], missing: Sequence[str], number: int, manifest: Path
) -> DataError:
    by_name = {file.name: file for file in files}
    by_base_name: dict[str, list[str]] = {}
    for name in by_name:
        by_base_name.setdefault(posixpath.basename(name), []).append(name)
    return DataError(
        f"{len(missing)} of the {number} files that {manifest} names are not in {images}: {_first(missing)}"
        f"{_nearest_file(missing[0], by_name, by_base_name)}"
    )


def _only(matches: Sequence[ImageFile], filename: str, images: Path, where: str) -> ImageFile:
    if len(matches) > 1:
        names = sorted(file.name for file in matches)
        raise DataError(
            f"{where}: {filename!r} stands for more than one file in {images}: {' and '.join(names[:_NAMED])}. "
            f"Write the folder too in the CSV: {names[0]}"
        )
    return matches[0]


def _read_rows(table: Table) -> list[tuple[int, str, str]]:
    """Returns (line, filename, category) of every row of the CSV, checked."""
    manifest, filename_column, category_column = table.path, table.filename_column, table.category_column
    header, rows = read_table(manifest, delimiter=table.delimiter, encoding=table.encoding)
    fix = "; or name its columns with --filename_column and --category_column"
    columns = column_indices(manifest, header, (filename_column, category_column), fix)
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
                    elif (status := _status(entry)) is not None:
                        files.append(ImageFile(entry.path, name, *status))
        except OSError as error:
            raise DataError(f"folder {root / current} cannot be read ({error.strerror})") from None
    return files


def _status(entry: os.DirEntry[str]) -> tuple[int, int] | None:
    """Returns a file's size and time; 0 for a link to nowhere, so that opening it says so; None for a pipe."""
    try:
        if entry.is_file():
            status = entry.stat()
            return status.st_size, status.st_mtime_ns
        return (0, 0) if entry.is_symlink() and not os.path.exists(entry.path) else None
    except OSError:  # a link to itself, or a file that is gone by now
        return 0, 0


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
