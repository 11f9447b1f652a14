"""Run directories as training and evaluation write them, made without training."""

import json
import time

import numpy as np

from convoy.configs.smoke import get_config
from convoy.trainer.config import to_json
from convoy.trainer.evaluation import predictions
from convoy.trainer.evaluation.predictions import Evaluation
from convoy.trainer.run.directory import RunDirectory

CLASSES = ("bag", "mug", "shoe", "sock")


def drawn_predictions(labels, *, num_classes, right=0.7, seed=0, filename="{}.jpg"):
    """Returns random predictions with a given accuracy, and all probabilities as float32."""
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels, np.int32)
    logits = rng.normal(size=(len(labels), num_classes))
    logits[np.arange(len(labels)), labels] += np.where(rng.random(len(labels)) < right, 4, -2)
    probabilities = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    collector, order = predictions.Collector(), rng.permutation(len(labels))
    for part in np.array_split(order, 3):
        collector(part, labels[part], probabilities[part])
    return collector.predictions([filename.format(i) for i in range(len(labels))]), probabilities


def made_run(folder, *, class_names=CLASSES, metrics=(), results=(), result=None):
    """Makes a run directory without checkpoints; `results` are rows of (split, step, top-1)."""
    run = RunDirectory(folder)
    run.checkpoints.mkdir(parents=True)
    run.write_json(run.config, to_json(get_config()))
    identity = {"name": "made", "train_images": 9, "train_digest": "5c6f", "classes": len(class_names)}
    run.write_json(run.dataset, {"directory": str(folder / "data"), "class_names": list(class_names), **identity})
    run.write_json(run.path / "environment.json", {"tensorflow": "2.21.0", "host": "a-host", "gpus": []})
    (run.path / "command.txt").write_text("convoy train --config=smoke\n")
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in metrics))
    rows = [f"2026-01-01T00:00:00,{step},{split},1.5,{top1},0.9,0.5,0.1" for split, step, top1 in results]
    run.results_table.write_text("\n".join(["time,step,split,loss,top1,top5,macro_f1,ece", *rows, ""]))
    if result is not None:
        run.write_json(run.result, {"step": 40, "epoch": 2.0, "images_seen": 640, "replicas": 2, **result})
    return run


def evaluated(run, found, *, split="test", step=40, class_names=CLASSES, **quality):
    """Writes an evaluation with the given predictions into a run and returns it."""
    measured = {"loss": 1.0, "top1": float(found.correct.mean()), "top5": 0.9, "macro_f1": 0.5, "ece": 0.1, **quality}
    evaluation = Evaluation(
        split, step, len(found.label), measured, str(run.path / "data"), "d1", 1_185_930, time.time()
    )
    predictions.save(run, evaluation, found, class_names)
    return evaluation
