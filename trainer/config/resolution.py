"""The sides of a run's images: smaller ones first where that is asked for, and those of evaluation.

    stages(config, total_steps=1000)    # [Stage(48, 0, 600), Stage(64, 600, 1000)]
    evaluation_size(config)             # 80

With `config.progressive = {"sizes": (48,), "ends": (0.6,)}` the first 60 % of the steps train on images of 48 pixels,
and the rest on those of `config.image_size` (Tan and Le 2021, "EfficientNetV2", section 4). Random crops make things
look larger in training than in evaluation; `config.eval_image_size`, somewhat above `config.image_size`, makes that
good (Touvron et al. 2019, "Fixing the train-test resolution discrepancy").

Neither works for a model whose weights depend on the size of its images, such as `baseline_cnn`; `convoy.trainer.session.runtime` refuses
it. Imports no TensorFlow.
"""

from typing import NamedTuple

import ml_collections

from convoy.core.errors import UsageError

SMALLEST_SIZE = 8


class ResolutionStage(NamedTuple):
    """Steps on images of one size.

    Attributes:
      size: side in pixels.
      first_step: the first one, counted from 0.
      end_step: behind the last one.
    """

    size: int
    first_step: int
    end_step: int


def stages(config: ml_collections.ConfigDict, total_steps: int) -> list[ResolutionStage]:
    """Returns the stages of a run, which together hold each of its steps once, the last one `config.image_size`'s.

    A stage too short for a step is none.
    """
    ends = [min(round(end * total_steps), total_steps - 1) for end in config.progressive.ends] + [total_steps]
    sizes = [*config.progressive.sizes, config.image_size]
    steps = zip(sizes, [0, *ends[:-1]], ends, strict=True)
    return [ResolutionStage(size, first, end) for size, first, end in steps if first < end]


def stage_at(config: ml_collections.ConfigDict, total_steps: int, step: int) -> ResolutionStage:
    """Returns the stage that a step belongs to; of a step behind the end, the last."""
    all_stages = stages(config, total_steps)
    return next((stage for stage in all_stages if step < stage.end_step), all_stages[-1])


def evaluation_size(config: ml_collections.ConfigDict) -> int:
    """Returns the side of the images that are evaluated, predicted and exported for, in pixels."""
    return config.get("eval_image_size", 0) or config.image_size  # runs of older versions have no such field


def all_sizes(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """Returns every size that a run's model is called with, each once, `config.image_size` first."""
    return tuple(dict.fromkeys([config.image_size, *config.progressive.sizes, evaluation_size(config)]))


def described(config: ml_collections.ConfigDict, total_steps: int) -> str:
    """Returns the sizes for people; empty where all images have one size."""
    if all_sizes(config) == (config.image_size,):
        return ""
    *before, last = stages(config, total_steps)
    told = [f"{stage.size} pixels to step {stage.end_step}" for stage in before] + [f"{last.size} to the end"]
    return f"{', then '.join(told) if before else f'{last.size} pixels'}; evaluated at {evaluation_size(config)}"


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a UsageError where the sizes cannot work."""
    sizes, ends, side = config.progressive.sizes, config.progressive.ends, config.eval_image_size
    if side and side < SMALLEST_SIZE:
        raise UsageError(f"config.eval_image_size={side}: give 0, for that of training, or {SMALLEST_SIZE} or more.")
    if not all(isinstance(size, int) and size >= SMALLEST_SIZE for size in sizes):
        raise UsageError(f"config.progressive.sizes={sizes}: give whole numbers of {SMALLEST_SIZE} or more.")
    if len(sizes) != len(ends):
        raise UsageError(
            f"config.progressive has {len(sizes)} sizes {tuple(sizes)} and {len(ends)} ends {tuple(ends)}: give each "
            "size, before the last part with config.image_size, the share of the run at which it ends."
        )
    if not all(isinstance(end, int | float) for end in ends) or not all(
        before < after for before, after in zip([0, *ends], [*ends, 1], strict=True)
    ):
        raise UsageError(f"config.progressive.ends={tuple(ends)}: give rising shares of the run, between 0 and 1.")
