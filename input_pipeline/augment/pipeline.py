"""The augmentation pipeline string of a recipe (`config.augment.ops`), parsed and validated without TensorFlow.

    pipeline = parse_pipeline("crop(64, scale=0.35..1) | flip | trivial | erase(0.25)", image_size=64)
    pipeline.scale                     # (0.35, 1.0): the crop is done with decoding
    pipeline.host, pipeline.device     # the other operations in order, by where they run
    pipeline.draws                     # random numbers per image

Operations run left to right. Arguments are positional or named, and some have defaults; `low..high` is a range.
`OPERATIONS` lists the built-in operations with the range of each argument; users add their own (`registered`), also as
`FILE.py:NAME(...)` or `package.module:NAME(...)`.

The trailing operations that a device can run inside the step run there; all before them run in the reader, on bytes.
Each operation uses its own range of the image's random numbers (`order.image_randomness`), by its place in the
pipeline; the first `CROP_DRAWS` are reserved for the crop, whether there is one or not.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from convoy.core.errors import UsageError, did_you_mean
from convoy.core.registry import Found
from convoy.input_pipeline.augment.registered import Function, UserOperation, find_operation
from convoy.input_pipeline.augment.signatures import CROP_DRAWS, OPERATIONS, Parameter, Signature, Value

_WHOLE = (1.0, 1.0)
_NAME = r"(?:.*\.py:\w+|[\w.]+:\w+|\w*)"


@dataclass(frozen=True)
class Operation:
    """One operation of a pipeline.

    Attributes:
      name: a key of OPERATIONS, or the name of a user's operation.
      values: arguments, in parameter order.
      first_draw: index of its first random number among the image's.
      added: a user's operation; None for built-in ones.
    """

    name: str
    values: tuple[Value, ...] = ()
    first_draw: int = CROP_DRAWS
    added: UserOperation | None = field(default=None, compare=False, repr=False)

    @property
    def signature(self) -> Signature:
        """Parameters and random numbers."""
        return self.added.signature if self.added else OPERATIONS[self.name]

    @property
    def arguments(self) -> dict[str, Value]:
        """Arguments by name; those of integer parameters are integers."""
        named = zip(self.signature.parameters, self.values, strict=True)
        return {parameter.name: _integer(value) if parameter.is_whole else value for parameter, value in named}

    @property
    def draws(self) -> int:
        """Random numbers per image."""
        return self.signature.draws * (_integer(self.values[0]) if self.name == "rand" else 1)


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
    def pieces(self) -> tuple[Found[Function], ...]:
        """The users' operations, in order, each once."""
        operations = (*self.host, *self.device)
        return tuple({operation.name: operation.added.found for operation in operations if operation.added}.values())

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
        name, values, added = _parse_operation(part, place)
        if name != "crop":
            operations.append(Operation(name, values, first_draw, added))
            first_draw += operations[-1].draws
            continue
        size, scale = values[0], _range(values[1])
        if number > 1:
            raise UsageError(f"{place}crop must be the first operation. Move it to the front.")
        if size not in (0, image_size):
            raise UsageError(f"{place}size must equal config.image_size={image_size}. Omit it or change one.")
    tail = len(operations)
    while tail and operations[tail - 1].signature.on_device:
        tail -= 1
    return AugmentPipeline(scale, tuple(operations[:tail]), tuple(operations[tail:]))


def with_user_names(text: str, name_of: Callable[[int, str], str]) -> str:
    """Returns a pipeline string with other names of users' operations.

    Args:
      text: as in `parse_pipeline`.
      name_of: returns the name that replaces one, from its place in `AugmentPipeline.pieces` and that name.
    """
    users: list[str] = []

    def renamed(part: str) -> str:
        match = re.match(_NAME, part.lstrip())
        name = match[0] if match else ""
        if not name or name in OPERATIONS:
            return part
        users.extend([name] if name not in users else [])
        return part.replace(name, name_of(users.index(name), name), 1)

    return "|".join(map(renamed, text.split("|")))


def _parse_operation(part: str, place: str) -> tuple[str, tuple[Value, ...], UserOperation | None]:
    match = re.fullmatch(rf"({_NAME})\s*(?:\((.*)\))?", part) or re.match(f"({_NAME})", part)
    assert match  # the name may be empty
    name = match[1]
    added = find_operation(name, place) if name not in OPERATIONS else None
    if match.re.groups == 1:
        raise UsageError(f"{place}write {name} or {name}(...), and separate operations with |.")
    parameters = (added.signature if added else OPERATIONS[name]).parameters
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
    return name, tuple(given[parameter.name] for parameter in parameters), added


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
        and all(math.isfinite(number) and parameter.low <= number <= parameter.high for number in numbers)
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
