"""The config schema: every field with its default value and meaning. Does not import TensorFlow."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from convoy.core.files import json_value


def default_config() -> ml_collections.ConfigDict:
    """Returns every field with its default, locked: a recipe that sets an unknown field fails."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "virtual_replicas": 0,  # 0: the number of replicas at the first start
            "batch_size": 64,  # images per step, over all devices
            "image_size": 64,  # side in pixels
            "eval_image_size": 0,  # side in evaluation, prediction and export; 0: image_size
            "resize": "squash",  # of images that are not square: squash to a square; crop: its center; pad with gray
            "flip_tta": False,  # evaluate and predict with the mean over each image and its mirror image
            "progressive": {"sizes": (), "ends": ()},  # smaller images first, each size up to a fraction of the run
            "epochs": 10.0,
            "steps": 0,  # above 0: overrides epochs
            "extended": {"steps": (), "lengths": ()},  # by --extend: at which steps, and the lengths until then
            "precision": "auto",
            "xla": "auto",
            "deterministic": False,
            "deterministic_threads": 2,  # CPU threads on any machine: their number changes the last bits of a sum
            "reduce_in_bfloat16": False,  # gradients between devices: half the traffic, 8 bits of mantissa
            "label_smoothing": 0.0,
            "shuffle": "global",  # block: shuffle shards and blocks of records, for storage with slow random reads
            "shuffle_block_size": 0,  # records shuffled together; 0: 64 MiB of them, usually at least 1024
            "sampling": "natural",  # inverse_sqrt, balanced: draw images of small classes more often
            "on_corrupt": "raise",  # substitute: replace unusable records by other images
            "cache": "none",  # memory: keep decoded images across epochs; auto: if all of them fit easily
            "keep_checkpoints": 3,
            "metrics": "",  # more than the usual ones, comma-separated
            "measure_peak": False,  # time matrix products once if the peak throughput of the devices is unknown
            **_duration("eval_every"),
            **_duration("checkpoint_every"),
            **_duration("log_every"),
            **_duration("histogram_every"),  # of the weights, for TensorBoard; 0: never
            "model": {
                "name": "convnet",
                "weights": "",  # a file; the head is initialized at random if its classes differ
                "dropout": -1.0,  # negative: the model's default
                "depth": 0,  # resnet; 0: 18
                "width": 0,  # resnet: channels of the first stage; 0: 64
                "stochastic_depth": 0.0,  # resnet: drop rate of the last block
                "instance_norm": "auto",  # on, off; auto: on for convnet, off for resnet
                **_duration("freeze"),  # how long only the head is trained
                "backbone_rate": 1.0,  # learning rate of the backbone relative to the head's
            },
            "loss": {
                "name": "cross_entropy",
                "class_weights": "none",  # balanced, inverse_sqrt, or JSON: {"CLASS": WEIGHT, ...}
                "gamma": 2.0,  # focal
            },
            "optimizer": {
                "name": "adam",
                "learning_rate": 1e-3,
                "beta_1": 0.9,
                "beta_2": 0.999,
                "epsilon": 1e-7,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 0.0,  # never applied to biases and normalizations
                "trust_coefficient": 0.001,
                "clip_norm": 0.0,  # 0: no clipping
            },
            "schedule": {
                "name": "constant",
                **_duration("warmup"),
                "final_fraction": 0.0,  # cosine: final rate as a fraction of the peak
                "boundaries": (0.5, 0.75),  # step: fractions of the run
                "factor": 0.1,  # step: factor at each boundary
                "scaling": "none",  # of the learning rate with the global batch size
                "reference_batch_size": 64,
            },
            "augment": {"ops": ""},  # crop(scale=0.35..1) | flip | trivial | erase(0.25); empty: no augmentation
            "mix": {
                "mixup": 0.0,  # alpha of Beta(alpha, alpha); 0: off
                "cutmix": 0.0,  # alpha, likewise; if both are on, each image gets one of them
                "probability": 1.0,  # fraction of the images that are mixed
                "off_fraction": 0.0,  # final fraction of the run without mixing
            },
            "ema": {"decay": 0.0},  # 0: no moving average of the weights
            "early_stopping": {
                "patience": 0,  # evaluations without an improvement after which the run stops; 0: never
                "metric": "top1",  # of the evaluations on the validation split
                "min_delta": 0.0,  # smallest change that counts as an improvement
                "mode": "auto",  # min, max; auto: lower is better for loss, ece, brier and nll, else higher
            },
            "divergence": {
                "rollbacks": 0,  # how often to return to the last checkpoint when the loss is NaN or infinite
                "learning_rate_factor": 0.5,  # factor of the learning rate after each rollback
            },
        }
    ).lock()


def _duration(name: str) -> dict[str, float]:
    return {name: 0, f"{name}_steps": 0, f"{name}_epochs": 0.0, f"{name}_images": 0}


def fields(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields `(dotted name, value)` for every leaf of a config, in order."""
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def wrong_type(config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, prefix: str = "") -> str:
    """Returns a field of a config in JSON, dotted, whose value has another type than its default; "" if there is none.

    Fields may be missing, or unknown: configs of other versions.

    Args:
      config: the config, or a section of it.
      defaults: the same of the default config.
      prefix: start of the dotted names.
    """
    for name, default in (default_config().to_dict() if defaults is None else defaults).items():
        if name in config and _kind(config[name]) != _kind(default):
            return prefix + name
        if isinstance(default, dict) and (field := wrong_type(config.get(name, {}), default, f"{prefix}{name}.")):
            return field
    return ""


def _kind(value: object) -> str:
    kinds = {"boolean": bool, "number": int | float, "list": list | tuple, "text": str, "section": Mapping}
    is_nan = value != value
    return next((kind for kind, types in kinds.items() if isinstance(value, types) and not is_nan), "")


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the config as plain JSON data, without secrets."""
    return json_value(json.loads(json.dumps(config.to_dict())))


def loss_text(config: Mapping[str, Any] | ml_collections.ConfigDict) -> str:
    """Returns the loss of a config, complete or of an earlier version, as text."""
    loss = config.get("loss", {})
    weights = loss.get("class_weights", "none")
    return loss.get("name", "cross_entropy") + (f", class weights {weights}" if weights != "none" else "")
