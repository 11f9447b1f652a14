"""RUN/curves.png: loss and score, such as top-1, on training and validation images, from metrics.jsonl."""

from convoy.core.files import written_whole
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.records import read_json_lines
from convoy.trainer.run.task import SINGLE_LABEL, Task

_COLORS = {"train": "tab:blue", "validation": "tab:orange"}


def draw_curves(run: RunDirectory, task: Task = SINGLE_LABEL) -> None:
    """Draws a run's curves into `run.curves`, if there are any.

    Raises:
      OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # takes long to import, and most processes of a run never draw

    panels = (("quality/loss", "loss", 1.0), (f"quality/{task.score}", f"{task.score_title} (%)", 100.0))
    points = read_json_lines(run.metrics)
    figure = Figure(figsize=(11, 4), layout="constrained")
    drawn = False
    for axes, (tag, title, scale) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for split, color in _COLORS.items():
            chosen = [point for point in points if point["split"] == split and point.get(tag) is not None]
            if chosen:
                steps, values = [point["step"] for point in chosen], [scale * point[tag] for point in chosen]
                axes.plot(steps, values, color=color, label=f"{split}: {values[-1]:.3g}", marker=".")
                drawn = True
        axes.set_xlabel("step")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend()
    if drawn:
        with written_whole(run.curves) as file:
            figure.savefig(file, format="png", dpi=110)
