"""Validation of config values: every error names the field, its value and the allowed values."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import ml_collections

from convoy.core.errors import UsageError, did_you_mean
from convoy.input_pipeline.augment.pipeline import parse_pipeline
from convoy.input_pipeline.reading.order import SAMPLINGS
from convoy.trainer.config import resolution
from convoy.trainer.config.schedules import SCALINGS, SCHEDULES
from convoy.trainer.config.schema import fields


@dataclass(frozen=True)
class Range:
    """An interval of numbers; NaN is never in it.

    Attributes:
      low: lower bound.
      high: upper bound.
      includes_low: whether `low` itself is allowed.
      includes_high: whether `high` itself is allowed.
      text: the interval in words, where the generated text is not clear enough.
    """

    low: float = -math.inf
    high: float = math.inf
    includes_low: bool = True
    includes_high: bool = True
    text: str = ""

    def __contains__(self, value: float) -> bool:
        """Returns whether a number is in the interval."""
        above = value >= self.low if self.includes_low else value > self.low
        below = value <= self.high if self.includes_high else value < self.high
        return above and below

    def __str__(self) -> str:
        """Returns the interval in words, to follow `must be`."""
        low = f"{'at least' if self.includes_low else 'greater than'} {self.low:g}"
        high = f"{'at most' if self.includes_high else 'less than'} {self.high:g}"
        if math.isinf(self.high):
            high = "" if self.includes_high else "finite"
        return self.text or " and ".join(part for part in (low, high) if part)


NON_NEGATIVE = Range(0)
FINITE_NON_NEGATIVE = Range(0, math.inf, includes_high=False)
_AT_LEAST_1 = Range(1)
_POSITIVE = Range(0, includes_low=False)
_FINITE_POSITIVE = Range(0, includes_low=False, includes_high=False)
_FRACTION = Range(0, 1)
_FRACTION_BELOW_1 = Range(0, 1, includes_high=False)
_POSITIVE_FRACTION = Range(0, 1, includes_low=False)

RANGES = {
    "batch_size": _AT_LEAST_1,
    "image_size": Range(resolution.SMALLEST_SIZE),
    "virtual_replicas": NON_NEGATIVE,
    "steps": NON_NEGATIVE,
    "keep_checkpoints": _AT_LEAST_1,
    "label_smoothing": _FRACTION_BELOW_1,
    "shuffle_window_size": NON_NEGATIVE,
    "deterministic_threads": Range(1, 1024),
    "divergence.rollbacks": NON_NEGATIVE,
    "early_stopping.patience": NON_NEGATIVE,
    "early_stopping.min_delta": FINITE_NON_NEGATIVE,
    "divergence.learning_rate_factor": _POSITIVE_FRACTION,
    "schedule.reference_batch_size": _AT_LEAST_1,
    "schedule.final_fraction": _FRACTION,
    "schedule.factor": _POSITIVE_FRACTION,
    "optimizer.learning_rate": _FINITE_POSITIVE,
    "optimizer.epsilon": _POSITIVE,
    "optimizer.trust_coefficient": _POSITIVE,
    "optimizer.weight_decay": NON_NEGATIVE,
    "optimizer.weight_decay_per_run": FINITE_NON_NEGATIVE,
    "optimizer.clip_norm": NON_NEGATIVE,
    "optimizer.beta_1": _FRACTION_BELOW_1,
    "optimizer.beta_2": _FRACTION_BELOW_1,
    "optimizer.momentum": _FRACTION_BELOW_1,
    "mix.mixup": FINITE_NON_NEGATIVE,
    "mix.cutmix": FINITE_NON_NEGATIVE,
    "mix.probability": _FRACTION,
    "mix.off_fraction": _FRACTION,
    "ema.decay": _FRACTION_BELOW_1,
    "loss.gamma": FINITE_NON_NEGATIVE,
    "model.dropout": Range(high=1, includes_high=False, text="less than 1 (negative: the model's default)"),
    "model.depth": Range(0, text="at least 0 (0: the model's default)"),
    "model.width": Range(0, text="at least 0 (0: the model's default)"),
    "model.stochastic_depth": _FRACTION_BELOW_1,
    "model.backbone_rate": _FINITE_POSITIVE,
    "model.layer_decay": _POSITIVE_FRACTION,
}
# Fields that set the weight decay; only one of them may be above 0.
DECAYS = ("optimizer.weight_decay", "optimizer.weight_decay_per_run")
CHOICES = {
    "precision": ("auto", "float32", "bfloat16", "float16"),
    "xla": ("auto", "on", "off"),
    "shuffle": ("global", "striped"),
    "sampling": SAMPLINGS,
    "on_corrupt": ("raise", "substitute"),
    "cache": ("auto", "none", "memory", "disk"),
    "resize": resolution.RESIZES,
    "decode": ("exact", "fast"),
    "early_stopping.mode": ("auto", "min", "max"),
    "schedule.scaling": SCALINGS,
    "model.instance_norm": ("auto", "on", "off"),
}
# Models of users may have loaded weights themselves.
MODELS_WITHOUT_WEIGHTS = ("baseline_cnn", "convnet", "residual_convnet", "resnet", "keras_applications", "keras_hub")
# Names of weights that are downloaded, with the models that have them.
NAMED_WEIGHTS = {"imagenet": "keras_applications:NAME", "preset": "keras_hub:PRESET"}


def check(config: ml_collections.ConfigDict) -> None:
    """Checks every value and the combinations that matter.

    Raises:
      UsageError: the first invalid field, with its value and the allowed values.
    """
    values = dict(fields(config))
    for field, value in values.items():
        is_possible = not isinstance(value, int) or -(2**63) <= value < 2**63
        require(is_possible, field, value, "must be a signed 64-bit integer")
    for field, allowed in RANGES.items():
        check_range(field, values[field], allowed)
    for field, choices in CHOICES.items():
        value = values[field]
        suggestion = did_you_mean(str(value), choices)
        require(value in choices, field, value, f"must be one of {', '.join(choices)}{suggestion}")
    has_end = config.steps > 0 or 0 < config.epochs < math.inf
    require(has_end, "epochs", config.epochs, "must be greater than 0 and finite unless config.steps is set")
    each, per_run = (values[field] for field in DECAYS)
    require(
        not each or not per_run, DECAYS[0], each, f"config.{DECAYS[1]}={per_run} sets the same: set one of them to 0"
    )
    boundaries = list(config.schedule.boundaries)
    in_range = all(isinstance(boundary, int | float) and 0 < boundary < 1 for boundary in boundaries)
    rising = in_range and boundaries == sorted(boundaries)
    require(rising, "schedule.boundaries", config.schedule.boundaries, "must be rising fractions of the run in (0, 1)")
    extended, earlier = config.extended, config.earlier_virtual_replicas
    steps, lengths = ([0, *values] for values in (extended.steps, extended.lengths))
    is_possible = (
        _are_rising(steps)
        and _are_rising(lengths)
        and len(steps) == len(lengths)
        and all(step <= length for step, length in zip(steps, lengths, strict=True))
    )
    leave = "leave it as the run's config.json has it"
    require(is_possible, "extended", extended.to_dict(), f"set by --extend; {leave}")
    is_possible = (
        _are_rising([0, *earlier.steps])
        and len(earlier.steps) == len(earlier.numbers)
        and all(isinstance(number, int) and number > 0 for number in earlier.numbers)
    )
    require(is_possible, "earlier_virtual_replicas", earlier.to_dict(), f"set by --virtual_replicas; {leave}")
    can_sample = config.sampling == "natural" or config.shuffle == "global"
    require(can_sample, "sampling", config.sampling, "set config.sampling=natural with config.shuffle=striped")
    if config.deterministic:
        require(config.xla != "on", "xla", config.xla, "set auto or off: XLA has no deterministic max pooling")
        reduces_exactly = not config.reduce_in_bfloat16
        reason = "bfloat16 sums depend on the order of the additions"
        require(reduces_exactly, "reduce_in_bfloat16", True, f"set False with config.deterministic: {reason}")
    model = config.model
    if not model.weights and model.name.partition(":")[0] in MODELS_WITHOUT_WEIGHTS:
        for name in (name for name in model if name.startswith("freeze")):
            fix = "set config.model.weights: the frozen backbone would keep its random weights"
            require(not model[name], f"model.{name}", model[name], fix)
    _check_named_weights(model)
    SCHEDULES.check(config.schedule.name)
    resolution.check(config)
    parse_pipeline(config.augment.ops, image_size=config.image_size)


def _are_rising(values: Sequence[object]) -> bool:
    """Returns whether all values are integers, each above the one before."""
    integers = [value for value in values if isinstance(value, int)]
    return len(integers) == len(values) and all(before < after for before, after in itertools.pairwise(integers))


def _check_named_weights(model: ml_collections.ConfigDict) -> None:
    """Raises a UsageError if the weights of a model are downloaded by name, and it has none of this name."""
    of_model = {models.partition(":")[0]: name for name, models in NAMED_WEIGHTS.items()}
    known = of_model.get(model.name.partition(":")[0])
    if model.weights in NAMED_WEIGHTS and model.weights != known:
        fix = f"set {known}" if known else f"set config.model.name={NAMED_WEIGHTS[model.weights]}"
        path = f"./{model.weights}"
        require(False, "model.weights", model.weights, f"{fix}, since {model.name} has none; or pass {path} for a file")


def check_range(field: str, value: float, allowed: Range) -> None:
    """Raises a UsageError that names the field, its value and the allowed range, if `value` is not in it."""
    require(value in allowed, field, value, f"must be {allowed}")


def require(holds: bool, field: str, value: object, fix: str) -> None:
    """Raises a UsageError that names a config field, its value and the fix, unless `holds`."""
    if not holds:
        raise UsageError(f"config.{field}={value}: {fix}.")
