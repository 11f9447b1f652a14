"""Settings of the training step."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from convoy.input_pipeline.augment.pipeline import Operation
from convoy.trainer.step.losses import Loss, cross_entropy
from convoy.trainer.step.metrics import MetricSet
from convoy.trainer.step.mixing import Mixing


@dataclass(frozen=True)
class StepSettings:
    """Settings of the training step.

    Attributes:
      seed: the run's seed.
      global_batch_size: images per step.
      virtual_replicas: number of virtual replicas, V; divides the global batch, and is a multiple of the number of
        devices.
      loss: the loss of each image, from logits and labels.
      class_weights: weight of each class in the loss (`losses.losses_of`); empty for equal weights.
      metrics: what the step returns the sums of.
      clip_norm: largest global norm of the gradient; 0: no clipping.
      average_decay: decay of the moving average of the weights, if the state has one.
      float16: whether the loss is scaled.
      use_xla: whether to compile forward pass, backward pass and update with XLA.
      deterministic: whether the order of all additions is fixed.
      reduce_in_bfloat16: whether devices exchange gradients in bfloat16; False with `deterministic`.
      operations: augmentation operations that run on the device.
      mixing: settings of mixup and CutMix, which follow all other augmentation.
      freeze_steps: number of first steps that train only the head of the model.
      backbone_rate: learning rate of the backbone as a factor of the head's.
      layer_decay: factor of the learning rate from each block of the backbone to the one before it.
    """

    seed: int
    global_batch_size: int
    virtual_replicas: int = 1
    loss: Loss = cross_entropy
    class_weights: Sequence[float] = ()
    metrics: MetricSet = field(default_factory=MetricSet)
    clip_norm: float = 0.0
    average_decay: float = 0.0
    float16: bool = False
    use_xla: bool = False
    deterministic: bool = False
    reduce_in_bfloat16: bool = False
    operations: tuple[Operation, ...] = ()
    mixing: Mixing = field(default_factory=Mixing)
    freeze_steps: int = 0
    backbone_rate: float = 1.0
    layer_decay: float = 1.0
