"""Writes metrics to TensorBoard's event files and metrics.jsonl, under the same tags.

writers = MetricWriters(run, total_steps=4000)
writers.go_back(0)                                # drops what a killed attempt wrote after its checkpoint
writers.write("train", step=20, values={"quality/loss": 3.1})
writers.show("media", step=20, values=[summaries.image("media/worst", picture)])
"""

from collections.abc import Collection, Iterable, Mapping

from tensorboard.compat.proto.summary_pb2 import Summary

from convoy.core.files import append_json_line
from convoy.trainer.callbacks.tensorboard import summaries
from convoy.trainer.callbacks.tensorboard.event_file import EventFile, cut_back
from convoy.trainer.run.directory import RunDirectory, truncate_json_lines

ROOT = ""  # TensorBoard's name of the run in RUN/tensorboard itself
_RUNS = (ROOT, "train", "validation", "media")
# Per curve. Keeps event files below 50 MB for any length of the run; TensorBoard shows 1000 points.
_MAX_POINTS = 20_000


class MetricWriters:
    """Writer of metrics.jsonl and of TensorBoard's runs (root, `train`, `validation`, `media`).

    All methods raise OSError if a file cannot be read or written.
    """

    def __init__(self, run: RunDirectory, *, total_steps: int):
        """Writes nothing yet."""
        self._run = run
        self._total_steps = total_steps
        self._steps_per_point = -(-total_steps // _MAX_POINTS)
        self._last_points: dict[str, int] = {}
        self._event_files = self._new_event_files(0)

    def go_back(self, step: int, *, without: Collection[str] = ()) -> None:
        """Drops what was written after `step`, and `without`, tags that are written again, whatever their step."""
        truncate_json_lines(self._run.metrics, step)
        # Before files are removed: a TensorBoard that has read them takes up only later names.
        self._event_files = self._new_event_files(step)
        for name in _RUNS:
            # A run that starts from step 0 also rewrites the values of step 0.
            cut_back(self._run.tensorboard / name, last_step=step or -1, without=without)
        self._last_points.clear()

    def write(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Writes the values by tag of a split; in metrics.jsonl, values that are not finite become null.

        If one of the two files cannot be written, the other one still may be.
        """
        numbers = {tag: float(value) for tag, value in values.items()}
        try:
            append_json_line(self._run.metrics, {"step": step, "split": split, **numbers})
        finally:
            self.show_scalars(split, step, numbers)

    def show_scalars(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Writes points of curves by tag to TensorBoard's run `name`, a subset of them for a very long run."""
        point = step // self._steps_per_point
        if self._last_points.get(name) != point or step == self._total_steps:
            self.show(name, step, [summaries.scalar(tag, value) for tag, value in values.items()])
            self._last_points[name] = point

    def show(self, name: str, step: int, values: Iterable[Summary.Value]) -> None:
        """Writes values (`summaries`) to TensorBoard's run `name`."""
        self._event_files[name].write(step, values)

    def _new_event_files(self, step: int) -> dict[str, EventFile]:
        return {name: EventFile(self._run.tensorboard / name, first_step=step + 1) for name in _RUNS}
