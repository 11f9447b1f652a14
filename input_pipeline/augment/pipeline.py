"""The augmentation pipeline string of a recipe (`config.augment.ops`), parsed and validated without TensorFlow.

    pipeline = parse_pipeline("crop(64, scale=0.35..1) | flip | trivial | erase(0.25)", image_size=64)
    pipeline.scale                     # (0.35, 1.0): the crop is done with decoding
    pipeline.host, pipeline.device     # the other operations in order, by where they run
    pipeline.draws                     # random numbers per image

Operations run left to right. Arguments are positional or named, and some have defaults; `low..high` is a range.
`OPERATIONS` lists all operations with the range of each argument.

The trailing operations that a device can run inside the step run there; all before them run in the reader, on bytes.
Each operation uses its own range of the image's random numbers (`order.image_randomness`), by its place in the
pipeline; the first `CROP_DRAWS` are reserved for the crop, whether there is one or not.
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
    """A parameter of an operation.

    Attributes:
      name: argument name.
      low: smallest valid value.
      high: largest valid value.
      default: value if omitted; None if required.
      is_whole: whether it must be an integer.
      is_range: whether it is written as `low..high`.
    """

    name: str
    low: float
    high: float
    default: Value | None = None
    is_whole: bool = False
    is_range: bool = False

    @property
    def legal(self) -> str:
        """Valid values, for error messages."""
        what = "an integer" if self.is_whole else "a range LOW..HIGH" if self.is_range else "a number"
        return f"{what} from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Signature:
    """An operation and its parameters.

    Attributes:
      about: short description.
      draws: random numbers per image; for `rand`, per sampled operation.
      parameters: in positional order.
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
        "random crop with aspect ratio 3:4 to 4:3, resized",
        CROP_DRAWS,
        (
            Parameter("size", 1, 65536, default=0.0, is_whole=True),
            Parameter("scale", 0.0001, 1.0, default=(0.08, 1.0), is_range=True),
        ),
    ),
    "flip": Signature("flips horizontally", 1, (_probability(0.5),), on_device=True),
    "translate": Signature("shifts by up to this share of the side, in x and y", 2, (Parameter("share", 0.0, 1.0),)),
    "rotate": Signature("rotates by up to this many degrees, either way", 1, (Parameter("degrees", 0.0, 180.0),)),
    "shear": Signature(
        "shears about the centre by up to this share of the side, in x and y", 2, (Parameter("share", 0.0, 1.0),)
    ),
    "brightness": Signature(
        "adds or subtracts up to this share of the full range", 1, (Parameter("share", 0.0, 1.0),), on_device=True
    ),
    "contrast": Signature(
        "scales the distance from the mean grey by 1 - strength to 1 + strength",
        1,
        (Parameter("strength", 0.0, 1.0),),
        on_device=True,
    ),
    "saturation": Signature(
        "scales the distance from grey by 1 - strength to 1 + strength",
        1,
        (Parameter("strength", 0.0, 1.0),),
        on_device=True,
    ),
    "hue": Signature(
        "rotates hues by up to this share of the colour circle, either way",
        1,
        (Parameter("share", 0.0, 0.5),),
        on_device=True,
    ),
    "posterize": Signature(
        "keeps this many bits of each value",
        1,
        (Parameter("bits", 1, 8, is_whole=True), _probability(0.5)),
    ),
    "solarize": Signature(
        "inverts values of at least the threshold", 1, (Parameter("threshold", 0.0, 256.0, 128.0), _probability(0.5))
    ),
    "sharpness": Signature(
        "scales the distance from a smoothed image by 1 - strength to 1 + strength",
        1,
        (Parameter("strength", 0.0, 1.0),),
    ),
    "equalize": Signature("equalizes the histogram of each channel", 1, (_probability(0.5),)),
    "autocontrast": Signature("stretches each channel to the full range", 1, (_probability(0.5),)),
    "trivial": Signature("one random operation at a random strength (TrivialAugment)", 3),
    "rand": Signature(
        "this many random operations, at one magnitude from 0 to 30 (RandAugment)",
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
    """One operation of a pipeline.

    Attributes:
      name: a key of OPERATIONS.
      values: arguments, in parameter order.
      first_draw: index of its first random number among the image's.
    """

    name: str
    values: tuple[Value, ...] = ()
    first_draw: int = CROP_DRAWS

    @property
    def draws(self) -> int:
        """Random numbers per image."""
        return OPERATIONS[self.name].draws * (_integer(self.values[0]) if self.name == "rand" else 1)


@dataclass(frozen=True)
class AugmentPipeline:
    """A parsed pipeline string.

    Attributes:
      scale: smallest and largest share of an image's area that the crop keeps; (1, 1) keeps whole images.
      host: operations that run in the reader, on bytes.
      device: operations that run inside the step.
    """

    scale: tuple[float, float] = _WHOLE
    host: tuple[Operation, ...] = ()
    device: tuple[Operation, ...] = ()

    @property
    def draws(self) -> int:
        """Random numbers per image."""
        return CROP_DRAWS + sum(operation.draws for operation in (*self.host, *self.device))

    @property
    def crops(self) -> bool:
        """Whether images are cropped at random."""
        return self.scale != _WHOLE


def parse_pipeline(text: str, *, image_size: int, called: str = "config.augment.ops") -> AugmentPipeline:
    """Parses a pipeline string.

    Args:
      text: operations separated by `|`; empty for no augmentation.
      image_size: side of the training images, pixels; an explicit crop size must equal it.
      called: name of the setting, for error messages.

    Raises:
      UsageError: an unknown operation or an invalid argument; the message names it and the valid values.
    """
    parts = [part.strip() for part in text.split("|")] if text.strip() else []
    operations: list[Operation] = []
    scale, first_draw = _WHOLE, CROP_DRAWS
    for number, part in enumerate(parts, 1):
        place = f"{called}: operation {number}, {part!r}: "
        name, values = _parse_operation(part, place)
        if name != "crop":
            operations.append(Operation(name, values, first_draw))
            first_draw += operations[-1].draws
            continue
        size, scale = values[0], _range(values[1])
        if number > 1:
            raise UsageError(f"{place}crop must be the first operation. Move it to the front.")
        if size not in (0, image_size):
            raise UsageError(f"{place}size must equal config.image_size={image_size}. Omit it or change one.")
    tail = len(operations)
    while tail and OPERATIONS[operations[tail - 1].name].on_device:
        tail -= 1
    return AugmentPipeline(scale, tuple(operations[:tail]), tuple(operations[tail:]))


def _parse_operation(part: str, place: str) -> tuple[str, tuple[Value, ...]]:
    match = re.fullmatch(r"(\w*)\s*(?:\((.*)\))?", part)
    name = match[1] if match else re.split(r"\W", part, maxsplit=1)[0]
    if name not in OPERATIONS:
        listed = ", ".join(OPERATIONS)
        raise UsageError(f"{place}unknown operation{did_you_mean(name, OPERATIONS)}. Operations: {listed}.")
    if not match:
        raise UsageError(f"{place}write {name} or {name}(...), and separate operations with |.")
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
        if parameter.name in given:
            continue
        if parameter.default is None:
            raise UsageError(f"{place}{parameter.name} is missing: write {name}(X), where X is {parameter.legal}.")
        given[parameter.name] = parameter.default
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
        raise UsageError(
            f"{place}unknown argument {key!r}{did_you_mean(key, named)}. Arguments: {', '.join(named) or 'none'}."
        )
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
        raise UsageError(f"{place}{parameter.name}={text}: must be {parameter.legal}.")
    return (numbers[0], numbers[1]) if parameter.is_range else numbers[0]


def _integer(value: Value) -> int:
    """Returns the value of a parameter that is a number, as an integer."""
    assert not isinstance(value, tuple)
    return int(value)


def _range(value: Value) -> tuple[float, float]:
    """Returns the value of a parameter that is a range."""
    assert isinstance(value, tuple)
    return value
