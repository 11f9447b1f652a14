"""Image sizes of a run: progressive resizing in training, and the size used in evaluation.

    stages(config, total_steps=1000)    # [ResolutionStage(48, 0, 600), ResolutionStage(64, 600, 1000)]
    evaluation_size(config)             # 80

With `config.progressive = {"sizes": (48,), "ends": (0.6,)}` the first 60 % of the steps train on images of 48 pixels
and the rest on images of `config.image_size` (Tan and Le 2021, "EfficientNetV2", section 4). Random crops make objects
appear larger in training than in evaluation; a `config.eval_image_size` somewhat above `config.image_size` compensates
for that (Touvron et al. 2019, "Fixing the train-test resolution discrepancy").

Neither works for a model whose weights depend on the image size, such as `baseline_cnn`:
`convoy.trainer.session.runtime` rejects the combination. Does not import TensorFlow.
"""

from typing import NamedTuple, TypedDict

import ml_collections

from convoy.core.errors import UsageError
from convoy.core.text import counted
from convoy.trainer.config.extension import spans

SMALLEST_SIZE = 8
RESIZES = ("squash", "crop", "pad")


class ResolutionStage(NamedTuple):
    """Consecutive steps on images of one size.

    Attributes:
      size: image side in pixels.
      first_step: first step, counted from 0.
      end_step: step after the last one.
    """

    size: int
    first_step: int
    end_step: int


def stages(config: ml_collections.ConfigDict, total_steps: int) -> list[ResolutionStage]:
    """Returns the stages of a run, which cover every step once; the last one uses `config.image_size`.

    Stages that would be shorter than one step are left out.
    """
    sizes = [*config.progressive.sizes, config.image_size]
    found: list[ResolutionStage] = []
    for first, stop, length in spans(config, total_steps):
        ends = [min(round(end * length), length - 1) for end in config.progressive.ends] + [length]
        for size, stage_end in zip(sizes, ends, strict=True):
            end = min(stage_end, stop)
            if first < end and found and found[-1].size == size:
                found[-1] = found[-1]._replace(end_step=end)
            elif first < end:
                found.append(ResolutionStage(size, first, end))
            first = max(first, end)
    return found


def stage_at(config: ml_collections.ConfigDict, total_steps: int, step: int) -> ResolutionStage:
    """Returns the stage of a step; the last stage for steps after the end of the run."""
    all_stages = stages(config, total_steps)
    return next((stage for stage in all_stages if step < stage.end_step), all_stages[-1])


def evaluation_size(config: ml_collections.ConfigDict) -> int:
    """Returns the image side in pixels for evaluation, prediction and export."""
    return config.get("eval_image_size", 0) or config.image_size  # runs of older versions have no such field


class CropSettings(TypedDict):
    """Fields of a `Crop` that belong to a run."""

    resize: str
    decode: str


def crop_settings(config: ml_collections.ConfigDict) -> CropSettings:
    """Returns the fields `resize` and `decode` of the `Crop` that a run sees its images by."""
    # Runs of older versions do not have them.
    return {"resize": config.get("resize", "squash"), "decode": config.get("decode", "exact")}


def all_sizes(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """Returns the distinct image sizes that the model of a run is called with, `config.image_size` first."""
    return tuple(dict.fromkeys([config.image_size, *config.progressive.sizes, evaluation_size(config)]))


def summary(config: ml_collections.ConfigDict, total_steps: int) -> str:
    """Returns the image sizes as text; an empty string if all images have one size."""
    if all_sizes(config) == (config.image_size,):
        return ""
    *earlier, last = stages(config, total_steps)
    parts = [f"{stage.size} px until step {stage.end_step}" for stage in earlier] + [f"{last.size} px"]
    return f"{', then '.join(parts)}; evaluation at {evaluation_size(config)} px"


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a UsageError for invalid image sizes."""
    sizes, ends = tuple(config.progressive.sizes), tuple(config.progressive.ends)
    eval_size = config.eval_image_size
    if eval_size and eval_size < SMALLEST_SIZE:
        raise UsageError(
            f"config.eval_image_size={eval_size}: must be at least {SMALLEST_SIZE}, or 0 for config.image_size."
        )
    if not all(isinstance(size, int) and size >= SMALLEST_SIZE for size in sizes):
        raise UsageError(f"config.progressive.sizes={sizes}: must be integers of at least {SMALLEST_SIZE}.")
    if len(sizes) != len(ends):
        raise UsageError(
            f"config.progressive.ends={ends}: has {counted(len(ends), 'value')} for {counted(len(sizes), 'size')} "
            f"{sizes}. Set one end per size, as a fraction of the run; the rest of the run uses config.image_size."
        )
    if not all(isinstance(end, int | float) for end in ends) or not all(
        before < after for before, after in zip([0, *ends], [*ends, 1], strict=True)
    ):
        raise UsageError(f"config.progressive.ends={ends}: must be rising fractions of the run in (0, 1).")
