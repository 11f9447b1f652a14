"""Tags of a run in TensorBoard and metrics.jsonl, from which the reference page is made.

`{name}` in a tag stands for any text, and a tag may be in several of TensorBoard's runs: `train`, `validation`,
`media`, and the root, `.`. Descriptions are Markdown.
"""

from typing import NamedTuple


class Tag(NamedTuple):
    """A tag.

    Attributes:
      runs: the runs that have it.
      meaning: what it shows, and when it is missing.
    """

    runs: str
    meaning: str


_BOTH = "train, validation"

# Also the keys of metrics.jsonl, except for those of `best`.
SCALARS = {
    "quality/loss": Tag(
        _BOTH, "mean loss (cross-entropy: in nats), without class weights; validation also without label smoothing"
    ),
    "quality/top1": Tag(_BOTH, "share of images whose most probable class is right, 0 to 1"),
    "quality/top5": Tag(_BOTH, "share of images whose class is among the five most probable, 0 to 1"),
    "quality/macro_f1": Tag(
        _BOTH,
        "mean F1 over the classes, 0 to 1; with several labels per image in validation at the threshold of each class "
        "with the highest F1, in training at 0.5",
    ),
    "quality/mean_average_precision": Tag(
        _BOTH,
        "with several labels per image, instead of top-1, top-5 and ECE: mean over the classes of the average "
        "precision, 0 to 1; in training from a histogram of 80 bins",
    ),
    "quality/micro_f1": Tag(_BOTH, "with several labels per image: F1 over all classes together, as macro F1"),
    "quality/ece": Tag(_BOTH, "expected calibration error over 15 bins of equal width, 0 to 1"),
    "quality/{metric}": Tag(_BOTH, "each metric of `config.metrics`, by its name"),
    "gap/top1": Tag("validation", "top-1 on training images minus top-1 on validation images"),
    "gap/mean_average_precision": Tag(
        "validation", "mean average precision on training images minus that on validation images"
    ),
    "gap/loss": Tag("validation", "loss on validation images minus loss on training images"),
    "best/top1": Tag(".", "best top-1 on the validation split so far"),
    "best/mean_average_precision": Tag(".", "best mean average precision on the validation split so far"),
    "optim/lr": Tag("train", "learning rate of the last step"),
    "optim/grad_norm": Tag("train", "norm of the gradient over all weights in the last step, before clipping"),
    "optim/weight_norm": Tag("train", "norm of all weights"),
    "optim/loss_scale": Tag("train", "loss scale; 1 unless the precision is float16"),
    "perf/images_per_s": Tag("train", "images per second over all devices, without evaluations and checkpoints"),
    "perf/images_per_s_per_replica": Tag("train", "the same per device"),
    "perf/step_ms_p50": Tag("train", "median step time in milliseconds"),
    "perf/step_ms_p95": Tag("train", "95th percentile of the step time in milliseconds"),
    "perf/input_wait_pct": Tag("train", "share of the step time spent waiting for images, in percent"),
    "perf/input_wait_ms": Tag("train", "the same in milliseconds per step"),
    "perf/reduction_ms": Tag("train", "time of the gradient reduction per step in milliseconds, measured once"),
    "perf/compute_ms": Tag("train", "the rest of the step in milliseconds"),
    "perf/memory_mb": Tag("train", "peak memory of a GPU, or current memory of the process on the CPU, in MB"),
    "perf/model_flops_utilization": Tag(
        "train", "share of the devices' peak FLOP/s; only if the peak is known, see `config.measure_peak`"
    ),
    "perf/workers/own_step_ms/{rank}": Tag(
        "train", "time of a worker for its own part of the step in milliseconds; with several workers"
    ),
    "perf/workers/input_wait_pct/{rank}": Tag("train", "share of a worker's step time spent waiting for images"),
    "run/epoch": Tag(_BOTH, "epochs done, with their fraction"),
}

# All but scalars.
OTHERS = {
    "media/train_batch": Tag("media", "images of the first training batch, augmented, before mixing; at step 0"),
    "media/confusion_matrix": Tag("media", "confusion matrix, with one label per image; ten times per run"),
    "media/worst": Tag("media", "most confident errors with label and prediction; ten times per run"),
    "media/grad_cam": Tag(
        "media",
        "the first of these as the model saw them, and where it finds evidence for the predicted class and the label "
        "(Grad-CAM); missing for models without a feature map before their head, and with several labels per image",
    ),
    "media/class_numbers": Tag("media", "names of classes that pictures show by number; only if there are any"),
    "pr/micro": Tag("validation", "precision-recall curve over all classes; ten times per run"),
    "pr_of_class/{class}": Tag(
        "validation", "precision-recall curve of a class; of those with the lowest F1, ten times per run"
    ),
    "weights/{path}": Tag("train", "histogram of a weight, every `config.histogram_every`"),
    "run/config": Tag("train", "content of config.json"),
    "run/environment": Tag("train", "content of environment.json"),
    "run/dataset": Tag("train", "content of dataset.json"),
    "run/command": Tag("train", "command line"),
    "run/limits": Tag("train", "bottleneck analysis, as in result.json"),
    "__run_graph__": Tag("train", "graph of the layers, for the Graphs page"),
    "keras": Tag("train", "the same as a conceptual graph"),
    "custom_scalars__config__": Tag(".", "layout of the Custom Scalars page"),
    "_hparams_/{part}": Tag(".", "config and state of the run, for the HParams page"),
}
