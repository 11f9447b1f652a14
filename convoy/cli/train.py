"""`convoy train`: the training flags, also used by `convoy doctor`, and the config flags, also used by `augment`."""

import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags as absl_flags
from ml_collections import config_flags

from convoy.cli import require_flags
from convoy.cli.auto import START, config_from_flags, is_auto
from convoy.cli.foreign_records import define_record_flags, record_format
from convoy.core.cluster import find_cluster
from convoy.core.devices import STRATEGIES, Devices, check_strategy, parse_devices
from convoy.core.errors import UsageError
from convoy.core.flags import FlagDefiner
from convoy.core.processes import ending_on_interrupt
from convoy.core.run_layout import MOST_FOLDS
from convoy.core.user_code import code_of
from convoy.input_pipeline.tf_startup import define_verbosity_flag, set_verbosity, start_tensorflow
from convoy.trainer import config as configs
from convoy.trainer.callbacks.callback import Callback
from convoy.trainer.callbacks.time_limit import TimeLimit
from convoy.trainer.config import renamed

_NUMBER = r"\s*[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?\s*"
_NUMBERS = re.compile(rf"[(\[]?{_NUMBER}(,{_NUMBER})*,?\s*[)\]]?|\(\s*\)|\[\s*\]")
_ALSO_FLAGS = ("deterministic", "virtual_replicas")  # of config fields
_USES_TENSORFLOW = re.compile(r"^\s*(?:import|from) (?:tensorflow|keras)\b|\bregister_(?:loss|metric|model)\b", re.M)


def define_flags(flags: absl_flags.FlagValues, arguments: list[str]) -> list[str]:
    """Defines the flags; returns the arguments as `define_config_flag`."""
    define = FlagDefiner(flags)
    define.bool("print_config", False, "print the config, and with --data the plan derived from it, and exit")
    define.bool(
        "find_lr",
        False,
        "train up to 100 steps with a rising learning rate, suggest one, plot the losses to RUN/find_lr.png, and exit",
    )
    define.bool(
        "find_batch_size",
        False,
        "try batch sizes in separate processes, print the largest one that fits in device memory, and exit",
    )
    return define_run_flags(flags, arguments, startup_seconds=300.0, auto=True)


def define_config_flag(flags: absl_flags.FlagValues, arguments: list[str], *, auto: bool = False) -> list[str]:
    """Defines `--config` and a flag for each of its fields; returns the arguments with the path of the recipe first.

    `auto` is whether the command takes `--config=auto`.

    Raises:
      UsageError: unknown recipe or config field.
    """
    name, others = _take_config(arguments)
    auto = auto and name == configs.AUTO_RECIPE
    name = configs.DEFAULT_RECIPE if auto else name
    path = configs.recipe_path(name)
    _start_tensorflow_for(path, others)
    recipe = configs.load_recipe(name)
    others = _with_joined_values(recipe, others)
    given: dict[str, str] = {}
    for position, argument in enumerate(others):
        flag, equals, text = argument.partition("=")
        match = re.fullmatch(r"(-{0,2}(?:no)?config\.)(.*)", flag, re.DOTALL)
        if match:
            field, value = renamed.current_field(match[2], text if equals else None)
            given[field] = "true" if value is None else value
            others[position] = f"{match[1]}{field}{equals}{value or ''}"
    configs.check_field_names(recipe, list(given))
    _check_lists(recipe, given)
    configs.check_length(recipe, name, given)
    _check_for_bare_fields(recipe, others)
    # The config flag loads the recipe itself: what `load_recipe` changed must be repeated on the command line.
    values = dict(configs.fields(recipe))
    replaced = [f"--config.{field}=0" for field in configs.overridden_fields(recipe, given)]
    if "epochs" in given and "steps" not in given:
        replaced.append("--config.steps=0")
    replaced += [f"--config.{field}={values[field]}" for field in renamed.VALUES if field not in given and not auto]
    arguments = [f"--config={START if auto else path}", *replaced, *others]
    config_flags.DEFINE_config_file(
        "config",
        str(configs.recipe_path(configs.DEFAULT_RECIPE)),
        f"recipe: a file with get_config(), or one of {', '.join(configs.shipped_recipes())}; for `convoy train` also "
        "auto, which chooses one for the data and --max_hours. --config.FIELD=VALUE sets a field; --print_config lists "
        "all fields",
        flag_values=flags,
        sys_argv=["convoy train", *arguments],
    )
    flags["config"].default_as_str = repr(configs.DEFAULT_RECIPE)  # as users type it, not its path
    return arguments


def _with_joined_values(recipe: ml_collections.ConfigDict, arguments: list[str]) -> list[str]:
    """Returns the arguments with `--config.FIELD VALUE` as `--config.FIELD=VALUE`.

    Raises:
      UsageError: the value is missing, and the next flag would become the value.
    """
    known, rest, joined = dict(configs.fields(recipe)), iter(arguments), []
    for argument in rest:
        match = re.fullmatch(r"--?config\.([^=]*)", argument)
        field = match and renamed.FIELDS.get(match[1], match[1])
        if field in known and not isinstance(known[field], bool):
            value = next(rest, "--")
            if value.startswith("--"):
                raise UsageError(f"{argument} has no value: pass {argument}=VALUE.")
            argument = f"{argument}={value}"
        joined.append(argument)
    return joined


def _check_lists(recipe: ml_collections.ConfigDict, given: Mapping[str, str]) -> None:
    """Raises a UsageError for a list of numbers that is none: the flag's parser takes any Python literal."""
    known = dict(configs.fields(recipe))
    for field, text in given.items():
        if isinstance(known[field], tuple) and not _NUMBERS.fullmatch(text):
            raise UsageError(f"--config.{field}={text}: pass numbers, such as 0.5,0.75, or () for none.")


def _start_tensorflow_for(recipe: Path, arguments: list[str]) -> None:
    """Imports TensorFlow, without its messages, before a recipe does that has a loss or a model in it."""
    if recipe.suffix == ".py" and _USES_TENSORFLOW.search(recipe.read_text(encoding="utf-8", errors="replace")):
        for verbosity in (match for argument in arguments if (match := re.fullmatch(r"--?verbosity=(\d)", argument))):
            set_verbosity(int(verbosity[1]))
        start_tensorflow()


def define_run_flags(
    flags: absl_flags.FlagValues, arguments: list[str], *, startup_seconds: float, auto: bool = False
) -> list[str]:
    """Defines the flags of a run: config, data, devices and cluster; `startup_seconds`: default of `--startup_timeout`.

    Other arguments, returns and raises as `define_config_flag`.
    """
    define = FlagDefiner(flags)
    arguments = define_config_flag(flags, arguments, auto=auto)
    define.string(
        "data", None, "dataset directory from `convoy convert` or TFDS, or a folder of TFRecords; required to train"
    )
    define_record_flags(flags)
    define.string("workdir", None, "run directory; an interrupted run in it is resumed; required to train")
    define.string(
        "backup",
        "",
        "directory in an object store (s3://bucket/run) for a copy of --workdir, kept up to date in the background; an "
        "empty --workdir is restored from it",
    )
    define.bool(
        "extend",
        False,
        "continue the run in --workdir to a longer config.epochs or config.steps, by the schedule of the new length",
    )
    define.integer(
        "virtual_replicas",
        None,
        "continue the run in --workdir with this many virtual replicas, for devices that do not divide its present "
        "number; the weights are then not those of the run without this change. New runs: --config.virtual_replicas",
        lower_bound=1,
    )
    define.string("devices", "auto", "auto (all GPUs, else the CPU), cpu:N (N logical devices) or gpu:0,1")
    define.enum("strategy", "auto", STRATEGIES, "tf.distribute strategy")
    define.list("worker_hosts", [], "HOST:PORT of every worker, without TF_CONFIG and scheduler")
    define.integer("worker_index", None, "index of this process in --worker_hosts")
    define.string(
        "interface", "", "network interface or network (10.1.0.0/16) for TensorFlow's traffic, on hosts with several"
    )
    define.float("startup_timeout", startup_seconds, "seconds to wait for all workers", lower_bound=1.0)
    define.float(
        "heartbeat_timeout", 30.0, "seconds without a heartbeat after which a worker counts as lost", lower_bound=1.0
    )
    define.float(
        "step_timeout",
        600.0,
        "seconds for a step, an evaluation batch or a checkpoint after which the process counts as stuck",
        lower_bound=1.0,
    )
    define_verbosity_flag(flags)
    define.integer(
        "folds",
        None,
        "cross-validation: divide the splits train and validation into this many folds, and train a run without each "
        "in WORKDIR/fold-1, WORKDIR/fold-2, ...",
        lower_bound=2,
        upper_bound=MOST_FOLDS,
    )
    define.string(
        "cache_dir",
        "",
        "folder on a local disk for the images of config.cache=disk; default: `decoded` in the cache folder",
    )
    define.float("cache_gib", 0.0, "most GiB of images in --cache_dir; 0: half of its free space", lower_bound=0.0)
    define.bool("record_order", False, "write the images of each step to RUN/order")
    define.list("callbacks", [], "one or more of wandb, mlflow, FILE.py:NAME and package.module:NAME")
    define.float(
        "max_hours",
        None,
        "hours of this process after which the run is saved and ends; the same command resumes it",
        lower_bound=0.0,
    )
    define.string("profile_steps", "", "FIRST:LAST, steps to profile for TensorBoard")
    define.bool("deterministic", None, "bit-identical results on any number of devices; sets config.deterministic")
    return arguments


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Trains, runs a finder, or prints the config."""
    devices = parse_devices(flags.devices)
    profile_steps = _profile_steps(flags.profile_steps)
    time_limit = TimeLimit(flags.max_hours) if flags.max_hours is not None else None
    if is_auto(flags):
        config, recipe = config_from_flags(flags)
    else:
        config, recipe = flags.config, code_of(Path(config_flags.get_config_filename(flags["config"])))
    if flags.deterministic is not None:
        config.deterministic = flags.deterministic
    configs.check(config)
    for inspection in ("print_config", "find_lr", "find_batch_size"):
        if flags[inspection].value and flags.virtual_replicas is not None:
            raise UsageError(
                f"--virtual_replicas={flags.virtual_replicas}: is only for a run that resumes. Pass "
                f"--config.virtual_replicas={flags.virtual_replicas} with --{inspection}."
            )
    from convoy.input_pipeline.reading.pixel_store import chosen_space

    cache_space = chosen_space(config.cache, flags.cache_dir, flags.cache_gib)
    if flags.print_config:
        _print_config(config, flags)
        return
    if flags.find_lr or flags.find_batch_size:
        _find(config, flags, devices)
        return
    require_flags(flags, "data", "workdir")
    cluster = find_cluster(os.environ, hosts=flags.worker_hosts, index=flags.worker_index)
    check_strategy(flags.strategy, cluster)
    if cluster:  # Convoy names lost workers; TensorFlow's own log lines do not
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with ending_on_interrupt():
        start_tensorflow()
        from convoy.trainer.callbacks.console import Console
        from convoy.trainer.callbacks.named import chosen_callbacks
        from convoy.trainer.cluster.watchdog import Deadlines
        from convoy.trainer.cross_validation.training import train_folds
        from convoy.trainer.loop import train
        from convoy.trainer.sweep.trial import trial_callbacks

        def make_callbacks() -> list[Callback]:
            chosen = chosen_callbacks(
                flags.callbacks, record_order=flags.record_order, profile_steps=profile_steps, time_limit=time_limit
            )
            return [Console(), *chosen, *trial_callbacks(os.environ)]

        common: dict[str, Any] = {
            "data": flags.data,
            "workdir": flags.workdir,
            "devices": devices,
            "strategy_name": flags.strategy,
            "cluster": cluster,
            "deadlines": Deadlines(flags.startup_timeout, flags.heartbeat_timeout, flags.step_timeout),
            "interface": flags.interface,
            "recipe": recipe,
            "record_format": record_format(flags, flags.data),
            "extend": flags.extend,
            "virtual_replicas": flags.virtual_replicas,
            "backup": flags.backup,
            "cache_space": cache_space,
            "command": shlex.join(sys.argv),
            "owns_process": True,
        }
        if flags.folds:
            train_folds(config, folds=flags.folds, make_callbacks=make_callbacks, say=_say, **common)
        else:
            train(config, callbacks=make_callbacks(), **common)


def _find(config: ml_collections.ConfigDict, flags: absl_flags.FlagValues, devices: Devices) -> None:
    """Runs `--find_lr` or `--find_batch_size`."""
    finder = "find_lr" if flags.find_lr else "find_batch_size"
    if flags.find_lr and flags.find_batch_size:
        raise UsageError("--find_lr and --find_batch_size cannot run together: run --find_batch_size first.")
    cluster = find_cluster(os.environ, hosts=flags.worker_hosts, index=flags.worker_index)
    if cluster:
        raise UsageError(
            f"--{finder} runs in one process, not on the {cluster.num_workers} workers of {cluster.source}: run it on "
            f"one host, with the config.virtual_replicas of the cluster run. {cluster.how_to_train_alone}"
        )
    check_strategy(flags.strategy, None)
    if flags.find_batch_size:
        require_flags(flags, "data")
        from convoy.trainer.finders.batch_size import find_batch_size

        find_batch_size(
            config,
            data=flags.data,
            devices=flags.devices,
            strategy_name=flags.strategy,
            record_format=record_format(flags, flags.data),
            say=_say,
        )
        return
    require_flags(flags, "data", "workdir")
    start_tensorflow()
    from convoy.trainer.finders.learning_rate import find_learning_rate

    find_learning_rate(
        config,
        data=flags.data,
        workdir=flags.workdir,
        devices=devices,
        strategy_name=flags.strategy,
        record_format=record_format(flags, flags.data),
        say=_say,
    )


def _say(line: str) -> None:
    print(line, flush=True)


def _profile_steps(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if text and not (match and 1 <= int(match[1]) <= int(match[2])):
        raise UsageError(f"--profile_steps={text}: pass FIRST:LAST with 1 <= FIRST <= LAST, such as 20:30.")
    return (int(match[1]), int(match[2])) if match else None


def _check_for_bare_fields(recipe: ml_collections.ConfigDict, arguments: list[str]) -> None:
    """Raises a UsageError for `--batch_size=2` that suggests `--config.batch_size=2`."""
    names = sorted(dict(configs.fields(recipe)), key=lambda field: field.count("."), reverse=True)
    by_last_part = {field.split(".")[-1]: field for field in names}  # of equal ones the one outside sections
    for argument in arguments:
        name, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("--") and name in by_last_part and name not in _ALSO_FLAGS:
            raise UsageError(f"--{name} is a config field: pass --config.{by_last_part[name]}={value}.")


def _take_config(arguments: list[str]) -> tuple[str, list[str]]:
    """Returns the value of `--config` and the other arguments."""
    name, rest = configs.DEFAULT_RECIPE, iter(arguments)
    others: list[str] = []
    for argument in rest:
        if argument in ("--config", "-config"):
            name = next(rest, "")
        elif argument.startswith(("--config=", "-config=")):
            name = argument.split("=", 1)[1]
        else:
            others.append(argument)
    return name, others


def _print_config(config: ml_collections.ConfigDict, flags: absl_flags.FlagValues) -> None:
    for field, value in configs.fields(config):
        print(f"config.{field} = {value!r}")
    if not flags.data:
        print("\nPass --data=DATA to print batch sizes and durations in steps too.")
        return
    start_tensorflow()
    from convoy.input_pipeline.dataset.folds import make_folds
    from convoy.input_pipeline.dataset.open import open_dataset
    from convoy.trainer.cluster.strategy import make_strategy
    from convoy.trainer.session.runtime import resolve_precision_and_xla
    from convoy.trainer.session.weights import located_text

    dataset = open_dataset(flags.data, record_format(flags, flags.data))
    if flags.folds:
        folds = make_folds(dataset, flags.folds)
        folds.check()
        dataset = folds.without(1)
    num_images = dataset.split("train").num_images
    strategy = make_strategy(parse_devices(flags.devices), flags.strategy)
    plan = configs.resolve(config, num_images=num_images, replicas=strategy.num_replicas_in_sync)
    precision, use_xla = resolve_precision_and_xla(config, strategy)
    print()
    weights = {"weights": text} if (text := located_text(config)) else {}
    for name, value in {**plan.as_dict(), "precision": precision, "use_xla": use_xla, **weights}.items():
        print(f"{name} = {value}")
