"""The learning curve of a run: its accuracy by the number of training images, and what more of them would bring.

    curve = LearningCurve.parsed(read_json_object(run.learning_curve))
    curve.outlook, curve.law.accuracy(2 * curve.last.images)
    list(curve.findings())

`trainer/learning_curve` trains the runs.
"""

import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from convoy.core.finding import Finding, Severity
from convoy.core.text import joined, share
from convoy.trainer.evaluation.report import analysis, power_law
from convoy.trainer.evaluation.report.power_law import PowerLaw

FRACTIONS = {"quarter": 0.25, "half": 0.5}  # of the training images, by name; the smallest first
TIMES = (2, 4)  # as many images, to which the curve is extrapolated
SECTION = "learning-curve"  # of the page

_Z = 1.645  # of intervals of `power_law.LEVEL`
_MOST = 2**40  # of any count
_LEAST_GAIN = 0.005  # of accuracy by twice the images: less is little
_SURE = 0.95  # probability that the error falls
_COMMAND = "`convoy report --learning_curve`"


class Outlook(str, enum.Enum):
    """What more training images would bring."""

    HELPS = "helps"
    LITTLE = "little"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Point:
    """A run on all or some of the training images.

    Attributes:
      fraction: share of the training images, in (0, 1].
      images: number of training images.
      step: step of the evaluated weights.
      top1: accuracy on the evaluated split, in [0, 1].
      evaluated_images: number of images of that split.
      seconds: duration of the training.
      weights_sha256: that of the run's result.json.
    """

    fraction: float
    images: int
    step: int
    top1: float
    evaluated_images: int
    seconds: float
    weights_sha256: str

    @property
    def errors(self) -> int:
        """Number of wrong predictions."""
        return self.evaluated_images - round(self.top1 * self.evaluated_images)

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the accuracy by the number of evaluated images."""
        return analysis.interval(self.evaluated_images - self.errors, self.evaluated_images, _Z)


@dataclass(frozen=True)
class LearningCurve:
    """The points of a run's learning curve.

    Attributes:
      split: the split that all were evaluated on.
      points: from the fewest training images to all of them.
    """

    split: str
    points: Sequence[Point]

    @classmethod
    def parsed(cls, content: Mapping[str, Any]) -> "LearningCurve | None":
        """Returns the curve in a learning_curve.json; None if it is empty or damaged."""
        split, points = content.get("split"), content.get("points")
        if not isinstance(split, str) or not isinstance(points, list):
            return None
        try:
            parsed = [Point(**point) for point in points]
        except TypeError:
            return None
        sizes = [point.images for point in parsed if _is_sound(point)]
        if not 1 <= len(parsed) <= 1 + len(FRACTIONS) or len(sizes) < len(parsed) or sizes != sorted({*sizes}):
            return None
        return cls(split, parsed)

    def content(self) -> dict[str, Any]:
        """Returns the content of learning_curve.json."""
        law = self.law
        extrapolation = [
            {"images": images, "top1": top1, "low": low, "high": high}
            for images, top1, (low, high) in (self.extrapolated() if law else ())
        ]
        return {
            "split": self.split,
            "points": [asdict(point) for point in self.points],
            "missing": self.missing,
            "fit": {"factor": law.factor, "exponent": law.exponent} if law else None,
            "interval": power_law.LEVEL,
            "extrapolation": extrapolation,
            "outlook": self.outlook and self.outlook.value,
        }

    @property
    def last(self) -> Point:
        """The run on all training images."""
        return self.points[-1]

    @property
    def missing(self) -> list[str]:
        """Names of the fractions that are not trained yet."""
        done = {point.fraction for point in self.points}
        return [name for name, fraction in FRACTIONS.items() if fraction not in done]

    @cached_property
    def law(self) -> PowerLaw | None:
        """The power law through the points; None if there is one point, or the error does not fall."""
        law = self._law
        return law if law and law.exponent > 0 else None

    @cached_property
    def _law(self) -> PowerLaw | None:
        if len(self.points) < 2:
            return None
        columns = [(point.images, point.errors, point.evaluated_images) for point in self.points]
        return power_law.fit(*zip(*columns, strict=True))

    def extrapolated(self) -> list[tuple[int, float, tuple[float, float]]]:
        """Returns number of images, accuracy and its interval for some multiples of the images; needs `law`."""
        assert self.law
        sizes = [times * self.last.images for times in TIMES]
        return [(images, self.law.accuracy(images), self.law.interval(images)) for images in sizes]

    @property
    def outlook(self) -> Outlook | None:
        """What more images would bring; None if there is one point."""
        if not self._law:
            return None
        if not self.law or self.law.accuracy(2 * self.last.images) - self.last.top1 < _LEAST_GAIN:
            return Outlook.LITTLE
        return Outlook.HELPS if self.law.falling >= _SURE else Outlook.UNCLEAR

    def sentence(self) -> str:
        """Returns what more images would bring; empty if there is one point."""
        if not self.outlook:
            return ""
        if not self.law:
            measured = ", ".join(f"{share(point.top1)} with {point.images:,}" for point in self.points)
            return (
                f"Top-1 on {self.split} does not rise with the number of training images ({measured}): more images "
                "would bring little."
            )
        _, top1, (low, high) = self.extrapolated()[0]
        end = {
            Outlook.HELPS: "more images help",
            Outlook.LITTLE: "more images would bring little",
            Outlook.UNCLEAR: "these runs do not tell whether more images help",
        }[self.outlook]
        return (
            f"With twice the training images, top-1 on {self.split} would be about {share(top1)} "
            f"({100 * power_law.LEVEL:.0f} % interval {100 * low:.1f} to {share(high)}), now {share(self.last.top1)}: "
            f"{end}."
        )

    def findings(self) -> Iterator[Finding]:
        """Yields the findings for the report."""
        if self.outlook:
            fix = {
                Outlook.HELPS: "Add training images.",
                Outlook.LITTLE: "Try a larger model, other augmentation or more epochs, and check the labels.",
                Outlook.UNCLEAR: f"Add images to {self.split} for a narrower interval.",
            }[self.outlook]
            yield Finding(Severity.NOTE, f"more-images-{self.outlook.value}", self.sentence(), fix, SECTION)
        if self.missing:
            parts = joined([f"a {name}" for name in self.missing], "and")
            text = f"The learning curve is not measured yet at {parts} of the training images."
            fix = f"Rerun {_COMMAND} to complete it."
            yield Finding(Severity.NOTE, "learning-curve-incomplete", text, fix, SECTION)


def _is_sound(point: Point) -> bool:
    counts = (point.images, point.step, point.evaluated_images)
    numbers = (point.fraction, point.top1, point.seconds)
    return (
        all(isinstance(count, int) and not isinstance(count, bool) and 0 <= count < _MOST for count in counts)
        and all(isinstance(number, int | float) and math.isfinite(number) and number >= 0 for number in numbers)
        and min(point.images, point.evaluated_images) > 0
        and point.top1 <= 1
        and isinstance(point.weights_sha256, str)
    )
