"""A callback of your own: notes when a class falls behind, and stops when all classes are learned.

    convoy train --data=data --workdir=run --callbacks=examples/callback.py:Milestones

Each hook gets the run in progress (`convoy.Training`) first. By default hooks run on the chief only, which writes the
run directory; `every_worker = True` runs them on all workers. `state` and `restore` carry what a resumed run needs
through its checkpoints. `training.request_stop` stops all workers after the same step, saves, and ends with exit code
0. A hook that raises an exception ends the run too: it is saved, and the message has the traceback.
"""

import convoy


class Milestones(convoy.Callback):
    """Tells when validation top-1 first reaches each of some levels, and stops at the last one."""

    def __init__(self, levels=(0.1, 0.25, 0.5, 0.75, 0.99)):
        self.levels = levels
        self.reached = []

    def on_evaluation(self, training, evaluation):
        top1 = evaluation.metrics["top1"]
        for level in self.levels[len(self.reached) :]:
            if top1 < level:
                return
            self.reached.append(level)
            training.say(f"Milestone: top-1 has reached {level:.0%} at step {evaluation.step}.")
            training.event("milestone", step=evaluation.step, level=level)  # a line in RUN/events.jsonl
        training.request_stop("the last milestone is reached", resumable=False)

    def state(self):
        return {"reached": self.reached}

    def restore(self, state):
        self.reached = state["reached"]
