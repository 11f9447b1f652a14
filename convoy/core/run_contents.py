"""Contents of RUN, the run directory (`run_layout`), from which the reference page is made.

Paths are relative to RUN. `{name}` stands for any text without a slash, and a final slash for all that is in a folder.
Descriptions are Markdown.
"""

from typing import NamedTuple


class RunFile(NamedTuple):
    """A file or folder of RUN.

    Attributes:
      content: what it contains.
      written: what writes it, and when.
    """

    content: str
    written: str


_START = "chief of `convoy train`, at each start"
_TRAINING = "chief of `convoy train`"
_EVALUATION = "`convoy evaluate`; `convoy report` if nothing was evaluated before"
_REPORT = "`convoy evaluate`, `convoy report`"
_LAUNCHER = "`convoy launch`"

FILES = {
    ".lock": RunFile("lock of the process that trains in RUN; empty", _START),
    "config.json": RunFile("complete config: every field by section, without secrets", _START),
    "dataset.json": RunFile(
        "directory, name, `class_names` and digest of the dataset, and how its records are read", _START
    ),
    "environment.json": RunFile(
        "versions of Convoy, TensorFlow, Keras, Python and NumPy; host, CPUs and GPUs; `pretrained_sha256` of the "
        "weights file that the run began with",
        _START,
    ),
    "command.txt": RunFile("command line, without secrets", _START),
    "code/": RunFile(
        "copies of the user's files, by piece: `recipe/`, `model/`, `loss/`, `metric-N/`, `schedule/`, `optimizer/`, "
        "`operation-N/`. `evaluate`, `predict` and `export` run these copies. `registered.json` has the file of each "
        "piece that was registered by name. `model/config.json` and `model/image_converter.json` describe a model of "
        "Keras Hub",
        _START,
    ),
    "recipe.py": RunFile(
        "the recipe that `--config=auto` has chosen, with a reason for each value; later starts use it as it is",
        "chief of `convoy train --config=auto`, at the first start",
    ),
    "checkpoints/step-{step}.npz": RunFile(
        "weights, optimizer state and metadata after a step, in nine digits; see [Checkpoints](#checkpoints)",
        f"{_TRAINING}, every `config.checkpoint_every`, after an evaluation with the best score, such as top-1, and "
        "at the end. The latest `config.keep_checkpoints` and the best are kept",
    ),
    "metrics.jsonl": RunFile(
        "training and validation metrics, one JSON object per line; see [metrics.jsonl](#metricsjsonl)",
        f"{_TRAINING}, every `config.log_every` and after each evaluation",
    ),
    "events.jsonl": RunFile(
        "history of the run, one JSON object per line; see [events.jsonl](#eventsjsonl)",
        f"{_TRAINING}; {_LAUNCHER} adds restarts",
    ),
    "results.csv": RunFile(
        "metrics of evaluations, one row each; see [results.csv](#resultscsv)",
        f"{_TRAINING} and `convoy evaluate`, after each evaluation",
    ),
    "result.json": RunFile(
        "result of the training; see [result.json](#resultjson)",
        f"{_TRAINING}, at the end, also of a run that a callback or time limit stopped; removed when training resumes",
    ),
    "curves.png": RunFile("loss and score, such as top-1, over the steps", f"{_TRAINING}, at the end"),
    "tensorboard/": RunFile(
        "event files of TensorBoard's runs, in itself and in `train`, `validation` and `media`; see "
        "[TensorBoard tags](tensorboard-tags.md). `plugins/profile` has the profiles of `--profile_steps`",
        _TRAINING,
    ),
    "order/worker-{rank}.jsonl": RunFile(
        "per line a `step`, and `images`: the numbers of the images that the worker trained on in it",
        "each worker of `convoy train --record_order`, every step",
    ),
    "trackers/": RunFile(
        "`NAME.json` with the run's id in the tracker; files of the tracker itself",
        f"{_TRAINING} with `--callbacks=wandb` or `mlflow`",
    ),
    "predictions_{split}.csv": RunFile(
        "predictions of the last evaluation on a split, one row per image; see [Evaluations](#evaluations)", _EVALUATION
    ),
    "evaluation_{split}.json": RunFile(
        "metrics of the last evaluation on a split; see [Evaluations](#evaluations)", _EVALUATION
    ),
    "heat_maps_{split}.json": RunFile(
        "Grad-CAM of its most confident errors, as pictures for the report, or why there are none", _EVALUATION
    ),
    "fold-{number}/": RunFile(
        "run directory of a fold; see [Cross-validation](#cross-validation)", "`convoy train --folds`"
    ),
    "label_errors.csv": RunFile(
        "the images of a cross-validation whose label is probably wrong, with the columns of `predictions_SPLIT.csv`, "
        "the most likely errors first",
        "`convoy train --folds`; `convoy evaluate --split=out_of_fold`",
    ),
    "learning_curve.json": RunFile(
        "accuracy by the number of training images; see [learning_curve.json](#learning_curvejson)",
        "`convoy report --learning_curve`",
    ),
    "learning_curve/{name}/": RunFile(
        "run directory of the same config on a `quarter` or a `half` of the training images",
        "`convoy report --learning_curve`",
    ),
    "report.html": RunFile("the report: curves, metrics and error analysis, in one file", _REPORT),
    "MODEL_CARD.md": RunFile("model card; not overwritten once it was edited", _REPORT),
    "confusion_matrix.png": RunFile("confusion matrix of the last evaluation, with one label per image", _REPORT),
    "find_lr.csv": RunFile(
        "columns `learning_rate`, `loss` and `smoothed_loss` of the range test", "`convoy train --find_lr`"
    ),
    "find_lr.png": RunFile("the same as a plot", "`convoy train --find_lr`"),
    "launch.json": RunFile("attempts of the last launch; see [launch.json](#launchjson)", f"{_LAUNCHER}, per attempt"),
    "logs/attempt-{number}/worker-{rank}.log": RunFile(
        "output of a worker in an attempt; attempts are numbered from 1 over the life of RUN", f"{_LAUNCHER}"
    ),
    "logs/attempt-{number}/error-{rank}.json": RunFile(
        "error of a worker: `rank`, `time`, `step`, `exit_code`, `is_final` (a restart would fail the same way), "
        "`error` and `traceback`",
        "each worker that ends with an error of its own, under `convoy launch`",
    ),
    "logs/attempt-{number}/end-{rank}.json": RunFile(
        "`rank`, `returncode` and `time` of a worker's end; minus N for signal N", "`convoy launch worker`"
    ),
    "logs/code-{digest}/": RunFile("the user's recipe and other files, for workers on other hosts", _LAUNCHER),
    "logs/job.sbatch": RunFile("batch script of the job", "`convoy launch slurm`"),
    "logs/slurm-{job}.out": RunFile("output of the batch script", "SLURM, for `convoy launch slurm`"),
}

CHECKPOINT = {
    "model/{path}": "each variable of the model, by its path in Keras",
    "optimizer/{slot}/{path}": "the state that the optimizer keeps of a weight",
    "average/{path}": "the average of a weight, with `config.ema.decay` or an optimizer that averages",
    "loss_scale/scale": "loss scale; 1 unless the precision is float16",
    "loss_scale/good_steps": "steps since the loss scale was last changed",
    "metadata.json": "the metadata below, as JSON text; the other members are NumPy arrays (`.npy`)",
}

CHECKPOINT_METADATA = {
    "step": "steps done",
    "score": "top-1 on the validation split, or mean average precision with several labels per image; null if these "
    "weights were not evaluated",
    "config": "the config; a run resumes only with the same, see [Config](config.md)",
    "dataset": "number of images, classes and digest of the training split, which must be the same on resume",
    "model": "digest of the model, and of the user's files by piece",
    "place": "devices, workers, host and versions, which may change on resume",
    "weights_sha256": "SHA-256 over all weights",
    "rollbacks": "number of rollbacks so far",
    "window_sums": "sums of the metrics since the last log line",
    "reported": "the newest `metrics`, `images_per_second`, `limits`, `temperature` and `thresholds`, as in "
    "result.json",
    "callbacks": "state of each callback that has one, by its name",
}

# Every event has `event`, its name, and `time`, in seconds since 1970. Callbacks may add others.
EVENTS = {
    "start": ("training begins at step 0", "step, replicas, attempt"),
    "restored": ("training resumes from a checkpoint", "step, replicas, changed, attempt"),
    "extended": ("the run was made longer with `--extend`", "step, before, steps"),
    "virtual_replicas_changed": (
        "the run goes on with another number of virtual replicas, by `--virtual_replicas`",
        "step, before, after",
    ),
    "first_step": ("the first step of this start is done", "step"),
    "checkpoint": ("a checkpoint is being written", "step"),
    "checkpoint_failed": ("a checkpoint could not be written; training continues", "message"),
    "substituted": ("an unusable record was replaced", "step, index, shard, offset, reason, substitute"),
    "diverged": ("the gradient is NaN or infinite", "step, images"),
    "rolled_back": ("training goes back to a checkpoint", "step, diverged_step, learning_rate_factor"),
    "peer_lost": ("another worker was lost", "step, message"),
    "callback_failed": ("a callback raised an exception", "step, worker, callback"),
    "preempted": ("a signal stopped the run; it is saved", "step, signal, worker, seconds"),
    "stopped": ("a callback or the time limit stopped the run; the same command resumes it", "step, reason, by"),
    "done": ("the run has ended", "step"),
    "restart": ("the launcher restarts all workers", "attempt, cause"),
}

LEARNING_CURVE = {
    "split": "the split that all runs were evaluated on",
    "points": "per run, from the fewest training images to all: `fraction`, `images`, `step` of the evaluated weights, "
    "`top1`, `evaluated_images`, `seconds` of training, `weights_sha256`",
    "missing": "runs that are not trained yet: `quarter`, `half`",
    "fit": "`factor` and `exponent` of the power law, error(n) = factor * n^-exponent; null if the error does not fall "
    "with the number of images, or with one point",
    "interval": "probability of the intervals",
    "extrapolation": "for twice and four times the images: `images`, `top1`, and the interval, `low` to `high`; empty "
    "without a `fit`",
    "outlook": "of twice the images: `helps`, `little` (less than half a point, or no rise) or `unclear` (the error "
    "may as well stay the same); null with one point",
}

LAUNCH = {
    "engine": "`local`, `ssh`, `slurm` or `ray`",
    "command": "the trainer's command, as a list of words",
    "processes": "local, ray: number of workers",
    "hosts": "ssh: the hosts",
    "job": "slurm: number of the job",
    "nodes": "slurm: the nodes of the job",
    "exit_code": "exit code of the launcher; null while it runs",
    "attempts": "per attempt: `attempt`, `start_step`, `end_step`, `cause`, `log`, `exit_codes` by rank, `seconds`, "
    "`seconds_that_count` (spent on retained steps)",
    "seconds": "duration of the launch",
    "goodput": "share of the duration spent on retained steps, 0 to 1",
}
