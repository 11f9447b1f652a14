"""A recipe's augmentation as one line that a person can read, parsed and checked without TensorFlow.

    line = parse_line("crop(64, scale=0.35..1) | flip | trivial | erase(0.25)", image_size=64)
    line.scale                 # (0.35, 1.0): the crop comes with decoding
    line.host, line.device     # the other operations in their order, and where they run
    line.draws                 # random numbers that an image needs

Operations follow each other as they stand. Arguments go by position or by name, in any number of which the last have
defaults; `low..high` is a range. `OPERATIONS` holds them all, with the range of each argument.

Those of the tail that a device can do inside the step are its half; all before them run in the reader, on bytes. Each
operation has random numbers of its own among an image's (`order.image_randomness`), by its place in the line; the
crop's are the first `CROP_DRAWS` whether there is a crop or not.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from convoy.core.errors import UsageError, did_you_mean

CROP_DRAWS = 4  # area, aspect ratio, vertical and horizontal place
_WHOLE = (1.0, 1.0)

Value = float | tuple[float, float]


@dataclass(frozen=True)
class Parameter:
    """What an operation can be told.

    Attributes:
      name: by which it can be given.
      low: the least legal value.
      high: the largest.
      default: what it is where it is left out; None where it must be given.
      is_whole: whether it counts something.
      is_range: whether it is given as `low..high`.
    """

    name: str
    low: float
    high: float
    default: Value | None = None
    is_whole: bool = False
    is_range: bool = False

    @property
    def legal(self) -> str:
        """What can be given, in words."""
        what = "a whole number" if self.is_whole else "a range LOW..HIGH" if self.is_range else "a number"
        return f"{what} from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Signature:
    """An operation that a line may hold.

    Attributes:
      about: what it does, in a few words.
      draws: random numbers that it needs of each image; of `rand`, for each operation that it samples.
      parameters: in the order of their positions.
      on_device: whether it can run inside the step.
    """

    about: str
    draws: int
    parameters: tuple[Parameter, ...] = ()
    on_device: bool = False


def _probability(default: float | None) -> Parameter:
    return Parameter("probability", 0.0, 1.0, default)


OPERATIONS = {
    "crop": Signature(
        "keeps a random part, of aspect ratio 3:4 to 4:3, and resizes it",
        CROP_DRAWS,
        (
            Parameter("size", 1, 65536, default=0.0, is_whole=True),
            Parameter("scale", 0.0001, 1.0, default=(0.08, 1.0), is_range=True),
        ),
    ),
    "flip": Signature("mirrors left to right", 1, (_probability(0.5),), on_device=True),
    "translate": Signature("moves by up to a share of the side, in x and in y", 2, (Parameter("share", 0.0, 1.0),)),
    "rotate": Signature("turns by up to so many degrees, either way", 1, (Parameter("degrees", 0.0, 180.0),)),
    "shear": Signature(
        "slants about the centre by up to a share of the side, in x and in y", 2, (Parameter("share", 0.0, 1.0),)
    ),
    "brightness": Signature(
        "adds or takes away up to a share of the full range", 1, (Parameter("share", 0.0, 1.0),), on_device=True
    ),
    "contrast": Signature(
        "multiplies the distance from the mean grey by up to 1 - strength or 1 + strength",
        1,
        (Parameter("strength", 0.0, 1.0),),
        on_device=True,
    ),
    "saturation": Signature(
        "multiplies the distance from grey by up to 1 - strength or 1 + strength",
        1,
        (Parameter("strength", 0.0, 1.0),),
        on_device=True,
    ),
    "hue": Signature(
        "turns all hues by up to a share of the circle, either way",
        1,
        (Parameter("share", 0.0, 0.5),),
        on_device=True,
    ),
    "posterize": Signature(
        "keeps so many bits of each value",
        1,
        (Parameter("bits", 1, 8, is_whole=True), _probability(0.5)),
    ),
    "solarize": Signature(
        "inverts values from a threshold on", 1, (Parameter("threshold", 0.0, 256.0, 128.0), _probability(0.5))
    ),
    "sharpness": Signature(
        "multiplies the distance from a smoothed image by up to 1 - strength or 1 + strength",
        1,
        (Parameter("strength", 0.0, 1.0),),
    ),
    "equalize": Signature("makes each channel's values evenly frequent", 1, (_probability(0.5),)),
    "autocontrast": Signature("stretches each channel to the full range", 1, (_probability(0.5),)),
    "trivial": Signature("one operation of a wide space, at a random strength (TrivialAugment)", 3),
    "rand": Signature(
        "so many operations, all at one magnitude of 30 (RandAugment)",
        2,
        (Parameter("ops", 1, 8, 2.0, is_whole=True), Parameter("magnitude", 0, 30, 9.0, is_whole=True)),
    ),
    "erase": Signature(
        "paints a random rectangle grey",
        5,
        (_probability(0.5), Parameter("area", 0.001, 1.0, (0.02, 0.33), is_range=True)),
        on_device=True,
    ),
}


@dataclass(frozen=True)
class Operation:
    """One operation of a line.

    Attributes:
      name: a key of OPERATIONS.
      values: of its parameters, in their order.
      first_draw: which of an image's random numbers is its first.
    """

    name: str
    values: tuple[Value, ...] = ()
    first_draw: int = CROP_DRAWS

    @property
    def draws(self) -> int:
        """How many random numbers it takes of each image."""
        return OPERATIONS[self.name].draws * (int(self.values[0]) if self.name == "rand" else 1)


@dataclass(frozen=True)
class AugmentPipeline:
    """What a line says.

    Attributes:
      scale: the least and the largest share of an image's area that the crop keeps; 1 and 1 keep whole images.
      host: operations of the reader, on bytes.
      device: operations of the step.
    """

    scale: tuple[float, float] = _WHOLE
    host: tuple[Operation, ...] = ()
    device: tuple[Operation, ...] = ()

    @property
    def draws(self) -> int:
        """How many random numbers an image needs."""
        return CROP_DRAWS + sum(operation.draws for operation in (*self.host, *self.device))

    @property
    def crops(self) -> bool:
        """Whether random parts are cut out of images."""
        return self.scale != _WHOLE


def parse_pipeline(text: str, *, image_size: int, called: str = "config.augment.ops") -> AugmentPipeline:
    """Returns what a line says.

    Args:
      text: operations between `|`; empty for whole images as they are.
      image_size: side of the images in training, which a crop's size must be where it is given.
      called: what errors call the line.

    Raises:
      UsageError: an operation that there is not, or an argument that it does not take; the text names which, and what
        would be right.
    """
    parts = [part.strip() for part in text.split("|")] if text.strip() else []
    operations, scale, first_draw = [], _WHOLE, CROP_DRAWS
    for number, part in enumerate(parts, 1):
        place = f"{called}: operation {number}, {part!r}: "
        name, values = _parsed(part, place)
        if name != "crop":
            operations.append(Operation(name, values, first_draw))
            first_draw += operations[-1].draws
            continue
        size, scale = values
        if number > 1:
            raise UsageError(f"{place}crop must come first: it makes all images the same size.")
        if size not in (0, image_size):
            raise UsageError(f"{place}the size must be config.image_size={image_size}: leave it out, or change either.")
    tail = len(operations)
    while tail and OPERATIONS[operations[tail - 1].name].on_device:
        tail -= 1
    return AugmentPipeline(scale, tuple(operations[:tail]), tuple(operations[tail:]))


def _parsed(part: str, place: str) -> tuple[str, tuple[Value, ...]]:
    match = re.fullmatch(r"(\w*)\s*(?:\((.*)\))?", part)
    name = match[1] if match else re.match(r"\w*", part)[0]
    if name not in OPERATIONS:
        listed = ", ".join(OPERATIONS)
        raise UsageError(f"{place}no such operation{did_you_mean(name, OPERATIONS)}. There are {listed}.")
    if not match:
        raise UsageError(f"{place}write {name} or {name}(...), and | between operations.")
    parameters = OPERATIONS[name].parameters
    arguments = [argument.strip() for argument in (match[2] or "").split(",")] if (match[2] or "").strip() else []
    if len(arguments) > len(parameters):
        takes = ", ".join(parameter.name for parameter in parameters) or "no arguments"
        raise UsageError(f"{place}too many arguments: {name} takes {takes}.")
    given: dict[str, Value] = {}
    for position, argument in enumerate(arguments):
        key, _, value = argument.rpartition("=")
        parameter = _parameter(key.strip(), parameters, position, given, place)
        given[parameter.name] = _value(value.strip(), parameter, place)
    for parameter in parameters:
        if given.setdefault(parameter.name, parameter.default) is None:
            raise UsageError(f"{place}{parameter.name} is missing: write {name}(X), with X {parameter.legal}.")
    return name, tuple(given[parameter.name] for parameter in parameters)


def _parameter(
    key: str, parameters: Sequence[Parameter], position: int, given: dict[str, Value], place: str
) -> Parameter:
    named = {parameter.name: parameter for parameter in parameters}
    if not key:
        parameter = parameters[position]
    elif key in named:
        parameter = named[key]
    else:
        raise UsageError(f"{place}no argument {key!r}{did_you_mean(key, named)}. There is {', '.join(named)}.")
    if parameter.name in given:
        raise UsageError(f"{place}{parameter.name} is given twice.")
    return parameter


def _value(text: str, parameter: Parameter, place: str) -> Value:
    ends = text.split("..") if parameter.is_range else [text]
    try:
        numbers = [float(end) for end in ends]
    except ValueError:
        numbers = []
    is_legal = (
        len(numbers) == 1 + parameter.is_range
        and all(parameter.low <= number <= parameter.high for number in numbers)
        and numbers == sorted(numbers)
        and not (parameter.is_whole and numbers[0] % 1)
    )
    if not is_legal:
        raise UsageError(f"{place}{parameter.name}={text}: give {parameter.legal}.")
    return tuple(numbers) if parameter.is_range else numbers[0]
