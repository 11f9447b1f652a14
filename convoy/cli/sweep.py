"""`convoy sweep --space=FILE.py --trials=N --workdir=DIR -- train ...`: searches for a config by trial runs.

convoy sweep --space=space.py --trials=20 --workdir=sweep -- train --data=data --config=convnet
"""

import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from convoy.cli import parse
from convoy.core.errors import UsageError
from convoy.core.flags import FlagDefiner
from convoy.core.text import counted
from convoy.launch.screen import Screen
from convoy.launch.trials import Trial, TrialEnd, run_trials

if TYPE_CHECKING:
    from convoy.trainer.sweep.space import Space
    from convoy.trainer.sweep.study import Sweep, TrialRecord

TAKES_ARGUMENTS = True
REQUIRED = ("space", "trials", "workdir")

_EXAMPLE = "Example: convoy sweep --space=space.py --trials=20 --workdir=sweep -- train --data=data"
_SHOWN = 5  # best trials
_DIRECTIONS = {"min": "minimize", "max": "maximize"}
_NOT_IN_TRIALS = (
    "workdir",
    "worker_hosts",
    "worker_index",
    "print_config",
    "find_lr",
    "find_batch_size",
    "extend",
    "virtual_replicas",
    "folds",
)


def define_flags(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Defines the command's flags.

    Raises:
      UsageError: `--` is missing before the trainer's command.
    """
    if "train" in arguments and "--" not in arguments:
        raise UsageError(f"`--` is missing before 'train': it separates the trainer's command. {_EXAMPLE}")
    define = FlagDefiner(flags)
    define.string("space", None, "FILE.py with space(trial), which returns a dict of config fields; or FILE.py:NAME")
    define.integer("trials", None, "number of trials in total, with those that have ended", lower_bound=1)
    define.string("workdir", None, "directory of the sweep; an interrupted one in it is resumed")
    define.string("metric", "top1", "metric of evaluations on the validation split by which trials are compared")
    define.enum(
        "mode",
        "auto",
        ("auto", *_DIRECTIONS),
        "whether lower or higher is better; auto: lower for loss, ece, brier and nll",
    )
    define.enum("pruner", "median", ("median", "hyperband", "none"), "which trials to stop early, by their evaluations")
    define.integer("parallel", 1, "trials at a time on this machine, which share its GPUs or cores", lower_bound=1)
    define.integer("seed", 0, "seed of the suggestions", lower_bound=0)
    define.float("grace_seconds", 60.0, "seconds that trials may take to save after Ctrl-C", lower_bound=0.0)


def run(flags: absl_flags.FlagValues, arguments: Sequence[str]) -> int:
    """Runs trials until there are as many as asked for; returns the exit code.

    Raises:
      UsageError: Optuna is not installed, the search space cannot be used, or the command after `--` is not valid.
      DataError: DIR cannot be written.
      SweepError: the first trials failed for the same reason.
    """
    command = _train_command(arguments)
    if importlib.util.find_spec("optuna") is None:
        raise UsageError("convoy sweep needs Optuna. Run `pip install 'convoy-train[sweep]'`.")
    from convoy.trainer.callbacks.early_stopping import lower_is_better
    from convoy.trainer.sweep.space import find_space
    from convoy.trainer.sweep.storage import Settings
    from convoy.trainer.sweep.study import Sweep

    space = find_space(flags.space)
    _check(space, command, seed=flags.seed)
    direction = _DIRECTIONS["min" if lower_is_better(flags.metric, flags.mode) else "max"]
    settings = Settings(flags.metric, direction, flags.pruner)
    sweep = Sweep(Path(flags.workdir), space, trials=flags.trials, settings=settings, seed=flags.seed)
    screen = Screen.of_standard_output()
    source = _Source(sweep, screen, flags.metric)
    try:
        before = sweep.trials()
        ended = sum(trial.state != "unfinished" for trial in before)
        unfinished = f" and {len(before) - ended} unfinished" if len(before) > ended else ""
        resumed = f"resumes with {ended} ended{unfinished}" if before else "starts"
        screen.say(f"convoy: the sweep of {counted(flags.trials, 'trial')} in {flags.workdir} {resumed}.")
        if earlier := sweep.earlier_command(command):
            screen.say(f"convoy: the last start of this sweep ran other flags: {shlex.join(earlier)}")
        code = run_trials(source, command, parallel=flags.parallel, grace_seconds=flags.grace_seconds, screen=screen)
        if code:
            screen.say("convoy: stopped. Rerun the same command to resume the sweep.")
        else:
            screen.say("\n".join(_conclusion(sweep, flags.metric)))
    finally:
        sweep.close()
        screen.drain()
    return code


class _Source:
    """Gives the trials of a sweep to `run_trials`."""

    def __init__(self, sweep: "Sweep", screen: Screen, metric: str):
        self._sweep, self._screen, self._metric = sweep, screen, metric

    def take(self) -> Trial | None:
        from convoy.trainer.sweep.space import config_flags
        from convoy.trainer.sweep.trial import trial_variable

        taken = self._sweep.take()
        if taken is None:
            return None
        variable = trial_variable(self._sweep.state_folder, taken.number)
        return Trial(taken.number, taken.workdir, config_flags(taken.fields), variable)

    def ended(self, trial: Trial, end: TrialEnd) -> None:
        found = self._sweep.trials()[trial.number]
        ended = self._sweep.record(found, exit_code=end.exit_code, error=end.error, checkpoint=end.checkpoint)
        if ended.state == "unfinished":
            what = f"{end.error or f'exit code {end.exit_code}'}, is resumed"
        else:
            what = f"{ended.state}  {_value(self._metric, ended)}" + (f": {ended.error}" if ended.error else "")
        self._screen.say(f"trial {trial.number}: {what}  {_fields(ended.fields)}")


def _train_command(words: Sequence[str]) -> list[str]:
    """Returns the command after `--`.

    Raises:
      UsageError: it is not `train`, or has a flag that trials cannot have.
    """
    if not words or words[0] != "train":
        given = f", not {words[0]!r}" if words else ""
        raise UsageError(f"give `train` and its flags after --{given}. {_EXAMPLE}")
    return list(words)


def _check(space: "Space", command: Sequence[str], *, seed: int) -> None:
    """Parses the command of a first trial, which is not run.

    Raises:
      UsageError: the search space fails, or the command has an unknown flag or config field.
    """
    import optuna

    from convoy.trainer.sweep.space import config_flags

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask()
    flags, rest = parse("train", [*command[1:], *config_flags(space(trial))])
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r} after train: flags are written --name=value. {_EXAMPLE}")
    for name in _NOT_IN_TRIALS:
        if flags[name].value not in (None, "", [], False):
            raise UsageError(f"--{name} cannot be given after `-- train` in a sweep. Remove it.")
    if not flags.data:
        raise UsageError(f"--data must be given after `-- train`. {_EXAMPLE}")


def _conclusion(sweep: "Sweep", metric: str) -> list[str]:
    """Returns the best trials as a table, and how to evaluate the best."""
    trials, best = sweep.trials(), sweep.best_first()
    states = [trial.state for trial in trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    lines = [f"convoy: {counted(len(trials), 'trial')}: {counts}."]
    if not best:
        return lines
    shown = [(str(trial.workdir), _value(metric, trial), _fields(trial.fields)) for trial in best[:_SHOWN]]
    widths = [max(len(row[column]) for row in shown) for column in range(2)]
    lines += [f"Best {counted(len(shown), 'trial')}:" if len(shown) > 1 else "Best trial:"]
    lines += [f"{run:<{widths[0]}}  {value:<{widths[1]}}  {fields}" for run, value, fields in shown]
    return [*lines, f"Evaluate the best: convoy evaluate --workdir={shlex.quote(str(best[0].workdir))} --split=test"]


def _value(metric: str, trial: "TrialRecord") -> str:
    return f"{metric} {'-' if trial.value is None else f'{trial.value:.4f}'}"


def _fields(fields: Mapping[str, Any]) -> str:
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in fields.items()
    )
