"""Builds model, optimizer and train state from a config and a strategy, for every command that runs a model."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import ml_collections
import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.core.registry import Found
from convoy.input_pipeline.augment.checks import check_operations
from convoy.input_pipeline.augment.pipeline import parse_pipeline
from convoy.input_pipeline.reading.reader import BatchSlice
from convoy.trainer.cluster.strategy import computes_in_bfloat16, runs_on_gpu
from convoy.trainer.config import Plan, mixing_steps, resolution
from convoy.trainer.models import ModelBundle, build_model, supports_any_size
from convoy.trainer.session.objective import Objective
from convoy.trainer.session.weights import has_same_classes, local_weights, weights_file
from convoy.trainer.step.mixing import Mixing
from convoy.trainer.step.optimizers import Optimizer, find_optimizer
from convoy.trainer.step.settings import StepSettings
from convoy.trainer.step.state import TrainState
from convoy.trainer.step.step import TrainStep
from convoy.trainer.tf_compat.layers import all_layers

_MODEL_OPTIONS = ("dropout", "depth", "width", "stochastic_depth", "instance_norm")
_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


@dataclass(frozen=True)
class Runtime:
    """A model that is ready to run.

    Attributes:
      strategy: distribution strategy over the devices.
      precision: float32, bfloat16 or float16; `auto` is resolved.
      use_xla: whether XLA compiles the steps.
      built: the model.
      resized: the model built for other image sizes, by size; to be called with the weights of `state`.
      optimizer: the update rule, and the code that defines it; None for evaluation only.
      state: the variables.
    """

    strategy: tf.distribute.Strategy
    precision: str
    use_xla: bool
    built: ModelBundle
    resized: Mapping[int, ModelBundle]
    optimizer: Found[Optimizer] | None
    state: TrainState

    def model_for_size(self, size: int) -> ModelBundle:
        """Returns the model for one of the image sizes that the runtime was built for."""
        return self.resized.get(size, self.built)


def resolve_precision_and_xla(config: ml_collections.ConfigDict, strategy: tf.distribute.Strategy) -> tuple[str, bool]:
    """Returns the precision and whether XLA compiles the steps, with `auto` resolved for the strategy's devices."""
    return resolve_precision_and_xla_for(
        config, on_gpu=runs_on_gpu(strategy), in_bfloat16=computes_in_bfloat16(strategy)
    )


def resolve_precision_and_xla_for(
    config: ml_collections.ConfigDict, *, on_gpu: bool, in_bfloat16: bool
) -> tuple[str, bool]:
    """Returns what `resolve_precision_and_xla` does, for devices given by kind and by native support of bfloat16."""
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if in_bfloat16 else "float32"
    # On a CPU, XLA's convolutions take five times as long as oneDNN's. XLA has no deterministic max pooling.
    use_xla = config.xla == "on" or (config.xla == "auto" and on_gpu and not config.deterministic)
    return precision, use_xla


def batch_slice(strategy: tf.distribute.Strategy, rank: int, global_batch_size: int) -> BatchSlice:
    """Returns the part of each global batch that the worker `rank` reads for its devices."""
    local_replicas = len(strategy.extended.worker_devices)
    return BatchSlice(global_batch_size, strategy.num_replicas_in_sync, rank * local_replicas, local_replicas)


def enable_determinism() -> None:
    """Makes TensorFlow deterministic, process-wide. Call it after creating the strategy, before building a step."""
    tf.config.experimental.enable_op_determinism()
    # Grappler rewrites chains of additions to AddN, which changes their order.
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})


def make_runtime(
    config: ml_collections.ConfigDict,
    strategy: tf.distribute.Strategy,
    *,
    num_classes: int,
    class_names: Sequence[str] = (),
    image_sizes: Sequence[int] = (),
    evaluates_average: bool | None = None,
) -> Runtime:
    """Builds the model on the strategy's devices, with initial weights seeded by the config.

    Sets Keras' dtype policy and, for a deterministic run, TensorFlow's determinism, process-wide.

    Args:
      config: complete and checked.
      strategy: distribution strategy over the devices.
      num_classes: 2 or more.
      class_names: names of the classes, by label, to compare with those of pretrained weights; empty without these.
      image_sizes: sides of the images, in pixels, that the model will be called with; all sizes of training and
        evaluation if empty.
      evaluates_average: for evaluation only, without optimizer: whether there is an average of the weights. None for
        training, where the config decides.

    Raises:
      UsageError: model or optimizer is unknown or breaks its contract, or the model cannot share its weights among
        the sizes.
      DataError: the weights cannot be downloaded or used.
    """
    precision, use_xla = resolve_precision_and_xla(config, strategy)
    if config.deterministic:
        enable_determinism()
    optimizer = find_optimizer(config.optimizer.name, config.optimizer) if evaluates_average is None else None
    if optimizer and optimizer.value.average and config.ema.decay:
        raise UsageError(
            f"config.ema.decay={config.ema.decay}: {optimizer.name} keeps an average of its own, which is evaluated. "
            "Set config.ema.decay=0, or another config.optimizer.name."
        )
    # Runs of earlier versions lack some options.
    options = {name: config.model[name] for name in _MODEL_OPTIONS if name in config.model}
    if config.model.name == "convnet":
        options.setdefault("instance_norm", "off")
    build = functools.partial(build_model, config.model.name, num_classes=num_classes, **options)
    weights = weights_file(local_weights(config))
    same_classes = has_same_classes(weights, class_names)

    def build_main_model(size: int) -> ModelBundle:
        # Restarts Keras' automatic layer names at 1. It also resets the dtype policy, so it comes first.
        keras.utils.clear_session()
        keras.config.set_dtype_policy(_POLICIES[precision])
        keras.utils.set_random_seed(config.seed % 2**32)
        with strategy.scope():
            return build(image_size=size, weights=weights, same_classes=same_classes)

    size, *others = image_sizes or resolution.all_sizes(config)
    built = build_main_model(config.image_size)
    if supports_any_size(built.model):
        for other in {size, *others} - {config.image_size}:
            _check_accepts_size(config.model.name, built.model, other)
        others = []
    elif size != config.image_size:
        built = build_main_model(size)
    with tf.device("/CPU:0"):  # their own weights are never used, so they need no GPU memory
        resized = {other: build(image_size=other) for other in others}
    for other, model in resized.items():
        _check_same_weights(config.model.name, {size: built, other: model})
        _check_scaling(config.model.name, model.model)
    state = TrainState(
        built.model,
        optimizer.value if optimizer else None,
        strategy,
        average_weights=config.ema.decay > 0 if evaluates_average is None else evaluates_average,
        float16=precision == "float16",
    )
    return Runtime(strategy, precision, use_xla, built, resized, optimizer, state)


def _check_accepts_size(name: str, model: keras.Model, size: int) -> None:
    """Raises a UsageError if a model without a fixed input size does not accept this size."""
    try:
        model.compute_output_spec(keras.KerasTensor((1, size, size, 3)))
    except Exception as error:
        raise UsageError(
            f"config.model.name={name!r}: does not accept images of {size} pixels, a size set by "
            f"config.progressive.sizes or config.eval_image_size: {str(error).strip().splitlines()[0]}"
        ) from error


def _check_same_weights(name: str, models: Mapping[int, ModelBundle]) -> None:
    """Raises a UsageError if a model, built for two sizes, has weights of different shapes."""
    # In the order in which training step and evaluation pass them.
    variables = [[*b.model.trainable_variables, *b.model.non_trainable_variables] for b in models.values()]
    shapes = [[(variable.path, tuple(variable.shape)) for variable in each] for each in variables]
    for (path, shape), (_, other_shape) in zip(*shapes, strict=False):
        if shape != other_shape:
            size, other = models
            raise UsageError(
                f"config.model.name={name!r}: its weights depend on the image size ({path} is {list(shape)} for "
                f"{size} pixels and {list(other_shape)} for {other}). Leave config.eval_image_size and "
                "config.progressive at their defaults, or use a model with global pooling, such as convnet."
            )
    if len(shapes[0]) != len(shapes[1]):
        raise UsageError(f"config.model.name={name!r}: has different layers for images of {list(models)[1]} pixels.")


def _check_scaling(name: str, model: keras.Model) -> None:
    """Raises a UsageError if a model built for another size would scale its input by its own weights.

    Keras' Normalization computes with copies of its mean and variance, so the trained weights would not reach it.
    """
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.Normalization) and layer.input_mean is None:
            raise UsageError(
                f"config.model.name={name!r}: its layer {layer.name!r} (keras.layers.Normalization) would scale images "
                "of another size differently. Give the model an Input((None, None, 3)), or leave "
                "config.eval_image_size and config.progressive at their defaults."
            )


def check_augmentation(config: ml_collections.ConfigDict) -> None:
    """Checks that users' operations are pure functions. Call it after creating the strategy.

    Raises:
      UsageError: one is not.
    """
    pipeline = parse_pipeline(config.augment.ops, image_size=config.image_size)
    check_operations(pipeline, [config.image_size, *config.progressive.sizes], exact=config.deterministic)


def make_train_step(config: ml_collections.ConfigDict, plan: Plan, runtime: Runtime, objective: Objective) -> TrainStep:
    """Returns the training step of a run.

    Args:
      config: complete and checked.
      plan: the resolved plan of the config.
      runtime: the runtime of the config.
      objective: its loss and metrics.

    Raises:
      UsageError: the config freezes the backbone, but the model does not separate backbone and head.
    """
    settings = StepSettings(
        seed=config.seed,
        global_batch_size=plan.global_batch_size,
        virtual_replicas=plan.virtual_replicas,
        loss=objective.loss,
        class_weights=objective.class_weights,
        metrics=objective.metrics,
        clip_norm=config.optimizer.clip_norm,
        average_decay=config.ema.decay,
        float16=runtime.precision == "float16",
        use_xla=runtime.use_xla,
        deterministic=config.deterministic,
        reduce_in_bfloat16=config.reduce_in_bfloat16,
        operations=parse_pipeline(config.augment.ops, image_size=config.image_size).device,
        mixing=Mixing(
            mixup=config.mix.mixup,
            cutmix=config.mix.cutmix,
            probability=config.mix.probability,
            steps=mixing_steps(config, plan.total_steps),
        ),
        freeze_steps=plan.freeze_steps,
        backbone_rate=config.model.backbone_rate,
        layer_decay=config.model.layer_decay,
    )
    return TrainStep(runtime.state, runtime.built, settings, runtime.resized)
