"""Checks of config values: each error names the field, its value and what is allowed."""

import math

import ml_collections

from convoy.core.errors import UsageError, did_you_mean
from convoy.input_pipeline.augment.pipeline import parse_pipeline
from convoy.input_pipeline.reading.order import SAMPLINGS
from convoy.trainer.config import resolution as sizes
from convoy.trainer.config.schedules import SCALINGS, SCHEDULES

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
XLA_MODES = ("auto", "on", "off")
SHUFFLES = ("global", "block")
ON_CORRUPT = ("raise", "substitute")
CACHES = ("auto", "none", "memory")
INSTANCE_NORMS = ("auto", "on", "off")


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a UsageError that names the first field whose value cannot work, the value and what can."""
    require(config.batch_size >= 1, "batch_size", config.batch_size, "give 1 or more")
    require(
        config.image_size >= sizes.SMALLEST_SIZE, "image_size", config.image_size, f"give {sizes.SMALLEST_SIZE} or more"
    )
    sizes.check(config)
    require(config.virtual_replicas >= 0, "virtual_replicas", config.virtual_replicas, "give 0 or more")
    require(config.steps >= 0, "steps", config.steps, "give 0 or more")
    endless = not (config.steps > 0 or 0 < config.epochs < math.inf)
    require(not endless, "epochs", config.epochs, "give a number above 0, or set config.steps")
    require(-(2**63) <= config.seed < 2**63, "seed", config.seed, "give a 64-bit integer")
    require(config.keep_checkpoints >= 1, "keep_checkpoints", config.keep_checkpoints, "give 1 or more")
    require(0 <= config.label_smoothing < 1, "label_smoothing", config.label_smoothing, "give 0 to below 1")
    _choice("precision", config.precision, PRECISIONS)
    _choice("xla", config.xla, XLA_MODES)
    can_compile = not (config.deterministic and config.xla == "on")
    require(can_compile, "xla", "on", "with deterministic give auto or off: XLA has no deterministic max pooling")
    _choice("shuffle", config.shuffle, SHUFFLES)
    require(config.shuffle_block_size >= 0, "shuffle_block_size", config.shuffle_block_size, "give 0 or more")
    _choice("sampling", config.sampling, SAMPLINGS)
    can_sample = config.sampling == "natural" or config.shuffle == "global"
    require(can_sample, "sampling", config.sampling, "with shuffle=block give natural: a block has the images it has")
    _choice("on_corrupt", config.on_corrupt, ON_CORRUPT)
    _choice("cache", config.cache, CACHES)
    threads = config.deterministic_threads
    require(1 <= threads <= 1024, "deterministic_threads", threads, "give 1 to 1024")
    keeps_order = not (config.deterministic and config.reduce_in_bfloat16)
    require(keeps_order, "reduce_in_bfloat16", True, "with deterministic give False: bfloat16 sums depend on the order")
    divergence = config.divergence
    require(divergence.rollbacks >= 0, "divergence.rollbacks", divergence.rollbacks, "give 0 or more")
    factor = divergence.learning_rate_factor
    require(0 < factor <= 1, "divergence.learning_rate_factor", factor, "give more than 0, up to 1")
    _choice("schedule.name", config.schedule.name, SCHEDULES)
    schedule = config.schedule
    _choice("schedule.scaling", schedule.scaling, SCALINGS)
    reference = schedule.reference_batch_size
    require(reference >= 1, "schedule.reference_batch_size", reference, "give 1 or more")
    require(0 <= schedule.final_fraction <= 1, "schedule.final_fraction", schedule.final_fraction, "give 0 to 1")
    require(0 < schedule.factor <= 1, "schedule.factor", schedule.factor, "give more than 0, up to 1")
    boundaries = list(schedule.boundaries)
    are_rising = boundaries == sorted(boundaries) and all(0 < boundary < 1 for boundary in boundaries)
    require(are_rising, "schedule.boundaries", schedule.boundaries, "give rising shares of the run, between 0 and 1")
    optimizer = config.optimizer
    rate = optimizer.learning_rate
    require(0 < rate < math.inf, "optimizer.learning_rate", rate, "give a number above 0")
    for name in ("epsilon", "trust_coefficient"):
        require(optimizer[name] > 0, f"optimizer.{name}", optimizer[name], "give more than 0")
    for name in ("weight_decay", "clip_norm"):
        require(optimizer[name] >= 0, f"optimizer.{name}", optimizer[name], "give 0 or more")
    for name in ("beta_1", "beta_2", "momentum"):
        require(0 <= optimizer[name] < 1, f"optimizer.{name}", optimizer[name], "give 0 to below 1")
    for name in ("mixup", "cutmix"):
        require(0 <= config.mix[name] < math.inf, f"mix.{name}", config.mix[name], "give 0 or more")
    for name in ("probability", "off_fraction"):
        require(0 <= config.mix[name] <= 1, f"mix.{name}", config.mix[name], "give 0 to 1")
    require(0 <= config.ema.decay < 1, "ema.decay", config.ema.decay, "give 0 to below 1")
    parse_pipeline(config.augment.ops, image_size=config.image_size)
    model = config.model
    require(model.dropout < 1, "model.dropout", model.dropout, "give below 1; negative is the model's own")
    for name in ("depth", "width"):
        require(model[name] >= 0, f"model.{name}", model[name], "give 0 for the model's own, or more")
    _choice("model.instance_norm", model.instance_norm, INSTANCE_NORMS)
    left_out = model.stochastic_depth
    require(0 <= left_out < 1, "model.stochastic_depth", left_out, "give 0 to below 1")
    require(0 < model.backbone_rate < math.inf, "model.backbone_rate", model.backbone_rate, "give more than 0")
    for name, value in model.items():
        freezes_random_weights = name.startswith("freeze") and value and not model.weights and ".py:" not in model.name
        require(
            not freezes_random_weights,
            f"model.{name}",
            value,
            "a backbone of random weights would be frozen; give their file in --config.model.weights",
        )


def require(holds: bool, field: str, value: object, fix: str) -> None:
    """Raises a UsageError that names a config field, its value and the fix, unless `holds`."""
    if not holds:
        raise UsageError(f"config.{field}={value}: {fix}.")


def _choice(field: str, value: str, known: tuple[str, ...]) -> None:
    require(value in known, field, value, f"give one of {', '.join(known)}{did_you_mean(str(value), known)}")
