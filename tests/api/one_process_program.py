"""Trains, evaluates and predicts in one process that has used TensorFlow before, as a notebook does.

python -m tests.api.one_process_program FINISHED_RUN DATA PHOTOS FOLDER

Prints facts as JSON, which `test_one_process.py` compares.
"""

import contextlib
import io
import json
import logging
import random
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import convoy


class Counter(convoy.Callback):
    """Counts the steps of a run."""

    def __init__(self, facts: dict[str, object]):
        """Args: facts: receives the count."""
        self._facts = facts

    def on_end(self, training: object, result: object) -> None:
        """Called at the end of the run."""
        self._facts["seen_by_callback"] = result["step"]


def global_state() -> list[object]:
    """Returns what a notebook would notice of global state, and uses it."""
    keras.layers.Dense(1)
    optimizations = tf.config.optimizer.get_experimental_options()
    return [
        keras.config.dtype_policy().name,
        keras.config.floatx(),
        keras.layers.Dense(1).name,
        random.random(),
        float(np.random.rand()),
        tf.random.normal([2]).numpy().tolist(),
        keras.random.uniform([1]).numpy().tolist(),
        optimizations.get("arithmetic_optimization", True),
    ]


def with_global_state_of_a_notebook(do: object = lambda: None) -> list[object]:
    """Returns the global state after setting it and calling a function."""
    keras.utils.clear_session()
    keras.config.set_dtype_policy("mixed_bfloat16")
    keras.utils.set_random_seed(3)
    do()
    return global_state()


def main(finished: str, data: str, photos: str, folder: str) -> None:
    """Prints the facts."""
    logging.getLogger("convoy").addHandler(logging.NullHandler())  # else Python prints warnings
    tf.config.threading.set_intra_op_parallelism_threads(2)  # as a deterministic run does, which comes later
    tf.constant(1)
    before = with_global_state_of_a_notebook()
    run, facts = convoy.open_run(finished), {}
    other = Path(folder) / "other"
    config = run.config
    config.steps, config.deterministic, config.precision = 2, False, "bfloat16"
    printed = io.StringIO()

    def train_again() -> None:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            facts["hash"] = convoy.train(run.config, data=data, workdir=Path(folder) / "again").weights_sha256
            convoy.train(config, data=data, workdir=other, callbacks=[Counter(facts)])
            convoy.train(config, data=data, workdir=other)  # is not locked; nothing is left to train

    def use_models() -> None:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            facts["validation"] = run.evaluate("validation", checkpoint="last", save=False).metrics
            facts["other"] = convoy.open_run(other).evaluate("validation").metrics
            facts["again"] = run.evaluate("validation", checkpoint="last", save=False).metrics
            files = sorted(Path(photos).rglob("*.jpg"))[:5]
            pictures = [Image.open(file) for file in files]
            arrays = [np.asarray(picture.convert("RGB")) for picture in pictures]
            found = [run.predict(images) for images in (files, pictures, arrays, np.stack(arrays))]
            facts["labels"] = [each.labels for each in found]
            facts["differences"] = [float(np.abs(each.probabilities - found[0].probabilities).max()) for each in found]
            facts["names"] = list(found[0].names) == [str(file) for file in files]
            facts["one"] = [len(run.predict(image)) for image in (files[0], pictures[0], arrays[0])]

    facts["state_kept"] = [with_global_state_of_a_notebook(do) == before for do in (train_again, use_models)]
    facts["printed"] = printed.getvalue()
    facts["not_an_image"] = []
    for wrong in (np.zeros([4, 4, 3]), np.zeros([4, 4], np.uint8), [], [3]):
        try:
            run.predict(wrong)
        except convoy.UsageError as error:
            facts["not_an_image"].append(str(error))
    facts["refused"] = []
    threads = run.config
    threads.deterministic_threads = 3
    for config, devices in ((run.config, "cpu:2"), (threads, "cpu:1")):
        try:
            convoy.train(config, data=data, workdir=Path(folder) / "refused", devices=devices)
        except convoy.UsageError as error:
            facts["refused"].append(str(error))
    facts["left_behind"] = (Path(folder) / "refused").exists()
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
