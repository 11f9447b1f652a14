"""A sweep: takes trials from the study, records how they ended, and writes DIR/sweep.json.

    sweep = Sweep(Path("sweep"), space, trials=20, settings=Settings("top1", "maximize", "median"), seed=0)
    while trial := sweep.take():
        ...                                  # convoy train, with trial.fields, in trial.workdir
        print(sweep.record(trial, exit_code=0, error="", checkpoint=120))

Everything is in the study's journal, so that a sweep continues after any crash, and several processes on several hosts
can take trials from one folder. A lock per trial, held by the process that runs it, shows which trials are running;
one that a dead process left is resumed with its fields as they were.

DIR/trial-NNNN/          run directory of a trial
DIR/sweep/journal.log    Optuna's study
DIR/sweep/*.lock         locks
DIR/sweep.json           all trials and the best
"""

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from convoy.core import exit_codes
from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.core.files import LockHeldError, acquire_lock, json_value, write_whole
from convoy.core.run_layout import RunLayout
from convoy.trainer.run.records import read_json_object
from convoy.trainer.sweep.space import Space
from convoy.trainer.sweep.storage import Settings, make_study, open_storage, trial_in
from convoy.trainer.sweep.trial import was_pruned

_COMMAND = "command"  # user attribute of the study
_FIELDS, _ERROR = "fields", "error"  # user attributes of a trial
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "unfinished",
}
_LOCK_SECONDS = 120.0  # for the study; a process holds its lock for less than a second
_SAME_FAILURES = 3  # with which a start of the sweep gives up
_SEED_FACTOR = 1_000_003  # keeps the trials of different sweeps apart
_RESTARTS = 3  # of a trial without a new checkpoint


class SweepError(ConvoyError):
    """Every trial so far has failed for one reason. The exit code is that of the trials."""

    def __init__(self, message: str, exit_code: int):
        """Takes message and exit code."""
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class TrialRecord:
    """A trial of a sweep.

    Attributes:
      number: from 0.
      state: complete, pruned, failed or unfinished.
      fields: its config fields.
      value: its best value of the metric on the validation split; None without an evaluation.
      evaluations: number of its evaluations.
      workdir: its run directory.
      error: why it failed, one line; empty in other states.
    """

    number: int
    state: str
    fields: Mapping[str, Any]
    value: float | None
    evaluations: int
    workdir: Path
    error: str = ""


class Sweep:
    """The trials of a sweep, as one of its processes sees them."""

    def __init__(self, folder: Path, space: Space, *, trials: int, settings: Settings, seed: int):
        """Opens the sweep in a folder, or starts one.

        Args:
          folder: DIR.
          space: the search space.
          trials: number of trials in total, with those that have ended.
          settings: what to optimize, and how.
          seed: of the suggestions. They depend on it, on a trial's number, and on the trials that have ended.

        Raises:
          UsageError: DIR is a file, or its trials were compared by another metric.
          DataError: it cannot be written, or the journal is damaged.
        """
        self._folder, self._space, self._trials, self._settings, self._seed = folder, space, trials, settings, seed
        self._state_folder = folder / "sweep"
        self._held: dict[int, int] = {}  # descriptors of trials' locks, by number
        self._failures: list[str] = []  # errors of the first trials of this start; empty for those without
        self._restarts: Counter[int] = Counter()
        self._checkpoints: dict[int, int] = {}
        try:
            self._state_folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._storage = open_storage(self._state_folder)
                self._study = make_study(self._storage, settings)
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"--workdir={folder} is a file. Pass a directory.") from None
        except OSError as error:
            raise DataError(
                f"--workdir={folder} cannot be made ({error.strerror}). Pass a writable directory."
            ) from None
        except (ValueError, KeyError) as error:
            raise DataError(
                f"{self._state_folder / 'journal.log'} is damaged ({error}). Restore it, or pass another --workdir."
            ) from None

    @property
    def state_folder(self) -> Path:
        """The folder of the study."""
        return self._state_folder

    def earlier_command(self, command: Sequence[str]) -> list[str]:
        """Keeps the trainer's command; returns that of the last start if it was another one, otherwise nothing."""
        earlier: list[str] = self._study.user_attrs.get(_COMMAND, list(command))
        if _COMMAND not in self._study.user_attrs or earlier != list(command):
            self._study.set_user_attr(_COMMAND, list(command))
        return earlier if earlier != list(command) else []

    def take(self) -> TrialRecord | None:
        """Returns the next trial to run: one that was left unfinished, else a new one; None if there is none.

        Raises:
          UsageError: the search space fails.
        """
        with self._locked():
            for trial in self._all():
                if not trial.state.is_finished() and self._hold(trial.number):
                    if self._has_ended(trial.number):  # but that was not recorded
                        self._end(trial.number, "")
                        continue
                    return self._prepared(trial)
            number = len(self._all())
            if number >= self._trials:
                return None
            # A sampler per trial: a sweep that was interrupted suggests the same as one that was not.
            seed = (self._seed * _SEED_FACTOR + number) % 2**32
            self._study.sampler = optuna.samplers.TPESampler(seed=seed)
            number = self._study.ask().number
            self._hold(number)
            return self._prepared(self._all()[number])

    def record(self, trial: TrialRecord, *, exit_code: int, error: str, checkpoint: int | None) -> TrialRecord:
        """Records how a trial's process has ended; returns the trial as it is now.

        Args:
          trial: the trial.
          exit_code: that of the process. From 128 on `take` returns the trial again, if it gets on.
          error: what the process reported, one line.
          checkpoint: step of its newest checkpoint; None if there is none.

        Raises:
          SweepError: the first trials of this start have all failed for the same reason.
        """
        number = trial.number
        if exit_code >= exit_codes.SIGNAL_BASE:
            if (checkpoint or 0) > self._checkpoints.get(number, 0):
                self._checkpoints[number], self._restarts[number] = checkpoint or 0, 0
            self._restarts[number] += 1
            if self._restarts[number] <= _RESTARTS:
                self._release(number)
                return self.trials()[number]
        with self._locked():
            self._end(number, "" if exit_code == 0 else error)
            self._write_summary()
        ended = self.trials()[number]
        self._check_for_common_failure(ended, exit_code)
        return ended

    def trials(self) -> list[TrialRecord]:
        """Returns all trials by number."""
        return [self._record_of(trial) for trial in self._all()]

    def best_first(self) -> list[TrialRecord]:
        """Returns the complete trials, best first."""
        sign = -1.0 if self._settings.direction == "maximize" else 1.0
        complete = [
            (sign * trial.value, trial)
            for trial in self.trials()
            if trial.value is not None and trial.state == "complete"
        ]
        return [trial for _, trial in sorted(complete, key=lambda pair: (pair[0], pair[1].number))]

    def close(self) -> None:
        """Writes sweep.json, and gives up the trials that this process holds."""
        with self._locked():
            self._write_summary()
        for number in list(self._held):
            self._release(number)

    def _all(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _prepared(self, trial: FrozenTrial) -> TrialRecord:
        """Returns a trial with its fields, which are kept before it starts."""
        if _FIELDS not in trial.user_attrs:
            suggesting = trial_in(self._study, self._storage, trial.number)
            try:
                fields = self._space(suggesting)
            except UsageError as error:
                self._end(trial.number, str(error))
                raise
            suggesting.set_user_attr(_FIELDS, fields)
            trial = self._all()[trial.number]
        return self._record_of(trial)

    def _record_of(self, trial: FrozenTrial) -> TrialRecord:
        values = [value for value in trial.intermediate_values.values() if math.isfinite(value)]
        best = max if self._settings.direction == "maximize" else min
        return TrialRecord(
            number=trial.number,
            state=_STATES[trial.state],
            fields=trial.user_attrs.get(_FIELDS, {}),
            value=best(values) if values else None,
            evaluations=len(trial.intermediate_values),
            workdir=self._workdir(trial.number),
            error=trial.user_attrs.get(_ERROR, ""),
        )

    def _workdir(self, number: int) -> Path:
        return self._folder / f"trial-{number:04}"

    def _has_ended(self, number: int) -> bool:
        """Returns whether a trial's run has ended for good."""
        result = read_json_object(RunLayout(self._workdir(number)).result)
        return bool(result) and not (result.get("stop") or {}).get("resumable", False)

    def _end(self, number: int, error: str) -> None:
        """Ends a trial in the study, as failed if there is an error."""
        value = self._record_of(self._all()[number]).value
        if not error and value is None:
            error = "it ended without an evaluation"
        if error:
            trial_in(self._study, self._storage, number).set_user_attr(_ERROR, error)
            self._study.tell(number, state=TrialState.FAIL)
        elif was_pruned(read_json_object(RunLayout(self._workdir(number)).result)):
            self._study.tell(number, state=TrialState.PRUNED)
        else:
            self._study.tell(number, value)
        self._release(number)

    def _check_for_common_failure(self, trial: TrialRecord, exit_code: int) -> None:
        if len(self._failures) < _SAME_FAILURES:
            self._failures.append(trial.error)
            if len(self._failures) == _SAME_FAILURES and trial.error and len(set(self._failures)) == 1:
                raise SweepError(
                    f"the first {_SAME_FAILURES} trials failed for the same reason: {trial.error.rstrip('.')}. "
                    f"Fix that and rerun the same command. Log: {trial.workdir / 'logs'}",
                    exit_code or exit_codes.ERROR,
                )

    def _write_summary(self) -> None:
        best = self.best_first()[:1]
        content = {
            **asdict(self._settings),
            "space": self._space.name,
            "seed": self._seed,
            "best": best[0].number if best else None,
            "trials": [
                {**asdict(trial), "workdir": trial.workdir.name, "params": frozen.params}
                for trial, frozen in zip(self.trials(), self._all(), strict=True)
            ],
        }
        path = self._folder / "sweep.json"
        try:
            write_whole(path, (json.dumps(json_value(content), indent=1) + "\n").encode())
        except OSError as error:
            raise DataError(
                f"{path} cannot be written ({error.strerror}). The sweep is saved: free disk space and rerun the same "
                "command."
            ) from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the lock of the study: no other process takes or ends a trial inside."""
        try:
            with open(self._state_folder / "study.lock", "ab") as lock:
                try:
                    acquire_lock(lock.fileno(), wait_seconds=_LOCK_SECONDS)
                except LockHeldError:
                    raise DataError(
                        f"{self._state_folder}: another process has held its lock for {_LOCK_SECONDS:g} s. End it."
                    ) from None
                yield
        except OSError as error:
            raise DataError(
                f"{self._state_folder} cannot be read or written ({error.strerror}). Fix that and rerun the same "
                "command to resume the sweep."
            ) from None

    def _hold(self, number: int) -> bool:
        """Takes the lock of a trial; returns whether no process had it."""
        if number in self._held:
            return False
        descriptor = os.open(self._state_folder / f"trial-{number:04}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            acquire_lock(descriptor)
        except LockHeldError:
            os.close(descriptor)
            return False
        self._held[number] = descriptor
        return True

    def _release(self, number: int) -> None:
        os.close(self._held.pop(number))
