"""Categories of the labels of other formats: class numbers, with or without names, and texts.

labels = Labels(("cup", "jar"))
labels.category(1)     # "jar"
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence

from convoy.core.errors import DataError
from convoy.core.text import counted, one_line
from convoy.input_pipeline.convert.sources import Source, Sources, check_class_names, one_spelling

_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})", re.ASCII)
_SHOWN = 40  # characters of a label
NO_LABEL = "no label"  # how the reason begins if an image has none


class Labels:
    """The categories of a conversion.

    Attributes:
      names: names of the classes in the order of their numbers; empty if the labels themselves are the names.
    """

    def __init__(self, names: Sequence[str] = ()):
        """Has no labels yet."""
        self.names = tuple(names)
        self._known = frozenset(names)
        self._only_numbers = True

    def category(self, value: object) -> str:
        """Returns the category of a label.

        Raises:
          ValueError: there is none (null, empty, NaN, or -1 where classes have names), or it is not that of one class.
        """
        if isinstance(value, float) and value.is_integer():  # a column of integers with nulls, as pandas writes it
            value = int(value)
        if isinstance(value, str):
            value = value.strip()
            if self.names and value not in self._known and _NUMBER.fullmatch(value):
                value = int(value)
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            raise ValueError(NO_LABEL)
        if isinstance(value, bool):
            value = str(value).lower()
        if isinstance(value, int):
            return self._of_number(value)
        if not isinstance(value, str):
            raise ValueError(f"the label is a {type(value).__name__}, not the number or name of one class")
        if self.names and value not in self._known:
            raise ValueError(f"label {_shown(value)} is not one of the {_classes(self.names)}")
        self._only_numbers = False
        return value

    def _of_number(self, value: int) -> str:
        if not self.names:
            return str(value)
        if value == -1:
            raise ValueError(f"{NO_LABEL} (-1)")
        if not 0 <= value < len(self.names):
            raise ValueError(f"label {value} is not one of the {_classes(self.names)}, 0 to {len(self.names) - 1}")
        return self.names[value]

    def class_names(self, categories: Iterable[str]) -> tuple[str, ...]:
        """Returns the classes in the order of their labels: `names`, or those that `category` returned.

        Numbers are in their order, texts sorted.
        """
        if self.names:
            return self.names
        return tuple(sorted(set(categories), key=int if self._only_numbers else None))


def labelled(
    images: Sequence[Source],
    bad: Sequence[tuple[Source, str]],
    labels: Labels,
    where: str,
    log: Callable[[str], None] = lambda line: None,
    ignored: int = 0,
) -> Sources:
    """Returns images as sources, with the classes of `labels`. Leaves splits out that have no labels, and logs that.

    Args:
      images: images whose categories are from `labels`.
      bad: images that cannot be used, with reasons.
      labels: the labels.
      where: the flag and its value, for messages.
      log: called with one line for each note.
      ignored: as in `Sources`.

    Raises:
      DataError: no image of a split can be used, or a class name is not one.
    """
    if not images and not bad:
        raise DataError(f"{where} has no images")
    usable = {image.split for image in images}
    unusable: dict[str, list[tuple[Source, str]]] = {}
    for image, reason in bad:
        if image.split not in usable:
            unusable.setdefault(image.split, []).append((image, reason))
    for split, of_split in unusable.items():
        image, reason = of_split[0]
        what = f"none of {counted(len(of_split), 'image')} can be used ({image.name}: {reason})"
        if not images or not all(why.startswith(NO_LABEL) for _, why in of_split):
            raise DataError(f"{where}: {what}")
        log(f"Split {split!r}: left out, {what}.")
    class_names = labels.class_names(image.category for image in images)
    check_class_names(class_names, where)
    kept = tuple((image, reason) for image, reason in bad if image.split in usable)
    found = Sources(tuple(images), class_names, ignored, bad=kept)
    return found if labels.names else one_spelling(found)


def number_or_text(text: str) -> int | str:
    """Returns the number that a text is, or the text; `03` is a text."""
    return int(text) if _NUMBER.fullmatch(text.strip()) else text


def _shown(label: str) -> str:
    return repr(one_line(label if len(label) <= _SHOWN else f"{label[: _SHOWN - 1]}…"))


def _classes(names: Sequence[str]) -> str:
    return counted(len(names), "class", "classes")
