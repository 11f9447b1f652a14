"""Signatures of the augmentation operations: names, parameters and random numbers, without TensorFlow.

OPERATIONS["erase"].parameters     # (Parameter("probability", 0.0, 1.0, 0.5), ...)
"""

import math
from dataclasses import dataclass

CROP_DRAWS = 4  # area, aspect ratio, vertical and horizontal place

Value = float | tuple[float, float]


@dataclass(frozen=True)
class Parameter:
    """A parameter of an operation.

    Attributes:
      name: argument name.
      low: smallest valid value; -inf for none.
      high: largest valid value; inf for none.
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
        ends = (f" from {self.low:g}" if math.isfinite(self.low) else "", f" to {self.high:g}")
        return what + ends[0] + (ends[1] if math.isfinite(self.high) else "")


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
        "shears about the center by up to this share of the side, in x and y", 2, (Parameter("share", 0.0, 1.0),)
    ),
    "brightness": Signature(
        "adds or subtracts up to this share of the full range", 1, (Parameter("share", 0.0, 1.0),), on_device=True
    ),
    "contrast": Signature(
        "scales the distance from the mean gray by 1 - strength to 1 + strength",
        1,
        (Parameter("strength", 0.0, 1.0),),
        on_device=True,
    ),
    "saturation": Signature(
        "scales the distance from gray by 1 - strength to 1 + strength",
        1,
        (Parameter("strength", 0.0, 1.0),),
        on_device=True,
    ),
    "hue": Signature(
        "rotates hues by up to this share of the color circle, either way",
        1,
        (Parameter("share", 0.0, 0.5), _probability(1.0)),
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
        "paints a random rectangle gray",
        5,
        (_probability(0.5), Parameter("area", 0.001, 1.0, (0.02, 0.33), is_range=True)),
        on_device=True,
    ),
}
