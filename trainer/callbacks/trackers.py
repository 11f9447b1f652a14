"""Experiment trackers: Weights & Biases and MLflow, `convoy train --callbacks=wandb` or `mlflow`.

Both get the config, the values of every log line and evaluation, and the result. A run that resumes goes on in the same
run of the tracker: RUN/trackers/NAME.json has its id and the last steps sent. Where a tracker fails, training continues
without it.
"""

import json
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from convoy.core.errors import UsageError
from convoy.core.files import write_whole
from convoy.core.run_layout import RunLayout
from convoy.trainer.callbacks.callback import CALLBACKS, Callback, Evaluation, Log, Stop, Training
from convoy.trainer.config import fields, to_json
from convoy.trainer.run.records import read_json_object

_SUMMARY = ("step", "epoch", "images_seen", "images_per_second", "weights_sha256")


class Tracker(Callback):
    """Sends a run to an experiment tracker.

    Attributes:
      name: of the tracker, and of its extra.
    """

    name = ""

    def __init__(self):
        """Sends nothing yet."""
        self._id = ""
        self._sent: dict[str, int] = {}  # last step by split
        self._was_stopped = self._has_failed = False

    @abstractmethod
    def _open(self, training: Training, run_id: str) -> str:
        """Opens the tracker's run `run_id`, or a new one if that is empty; returns its id."""

    @abstractmethod
    def _send(self, step: int, values: Mapping[str, float]) -> None:
        """Sends values by tag, such as `train/quality/loss`."""

    @abstractmethod
    def _close(self, result: Mapping[str, Any] | None) -> None:
        """Sends the result, if there is one, and closes the tracker's run."""

    def on_start(self, training: Training) -> None:
        """Opens the tracker's run.

        Raises:
          UsageError: its package is not installed.
        """
        self._file = RunLayout(training.workdir).tracker(self.name)
        self._file.parent.mkdir(exist_ok=True)
        known = read_json_object(self._file)
        try:
            __import__(self.name)
        except ImportError as error:
            self._has_failed = True
            raise UsageError(
                f"--callbacks={self.name}: {error}. Install it with `pip install 'convoy-train[{self.name}]'`."
            ) from None
        self._tolerating(training, lambda: self._begin(training, known))

    def on_log(self, training: Training, log: Log) -> None:
        """Sends the values of a log line."""
        self._send_once(training, "train", log.step, log.values)

    def on_evaluation(self, training: Training, evaluation: Evaluation) -> None:
        """Sends the values of an evaluation."""
        self._send_once(training, evaluation.split, evaluation.step, evaluation.values)

    def on_rollback(self, training: Training) -> None:
        """Sends the steps after the rollback again."""
        self._sent = {split: min(step, training.step) for split, step in self._sent.items()}

    def on_stop(self, training: Training, stop: Stop) -> None:
        """Remembers that the end is not a failure."""
        self._was_stopped = True

    def on_end(self, training: Training, result: Mapping[str, Any] | None) -> None:
        """Sends the result and closes the tracker's run."""
        self._tolerating(training, lambda: self._close(result))

    def _begin(self, training: Training, known: Mapping[str, Any]) -> None:
        self._sent = dict(known.get("sent", {}))
        self._id = self._open(training, known.get("id", ""))
        self._note()

    def _send_once(self, training: Training, split: str, step: int, values: Mapping[str, float]) -> None:
        if step > self._sent.get(split, -1):  # else sent before the run was killed
            self._sent[split] = step
            self._tolerating(training, lambda: self._send(step, {f"{split}/{tag}": v for tag, v in values.items()}))
            self._tolerating(training, self._note)

    def _note(self) -> None:
        write_whole(self._file, (json.dumps({"id": self._id, "sent": self._sent}) + "\n").encode())

    def _tolerating(self, training: Training, action: Callable[[], None]) -> None:
        """Does what may fail; after a failure nothing more."""
        if self._has_failed:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 (a tracker may raise anything)
            self._has_failed = True
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            training.say(f"Warning: {self.name} fails ({reason}). Training continues without it.")


@CALLBACKS.register("wandb")
class WandB(Tracker):
    """Sends a run to Weights & Biases; WANDB_PROJECT, WANDB_MODE and its other variables apply."""

    name = "wandb"

    def __init__(self, project: str | None = None):
        """Args: project: name of the project; None for WANDB_PROJECT, else `convoy`."""
        super().__init__()
        self._project = project or os.environ.get("WANDB_PROJECT") or "convoy"

    def _open(self, training: Training, run_id: str) -> str:
        import wandb

        self._run = wandb.init(
            project=self._project,
            name=training.workdir.name,
            id=run_id or None,
            resume="allow",
            config=to_json(training.config),
            dir=str(self._file.parent),
            reinit="create_new",
            # Standard output is Convoy's, and a command line may hold secrets.
            settings=wandb.Settings(console="off", quiet=True, x_disable_meta=True),
        )
        # Its own steps never go back, but those of a run do, after a rollback.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return self._run.id

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def _close(self, result: Mapping[str, Any] | None) -> None:
        if result:
            self._run.summary.update({name: result[name] for name in _SUMMARY} | {"best": result["best"]})
        self._run.finish(exit_code=0 if result or self._was_stopped else 1)


@CALLBACKS.register("mlflow")
class MLflow(Tracker):
    """Sends a run to MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME apply."""

    name = "mlflow"

    def __init__(self, experiment: str | None = None):
        """Args: experiment: name of the experiment; None for MLFLOW_EXPERIMENT_NAME, else `convoy`."""
        super().__init__()
        self._experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "convoy"

    def _open(self, training: Training, run_id: str) -> str:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = client = MlflowClient()
        if run_id:
            client.update_run(run_id, status="RUNNING")
            return run_id
        known = client.get_experiment_by_name(self._experiment)
        experiment = known.experiment_id if known else client.create_experiment(self._experiment)
        run_id = client.create_run(experiment, run_name=training.workdir.name).info.run_id
        parameters = [Param(name, str(value)) for name, value in fields(to_json(training.config))]
        client.log_batch(run_id, params=parameters)
        return run_id

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(tag, float(value), now, step) for tag, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def _close(self, result: Mapping[str, Any] | None) -> None:
        for name in _SUMMARY if result else ():
            self._client.set_tag(self._id, f"convoy.{name}", str(result and result[name]))
        status = "FINISHED" if result else "KILLED" if self._was_stopped else "FAILED"
        self._client.set_terminated(self._id, status)
