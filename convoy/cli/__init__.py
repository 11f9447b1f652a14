"""Finds the command, parses its flags, runs it, and turns user errors into one line and an exit code.

A command is a module with `define_flags(flags, arguments)`, which may return other arguments to parse, and
`run(flags, arguments)`. `REQUIRED` lists the flags that must be given, `RENAMED_FLAGS` maps earlier flag names to
current ones, and `TAKES_ARGUMENTS` is true for a command that takes positional arguments. Only the module of the
requested command is imported, and none imports TensorFlow at module level, so that `--help` and a wrong flag are
answered at once.
"""

import atexit
import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import NamedTuple, NoReturn

from absl import flags as absl_flags

from convoy import __version__
from convoy.core import exit_codes
from convoy.core.error_file import note_error
from convoy.core.errors import ConvoyError, UsageError, did_you_mean
from convoy.core.logs import log_to_stderr
from convoy.core.memory import check_address_space
from convoy.core.streams import lost_output, protect_standard_streams
from convoy.input_pipeline.tf_startup import set_verbosity

_ABOUT = "convoy: trains image classifiers, with the same results on one device, all GPUs of a machine, or a cluster."

# What other tools call these commands.
_MEANING = {
    **dict.fromkeys(("fit", "run", "resume", "finetune", "fine-tune"), "train"),
    **dict.fromkeys(("eval", "test", "validate", "score"), "evaluate"),
    **dict.fromkeys(("infer", "inference", "classify"), "predict"),
    **dict.fromkeys(("prepare", "preprocess", "tfrecord", "tfrecords", "dataset"), "convert"),
    **dict.fromkeys(("save", "serve", "tflite"), "export"),
    **dict.fromkeys(("start", "srun", "torchrun", "mpirun"), "launch"),
    **dict.fromkeys(("list", "ls", "compare"), "runs"),
    **dict.fromkeys(("tune", "search", "hpo", "optimize"), "sweep"),
    **dict.fromkeys(("benchmark", "profile"), "bench"),
    **dict.fromkeys(("check", "info", "env"), "doctor"),
}

_WITH_TENSORFLOW = ("convert", "verify", "train", "augment", "evaluate", "predict", "report", "export", "doctor")

_logger = logging.getLogger("convoy")


class Command(NamedTuple):
    """A command, or an engine of `convoy launch`, as `listing` shows it. A command is the module of its name here."""

    summary: str
    example: str


COMMANDS = {
    "sample": Command("draws a small product-like image set", "convoy sample --output=photos"),
    "convert": Command("turns images into TFRecord shards", "convoy convert --images=photos/train --output=data"),
    "verify": Command("checks every record, checksum, image and label of a dataset", "convoy verify --data=data"),
    "train": Command("trains a model, or resumes an interrupted run", "convoy train --data=data --workdir=run"),
    "augment": Command(
        "writes a page of images augmented by a recipe",
        "convoy augment --data=data --config=convnet --output=augment.html",
    ),
    "evaluate": Command(
        "computes exact metrics on every image of a split", "convoy evaluate --workdir=run --split=test"
    ),
    "predict": Command(
        "predicts a category for every image in a folder",
        "convoy predict --workdir=run --images=photos/test --output=predictions.csv",
    ),
    "report": Command("writes an HTML report of a run: metrics and error analysis", "convoy report --workdir=run"),
    "export": Command(
        "exports the model as SavedModel, Keras file, LiteRT or ONNX and verifies each",
        "convoy export --workdir=run --format=saved_model,onnx --output=exported",
    ),
    "runs": Command("lists the runs in a folder, best first, with the config differences", "convoy runs runs"),
    "sweep": Command(
        "searches for a config by trial runs, with early stopping of poor ones",
        "convoy sweep --space=space.py --trials=20 --workdir=sweep -- train --data=data",
    ),
    "launch": Command(
        "starts and monitors workers, and restarts them from the latest checkpoint",
        "convoy launch local --processes=2 -- train --data=data --workdir=run",
    ),
    "doctor": Command(
        "checks devices, network, data and config before a run, and suggests fixes",
        "convoy doctor --data=data --workdir=run",
    ),
    "bench": Command("benchmarks Convoy against other libraries in one run", "convoy bench step"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: program name, command and flags; `sys.argv` by default.

    Returns:
      The exit code: 0 done, 2 invalid flags or config, 3 unusable data or checkpoint, 130 interrupted, 138 retryable.

    Raises:
      Exception: any error that is not a `ConvoyError`; `entry_point` turns it into a traceback and exit code 1.
    """
    argv = list(sys.argv if argv is None else argv)
    log_to_stderr()
    try:
        return _dispatch(argv)
    except ConvoyError as error:
        note_error(error)
        print(f"convoy: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("convoy: interrupted", file=sys.stderr)
        return exit_codes.INTERRUPTED


def entry_point() -> NoReturn:
    """Runs the command of this process and exits."""
    protect_standard_streams()
    # A notebook passes on a backend that may not be installed here, with which Keras' import fails.
    os.environ["MPLBACKEND"] = "agg"
    try:
        code = main()
    except SystemExit as request:
        code = request.code if isinstance(request.code, int) else 1
    except BaseException as error:
        note_error(error)
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()  # removes temporary folders, for example
    if loss := lost_output():
        print(f"convoy: standard output is incomplete: {loss.strerror}.", file=sys.stderr)
        if sys.argv[1:2] != ["train"]:  # which has written everything to RUN
            code = code or exit_codes.ERROR
    sys.stderr.flush()
    # Skips interpreter shutdown, during which a TensorFlow thread that needs the GIL would hang forever.
    os._exit(code)


def _dispatch(argv: list[str]) -> int:
    name = argv[1] if len(argv) > 1 else ""
    if name in ("", "help", "--help", "-h"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"convoy {__version__}")
        return 0
    if name not in COMMANDS:
        guess = f" (did you mean '{_MEANING[name]}'?)" if name in _MEANING else did_you_mean(name, COMMANDS)
        raise UsageError(f"unknown command {name!r}{guess}. Commands: {', '.join(COMMANDS)}.")
    command = COMMANDS[name]
    module = importlib.import_module(f"convoy.cli.{name}")
    flags, arguments = _defined(module, argv[2:])
    before_dashes = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if any(argument in ("--help", "-help", "-h", "--helpfull") for argument in before_dashes):
        example = module.example(before_dashes) if hasattr(module, "example") else f"  {command.example}"
        print(_usage(f"convoy {name}: {command.summary}.\n\n{example}\n", flags))
        return 0
    rest = _parsed(name, flags, arguments)
    require_flags(flags, *getattr(module, "REQUIRED", ()))
    if rest and not getattr(module, "TAKES_ARGUMENTS", False):
        raise UsageError(f"unexpected argument {rest[0]!r}: flags are written --name=value. Example: {command.example}")
    if "verbosity" in flags:
        set_verbosity(flags.verbosity)
    if name in _WITH_TENSORFLOW:
        check_address_space()
    return module.run(flags, rest) or 0


def parse(name: str, arguments: list[str]) -> tuple[absl_flags.FlagValues, list[str]]:
    """Returns the flags of a command as given by `arguments`, and the other arguments.

    Raises:
      UsageError: an unknown flag or a wrong value.
    """
    flags, arguments = _defined(importlib.import_module(f"convoy.cli.{name}"), arguments)
    return flags, _parsed(name, flags, arguments)


def _defined(module: ModuleType, arguments: list[str]) -> tuple[absl_flags.FlagValues, list[str]]:
    """Returns the flags of a command, and the arguments to parse."""
    flags = absl_flags.FlagValues()
    arguments = _current_flags(_with_home(arguments), getattr(module, "RENAMED_FLAGS", {}))
    return flags, module.define_flags(flags, arguments) or arguments


def _parsed(name: str, flags: absl_flags.FlagValues, arguments: list[str]) -> list[str]:
    """Sets the flags; returns the other arguments."""
    try:
        return flags([f"convoy {name}", *arguments])[1:]
    except absl_flags.Error as error:
        problem = str(error).splitlines()[0].replace(" ?", "?")
        problem = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not an integer", problem)
        problem = re.sub(r"could not convert string to float: (.*)", r"\1 is not a number", problem)
        problem = re.sub(r"\('Non-boolean argument to boolean flag', (.*)\)", r"\1 is not true or false", problem)
        stop = "" if problem.endswith((".", "?")) else "."
        raise UsageError(f"{problem}{stop} Run `convoy {name} --help` to list the flags.") from None


def _with_home(arguments: list[str]) -> list[str]:
    """Returns the arguments with `~/` and `~NAME/` at the start of a flag's values replaced: shells leave these."""

    def expanded(argument: str) -> str:
        name, equals, value = argument.partition("=")
        if not equals or not name.startswith("-"):
            return argument
        parts = (os.path.expanduser(part) if re.match(r"~[\w.-]*/", part) else part for part in value.split(","))
        return f"{name}={','.join(parts)}"

    return [expanded(argument) for argument in arguments]


def _current_flags(arguments: list[str], renamed: Mapping[str, str]) -> list[str]:
    """Returns the arguments with earlier flag names replaced; logs a warning for each."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    current = list(arguments)
    for position, argument in enumerate(arguments[:end]):
        match = re.fullmatch(r"(--?)(no)?(\w+)(=.*)?", argument, re.DOTALL)
        if match and match[3] in renamed:
            dashes, no, name, value = match.groups("")
            _logger.warning("flag --%s is now called --%s: use the new name.", name, renamed[name])
            current[position] = f"{dashes}{no}{renamed[name]}{value}"
    return current


def require_flags(flags: absl_flags.FlagValues, *names: str) -> None:
    """Raises a UsageError that lists the required flags that are missing."""
    missing = [f"--{name}" for name in names if flags[name].value in (None, "", [])]
    if missing:
        raise UsageError(f"{' and '.join(missing)} must be given. Run with --help for an example.")


def listing(commands: Mapping[str, Command]) -> list[str]:
    """Returns lines with the name, summary and example of each command."""
    width = max(map(len, commands))
    lines = []
    for name, command in commands.items():
        lines += [f"  {name:<{width}}  {command.summary}", f"  {'':<{width}}    {command.example}"]
    return lines


def _overview() -> str:
    more = "Run `convoy COMMAND --help` to list the flags of a command."
    return "\n".join([_ABOUT, "", *listing(COMMANDS), "", more])


def help_of(flag: absl_flags.Flag) -> str:
    """Returns the help of a flag, without what absl adds to that of a repeatable one."""
    return str(flag.help).partition(";\n")[0]


def _usage(overview: str, flags: absl_flags.FlagValues) -> str:
    lines = [overview]
    own = {flag.name: flag for group in flags.flags_by_module_dict().values() for flag in group}
    for flag in sorted(own.values(), key=lambda flag: flag.name):
        default = "" if flag.default in (None, "", []) else f" (default: {flag.default_as_str})"
        lines += [f"  --{flag.name}", f"      {help_of(flag)}{default}"]
    return "\n".join(lines)
