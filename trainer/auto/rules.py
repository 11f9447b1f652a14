"""The choices of `--config=auto`: a pure function of facts about data and machine, and the table of its numbers.

    choices = choose(facts, machine, budget_seconds=1620.0)
    [(choice.field, choice.value, choice.reason) for choice in choices]

Every rule has its reason, which is printed and written into the recipe, and says where its evidence is. A field that
the user gives is not chosen, and the others follow from it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from convoy.core.text import counted, duration_text, share
from convoy.trainer.auto.facts import DataFacts

# Length: the recipes `convnet` (30 epochs of 2,268 images) and `digits` (40 of 1,294) do 810 to 1,060 steps. 110 steps,
# which 30 epochs of 227 images are, were too few: 43 % top-1 on test images, and 59 % after 850 at 32 pixels.
EPOCHS, MIN_STEPS, MOST_EPOCHS = 30, 850, 400
LONGEST = 2  # times this length, if the time budget allows
# Images: the sizes of the shipped recipes and those between them.
SIZES = (16, 24, 32, 48, 64, 96, 128)
MOST_SIDE = {"CPU": 64, "GPU": 128}
FEW_IMAGES, SIDE_OF_FEW, BATCH_OF_FEW = 500, 32, 32  # as measured on 227 images
SMALLEST_SIDE = 32  # down to which a time budget may reduce the images
BATCH, MANY_IMAGES, BATCH_OF_MANY = 64, 20_000, 128  # the last on GPUs
PER_VIRTUAL_REPLICA = 8  # images at least, which batch normalization sees
BYTES_PER_PIXEL = 3_000  # of an image in training, estimated from the layers of `convnet`
SHARE_OF_MEMORY = 0.5
PROGRESSIVE = ((0.5, 0.3), (0.75, 0.6))  # as in `convnet_fast`: shares of the size, and of the run at their ends
# AdamW averages over about 1 / (learning rate * decay) steps (Wang and Aitchison 2024): here, this share of the run.
# `resnet10`, `convnet_fast` and `digits` have 0.15 to 0.31, the runs on 227 images had 1.
LEARNING_RATE, AVERAGED_SHARE, SHARE_OF_FEW, DECAYS = 4e-3, 0.3, 1.0, (0.02, 1.0)
REFERENCE_BATCH = 64  # of the learning rate, which is scaled by the square root
EVALUATIONS, CHECKPOINTS = 6, 30
SHORT = 10  # epochs, of which one is for warmup
# What changes a class (`sensitivity`): in standard errors, and as shares of what is above chance.
CERTAIN, KEPT_BY_MIRRORING = 3.0, 0.5
WEAK_HUE, NO_HUE = 0.25, 0.5
UNBALANCED, VERY_UNBALANCED = 3.0, 10.0  # images of the largest class per image of the smallest
ODD_SHAPES, LONG_SHAPES = 0.1, 0.25  # shares of the images
# Time.
SHARE_OF_BUDGET = 0.9
STARTUP_SECONDS, STARTUP_SHARE = 90.0, 0.25  # to begin, to measure and to end, and its largest share of the budget
EVALUATION_COST = 0.35  # of an image, in images trained on
OVERHEAD = 1.1  # of steps: checkpoints, logs

_SIDES = re.compile(r"(^|[^a-z])(left|right)([^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Machine:
    """What a choice depends on.

    Attributes:
      kind: `CPU` or `GPU`.
      replicas: devices of all workers.
      memory: bytes that training may use on a CPU, a power of two; 0 for unknown.
      speeds: images per second in training by image size, without the short first step; powers of two.
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
    chosen.add("model.name", "convnet", "the best of the shipped models from random weights (docs/results/recipes.md)")
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
    chosen.add("eval_every_epochs", _whole(epochs / EVALUATIONS), f"{EVALUATIONS} evaluations: {often}")
    every = _whole(max(epochs / CHECKPOINTS, min(1.0, epochs / EVALUATIONS)))
    chosen.add("checkpoint_every_epochs", every, f"at most {CHECKPOINTS} checkpoints")
    if epochs < SHORT:
        chosen.add("schedule.warmup_epochs", _two_digits(epochs / SHORT), "a tenth of the run, which is short")
    if given.get("optimizer.name", "adamw") == "adamw":
        chosen.add("optimizer.weight_decay", *_weight_decay(facts, batch, steps, given))
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
        return kept < KEPT_BY_MIRRORING and lost > CERTAIN * _error(test.mirrored, test.number), text
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
    if test.colors - test.grays <= CERTAIN * _error(test.colors, test.number):
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
    elif weight >= NO_HUE:
        ops = f"crop(scale=0.7..1){flip} | brightness(0.1) | contrast(0.2)"
        why += f"; colors stay: {color_reason}"
    elif weight >= WEAK_HUE:
        ops = f"crop(scale=0.7..1){flip} | hue(0.05) | saturation(0.4) | contrast(0.2)"
        why += f"; colors change little: {color_reason}"
    else:
        ops = f"crop(scale=0.7..1) | solarize(0, 0.3){flip} | hue(0.5) | saturation(0.7)"
        why += f"; all colors: {color_reason} (convnet)"
    chosen.add("augment.ops", ops, why)
    tta = "mirrored images have another class"
    chosen.add("flip_tta", not matters, tta if matters else "averages predictions of each image and its mirror image")
    return not matters


def _batch(facts: DataFacts, machine: Machine, virtual_replicas: int) -> tuple[int, str]:
    if facts.images < FEW_IMAGES:
        size, reason = BATCH_OF_FEW, f"small batches, for more steps with {counted(facts.images, 'training image')}"
    elif facts.images >= MANY_IMAGES and machine.kind == "GPU":
        size, reason = (
            BATCH_OF_MANY,
            f"{counted(facts.images, 'training image')} on a GPU, which is faster on larger batches",
        )
    else:
        size, reason = BATCH, "that of convnet, for which its learning rate was chosen"
    virtual = virtual_replicas or machine.replicas
    least = max(size, PER_VIRTUAL_REPLICA * virtual)
    fitted = math.ceil(least / virtual) * virtual
    if fitted != size:
        reason = f"{fitted // virtual} for each of {virtual} virtual replicas"
    return fitted, reason


def _side(facts: DataFacts, machine: Machine, batch: int) -> tuple[int, str]:
    """Returns the image size without a time budget, and the reason."""
    fitting = [size for size in SIZES if size <= facts.side]
    enlarged = not fitting
    side = fitting[-1] if fitting else SIZES[0]
    reason = f"images have about {facts.side:.0f} pixels per side"
    if enlarged:
        reason += ", and the model needs a few more (digits)"
    most = MOST_SIDE[machine.kind]
    if facts.images < FEW_IMAGES and side > SIDE_OF_FEW:
        side, reason = (
            SIDE_OF_FEW,
            f"with {facts.images:,} training images, the model would overfit more on larger ones",
        )
    elif side > most:
        side, reason = most, f"{reason}; {most} is what a {machine.kind} trains on in reasonable time"
    if machine.memory and machine.kind == "CPU":
        allowed = SHARE_OF_MEMORY * machine.memory
        fits = [size for size in SIZES if size <= side and BYTES_PER_PIXEL * size**2 * batch <= allowed]
        if not fits or fits[-1] < side:
            side = fits[-1] if fits else SIZES[0]
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
    for_steps = math.ceil(MIN_STEPS * batch / facts.images)
    wanted = min(max(EPOCHS, for_steps), MOST_EPOCHS)
    reason = "as convnet"
    if wanted > EPOCHS:
        reason = f"{math.ceil(wanted * facts.images / batch):,} steps: fewer epochs would be too few (convnet: 1,064)"
    is_given = bool(given.get("steps") or "epochs" in given)
    if not budget or not machine.speeds or is_given:
        return _Length(side, "", False, wanted, reason)
    seconds = SHARE_OF_BUDGET * (budget - min(STARTUP_SECONDS, STARTUP_SHARE * budget))

    def affordable(size: int, stages: bool) -> float:
        train = OVERHEAD * facts.images * _seconds_per_image(machine.speeds, size, stages)
        check = (
            EVALUATIONS
            * facts.validation_images
            * tta
            * EVALUATION_COST
            * _seconds_per_image(machine.speeds, size, False)
        )
        return max(0.0, seconds - check) / train

    can_shrink = "image_size" not in given
    smaller = [size for size in reversed(SIZES) if SMALLEST_SIDE <= size < side] if can_shrink else []
    any_size = given.get("model.name", "convnet") in ("convnet", "resnet")
    can_stage = any_size and not {"progressive.sizes", "progressive.ends"} & given.keys()
    ways = [(side, False), *([(side, True)] if can_stage and side >= SMALLEST_SIDE else [])]
    ways += [(size, can_stage) for size in smaller]
    size, stages = next((way for way in ways if affordable(*way) >= wanted), ways[-1])
    possible = affordable(size, stages)
    epochs = min(possible, float(LONGEST * wanted))
    epochs = float(math.floor(epochs)) if epochs >= SHORT else max(0.01, math.floor(100 * epochs) / 100)
    time = f"in {share(SHARE_OF_BUDGET, 0)} of {duration_text(budget)}"
    if epochs < wanted:
        reason = f"what can be done {time}; {wanted} would be better"
    elif epochs < LONGEST * wanted:
        reason = f"what can be done {time}"
    else:
        reason = f"{LONGEST} times the usual {wanted}, for which there is time; more would gain little"
    return _Length(size, f"{side} pixels would take too long for {wanted} epochs {time}", stages, epochs, reason)


def _stages(size: int) -> list[tuple[int, float]]:
    """Returns sizes before the last one, multiples of 4, and their ends."""
    return [(max(8, round(part * size / 4) * 4), end) for part, end in PROGRESSIVE]


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


def _weight_decay(facts: DataFacts, batch: int, steps: int, given: Mapping[str, Any]) -> tuple[float, str]:
    rate = given.get("optimizer.learning_rate", LEARNING_RATE)
    if given.get("schedule.scaling", "sqrt") == "sqrt":
        rate *= math.sqrt(batch / given.get("schedule.reference_batch_size", REFERENCE_BATCH))
    part = SHARE_OF_FEW if facts.images < FEW_IMAGES else AVERAGED_SHARE
    decay = _two_digits(min(max(1 / (rate * part * steps), DECAYS[0]), DECAYS[1]))
    if decay in DECAYS:
        return decay, f"the {'least' if decay == DECAYS[0] else 'most'} that is chosen, at {steps:,} steps"
    return decay, f"AdamW then averages over about {share(part, 0)} of {steps:,} steps (Wang and Aitchison 2024)"


def _resize(facts: DataFacts) -> tuple[str, str]:
    if facts.odd_shapes <= ODD_SHAPES:
        return "squash", f"{share(1 - facts.odd_shapes, 0)} of the images have about the same shape"
    shapes = f"{share(facts.odd_shapes, 0)} of the images have other shapes than most"
    if facts.long_shapes > LONG_SHAPES:
        return "pad", f"{shapes}, and {share(facts.long_shapes, 0)} lose half of their length by cropping"
    return "crop", f"{shapes}; cropping was better by 2 points on average over two sets (docs/results/recipes.md)"


def _sampling(facts: DataFacts) -> tuple[str, str]:
    ratio = facts.largest_class / facts.smallest_class
    sizes = f"classes have {facts.smallest_class:,} to {counted(facts.largest_class, 'image')}"
    if facts.multi_label:
        return "natural", f"{sizes}, of several labels: drawing some more often changes how often others occur"
    if ratio >= VERY_UNBALANCED:
        return "balanced", f"{sizes}: the best macro F1 at 10 to 1 (docs/results/recipes.md)"
    if ratio >= UNBALANCED:
        return "inverse_sqrt", f"{sizes}: helps small classes, at less cost to large ones than balanced"
    return "natural", sizes


def _is_certain(accuracy: float, chance: float, number: int) -> bool:
    return accuracy - chance > CERTAIN * _error(chance, number)


def _error(rate: float, number: int) -> float:
    """Returns the standard error of a rate among so many images."""
    return math.sqrt(max(rate * (1 - rate), 1 / number) / number)


def _whole(value: float) -> float:
    """Returns a number of epochs, rounded to an integer from 1 on."""
    return float(round(value)) if value >= 1 else _two_digits(value)


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
