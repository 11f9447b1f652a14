"""Callbacks for tests, as users write them."""

import time

from convoy.trainer.callbacks.callback import Callback


class FailsAtStep4(Callback):
    def on_step_end(self, training, result):
        if training.step == 4:
            raise ValueError("my own fault")


class FailsAtTheEnd(Callback):
    """The last worker fails."""

    every_worker = True

    def on_end(self, training, result):
        if training.rank == training.num_workers - 1:
            raise ValueError("my own fault")


class StopsAtStep5(Callback):
    """The last worker asks for it."""

    every_worker = True

    def on_step_end(self, training, result):
        if training.step == 5 and training.rank == training.num_workers - 1:
            training.request_stop("five are enough", resumable=False)


class Journal(Callback):
    """Prints each call, and what a checkpoint has."""

    every_worker = True

    def on_start(self, training):
        print("journal", training.rank, "start", training.step, flush=True)

    def on_checkpoint(self, training, checkpoint):
        print("journal", training.rank, "checkpoint", checkpoint.step, checkpoint.path.is_file(), flush=True)

    def on_end(self, training, result):
        print("journal", training.rank, "end", training.step, result is not None, flush=True)


def not_a_callback():
    return "text"


class SlowsTheLastWorkerDown(Callback):
    """As a slower host would."""

    every_worker = True

    def on_step_begin(self, training):
        if training.rank == training.num_workers - 1:
            time.sleep(0.1)
