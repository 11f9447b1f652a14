"""Runs that a benchmark trains and evaluates with Convoy's commands, and reuses when it is started again.

    runs = Runs(Path("generalization/sample"))
    outcome = runs.outcome("convnet-seed0", "convnet", {"seed": 0})
    outcome.test_top1, outcome.seconds

FOLDER/data is the dataset, FOLDER/NAME a run directory, FOLDER/logs the output of the commands. A killed run is resumed
from its checkpoint, and its times do not include repeated work. Commands end when the benchmark ends.
"""

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags as absl_flags

from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.input_pipeline.dataset.open import Dataset, open_dataset
from convoy.launch.processes import WorkerProcesses, WorkerProgram
from convoy.launch.trainer_command import TRAINER, trainer_environment
from convoy.trainer import config as configs
from convoy.trainer.run.directory import RunDirectory

EVALUATED_SPLITS = ("train", "validation", "test")
_POLL_SECONDS = 0.05
_SHOWN_ERROR_LINES = 5
_STARTS = ("start", "restored")
_USELESS = ("rounds", "batch_size", "image_size", "threads", "peers")


def define_training_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags that benchmarks which train have in common, once."""
    if "seeds" in flags:
        return
    help_of = "Benchmarks that train: {}".format
    absl_flags.DEFINE_integer("seeds", 3, help_of("runs of each."), lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_string(
        "workdir",
        None,
        help_of("folder of datasets and runs; finished runs in it are reused. Default: name of the benchmark."),
        flag_values=flags,
    )
    absl_flags.DEFINE_string("devices", "auto", help_of("as in `convoy train`."), flag_values=flags)


def define_recipe_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags that benchmarks of one recipe have in common, once."""
    if "recipe" in flags:
        return
    help_of = "Benchmarks of one recipe: {}".format
    absl_flags.DEFINE_string("recipe", "convnet_fast", help_of("recipe, as in --config."), flag_values=flags)
    absl_flags.DEFINE_integer("epochs", 20, help_of("length of a run."), lower_bound=1, flag_values=flags)


def refuse_useless_flags(flags: absl_flags.FlagValues, benchmark: str) -> None:
    """Raises a UsageError if a flag of the benchmarks that compare programs was passed to one that trains recipes."""
    for name in _USELESS:
        if flags[name].present:
            raise UsageError(f"--{name} has no effect on {benchmark}, which trains recipes. Omit it.")


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
      run: its directory.
      command: arguments of the command that trained it.
      result: contents of result.json.
      events: contents of events.jsonl.
    """

    run: RunDirectory
    command: Sequence[str]
    result: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """A finished run, evaluated with the weights of its best checkpoint.

    Attributes:
      command: arguments of the command that trained it.
      steps: number of training steps.
      parameters: number of parameters of the model.
      images_per_second: training throughput, without evaluations and checkpoints.
      seconds: wall time of training, including compilation, evaluations and checkpoints.
      seconds_to_best: wall time until the checkpoint with the best validation score.
      test_images: number of test images.
      train_top1: on the training images without augmentation, in [0, 1].
      validation_top1: on the validation images, by which the checkpoint was chosen, in [0, 1].
      test_top1: on the test images, in [0, 1].
      validation_ece: expected calibration error on the validation images, in [0, 1]; None if it was not measured.
      test_ece: the same on the test images.
    """

    command: Sequence[str]
    steps: int
    parameters: int
    images_per_second: float
    seconds: float
    seconds_to_best: float
    test_images: int
    train_top1: float
    validation_top1: float
    test_top1: float
    validation_ece: float | None = None
    test_ece: float | None = None

    @property
    def gap(self) -> float:
        """Train top-1 minus test top-1."""
        return self.train_top1 - self.test_top1


class Runs:
    """The runs on one dataset, in one folder."""

    def __init__(
        self,
        folder: Path,
        *,
        devices: str = "auto",
        say: Callable[[str], None] = lambda text: None,
        program: Sequence[str] = TRAINER,
    ):
        """Starts nothing yet.

        Args:
          folder: contains the dataset and the runs.
          devices: devices to train and evaluate on, as in `--devices`.
          say: shows progress.
          program: runs the commands; replaced by a small program in tests.
        """
        self.folder = folder
        self.data = folder / "data"
        self._devices = devices
        self._say = say
        self._program = program

    def has_data(self, split: str) -> bool:
        """Whether the dataset has a split."""
        return self.data.is_dir() and split in self._dataset().splits

    @property
    def training_images(self) -> int:
        """Number of training images."""
        return self._dataset().split("train").num_images

    @property
    def description(self) -> str:
        """One line about the dataset."""
        dataset = self._dataset()
        splits = ", ".join(f"{dataset.split(name).num_images:,} {name}" for name in dataset.splits)
        return f"{splits} images of {dataset.num_classes} categories"

    def outcome(self, name: str, recipe: str, overrides: Mapping[str, Any]) -> Outcome:
        """Returns the outcome of a run; trains and evaluates what is missing.

        Args:
          name: name of its folder.
          recipe: as in `--config`.
          overrides: values by dotted config field.

        Raises:
          UsageError: the folder contains a run with another config.
          ConvoyError: a command failed; the message ends with the last lines of its output.
        """
        trained = self.trained(name, recipe, overrides)
        evaluations = {split: self.evaluation(trained, split) for split in EVALUATED_SPLITS}
        quality = {split: evaluation["quality"] for split, evaluation in evaluations.items()}
        outcome = Outcome(
            command=trained.command,
            steps=trained.result["step"],
            parameters=evaluations["test"]["parameters"],
            images_per_second=trained.result["images_per_second"] or 0.0,
            seconds=seconds_of(trained.events),
            seconds_to_best=seconds_of(trained.events, until_step=trained.result["best"]["step"]),
            test_images=evaluations["test"]["images"],
            train_top1=quality["train"]["top1"],
            validation_top1=quality["validation"]["top1"],
            test_top1=quality["test"]["top1"],
            validation_ece=quality["validation"].get("ece"),
            test_ece=quality["test"].get("ece"),
        )
        self._say(f"{name}: {outcome.seconds:.0f} s, train {outcome.train_top1:.1%}, test {outcome.test_top1:.1%}")
        return outcome

    def trained(self, name: str, recipe: str, overrides: Mapping[str, Any]) -> TrainedRun:
        """Returns a finished run; trains or resumes it if necessary. Arguments and errors are those of `outcome`."""
        run = RunDirectory(self.folder / name)
        words = [f"--config={recipe}", *(f"--config.{field}={value}" for field, value in overrides.items())]
        words += [f"--data={self.data}", f"--workdir={run.path}"]
        words += [f"--devices={self._devices}"] * (self._devices != "auto")
        if run.result.exists():
            _check_same(run, recipe, overrides)
        else:
            self._say(f"{name}: training")
            self.convoy("train", *words, name=name)
        events = [json.loads(line) for line in run.events.read_text(encoding="utf-8").splitlines()]
        return TrainedRun(run, ["convoy", "train", *words], run.read_json(run.result), events)

    def evaluation(self, trained: TrainedRun, split: str) -> Mapping[str, Any]:
        """Returns the content of evaluation_SPLIT.json; evaluates if it is missing. Errors are those of `outcome`."""
        path, name = trained.run.evaluation(split), trained.run.path.name
        if not path.exists():
            self._say(f"{name}: evaluating on {split}")
            words = (f"--workdir={trained.run.path}", f"--split={split}", f"--devices={self._devices}")
            self.convoy("evaluate", *words, name=name)
        return trained.run.read_json(path)

    def convoy(self, *words: str, name: str = "dataset") -> None:
        """Runs a command to its end; its output goes to FOLDER/logs/NAME.log.

        Raises:
          ConvoyError: it failed; the message ends with the last lines of its output.
        """
        log = self.folder / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        processes = WorkerProcesses([WorkerProgram([*self._program, *words], trainer_environment(), log)])
        try:
            while not (ended := processes.poll()):
                time.sleep(_POLL_SECONDS)
        finally:
            processes.kill()
        if code := ended[0].returncode:
            last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_ERROR_LINES:])
            raise ConvoyError(f"`{shlex.join(['convoy', *words])}` ended with exit code {code} ({log}):\n{last}")

    def _dataset(self) -> Dataset:
        try:
            return open_dataset(self.data)
        except DataError as error:
            raise DataError(f"{error} The benchmark needs that folder: remove it, or pass another --workdir.") from None


def seconds_of(events: Sequence[Mapping[str, Any]], until_step: int | None = None) -> float:
    """Returns the training time of a run as if it had not been interrupted.

    A killed attempt counts until the checkpoint from which the next one resumed; every start counts.

    Args:
      events: contents of events.jsonl: `event`, `time` in seconds, `step`.
      until_step: the checkpoint to stop at; None for the end of the run.
    """
    starts = [number for number, event in enumerate(events) if event["event"] in _STARTS]
    total = 0.0
    for place, number in enumerate(starts):
        following = starts[place + 1] if place + 1 < len(starts) else None
        attempt = events[number:following]
        last_step = None if following is None else events[following]["step"]
        saved = {event["step"]: event["time"] for event in attempt if event["event"] == "checkpoint"}
        if until_step in saved and (last_step is None or until_step <= last_step):
            return total + saved[until_step] - attempt[0]["time"]
        if last_step is None:
            return total + attempt[-1]["time"] - attempt[0]["time"]
        if last_step in saved:  # otherwise it was killed before its first step
            total += saved[last_step] - attempt[0]["time"]
    return total


def steps_within(seconds: float, short: TrainedRun, longer: TrainedRun) -> int:
    """Returns the number of steps that a run can finish in a given time, 1 or more.

    Two runs separate the cost of a step from that of starting, which compiles once for every resolution.

    Args:
      seconds: time from the start of the run.
      short: a run with the same config.
      longer: another one, with more steps.

    Raises:
      ConvoyError: the longer run took no longer.
    """
    (few, soon), (many, later) = ((run.result["step"], seconds_of(run.events)) for run in (short, longer))
    if later <= soon:
        raise ConvoyError(
            f"{short.run.path} took {soon:.1f} s for {few} steps, {longer.run.path} {later:.1f} s for {many}: the "
            "cost of a step cannot be determined. Remove both and run again on an idle machine, or with more "
            "images."
        )
    step_seconds = (later - soon) / (many - few)
    return max(1, few + int((seconds - soon) / step_seconds))


def _check_same(run: RunDirectory, recipe: str, overrides: Mapping[str, Any]) -> None:
    before = ml_collections.ConfigDict(run.read_json(run.config))
    config = configs.load_recipe(recipe)
    config.update_from_flattened_dict(overrides)
    # All fields, including those that do not affect the weights: the evaluation interval determines the best step.
    after = configs.to_json(configs.with_recorded_choices(config, before))
    changed = configs.differences(before.to_dict(), after, operational=True)
    if changed:
        raise UsageError(
            f"{run.path} has a run with another config: {'; '.join(changed)}. Remove it, or pass another --workdir."
        )
