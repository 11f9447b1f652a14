"""Where numbers go: TensorBoard's event files and metrics.jsonl, under the same tags.

writers = MetricWriters(run, total_steps=4000)
writers.go_back(0)                                # what a killed attempt wrote after its checkpoint
writers.write("train", step=20, values={"quality/loss": 3.1})
writers.show("media", step=20, values=[summaries.image("media/worst", picture)])
"""

from collections.abc import Collection, Iterable, Mapping

from tensorboard.compat.proto.summary_pb2 import Summary

from convoy.core.files import append_json_line
from convoy.trainer.callbacks.tensorboard import summaries
from convoy.trainer.callbacks.tensorboard.event_file import EventFile, cut_back
from convoy.trainer.run.directory import RunDirectory, truncate_json_lines

ROOT = ""  # the run of TensorBoard that is RUN/tensorboard itself
_RUNS = (ROOT, "train", "validation", "media")
# TensorBoard shows 1000 points of a curve. With these, event files stay below 50 MB however long a run is.
_MOST_POINTS = 20_000


class MetricWriters:
    """Writes what TensorBoard shows as the runs `train` and `validation`, and beside them."""

    def __init__(self, run: RunDirectory, *, total_steps: int):
        """Writes nothing yet.

        Args:
          run: where to.
          total_steps: of the run.
        """
        self._run = run
        self._total_steps = total_steps
        self._steps_a_point = -(-total_steps // _MOST_POINTS)
        self._last_points: dict[str, int] = {}
        self._event_files = self._begun_at(0)

    def go_back(self, step: int, *, without: Collection[str] = ()) -> None:
        """Drops what was written after `step`, and what stands under the tags `without`, which is written anew.

        Raises:
          OSError: a file cannot be read or written.
        """
        truncate_json_lines(self._run.metrics, step)
        for name in _RUNS:
            # Before the first step there is nothing that a run which starts again does not write again.
            cut_back(self._run.tensorboard / name, last_step=step or -1, without=without)
        self._event_files = self._begun_at(step)
        self._last_points.clear()

    def write(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Writes values of one split at one step; of a very long run not every step's to TensorBoard.

        Args:
          split: `train` or `validation`.
          step: optimizer steps done.
          values: by tag. In metrics.jsonl those that are not finite become null.

        Raises:
          OSError: one of the two cannot be written. What can be is.
        """
        numbers = {tag: float(value) for tag, value in values.items()}
        try:
            append_json_line(self._run.metrics, {"step": step, "split": split, **numbers})
        finally:
            self.show_scalars(split, step, numbers)

    def show_scalars(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Writes points of curves for TensorBoard, of a very long run not every one.

        Args:
          name: of the run, as TensorBoard calls it.
          step: optimizer steps done.
          values: by tag.

        Raises:
          OSError: they cannot be written.
        """
        point = step // self._steps_a_point
        if self._last_points.get(name) != point or step == self._total_steps:
            self.show(name, step, [summaries.scalar(tag, value) for tag, value in values.items()])
            self._last_points[name] = point

    def show(self, name: str, step: int, values: Iterable[Summary.Value]) -> None:
        """Writes anything that TensorBoard shows (`summaries`). Raises OSError where that fails."""
        self._event_files[name].write(step, values)

    def _begun_at(self, step: int) -> dict[str, EventFile]:
        return {name: EventFile(self._run.tensorboard / name, first_step=step + 1) for name in _RUNS}
