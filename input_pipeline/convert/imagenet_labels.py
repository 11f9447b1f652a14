"""The labels of ImageNet (ILSVRC 2012): files with the synset of each validation image, and with names of synsets.

    labels = LabelFiles({path.name: path for path in Path("imagenet").iterdir()})
    labels.ground_truth()     # {"ILSVRC2012_val_00000001": "n01751748", ...}
    labels.class_names()      # {"n01440764": "tench", "n02012849": "crane (n02012849)", ...}

| file | of | a line |
|---|---|---|
| LOC_val_solution.csv | Kaggle | `ILSVRC2012_val_00048981,n03995372 85 1 499 272`: the synset and a box, repeated |
| imagenet_2012_validation_synset_labels.txt | TensorFlow | `n01751748`: line i is of image i |
| ILSVRC2012_validation_ground_truth.txt | devkit | `490`: line i is of image i; meta.mat has synsets of numbers |
| LOC_synset_mapping.txt, synset_words.txt | Kaggle, Caffe | `n01440764 tench, Tinca tinca` |
"""

import io
import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from convoy.core.errors import DataError
from convoy.core.reading import read_file
from convoy.input_pipeline.convert.tables import column_indices, read_table

SYNSET = re.compile(r"n\d{8}")
SOLUTION = "LOC_val_solution.csv"
SYNSETS = "imagenet_2012_validation_synset_labels.txt"
NUMBERS = "ILSVRC2012_validation_ground_truth.txt"
GROUND_TRUTHS = f"{SOLUTION}, {SYNSETS}, or ILSVRC2012_devkit_t12.tar.gz"
MAPPINGS = ("LOC_synset_mapping.txt", "synset_words.txt")

_META = "meta.mat"  # with NUMBERS in the devkit
_DEVKITS = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12.tar", "ILSVRC2012_devkit_t12.tgz")
_IN_DEVKIT = (NUMBERS, _META)


class LabelFiles:
    """Files of labels.

    Attributes:
      truth: the file of ground truth that is read, or the archive that has it; None without one.
      mapping: the file of class names that is read; None without one.
    """

    def __init__(self, files: Mapping[str, Path]):
        """Takes what it needs from files by name; those of the devkit also from its archive."""
        archive = next((files[name] for name in _DEVKITS if name in files), None)
        self._files = {**(dict.fromkeys(_IN_DEVKIT, archive) if archive else {}), **files}
        self.truth = next((self._files[name] for name in (SOLUTION, SYNSETS, NUMBERS) if self._files.get(name)), None)
        self.mapping = next((files[name] for name in MAPPINGS if name in files), None)

    def ground_truth(self) -> dict[str, str]:
        """Returns the synset of each validation image, by its file name without suffix.

        Raises:
          DataError: the file, or one that it needs, cannot be used; or there is none.
        """
        assert self.truth
        if self.truth.name == SOLUTION:
            return _solution(self.truth)
        if self.truth.name == SYNSETS:
            return _numbered(
                [_synset(line, f"{self.truth} line {i}") for i, line in enumerate(self._lines(SYNSETS), 1)]
            )
        synset_of = self._synset_of_number()
        try:
            return _numbered([synset_of[int(line)] for line in self._lines(NUMBERS)])
        except (KeyError, ValueError) as error:
            raise DataError(f"{NUMBERS} in {self.truth.parent}: {error} is not a number of {_META}") from None

    def class_names(self) -> dict[str, str]:
        """Returns the name of each synset: its first word, and the synset too where others have the same; or {}.

        Raises:
          DataError: the file cannot be used.
        """
        if not self.mapping:
            return {}
        lines = [line.split(maxsplit=1) for line in self._lines(self.mapping.name)]
        for i, parts in enumerate(lines, 1):
            if len(parts) < 2:
                raise DataError(f"{self.mapping} line {i}: {' '.join(parts)!r} is not a synset and its words")
            _synset(parts[0], f"{self.mapping} line {i}")
        first = {synset: words.split(",")[0].strip() for synset, words in lines}
        counts = Counter(first.values())
        return {synset: f"{name} ({synset})" if counts[name] > 1 else name for synset, name in first.items()}

    def _synset_of_number(self) -> dict[int, str]:
        path = self._files.get(_META)
        others = f"put {SOLUTION} or {SYNSETS} next to it, which have the synsets themselves"
        if not path:
            raise DataError(
                f"{self.truth} has numbers, and {_META} of the devkit, which has their synsets, is not there"
            )
        try:
            from scipy.io import loadmat
        except ImportError:
            raise DataError(
                f"{path} has the synsets of {NUMBERS}, and is read with scipy. Run `pip install scipy`, or {others}"
            ) from None
        try:
            synsets = loadmat(io.BytesIO(self._content(_META)), squeeze_me=True)["synsets"]
            return {int(one["ILSVRC2012_ID"]): _synset(str(one["WNID"]), str(path)) for one in synsets}
        except DataError:
            raise
        except Exception as error:  # damaged bytes make scipy raise anything
            raise DataError(f"{path} cannot be read ({error}). Copy it again, or {others}") from None

    def _lines(self, name: str) -> list[str]:
        try:
            lines = self._content(name).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise DataError(f"{self._files[name]} is not UTF-8. Copy it again") from None
        return [line.strip() for line in lines if line.strip()]

    def _content(self, name: str) -> bytes:
        path = self._files[name]
        try:
            if path.name == name:
                return read_file(path)
            with tarfile.open(path) as archive:
                member = next((one for one in archive if one.isfile() and Path(one.name).name == name), None)
                file = archive.extractfile(member) if member else None
                if not file:
                    raise DataError(f"{path} has no {name}. Download it again")
                return file.read()
        except (OSError, EOFError, tarfile.TarError) as error:
            raise DataError(f"{path} cannot be read ({error}). Copy it again") from None


def _solution(path: Path) -> dict[str, str]:
    header, rows = read_table(path)
    image, prediction = column_indices(path, header, ("ImageId", "PredictionString"))
    return {row[image]: _synset(row[prediction].partition(" ")[0], f"{path} line {line}") for line, row in rows}


def _numbered(synsets: Sequence[str]) -> dict[str, str]:
    return {f"ILSVRC2012_val_{number:08d}": synset for number, synset in enumerate(synsets, 1)}


def _synset(text: str, where: str) -> str:
    if not SYNSET.fullmatch(text):
        raise DataError(f"{where}: {text!r} is not a synset, such as n01440764")
    return text
