"""The config schema: every field with its default value and meaning. Does not import TensorFlow."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from convoy.core.files import json_value


def _duration(name: str, meaning: str) -> dict[str, tuple[Any, str]]:
    """Returns the four fields of a duration, of which at most one is set."""
    return {
        name: (0, meaning),
        f"{name}_steps": (0, f"the same as `{name}`"),
        f"{name}_epochs": (0.0, f"`{name}` in epochs"),
        f"{name}_images": (0, f"`{name}` in images"),
    }


# Default value and meaning of every field, by section. Allowed values that `checks` has are not repeated.
_FIELDS: dict[str, Any] = {
    "seed": (0, "random seed of initial weights, sample order, augmentation, dropout and mixing"),
    "virtual_replicas": (0, "parts of each batch, the same on any devices; 0: number of devices at the first start"),
    "batch_size": (64, "images per step, over all devices; divisible by the virtual replicas"),
    "image_size": (64, "side of the square training images in pixels"),
    "eval_image_size": (0, "side in evaluation, prediction and export, at least 8; 0: `image_size`"),
    "resize": ("squash", "how an image becomes square: `squash` it, `crop` its center, or `pad` it with gray"),
    "decode": (
        "exact",
        "`fast`: JPEG files at a half, quarter or eighth of their size where `image_size` needs no more",
    ),
    "flip_tta": (False, "evaluate and predict with the mean over each image and its mirror image"),
    "epochs": (10.0, "length of the run in passes over the training images, if `steps` is 0"),
    "steps": (0, "length of the run in steps; above 0: overrides `epochs`"),
    "precision": ("auto", "computation type; `auto`: bfloat16 where all devices have it in hardware, else float32"),
    "xla": ("auto", "whether XLA compiles the training step; `auto`: on GPUs, unless `deterministic`"),
    "deterministic": (False, "bit-identical weights on any devices with the same virtual replicas, precision and seed"),
    "deterministic_threads": (2, "CPU threads if `deterministic`: their number changes the last bits of a sum"),
    "reduce_in_bfloat16": (
        False,
        "exchange gradients in bfloat16: half the traffic, 8 bits of mantissa; not if `deterministic`",
    ),
    "label_smoothing": (0.0, "share of each label that is spread evenly over all classes"),
    "shuffle": ("global", "`global`, or `striped`: in windows of records, for storage with slow random reads"),
    "shuffle_window_size": (0, "records that `striped` shuffles together; 0: 64 MiB, less above 32 virtual replicas"),
    "sampling": (
        "natural",
        "draw small classes more often (`inverse_sqrt`), or all equally (`balanced`); needs `shuffle=global`",
    ),
    "on_corrupt": ("raise", "unusable records: `raise` ends the run, `substitute` uses other images in their place"),
    "cache": (
        "none",
        "keep decoded images across epochs: `memory`: those that fit; `auto`: only if all of them fit easily; `disk`: "
        "on a local disk, also for later runs",
    ),
    "keep_checkpoints": (3, "number of latest checkpoints to keep; the best one is kept too"),
    "metrics": ("", "metrics in addition to loss, top1, top5, macro_f1 and ece, comma-separated"),
    "measure_peak": (False, "measure the peak throughput of the devices, for the model FLOPs utilization"),
    **_duration("eval_every", "steps between evaluations on the validation split; all four 0: once per epoch"),
    **_duration("checkpoint_every", "steps between checkpoints; all four 0: as `eval_every`"),
    **_duration("log_every", "steps between log lines of training metrics; all four 0: 20 steps"),
    **_duration("histogram_every", "steps between histograms of the weights for TensorBoard; all four 0: never"),
    "model": {
        "name": ("convnet", "the model"),
        "weights": (
            "",
            "pretrained weights: `imagenet` (keras_applications), `preset` (keras_hub), a file, a run directory or an "
            "export; a head for other classes is new",
        ),
        "dropout": (-1.0, "dropout rate before the last layer; negative: the model's default"),
        "depth": (0, "resnet: 10, 14, 18, 26, 34, 50, 101 or 152; 0: 18"),
        "width": (0, "resnet: channels of the first stage, even; 0: 64"),
        "stochastic_depth": (0.0, "resnet: drop rate of the last block, proportionally less for earlier ones"),
        "instance_norm": ("auto", "end early stages in instance normalization; `auto`: off for resnet only"),
        **_duration("freeze", "first steps that train only the head, of a model with `weights`; all four 0: none"),
        "backbone_rate": (1.0, "learning rate of the backbone, as a factor of the head's"),
        "layer_decay": (1.0, "factor of the learning rate from each block of the backbone to the one before it"),
    },
    "loss": {
        "name": ("cross_entropy", "the training loss"),
        "class_weights": ("none", 'weights in the loss: `none`, `balanced`, `inverse_sqrt`, or JSON: `{"CLASS": 2.5}`'),
        "gamma": (2.0, "focal: how much less well-classified images count; 0: cross-entropy"),
    },
    "optimizer": {
        "name": ("adam", "the optimizer"),
        "learning_rate": (1e-3, "peak learning rate, before `schedule.scaling`"),
        "beta_1": (0.9, "decay of the first moment: adam, adamw, lamb, lion, muon, schedule_free_adamw"),
        "beta_2": (0.999, "decay of the second moment (lion: of the momentum); as `beta_1`"),
        "epsilon": (1e-7, "added to the denominator: adam, adamw, lamb, muon, schedule_free_adamw"),
        "momentum": (0.9, "momentum: sgd, lars, muon"),
        "nesterov": (True, "Nesterov's momentum: sgd, muon"),
        "weight_decay": (0.0, "weight decay of all optimizers but adam; not applied to biases and normalizations"),
        "weight_decay_per_run": (
            0.0,
            "above 0: `weight_decay` is this, divided by the peak learning rate and the steps of the run",
        ),
        "trust_coefficient": (0.001, "lars: ratio of step norm to weight norm"),
        "clip_norm": (0.0, "largest norm of the gradient over all weights; larger ones are scaled; 0: no clipping"),
    },
    "schedule": {
        "name": ("constant", "the learning rate schedule"),
        **_duration("warmup", "steps of linear warmup to the peak learning rate; all four 0: none"),
        "final_fraction": (0.0, "cosine: final learning rate as a fraction of the peak"),
        "boundaries": ((0.5, 0.75), "step: where the rate drops, as rising fractions of the run in (0, 1)"),
        "factor": (0.1, "step: factor of the rate at each boundary"),
        "scaling": ("none", "scale the peak rate by `batch_size / reference_batch_size`: `linear`, or its `sqrt`"),
        "reference_batch_size": (64, "batch size that `optimizer.learning_rate` was chosen for"),
    },
    "augment": {
        "ops": ("", "augmentation pipeline, such as `crop(scale=0.35..1) | flip | erase(0.25)`; empty: none"),
    },
    "progressive": {
        "sizes": ((), "progressive resizing: image sizes before `image_size`, such as `16,24`; empty: none"),
        "ends": ((), "where each of these sizes ends, as rising fractions of the run in (0, 1)"),
    },
    "mix": {
        "mixup": (0.0, "alpha of mixup's Beta(alpha, alpha); 0: off"),
        "cutmix": (0.0, "alpha of CutMix; 0: off; with mixup too, each image gets one of them"),
        "probability": (1.0, "fraction of the images that are mixed"),
        "off_fraction": (0.0, "final fraction of the run without mixing"),
    },
    "ema": {
        "decay": (0.0, "decay of a moving average of the weights, which is evaluated and exported; 0: no average"),
    },
    "early_stopping": {
        "patience": (0, "evaluations without an improvement after which the run stops; 0: never"),
        "metric": ("top1", "metric on the validation split that has to improve: `loss`, `top1`, ..., or of `metrics`"),
        "min_delta": (0.0, "smallest change that counts as an improvement"),
        "mode": ("auto", "whether lower (`min`) or higher is better; `auto`: `min` for loss, ece, brier and nll"),
    },
    "divergence": {
        "rollbacks": (0, "how often to return to the last checkpoint when the gradient is NaN or infinite"),
        "learning_rate_factor": (0.5, "factor of the learning rate after each rollback"),
    },
    "extended": {
        "steps": ((), "steps at which `--extend` made the run longer; set by Convoy"),
        "lengths": ((), "lengths of the run until these steps; set by Convoy"),
    },
    "earlier_virtual_replicas": {
        "steps": ((), "steps at which `--virtual_replicas` changed the number of virtual replicas; set by Convoy"),
        "numbers": ((), "numbers of virtual replicas until these steps; set by Convoy"),
    },
}


def default_config() -> ml_collections.ConfigDict:
    """Returns every field with its default, locked: a recipe that sets an unknown field fails."""
    return ml_collections.ConfigDict(_column(_FIELDS, 0)).lock()


def meanings() -> dict[str, str]:
    """Returns the meaning of every field in Markdown, by dotted name."""
    return dict(fields(_column(_FIELDS, 1)))


def _column(section: Mapping[str, Any], column: int) -> dict[str, Any]:
    return {
        name: _column(value, column) if isinstance(value, dict) else value[column] for name, value in section.items()
    }


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
