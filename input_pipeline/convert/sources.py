"""Images to convert: one folder per class, also within one folder per split, or a CSV of `filename,category`.

    found = list_sources(Path("photos/train"))                            # photos/train/CATEGORY/*.jpg
    found = list_sources(Path("photos"), splits=find_splits(Path("photos")))  # photos/{train,test}/CATEGORY/*.jpg
    found = list_sources(Path("photos/train"), Table(Path("train.csv")))  # categories from a CSV

Listing reads names and sizes only. Files that are not images are detected when they are decoded.
"""

import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from convoy.core.errors import DataError, did_you_mean
from convoy.core.remote import RemotePath
from convoy.core.text import counted, one_line
from convoy.input_pipeline.convert import label_columns
from convoy.input_pipeline.convert.folders import (
    IMAGE_SUFFIXES,
    ImageFile,
    check_folder,
    first,
    is_image_name,
    list_files,
    subfolders,
)
from convoy.input_pipeline.convert.tables import column_indices, read_table

_LISTED = 3  # names that an error lists
_SEARCHED = 5_000  # names; searching 100,000 for a similar one takes a second


@dataclass(frozen=True, slots=True)
class Source:
    """One image to convert.

    Attributes:
      path: path of the file.
      name: path relative to the folder of images, with `/`.
      category: name of its class.
      size: size in bytes.
      modified: modification time of the file, nanoseconds since 1970.
      offset: offset of the image in a shard; None if the file is the image.
      split: split of a TFDS dataset or of a folder of splits; "" if it is not assigned yet.
      group: value of `Table.group_column`; "" for none.
      labels: names of its classes, sorted, if it may have any number of them; `category` then joins them. None for one.
    """

    path: str
    name: str
    category: str
    size: int
    modified: int = 0
    offset: int | None = None
    split: str = ""
    group: str = ""
    labels: tuple[str, ...] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes: one, or with `labels` any number."""
        return (self.category,) if self.labels is None else self.labels

    def read(self) -> bytes:
        """Returns the bytes of the image.

        Raises:
          OSError: the file cannot be read.
        """
        descriptor = os.open(self.path, os.O_RDONLY)  # half the time of `open`
        try:
            data = os.pread(descriptor, self.size + (self.offset is None), self.offset or 0)
            is_whole = len(data) == self.size
        finally:
            os.close(descriptor)
        return data if is_whole else self._read_again()

    def _read_again(self) -> bytes:
        """Returns the bytes of a file that has another size by now, or of one that cannot be read in one call."""
        with open(self.path, "rb") as file:
            if self.offset is None:
                return file.read()
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Sources:
    """Images of a folder, or of a CSV and a folder.

    Attributes:
      images: images sorted by name.
      class_names: categories of `images`, sorted unless they have numbers; a label is an index into them.
      ignored: number of files left out: those that the CSV does not name, or whose names have no image suffix.
      stray: names of ignored files in class folders; with a CSV, of all ignored files.
      missing: (file name, category) of the rows of a CSV or list without a file, if they are tolerated.
      without_suffix: number of file names in the CSV that have no suffix, and match the image that has one.
      bad: further images that cannot be used, such as those without a label, each with the reason.
      excluded: further images that are left out on purpose, each with the reason; they are part of `ignored`.
      notes: what else the user should know, as lines.
    """

    images: tuple[Source, ...]
    class_names: tuple[str, ...]
    ignored: int = 0
    stray: tuple[str, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    without_suffix: int = 0
    bad: tuple[tuple[Source, str], ...] = ()
    excluded: tuple[tuple[Source, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A CSV of file names and categories.

    Attributes:
      path: path of the CSV, which has a header. A file name is a path relative to the folder of images, or the base
        name of exactly one file there; the suffix of an image may be missing.
      filename_column: name of the column of file names.
      category_column: name of the column of categories. Categories are text: `03` stays `03`.
      group_column: name of the column of groups; "" for none. An image without a value is in no group.
      delimiter: as in `read_table`.
      encoding: as in `read_table`.
      skip_missing: whether rows without a file are skipped instead of being an error.
      label_delimiter: what separates the labels of an image in the column of categories, which may be empty then; ""
        for one category per image.
      one_hot: whether all other columns are classes, with 1 for the images that have them and 0 for others.
    """

    path: Path | RemotePath
    filename_column: str = "filename"
    category_column: str = "category"
    group_column: str = ""
    delimiter: str = ""
    encoding: str = ""
    skip_missing: bool = False
    label_delimiter: str = ""
    one_hot: bool = False

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        return bool(self.label_delimiter) or self.one_hot


def list_sources(images: Path, table: Table | None = None, splits: Mapping[str, str] | None = None) -> Sources:
    """Lists the images of one folder per class, or those that a CSV names.

    Args:
      images: folder of images. Without a CSV each subfolder is a class with the images in it and below it. With a CSV
        the images may be in any subfolders.
      table: the CSV.
      splits: folders of `images` that have the class folders, by split.

    Returns:
      The images, sorted by name within each split, and the sorted class names.

    Raises:
      UsageError: invalid delimiter or encoding.
      DataError: something is missing, empty, repeated or ambiguous.
    """
    check_folder(images)
    return one_spelling(_from_folders(images, splits or {"": ""}) if table is None else _from_table(images, table))


def one_spelling(found: Sources, known: Sequence[str] = ()) -> Sources:
    """Returns sources whose categories have one spelling each: names in different Unicode forms look the same.

    Args:
      found: the sources.
      known: class names of an existing dataset, whose spellings are taken.
    """
    spellings: dict[str, set[str]] = {}
    for name in found.class_names:
        spellings.setdefault(plain_name(name), set()).add(name)
    spelling_of = {plain: min(names) if len(names) == 1 else plain for plain, names in spellings.items()}
    spelling_of |= {plain_name(name): name for name in known if plain_name(name) in spelling_of}
    if all(spelling_of[plain_name(name)] == name for name in found.class_names):
        return found

    def respelled(image: Source) -> Source:
        classes = tuple(sorted({spelling_of[plain_name(name)] for name in image.classes}))
        return with_labels(image, classes) if image.labels is not None else replace(image, category=classes[0])

    images = tuple(map(respelled, found.images))
    return replace(found, images=images, class_names=tuple(sorted(set(spelling_of.values()))))


def with_labels(image: Source, labels: tuple[str, ...]) -> Source:
    """Returns an image with these labels."""
    return replace(image, labels=labels, category=category_text(labels))


def category_text(labels: Sequence[str]) -> str:
    """Returns the category of an image with any number of labels."""
    return " + ".join(labels)


def _from_folders(images: Path, splits: Mapping[str, str]) -> Sources:
    found: list[Source] = []
    stray: list[str] = []
    loose: list[str] = []
    number_of: Counter[str] = Counter()  # images by class
    for split, parent in splits.items():
        root = images / parent
        folders = subfolders(root)
        with os.scandir(root) as entries:
            loose += [entry.name for entry in entries if not entry.name.startswith(".") and not os.path.isdir(entry)]
        if not folders:
            number = sum(map(is_image_name, loose))
            raise DataError(
                f"{root} has no class folders, and {counted(number, 'image')} directly in it. Put the images of each "
                "class in a folder named after it, or pass --manifest=CSV (filename,category)"
            )
        check_class_names(folders, where=str(root))
        of_split: list[Source] = []
        for category in folders:
            files = list_files(images, f"{parent}/{category}" if parent else category)
            class_files = [file for file in files if is_image_name(file.name)]
            if len(class_files) < len(files):
                stray.extend(file.name for file in files if not is_image_name(file.name))
            of_split += [
                Source(file.path, file.name, category, file.size, file.modified, split=split) for file in class_files
            ]
            number_of[category] += len(class_files)
        found += sorted(of_split, key=lambda source: source.name)
    if empty := sorted(category for category, number in number_of.items() if not number):
        raise DataError(
            f"{counted(len(empty), 'class', 'classes')} without images in {images}: {first(empty)}. Add images "
            f"({', '.join(sorted(IMAGE_SUFFIXES)[:4])}, ...), or remove the folder{'s' * (len(empty) > 1)}"
        )
    return Sources(tuple(found), tuple(sorted(number_of)), len(stray) + len(loose), tuple(sorted(stray)))


def _from_table(images: Path, table: Table) -> Sources:
    rows, class_names, notes = _read_rows(table)
    files, matched = _match(images, [row.filename for row in rows], table.path, skip_missing=table.skip_missing)
    found: dict[str, Source] = {}
    for row, matches in zip(rows, matched, strict=True):
        if not matches:
            continue
        file = _only(matches, row.filename, images, f"{table.path} line {row.line}")
        if file.name in found:
            raise DataError(
                f"{table.path} line {row.line}: {row.filename!r} repeats the file {file.name} of another row. Remove "
                "one row"
            )
        image = Source(file.path, file.name, row.category, file.size, file.modified, group=row.group)
        found[file.name] = replace(image, labels=row.labels) if table.multi_label else image
    ordered = tuple(sorted(found.values(), key=lambda source: source.name))
    return Sources(
        images=ordered,
        class_names=class_names or tuple(sorted({name for source in ordered for name in source.classes})),
        ignored=len(files) - len(ordered),
        stray=tuple(sorted(file.name for file in files if file.name not in found)),
        missing=tuple((row.filename, row.category) for row, matches in zip(rows, matched, strict=True) if not matches),
        without_suffix=number_without_suffix(
            [row.filename for row, matches in zip(rows, matched, strict=True) if matches]
        ),
        notes=notes,
    )


def list_images(images: Path) -> list[ImageFile]:
    """Returns the files with an image suffix in a folder and below it, sorted by name.

    Raises:
      DataError: the folder does not exist or has no images.
    """
    check_folder(images)
    found = sorted((file for file in list_files(images, "") if is_image_name(file.name)), key=lambda file: file.name)
    if not found:
        raise DataError(f"{images} has no images ({', '.join(sorted(IMAGE_SUFFIXES)[:4])}, ...)")
    return found


def match_files(images: Path, filenames: Sequence[str], manifest: Path) -> list[ImageFile]:
    """Returns the file of each name: a path relative to `images`, or the base name of exactly one file there.

    Names of images may lack their suffix.

    Args:
      images: folder of images.
      filenames: file names of a CSV.
      manifest: the CSV, for error messages.

    Raises:
      DataError: the folder does not exist, or names are missing or ambiguous.
    """
    check_folder(images)
    pairs = zip(_match(images, filenames, manifest)[1], filenames, strict=True)
    return [_only(matches, filename, images, str(manifest)) for matches, filename in pairs]


def _match(
    images: Path, filenames: Sequence[str], manifest: Path | RemotePath, *, skip_missing: bool = False
) -> tuple[list[ImageFile], list[list[ImageFile]]]:
    """Returns all files, and those that match each name: one, several with the same base name, or none.

    Raises:
      DataError: a name leads out of the folder, or matches none; with `skip_missing`, only if all names match none.
    """
    files = list_files(images, "")
    by_name = {plain_name(file.name): file for file in files}
    by_base_name: dict[str, list[ImageFile]] = {}
    by_stem: dict[str, list[ImageFile]] = {}  # of images, by path and by base name
    for name, file in by_name.items():
        base = posixpath.basename(name)
        by_base_name.setdefault(base, []).append(file)
        if is_image_name(name):
            for known in {name, base}:
                by_stem.setdefault(posixpath.splitext(known)[0], []).append(file)
    outside = [name for name in filenames if posixpath.normpath(name).startswith(("../", "/")) or name == ".."]
    if outside:
        raise DataError(
            f"{counted(len(outside), 'file name')} of the CSV outside {images}: {first(outside)}. Write them relative "
            "to it, or pass a parent folder as --images"
        )
    matched = []
    for filename in filenames:
        plain = plain_name(filename)
        # Backslashes are separators on Windows, and part of a name elsewhere.
        spellings = [plain, posixpath.normpath(plain), posixpath.normpath(plain.replace("\\", "/"))]
        spellings += [spellings[-1].removeprefix(f"{images.name}/")]  # relative to the parent of the folder
        spellings += [spellings[-1].strip()]  # blanks around a value, unless they are part of the name
        named = next((by_name[spelling] for spelling in spellings if spelling in by_name), None)
        matched.append(
            [named]
            if named
            else by_base_name.get(plain) or by_base_name.get(plain.strip()) or by_stem.get(spellings[-1], [])
        )
    missing = [filename for filename, matches in zip(filenames, matched, strict=True) if not matches]
    if missing and (not skip_missing or len(missing) == len(filenames)):
        raise DataError(
            f"{len(missing)} of {counted(len(filenames), 'file')} of {manifest} missing in {images}: "
            f"{first(missing)}{_nearest_file(missing[0], [file.name for file in files])}"
        )
    return files, matched


def plain_name(name: str) -> str:
    """Returns a name for comparisons: file systems and spreadsheets differ in the Unicode form of accented letters."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _only(matches: Sequence[ImageFile], filename: str, images: Path, where: str) -> ImageFile:
    if len(matches) > 1:
        names = sorted(file.name for file in matches)
        raise DataError(
            f"{where}: {filename!r} matches more than one file in {images}: {' and '.join(names[:_LISTED])}. "
            f"Write the path in the CSV, such as {names[0]}"
        )
    return matches[0]


class _Row(NamedTuple):
    line: int
    filename: str
    labels: tuple[str, ...]
    group: str

    @property
    def category(self) -> str:
        """As `Source.category`."""
        return category_text(self.labels)


def _read_rows(table: Table) -> tuple[list[_Row], tuple[str, ...], tuple[str, ...]]:
    """Returns every row of the CSV, validated; the classes that its columns name; and notes for the user."""
    manifest, category_column = table.path, table.category_column
    header, rows = read_table(manifest, delimiter=table.delimiter, encoding=table.encoding)
    fix = "; or name its columns with --filename_column and --category_column"
    if table.one_hot:
        (filename,) = column_indices(manifest, header, (table.filename_column,), "; or name it with --filename_column")
    else:
        label_columns.refuse_one_hot(manifest, header, rows, category_column)
        filename, category = column_indices(manifest, header, (table.filename_column, category_column), fix)
    of_group = column_indices(manifest, header, (table.group_column,)) if table.group_column else []
    classes = label_columns.class_columns(manifest, header, [filename, *of_group]) if table.one_hot else {}
    if table.one_hot:
        labels = [label_columns.one_hot_labels(manifest, line, row, classes) for line, row in rows]
    elif table.label_delimiter:
        labels = [label_columns.split_labels(row[category], table.label_delimiter) for _, row in rows]
    else:
        labels = [(row[category].strip(),) for _, row in rows]
    names = {name for own in labels for name in own} - {""}
    notes = () if table.one_hot else label_columns.note_on_lists(manifest, names)
    parsed = []
    for (line, row), own in zip(rows, labels, strict=True):
        empty = f"({one_line(','.join(row))}). Fill it in, or remove the row"
        if not row[filename].strip():
            raise DataError(f"{manifest} line {line}: empty {table.filename_column} {empty}")
        if own == ("",):
            raise DataError(". ".join((f"{manifest} line {line}: empty {category_column} {empty}", *notes)))
        group = plain_name("".join(row[column] for column in of_group).strip())
        parsed.append(_Row(line, row[filename], own, group))
    counts = Counter(row.filename for row in parsed)
    repeated = [filename for filename, number in counts.items() if number > 1]
    if repeated:
        lines = [(row.line, row.category) for row in parsed if row.filename == repeated[0]]
        raise DataError(
            f"{counted(len(repeated), 'file name is', 'file names are')} repeated in {manifest}: {repeated[0]!r} in "
            f"{', '.join(f'line {line} as {category!r}' for line, category in lines[:_LISTED])}. Keep one row for each"
        )
    check_class_names({*names, *classes}, where=str(manifest))
    if not names:
        raise DataError(f"{manifest} has no label in any row. Check the columns")
    return parsed, tuple(sorted(classes)), notes


def check_class_names(names: Iterable[str], where: str) -> None:
    """Raises a DataError if a name cannot be that of a class; `where` is where it is from."""
    for name in sorted(names):
        # The label file has one class name per line, and its readers strip lines and drop empty ones.
        if name != name.strip() or len(name.splitlines()) > 1:
            raise DataError(f"category {name!r} of {where} has surrounding white space or a line break. Rename it")
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"category {ascii(name)} of {where} is not UTF-8. Rename it") from None


def number_without_suffix(names: Iterable[str]) -> int:
    """Returns how many file names have no suffix of an image, such as the ids of a competition."""
    return sum(not is_image_name(name.strip()) for name in names)


def _nearest_file(missing: str, names: Sequence[str]) -> str:
    by_base_name = {posixpath.basename(name): name for name in reversed(names)}
    stem = posixpath.basename(missing)
    for suffix in sorted(IMAGE_SUFFIXES):
        for candidate in (stem + suffix, os.path.splitext(stem)[0] + suffix):
            if candidate in by_base_name:
                return f" (did you mean {by_base_name[candidate]!r}?)"
    return did_you_mean(missing, sorted(names)[:_SEARCHED])
