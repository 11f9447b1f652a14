"""What a run is: the default config, recipes that change some of it, and what follows from both.

    config = load_config("convnet42")            # a shipped recipe, or a file with get_config()
    plan = resolve(config, num_images=4000, replicas=2)
    plan.total_steps, plan.virtual_replicas, plan.peak_learning_rate

A duration is given in steps, epochs or images, as one of `eval_every_steps`, `eval_every_epochs`,
`eval_every_images`; a bare `eval_every` means steps. Imports no TensorFlow.
"""

import difflib
import importlib.util
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_collections

from convoy.input_pipeline.augmentation.line import parse_line
from convoy.input_pipeline.errors import UsageError, did_you_mean
from convoy.input_pipeline.order import SAMPLINGS
from convoy.trainer import sizes
from convoy.trainer.schedules import SCALINGS, SCHEDULES, scaled_peak

DEFAULT_RECIPE = "convnet42"
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
XLA_MODES = ("auto", "on", "off")
ORDERS = ("global", "windowed")
ON_CORRUPT = ("raise", "substitute")
CACHES = ("auto", "none", "memory")
INSTANCE_NORMS = ("auto", "on", "off")

# Fields that change what is shown and kept, not what is computed: a resumed run may change them.
OPERATIONAL_FIELDS = (
    "log_every",
    "eval_every",
    "checkpoint_every",
    "histogram_every",
    "keep_checkpoints",
    "on_corrupt",
    "cache",
    "measure_peak",
)

# What a run's first start chooses by its hardware, and every later start keeps: the value that leaves it open.
AUTOMATIC = {"virtual_replicas": 0, "precision": "auto"}


def default_config() -> ml_collections.ConfigDict:
    """Returns every field with its default, locked: a recipe that sets a field that is not there fails."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "virtual_replicas": 0,  # 0: the number of replicas at the first start
            "batch_size": 64,  # images of a step, over all devices
            "image_size": 64,  # side in pixels
            "eval_image_size": 0,  # side of the images that are evaluated, predicted and exported for; 0: image_size
            "eval_flip": False,  # evaluate and predict by the mean over each image and its mirror image
            "progressive": {"sizes": (), "ends": ()},  # smaller images first, each size up to a share of the run
            "epochs": 10.0,
            "steps": 0,  # above 0 it stands instead of epochs
            "precision": "auto",
            "xla": "auto",
            "deterministic": False,
            "deterministic_threads": 2,  # of a CPU, on any machine: how many share a sum changes its last bits
            "reduce_in_bfloat16": False,  # gradients between devices: half the traffic, 8 bits of mantissa
            "label_smoothing": 0.0,
            "order": "global",  # windowed: shards and windows of records are shuffled, for storage slow at random reads
            "window": 0,  # records that windowed order shuffles together; 0: 64 MiB of them, mostly at least 1024
            "sampling": "natural",  # inverse_sqrt, balanced: small classes come more often than they have images
            "on_corrupt": "raise",  # substitute: other images stand in for records that cannot be used
            "cache": "none",  # memory: decoded images are kept over the epochs; auto: where all would fit easily
            "keep_checkpoints": 3,
            "measure_peak": False,  # time matrix products once, where no table knows what the devices can do at most
            **_duration("eval_every"),
            **_duration("checkpoint_every"),
            **_duration("log_every"),
            **_duration("histogram_every"),  # of the weights, for TensorBoard; 0: never
            "model": {
                "name": "convnet",
                "weights": "",  # a file; the head is a new one where its classes are others
                "dropout": -1.0,  # below 0: the model's own
                "depth": 0,  # of resnet; 0: 18
                "width": 0,  # of resnet: channels of the first stage; 0: 64
                "stochastic_depth": 0.0,  # of resnet: how often its last block is left out
                "instance_norm": "auto",  # on, off; auto: convnet has it, resnet does not
                **_duration("freeze"),  # until then only the head is trained
                "backbone_rate": 1.0,  # learning rate of all but the head, times the head's
            },
            "optimizer": {
                "name": "adam",
                "learning_rate": 1e-3,
                "beta_1": 0.9,
                "beta_2": 0.999,
                "epsilon": 1e-7,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 0.0,  # never on biases and norms
                "trust_coefficient": 0.001,
                "clip_norm": 0.0,  # 0: no clipping
            },
            "schedule": {
                "name": "constant",
                **_duration("warmup"),
                "final_fraction": 0.0,  # cosine ends at this share of the peak
                "boundaries": (0.5, 0.75),  # step: shares of the run
                "factor": 0.1,  # step: times this at each boundary
                "scaling": "none",  # of the learning rate with the global batch
                "reference_batch_size": 64,
            },
            "augment": {"line": ""},  # crop(scale=0.35..1) | flip | trivial | erase(0.25); empty: whole images
            "mix": {
                "mixup": 0.0,  # alpha of Beta(alpha, alpha); 0: none
                "cutmix": 0.0,  # likewise; where both are on, each image gets one of them
                "probability": 1.0,  # share of the images that are mixed
                "off_fraction": 0.0,  # share of the run, at its end, without mixing
            },
            "ema": {"decay": 0.0},  # 0: no moving average of the weights
            "divergence": {
                "rollbacks": 0,  # how often a run goes back to its last checkpoint when its loss is NaN or infinite
                "learning_rate_factor": 0.5,  # times this from there on, each time
            },
        }
    ).lock()


def _duration(name: str) -> dict[str, float]:
    return {name: 0, f"{name}_steps": 0, f"{name}_epochs": 0.0, f"{name}_images": 0}


def shipped_recipes() -> dict[str, Path]:
    """Returns the recipes that come with Convoy, by bare name."""
    folder = Path(__file__).parents[1] / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def recipe_path(name: str) -> Path:
    """Returns the file of a recipe.

    Args:
      name: a path, or the bare name of a shipped recipe.

    Raises:
      UsageError: neither a file nor a shipped recipe.
    """
    recipes = shipped_recipes()
    if name in recipes:
        return recipes[name]
    if Path(name).is_file():
        return Path(name)
    raise UsageError(
        f"--config={name}: neither a file nor a shipped recipe{did_you_mean(name, recipes)}. "
        f"Shipped: {', '.join(recipes)}."
    )


def fields(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields `(dotted name, value)` for every leaf of a config, in its order."""
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the config as plain JSON data."""
    return json.loads(json.dumps(config.to_dict()))


@dataclass(frozen=True)
class Plan:
    """What follows from a config, a dataset and a number of replicas.

    Attributes:
      num_images: images of the training split.
      replicas: devices, R.
      virtual_replicas: V.
      global_batch_size: images of a step.
      replica_batch_size: images that a device gets in a step.
      virtual_batch_size: images of a virtual replica: batch norm's batch.
      steps_per_epoch: may have a fraction; batches cross the end of an epoch.
      total_steps: the run's length.
      warmup_steps: steps until the peak learning rate.
      eval_every_steps: steps between evaluations.
      checkpoint_every_steps: steps between checkpoints.
      log_every_steps: steps between lines.
      histogram_every_steps: steps between histograms of the weights; 0 for none.
      freeze_steps: steps that train the model's head alone.
      peak_learning_rate: after scaling with the global batch.
    """

    num_images: int
    replicas: int
    virtual_replicas: int
    global_batch_size: int
    replica_batch_size: int
    virtual_batch_size: int
    steps_per_epoch: float
    total_steps: int
    warmup_steps: int
    eval_every_steps: int
    checkpoint_every_steps: int
    log_every_steps: int
    histogram_every_steps: int
    freeze_steps: int
    peak_learning_rate: float

    def as_dict(self) -> dict[str, Any]:
        """Returns the attributes by name."""
        return asdict(self)


def duration_in_steps(
    config: Mapping[str, Any], name: str, *, images_per_step: int, num_images: int, section: str = ""
) -> int:
    """Returns a duration in steps, rounded to the nearest, at least 1 where it is given at all.

    Args:
      config: holds `NAME`, `NAME_steps`, `NAME_epochs` and `NAME_images`; at most one above 0.
      name: of the duration.
      images_per_step: the global batch size.
      num_images: images of an epoch.
      section: what stands before the name in the whole config, for the text of an error: `schedule.`.

    Returns:
      0 where none is given.

    Raises:
      UsageError: several are given, or one is negative.
    """
    in_steps = {
        name: 1.0,
        f"{name}_steps": 1.0,
        f"{name}_epochs": num_images / images_per_step,
        f"{name}_images": 1.0 / images_per_step,
    }
    for field in in_steps:
        _require(0 <= config[field] < math.inf, f"{section}{field}", config[field], "give 0 or more")
    given = {field: config[field] for field in in_steps if config[field]}
    if len(given) > 1:
        listed = " and ".join(f"config.{section}{field}={value}" for field, value in given.items())
        raise UsageError(f"{listed} say the same thing twice; set all but one of them to 0.")
    return sum(max(1, round(value * in_steps[field])) for field, value in given.items())


def total_steps(config: Mapping[str, Any], num_images: int) -> int:
    """Returns the steps of a whole run on so many training images."""
    return config["steps"] or max(1, math.ceil(config["epochs"] * num_images / config["batch_size"]))


def with_choices_of(config: ml_collections.ConfigDict, chosen: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns a copy of `config` in which what is left to Convoy (`AUTOMATIC`) is as it was chosen before."""
    config = config.copy_and_resolve_references()
    for field, automatic in AUTOMATIC.items():
        if config[field] == automatic:
            config[field] = chosen[field]
    return config


def resolve(config: ml_collections.ConfigDict, *, num_images: int, replicas: int) -> Plan:
    """Checks a config and returns what follows from it.

    Args:
      config: complete.
      num_images: images of the training split, 1 or more.
      replicas: devices of all processes, R.

    Raises:
      UsageError: a value is out of range, or batch, virtual replicas and devices do not divide.
    """
    check(config)
    batch = config.batch_size
    virtual = config.virtual_replicas or replicas
    if virtual % replicas:
        allowed = [str(r) for r in range(1, virtual + 1) if virtual % r == 0]
        raise UsageError(
            f"virtual_replicas={virtual} does not divide over {replicas} devices: use {_one_of(allowed)} devices, "
            "or start a new run with another config.virtual_replicas."
        )
    if batch % virtual:
        below, above = batch // virtual * virtual, (batch // virtual + 1) * virtual
        raise UsageError(
            f"config.batch_size={batch} does not divide into virtual_replicas={virtual} equal parts: "
            f"use {f'{below} or ' if below else ''}{above}."
        )
    if (config.mix.mixup or config.mix.cutmix) and batch == virtual:
        raise UsageError(
            f"config.mix mixes the images of a virtual replica, and of config.batch_size={batch} each of "
            f"virtual_replicas={virtual} has one: use {2 * batch}, or set config.mix.mixup and config.mix.cutmix to 0."
        )
    convert = {"images_per_step": batch, "num_images": num_images}
    steps_per_epoch = num_images / batch
    epoch_steps = max(1, round(steps_per_epoch))
    eval_every = duration_in_steps(config, "eval_every", **convert) or epoch_steps
    schedule = config.schedule
    return Plan(
        num_images=num_images,
        replicas=replicas,
        virtual_replicas=virtual,
        global_batch_size=batch,
        replica_batch_size=batch // replicas,
        virtual_batch_size=batch // virtual,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps(config, num_images),
        warmup_steps=duration_in_steps(schedule, "warmup", **convert, section="schedule."),
        eval_every_steps=eval_every,
        checkpoint_every_steps=duration_in_steps(config, "checkpoint_every", **convert) or eval_every,
        log_every_steps=duration_in_steps(config, "log_every", **convert) or 20,
        histogram_every_steps=duration_in_steps(config, "histogram_every", **convert),
        freeze_steps=duration_in_steps(config.model, "freeze", **convert, section="model."),
        peak_learning_rate=scaled_peak(
            config.optimizer.learning_rate,
            scaling=schedule.scaling,
            batch_size=batch,
            reference_batch_size=schedule.reference_batch_size,
        ),
    )


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a UsageError that names the first field whose value cannot work, the value and what can."""
    _require(config.batch_size >= 1, "batch_size", config.batch_size, "give 1 or more")
    _require(
        config.image_size >= sizes.SMALLEST_SIZE, "image_size", config.image_size, f"give {sizes.SMALLEST_SIZE} or more"
    )
    sizes.check(config)
    _require(config.virtual_replicas >= 0, "virtual_replicas", config.virtual_replicas, "give 0 or more")
    _require(config.steps >= 0, "steps", config.steps, "give 0 or more")
    endless = not (config.steps > 0 or 0 < config.epochs < math.inf)
    _require(not endless, "epochs", config.epochs, "give a number above 0, or set config.steps")
    _require(-(2**63) <= config.seed < 2**63, "seed", config.seed, "give a 64-bit integer")
    _require(config.keep_checkpoints >= 1, "keep_checkpoints", config.keep_checkpoints, "give 1 or more")
    _require(0 <= config.label_smoothing < 1, "label_smoothing", config.label_smoothing, "give 0 to below 1")
    _choice("precision", config.precision, PRECISIONS)
    _choice("xla", config.xla, XLA_MODES)
    can_compile = not (config.deterministic and config.xla == "on")
    _require(can_compile, "xla", "on", "with deterministic give auto or off: XLA has no deterministic max pooling")
    _choice("order", config.order, ORDERS)
    _require(config.window >= 0, "window", config.window, "give 0 or more")
    _choice("sampling", config.sampling, SAMPLINGS)
    can_sample = config.sampling == "natural" or config.order == "global"
    _require(
        can_sample, "sampling", config.sampling, "with order=windowed give natural: a window has the images it has"
    )
    _choice("on_corrupt", config.on_corrupt, ON_CORRUPT)
    _choice("cache", config.cache, CACHES)
    threads = config.deterministic_threads
    _require(1 <= threads <= 1024, "deterministic_threads", threads, "give 1 to 1024")
    keeps_order = not (config.deterministic and config.reduce_in_bfloat16)
    _require(
        keeps_order, "reduce_in_bfloat16", True, "with deterministic give False: bfloat16 sums depend on the order"
    )
    divergence = config.divergence
    _require(divergence.rollbacks >= 0, "divergence.rollbacks", divergence.rollbacks, "give 0 or more")
    factor = divergence.learning_rate_factor
    _require(0 < factor <= 1, "divergence.learning_rate_factor", factor, "give more than 0, up to 1")
    _choice("schedule.name", config.schedule.name, SCHEDULES)
    schedule = config.schedule
    _choice("schedule.scaling", schedule.scaling, SCALINGS)
    reference = schedule.reference_batch_size
    _require(reference >= 1, "schedule.reference_batch_size", reference, "give 1 or more")
    _require(0 <= schedule.final_fraction <= 1, "schedule.final_fraction", schedule.final_fraction, "give 0 to 1")
    _require(0 < schedule.factor <= 1, "schedule.factor", schedule.factor, "give more than 0, up to 1")
    boundaries = list(schedule.boundaries)
    are_rising = boundaries == sorted(boundaries) and all(0 < boundary < 1 for boundary in boundaries)
    _require(are_rising, "schedule.boundaries", schedule.boundaries, "give rising shares of the run, between 0 and 1")
    optimizer = config.optimizer
    rate = optimizer.learning_rate
    _require(0 < rate < math.inf, "optimizer.learning_rate", rate, "give a number above 0")
    for name in ("epsilon", "trust_coefficient"):
        _require(optimizer[name] > 0, f"optimizer.{name}", optimizer[name], "give more than 0")
    for name in ("weight_decay", "clip_norm"):
        _require(optimizer[name] >= 0, f"optimizer.{name}", optimizer[name], "give 0 or more")
    for name in ("beta_1", "beta_2", "momentum"):
        _require(0 <= optimizer[name] < 1, f"optimizer.{name}", optimizer[name], "give 0 to below 1")
    for name in ("mixup", "cutmix"):
        _require(0 <= config.mix[name] < math.inf, f"mix.{name}", config.mix[name], "give 0 or more")
    for name in ("probability", "off_fraction"):
        _require(0 <= config.mix[name] <= 1, f"mix.{name}", config.mix[name], "give 0 to 1")
    _require(0 <= config.ema.decay < 1, "ema.decay", config.ema.decay, "give 0 to below 1")
    parse_line(config.augment.line, image_size=config.image_size)
    model = config.model
    _require(model.dropout < 1, "model.dropout", model.dropout, "give below 1; negative is the model's own")
    for name in ("depth", "width"):
        _require(model[name] >= 0, f"model.{name}", model[name], "give 0 for the model's own, or more")
    _choice("model.instance_norm", model.instance_norm, INSTANCE_NORMS)
    left_out = model.stochastic_depth
    _require(0 <= left_out < 1, "model.stochastic_depth", left_out, "give 0 to below 1")
    _require(0 < model.backbone_rate < math.inf, "model.backbone_rate", model.backbone_rate, "give more than 0")
    for name, value in model.items():
        freezes_random_weights = name.startswith("freeze") and value and not model.weights and ".py:" not in model.name
        _require(
            not freezes_random_weights,
            f"model.{name}",
            value,
            "a backbone of random weights would be frozen; give their file in --config.model.weights",
        )


def differences(before: Mapping[str, Any], after: Mapping[str, Any], *, operational: bool = False) -> list[str]:
    """Returns `name: before -> after` for every field that differs and changes what is computed.

    A field that came with a newer version than `before` counts there with its default.

    Args:
      before: a config.
      after: another.
      operational: whether those count as well that do not change what is computed, `OPERATIONAL_FIELDS`.
    """
    new = dict(fields(after))
    old = {name: value for name, value in fields(to_json(default_config())) if name in new} | dict(fields(before))
    names = [*new, *(old.keys() - new.keys())]
    if not operational:
        names = [name for name in names if not name.startswith(OPERATIONAL_FIELDS)]
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in names
        if _plain(old.get(name)) != _plain(new.get(name))
    ]


def _plain(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    return list(value) if isinstance(value, list | tuple) else value


def _require(holds: bool, field: str, value: object, mend: str) -> None:
    if not holds:
        raise UsageError(f"config.{field}={value}: {mend}.")


def _choice(field: str, value: str, known: tuple[str, ...]) -> None:
    _require(value in known, field, value, f"give one of {', '.join(known)}{did_you_mean(str(value), known)}")


def _one_of(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"


def load_recipe(name: str) -> ml_collections.ConfigDict:
    """Returns the config of a recipe, unlocked for nothing but overriding fields that exist.

    Args:
      name: a file with `get_config()`, or the bare name of a shipped recipe.

    Raises:
      UsageError: no such recipe, or it cannot be run.
    """
    path = recipe_path(name)
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UsageError(f"--config={name}: {path} has no function get_config().")
        config = module.get_config()
    except UsageError:
        raise
    except Exception as error:
        unknown = re.match(r"\W*Key \"([^\"]+)\" does not exist", str(error))
        if unknown:  # ml_collections' own text lists all fields with their values
            raise UsageError(f"--config={name}: {path}: {_no_field(unknown[1], default_config())}") from error
        raise UsageError(f"--config={name}: {path} fails: {type(error).__name__}: {error}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UsageError(f"--config={name}: get_config() in {path} must return an ml_collections.ConfigDict.")
    return config.lock()


def check_field_names(config: ml_collections.ConfigDict, names: list[str]) -> None:
    """Raises a UsageError for the first of `names`, dotted, that is no field; names the nearest and its value."""
    known = dict(fields(config))
    for name in names:
        if name not in known:
            raise UsageError(f"{_no_field(name, config)} `convoy train --print_config` shows them all.")


def durations_in_other_units(config: ml_collections.ConfigDict, given: Mapping[str, str]) -> list[str]:
    """Returns the fields of a recipe that say in another unit what is given on the command line.

    Who gives `eval_every_steps` for a recipe with `eval_every_epochs` means the one in place of the other. A 0 says
    nothing.

    Args:
      config: the recipe.
      given: texts by dotted field.
    """
    known, found = dict(fields(config)), []
    for name in (name for name, text in given.items() if not re.fullmatch(r"0*\.?0*", text)):
        base = re.sub("_(steps|epochs|images)$", "", name)
        family = [base, *(f"{base}_{unit}" for unit in ("steps", "epochs", "images"))]
        if known.keys() >= set(family):
            found += [field for field in family if known[field] and field not in given and field not in found]
    return found


def _no_field(name: str, config: ml_collections.ConfigDict) -> str:
    known = dict(fields(config))
    # The last part counts most: `lr_schedule.warmup_steps` should find `schedule.warmup_steps`.
    by_last_part = [field for field in known if field.split(".")[-1] == name.split(".")[-1]]
    close = by_last_part or difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    nearest = f" Nearest: config.{close[0]}, now {known[close[0]]!r}." if close else ""
    return f"config has no field {name!r}.{nearest}"
