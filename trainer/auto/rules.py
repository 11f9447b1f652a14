"""The choices of `--config=auto`: a pure function of facts about data and machine, with the numbers of `table`.

    choices = choose(facts, machine, budget_seconds=1620.0)
    [(choice.field, choice.value, choice.reason) for choice in choices]

Every rule has a reason, which is printed and written into the recipe. A field that the user gives is not chosen, and
the others follow from it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from convoy.core.text import counted, duration_text, share
from convoy.trainer.auto import table
from convoy.trainer.auto.facts import DataFacts

_MODEL = "residual_convnet"
_OF_ANY_SIZE = (_MODEL, "convnet", "resnet")
_SIDES = re.compile(r"(^|[^a-z])(left|right)([^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Machine:
    """What a choice depends on.

    Attributes:
      kind: `CPU` or `GPU`.
      replicas: devices of all workers.
      memory: bytes that training may use on a CPU, a power of two; 0 for unknown.
      speeds: images per second in training by image size, without the slow first step, as
        `choosing.rounded_speed` has them.
    """

    kind: str = "CPU"
    replicas: int = 1
    memory: int = 0
    speeds: Mapping[int, float] = field(default_factory=dict)


class Choice(NamedTuple):
    """The value of a config field, and the reason in one sentence without a period."""

    field: str
    value: Any
    reason: str


class _Choices:
    """Choices so far, of which the user's come first."""

    def __init__(self, given: Mapping[str, Any]):
        self._given = given
        self.list: list[Choice] = []

    def add(self, field: str, value: Any, reason: str) -> Any:  # noqa: ANN401 (of any field)
        """Returns the user's value, or adds this one and returns it."""
        if field in self._given:
            return self._given[field]
        self.list.append(Choice(field, value, reason))
        return value


def choose(
    facts: DataFacts, machine: Machine, budget_seconds: float = 0.0, given: Mapping[str, Any] | None = None
) -> list[Choice]:
    """Returns the choices, in the order in which they depend on each other; those of the user last.

    Args:
      facts: of the data.
      machine: that trains.
      budget_seconds: time for the whole run; 0 for any. The choice keeps to it only with a speed.
      given: values of config fields that the user sets, by dotted name.
    """
    given = dict(given or {})
    chosen = _Choices(given)
    why = "the best of the shipped models from random weights (docs/results/generalization.md)"
    chosen.add("model.name", _MODEL, why)
    if facts.multi_label:
        chosen.add("loss.name", "bce", "an image has any number of labels")
    flips = _add_augmentation(chosen, facts)
    batch, batch_reason = _batch(facts, machine, given.get("virtual_replicas", 0))
    batch = chosen.add("batch_size", batch, batch_reason)
    side, side_reason = _side(facts, machine, batch)
    tta = 2 if flips and given.get("flip_tta", True) else 1
    length = _length(facts, machine, batch, given.get("image_size", side), tta, budget_seconds, given)
    size = chosen.add("image_size", length.side, length.side_reason if length.side != side else side_reason)
    if length.progressive:
        sizes, ends = (tuple(column) for column in zip(*_stages(size), strict=True))
        chosen.add("progressive.sizes", sizes, "fewer pixels at first, to do more epochs in the time (convnet_fast)")
        chosen.add("progressive.ends", ends, "where each of these sizes ends, as in convnet_fast")
    if not given.get("steps"):
        chosen.add("epochs", float(length.epochs), length.reason)
    epochs = given.get("epochs", length.epochs)
    steps = given.get("steps") or max(1, math.ceil(epochs * facts.images / batch))
    epochs = steps * batch / facts.images
    often = "few, since the best of many is often the best by chance (convnet)"
    chosen.add("eval_every_epochs", _whole(epochs / table.EVALUATIONS), f"{table.EVALUATIONS} evaluations: {often}")
    every = _whole(max(epochs / table.CHECKPOINTS, min(1.0, epochs / table.EVALUATIONS)))
    chosen.add("checkpoint_every_epochs", every, f"at most {table.CHECKPOINTS} checkpoints")
    if epochs < table.SHORT:
        chosen.add("schedule.warmup_epochs", _two_digits(epochs / table.SHORT), "a tenth of the run, which is short")
    if epochs < table.MIXED_EPOCHS or (steps < table.MIXED_STEPS and epochs < table.EPOCHS):
        few = f"{table.MIXED_EPOCHS} epochs, and in fewer than {table.EPOCHS} of under {table.MIXED_STEPS:,} steps"
        chosen.add("mix.probability", 0.0, f"no mixing: it costs accuracy in fewer than {few}")
    if given.get("optimizer.weight_decay"):
        chosen.add("optimizer.weight_decay_per_run", 0.0, "the weight decay is given")
    elif given.get("optimizer.name", "adamw") == "adamw":
        chosen.add("optimizer.weight_decay_per_run", *_weight_decay(steps))
    chosen.add("resize", *_resize(facts))
    chosen.add("sampling", *_sampling(facts))
    chosen.add("cache", "auto", "decoded images stay in memory if all fit easily; the result is the same")
    return chosen.list + [Choice(name, value, "given on the command line") for name, value in given.items()]


def mirroring(facts: DataFacts) -> tuple[bool | None, str]:
    """Returns whether mirroring changes the class of an image, None if that cannot be found out, and the reason."""
    names = facts.class_names
    signs = [name for name in names if len(name) == 1 and name.isascii()]
    letters = sum(name.isalpha() or (name.isdigit() and facts.is_gray) for name in signs)
    by_name = letters > len(names) / 2 or sum(bool(_SIDES.search(name)) for name in names) >= 2
    test = facts.mirror
    if test and _is_certain(test.accuracy, test.chance, test.number):
        kept = (test.mirrored - test.chance) / (test.accuracy - test.chance)
        lost = test.accuracy - test.mirrored
        text = (
            f"a simple classifier recognizes {share(test.mirrored, 0)} of mirrored images and {share(test.accuracy, 0)}"
            f" of others (chance {share(test.chance, 0)})"
        )
        return kept < table.KEPT_BY_MIRRORING and lost > table.CERTAIN * _error(test.mirrored, test.number), text
    if by_name:
        return True, "names of the classes are letters, digits, or left and right"
    return None, "a simple classifier cannot tell, and most things stay what they are"


def color_weight(facts: DataFacts) -> tuple[float, str]:
    """Returns how far colors tell the class, in [0, 1], and the reason: 0 where shapes tell more or nothing is certain.

    The value is the share of the images above chance that are recognized by their colors alone.
    """
    test = facts.color
    if not test or not _is_certain(test.colors, test.chance, test.number):
        return 0.0, "colors alone do not tell the classes apart"
    text = (
        f"a simple classifier recognizes {share(test.colors, 0)} of images by colors alone and {share(test.grays, 0)} "
        f"in gray (chance {share(test.chance, 0)})"
    )
    if test.colors - test.grays <= table.CERTAIN * _error(test.colors, test.number):
        return 0.0, text
    return (test.colors - test.chance) / (1 - test.chance), text


def _add_augmentation(chosen: _Choices, facts: DataFacts) -> bool:
    """Adds augmentation and test-time mirroring; returns whether images are mirrored."""
    matters, reason = mirroring(facts)
    weight, color_reason = color_weight(facts)
    flip = "" if matters else " | flip"
    why = f"{'no flips' if matters else 'flips'}: {reason}"
    if facts.is_gray:
        ops = "crop(scale=0.7..1) | " + ("shear(0.2) | rotate(10)" if matters else "flip | rotate(10)")
        ops += " | contrast(0.4)"
        why += "; gray images have no colors to change (digits)"
    elif weight >= table.NO_HUE:
        ops = f"crop(scale=0.7..1){flip} | brightness(0.1) | contrast(0.2)"
        why += f"; colors stay: {color_reason}"
    elif weight >= table.WEAK_HUE:
        ops = f"crop(scale=0.7..1){flip} | hue(0.05) | saturation(0.4) | contrast(0.2)"
        why += f"; colors change little: {color_reason}"
    else:
        ops = f"crop(scale=0.7..1) | solarize(0, 0.3){flip} | hue(0.5, 0.5) | saturation(0.7)"
        why += f"; all colors: {color_reason} (convnet)"
    chosen.add("augment.ops", ops, why)
    tta = "mirrored images have another class"
    chosen.add("flip_tta", not matters, tta if matters else "averages predictions of each image and its mirror image")
    return not matters


def _batch(facts: DataFacts, machine: Machine, virtual_replicas: int) -> tuple[int, str]:
    if facts.images < table.FEW_IMAGES:
        size, reason = (
            table.BATCH_OF_FEW,
            f"small batches, for more steps with {counted(facts.images, 'training image')}",
        )
    elif facts.images >= table.MANY_IMAGES and machine.kind == "GPU":
        size, reason = (
            table.BATCH_OF_MANY,
            f"{counted(facts.images, 'training image')} on a GPU, which is faster on larger batches",
        )
    else:
        size, reason = table.BATCH, "that of convnet, for which its learning rate was chosen"
    virtual = virtual_replicas or machine.replicas
    least = max(size, table.PER_VIRTUAL_REPLICA * virtual)
    fitted = math.ceil(least / virtual) * virtual
    if fitted != size:
        reason = f"{fitted // virtual} for each of {virtual} virtual replicas"
    return fitted, reason


def _side(facts: DataFacts, machine: Machine, batch: int) -> tuple[int, str]:
    """Returns the image size without a time budget, and the reason."""
    fitting = [size for size in table.SIZES if size <= facts.side]
    enlarged = not fitting
    side = fitting[-1] if fitting else table.SIZES[0]
    reason = f"images have about {facts.side:.0f} pixels per side"
    if enlarged:
        reason += ", and the model needs a few more (digits)"
    most = table.MOST_SIDE[machine.kind]
    if facts.images < table.FEW_IMAGES and side > table.SIDE_OF_FEW:
        side, reason = (
            table.SIDE_OF_FEW,
            f"with {facts.images:,} training images, the model would overfit more on larger ones",
        )
    elif side > most:
        side, reason = most, f"{reason}; {most} is what a {machine.kind} trains on in reasonable time"
    if machine.memory and machine.kind == "CPU":
        allowed = table.SHARE_OF_MEMORY * machine.memory
        fits = [size for size in table.SIZES if size <= side and table.BYTES_PER_PIXEL * size**2 * batch <= allowed]
        if not fits or fits[-1] < side:
            side = fits[-1] if fits else table.SIZES[0]
            reason = f"what fits into {machine.memory / 2**30:.3g} GiB of memory with batches of {batch}"
    return side, reason


class _Length(NamedTuple):
    side: int
    side_reason: str
    progressive: bool
    epochs: float
    reason: str


def _length(
    facts: DataFacts, machine: Machine, batch: int, side: int, tta: int, budget: float, given: Mapping[str, Any]
) -> _Length:
    """Returns image size and epochs, within the budget if there is one and a speed is known."""
    for_steps = math.ceil(table.MIN_STEPS * batch / facts.images)
    wanted = min(max(table.EPOCHS, for_steps), table.MOST_EPOCHS)
    reason = "as convnet"
    if wanted > table.EPOCHS:
        reason = f"{math.ceil(wanted * facts.images / batch):,} steps: fewer epochs would be too few (convnet: 2,835)"
    is_given = bool(given.get("steps") or "epochs" in given)
    if not budget or not machine.speeds or is_given:
        return _Length(side, "", False, wanted, reason)
    seconds = table.SHARE_OF_BUDGET * (budget - min(table.STARTUP_SECONDS, table.STARTUP_SHARE * budget))

    def affordable(size: int, stages: bool) -> float:
        train = table.OVERHEAD * facts.images * _seconds_per_image(machine.speeds, size, stages)
        evaluated = table.EVALUATIONS * facts.validation_images * tta * table.EVALUATION_COST
        other = evaluated * _seconds_per_image(machine.speeds, size, False)
        other += len(table.PROGRESSIVE) * table.STAGE_SECONDS if stages else 0.0
        return max(0.0, seconds - other) / train

    smaller = [size for size in reversed(table.SIZES) if table.SMALLEST_SIDE <= size < side]
    any_size = given.get("model.name", _MODEL) in _OF_ANY_SIZE
    can_stage = any_size and not {"progressive.sizes", "progressive.ends"} & given.keys()
    ways = [(side, False), *([(side, True)] if can_stage and side >= table.SMALLEST_SIDE else [])]
    ways += [(size, can_stage) for size in smaller if "image_size" not in given]
    if affordable(side, False) >= table.ENOUGH * wanted:
        size, stages = side, False
    else:
        longest = max(ways, key=lambda way: affordable(*way))
        size, stages = next((way for way in ways if affordable(*way) >= wanted), longest)
    possible = affordable(size, stages)
    epochs = min(possible, float(table.LONGEST * wanted))
    epochs = float(math.floor(epochs)) if epochs >= table.SHORT else max(0.01, math.floor(100 * epochs) / 100)
    time = f"in {share(table.SHARE_OF_BUDGET, 0)} of {duration_text(budget)}"
    if epochs < wanted:
        reason = f"what can be done {time}; {wanted} would be better"
    elif epochs < table.LONGEST * wanted:
        reason = f"what can be done {time}"
    else:
        reason = f"{table.LONGEST} times the usual {wanted}, for which there is time; more would gain little"
    return _Length(size, f"{side} pixels would take too long for {wanted} epochs {time}", stages, epochs, reason)


def _stages(size: int) -> list[tuple[int, float]]:
    """Returns sizes before the last one, multiples of 4, and their ends."""
    return [(max(8, round(part * size / 4) * 4), end) for part, end in table.PROGRESSIVE]


def _seconds_per_image(speeds: Mapping[int, float], size: int, stages: bool) -> float:
    """Returns the time of training on an image, on average over the stages of a run."""
    spans = [*_stages(size), (size, 1.0)] if stages else [(size, 1.0)]
    starts = [0.0, *(end for _, end in spans)]
    total = 0.0
    for (pixels, end), start in zip(spans, starts, strict=False):
        measured = min(speeds, key=lambda known: (abs(math.log(known / pixels)), known))
        power = 1.5 if pixels < measured else 2.0  # less is gained than pixels are saved
        total += (end - start) / speeds[measured] * (pixels / measured) ** power
    return total


def _weight_decay(steps: int) -> tuple[float, str]:
    most = steps / table.STEPS_OF_DECAY
    if most < table.DECAY_PER_RUN:
        return _two_digits(most), f"less than the usual {table.DECAY_PER_RUN:g}, for a run of {counted(steps, 'step')}"
    part = share(1 / table.DECAY_PER_RUN, 0)
    return table.DECAY_PER_RUN, f"AdamW then averages over about {part} of the run (Wang and Aitchison 2024)"


def _resize(facts: DataFacts) -> tuple[str, str]:
    if facts.odd_shapes <= table.ODD_SHAPES:
        return "squash", f"{share(1 - facts.odd_shapes, 0)} of the images have about the same shape"
    shapes = f"{share(facts.odd_shapes, 0)} of the images have other shapes than most"
    if facts.long_shapes > table.LONG_SHAPES:
        return "pad", f"{shapes}, and {share(facts.long_shapes, 0)} lose half of their length by cropping"
    return "crop", f"{shapes}; cropping was better by 2 points on average over two sets (docs/results/recipes.md)"


def _sampling(facts: DataFacts) -> tuple[str, str]:
    ratio = facts.largest_class / facts.smallest_class
    sizes = f"classes have {facts.smallest_class:,} to {counted(facts.largest_class, 'image')}"
    if facts.multi_label:
        return "natural", f"{sizes}, of several labels: drawing some more often changes how often others occur"
    if ratio >= table.VERY_UNBALANCED:
        return "balanced", f"{sizes}: the best macro F1 at 10 to 1 (docs/results/recipes.md)"
    if ratio >= table.UNBALANCED:
        return "inverse_sqrt", f"{sizes}: helps small classes, at less cost to large ones than balanced"
    return "natural", sizes


def _is_certain(accuracy: float, chance: float, number: int) -> bool:
    return accuracy - chance > table.CERTAIN * _error(chance, number)


def _error(rate: float, number: int) -> float:
    """Returns the standard error of a rate among so many images."""
    return math.sqrt(max(rate * (1 - rate), 1 / number) / number)


def _whole(value: float) -> float:
    """Returns a number of epochs, rounded to an integer from 1 on."""
    return float(round(value)) if value >= 1 else _two_digits(value)


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
