"""Writes the reference pages, docs/reference/*.md, from the code: `python -m docs.make_reference`."""

import functools
import importlib
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from absl import flags as absl_flags

import convoy
from convoy import cli
from convoy.api.training import CrossValidation, TrainingResult
from convoy.cli import launch
from convoy.core import exit_codes, run_contents
from convoy.input_pipeline.dataset import contents
from convoy.input_pipeline.dataset.image_facts import IMAGE_TYPES
from convoy.input_pipeline.dataset.index import INDEX_TYPES
from convoy.trainer import config as configs
from convoy.trainer.callbacks.callback import Callback
from convoy.trainer.callbacks.tensorboard import tags
from convoy.trainer.config import checks
from convoy.trainer.config.schema import meanings
from convoy.trainer.evaluation import label_predictions, predictions, results
from convoy.trainer.run.task import MULTI_LABEL, SINGLE_LABEL

COMMAND = "python -m docs.make_reference"
FOLDER = Path(__file__).parent / "reference"

# Flags that several commands share, in one table each: the title, and one of the flags.
_SHARED = {
    "Recipe and config": "config",
    "Runs": "strategy",
    "TFRecords of other tools": "image_key",
    "Trained weights": "checkpoint",
    "Limits of image files": "max_megapixels",
    "TensorFlow's log": "verbosity",
}
_TYPES = {"string": "text", "int": "integer", "float": "number", "bool": "switch", "config object": "recipe"}
_LISTS = {"comma separated list of strings": "list", "multi string": "text, repeatable"}
_CONFIG_TYPES = {bool: "true, false", int: "integer", float: "number", str: "text", tuple: "list of numbers"}
_LOCATED = "`FILE.py:NAME`, `package.module:NAME` or a registered name"
# The registry of each field that names a piece; models and `metrics` have a longer list.
_REGISTRIES = {
    "loss.name": "LOSSES",
    "optimizer.name": "OPTIMIZERS",
    "schedule.name": "SCHEDULES",
    "metrics": "METRICS",
}
_API = {
    "Datasets": ("sample", "convert", "Conversion", "verify", "Verification", "open_dataset", "Dataset", "Split"),
    "Training": ("load_config", "train", "TrainingResult", "CrossValidation"),
    "Runs": ("open_run", "Run", "list_runs", "Runs", "Evaluation", "Predictions", "Prediction", "HeatMaps", "Rows"),
    "Exports": ("Export", "open_export", "ExportedModel"),
    "Callbacks": ("Callback", "Training", "Console", "EarlyStopping"),
    "Extensions": (
        *("register_loss", "register_metric", "register_schedule", "register_model", "register_operation"),
        *("register_optimizer", "Optimizer"),
    ),
    "Errors": ("ConvoyError", "UsageError", "DataError"),
}
# Users construct these, without a look at their members; the other classes come from functions, or are derived from.
_CONSTRUCTED = ("Console", "EarlyStopping", "Optimizer")
_ARGUMENTS_OF_HOOKS = ("Log", "Evaluation", "Checkpoint", "Stop")


def pages() -> dict[str, str]:
    """Returns the content of every page by file name."""
    makers: dict[str, tuple[str, str, Callable[[], str]]] = {
        "cli.md": ("Command line", "the flag definitions in `convoy/cli` and `launch`", _cli),
        "config.md": ("Config", "`trainer/config/schema.py`, `checks.py` and the recipes in `configs`", _config),
        "api.md": ("Python API", "the docstrings of the names that `convoy` exports", _api),
        "run-directory.md": ("Run directory", "`convoy/core/run_contents.py`", _run_directory),
        "dataset-directory.md": ("Dataset directory", "`input_pipeline/dataset/contents.py`", _dataset_directory),
        "exit-codes.md": ("Exit codes", "`convoy/core/exit_codes.py`", _exit_codes),
        "tensorboard-tags.md": ("TensorBoard tags", "`trainer/callbacks/tensorboard/tags.py`", _tensorboard_tags),
    }
    return {
        name: _wrapped(f"# {title}\n\nThis page is generated from {source} by `{COMMAND}`.\n\n{make()}")
        for name, (title, source, make) in makers.items()
    }


def _wrapped(page: str) -> str:
    """Returns a page with paragraphs and list items of up to 120 columns, and one newline at the end."""
    blocks = page.strip().split("\n\n")
    wrap = functools.partial(textwrap.fill, width=120, break_long_words=False, break_on_hyphens=False)
    for number, block in enumerate(blocks):
        if block.startswith("- "):
            blocks[number] = "\n".join(wrap(item, subsequent_indent="  ") for item in block.splitlines())
        elif not block.startswith(("#", "|", "```", ":::")):
            blocks[number] = wrap(block)
    return "\n\n".join(blocks) + "\n"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    escaped = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in lines]
    return "".join(f"| {line} |\n" for line in escaped) + "\n"


def _shown(path: str) -> str:
    """Returns a path or tag with its placeholders in capitals, as code."""
    return "`" + re.sub(r"{(\w+)}", lambda match: match[1].upper(), path) + "`"


def attributes(documented: type) -> dict[str, str]:
    """Returns the attributes of a class by name, from its docstring."""
    section = re.search(r"Attributes:\n(.*?)(?:\n\n|\Z)", documented.__doc__ or "", re.DOTALL)
    found = re.findall(r"^ {6}(\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".").replace("None", "null") for name, text in found}


def _fields(rows: Mapping[str, str], heading: str = "Field") -> str:
    return _table((heading, "Content"), [(f"`{name}`", text) for name, text in rows.items()])


Flags = dict[str, absl_flags.Flag]


def _flags(command: str, *words: str) -> Flags:
    """Returns the flags of a command by name."""
    flags, _ = cli._defined(importlib.import_module(f"convoy.cli.{command}"), [*words])
    return {flag.name: flag for group in flags.flags_by_module_dict().values() for flag in group}


def _flag_table(flags: Iterable[absl_flags.Flag], required: Sequence[str] = ()) -> str:
    rows = []
    for flag in sorted(flags, key=lambda flag: flag.name):
        kind = flag.flag_type()
        values = flag.parser.enum_values if isinstance(flag.parser, absl_flags.EnumParser) else []
        kind = ", ".join(f"`{value}`" for value in values if value) or _TYPES.get(kind) or _LISTS[kind]
        empty = "required" if flag.name in required else ""
        default = empty if flag.default in (None, "", []) else f"`{str(flag.default_as_str).strip(chr(39))}`"
        text = re.sub(r"^<.*?>: ", "", cli.help_of(flag))
        rows.append((f"`--{flag.name}`", kind, default, re.sub(r"(?<!`)(--\w[\w.=*,:/-]*\w)", r"`\1`", text)))
    return _table(("Flag", "Type", "Default", "Meaning"), rows)


def _cli() -> str:
    own = {name: _flags(name) for name in cli.COMMANDS}
    users = defaultdict[tuple, set[str]](set)
    for command, flags in own.items():
        for flag in flags.values():
            users[flag.name, flag.default_as_str, flag.help].add(command)

    def users_of(flag: absl_flags.Flag) -> set[str]:
        return users[flag.name, flag.default_as_str, flag.help]

    text = (
        "`convoy COMMAND --help` prints the same. A flag is written `--name=value` or `--name value`, a switch "
        "`--name` or `--noname`, and a list with commas. In values, a leading `~/` is the home directory. "
        "`convoy --version` prints the version. Commands end with an [exit code](exit-codes.md).\n\n"
    )
    text += _table(
        ("Command", "Purpose"), [(f"[`{name}`](#convoy-{name})", each.summary) for name, each in cli.COMMANDS.items()]
    )
    shared: dict[str, Flags] = {}
    for title, representative in _SHARED.items():
        commands = max((users_of(flags[representative]) for flags in own.values() if representative in flags), key=len)
        flags = own[min(commands)]
        shared[title] = {name: flag for name, flag in flags.items() if users_of(flag) == commands}
    for command, flags in own.items():
        about = cli.COMMANDS[command]
        text += f"## convoy {command}\n\n{about.summary[0].upper()}{about.summary[1:]}.\n\n"
        text += f"```sh\n{about.example}\n```\n\n"
        groups = [title for title, group in shared.items() if group.items() <= _same(flags, group, users_of).items()]
        grouped = {name for title in groups for name in shared[title]}
        required = getattr(importlib.import_module(f"convoy.cli.{command}"), "REQUIRED", ())
        text += "Flags of all engines:\n\n" if command == "launch" else ""
        if remaining := [flag for name, flag in flags.items() if name not in grouped]:
            text += _flag_table(remaining, required)
        if groups:
            links = ", ".join(f"[{title}](#{_anchor(title)})" for title in groups)
            text += f"Flags of other groups: {links}.\n\n"
        if command == "launch":
            text += _engines(flags)
    text += "## Shared flags\n\n"
    for title, group in shared.items():
        commands = sorted(users_of(next(iter(group.values()))), key=list(cli.COMMANDS).index)
        text += (
            f"### {title}\n\nFlags of {', '.join(f'`{name}`' for name in commands)}.\n\n{_flag_table(group.values())}"
        )
    return text


def _same(flags: Flags, group: Flags, users_of: Callable[[absl_flags.Flag], set[str]]) -> Flags:
    """Returns the flags of a group that a command has in the same form, as those of the group."""
    return {name: one for name, one in group.items() if name in flags and users_of(flags[name]) == users_of(one)}


def _engines(common: Flags) -> str:
    text = ""
    for engine, about in launch._ENGINES.items():
        flags = _flags("launch", engine)
        required = launch._module(engine).REQUIRED
        own = [flag for name, flag in flags.items() if name not in common or flag.default != common[name].default]
        for flag in own:
            flag.help = re.sub(f"^(<.*?>: )?{engine}: ", "", flag.help)
        text += f"### convoy launch {engine}\n\n{about.summary[0].upper()}{about.summary[1:]}.\n\n"
        text += f"```sh\n{about.example}\n```\n\n"
        text += _flag_table(own, required) if own else "No flags of its own.\n\n"
    return text


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-")


def _registered(registry: str) -> list[str]:
    """Returns the built-in pieces of a registry, read from the sources: importing some would import TensorFlow."""
    sources = sorted((Path(convoy.__file__).parent / "trainer").rglob("*.py"))
    found = [re.findall(rf'^@{registry}\.register\("(\w+)"\)', path.read_text("utf-8"), re.M) for path in sources]
    return [name for names in found for name in names]


def _config() -> str:
    defaults, about = dict(configs.fields(configs.default_config())), meanings()
    text = (
        "A recipe sets fields, and `--config.FIELD=VALUE` overrides them, in every command with "
        "[`--config`](cli.md#recipe-and-config); in Python, `convoy.load_config(RECIPE, FIELD=VALUE)`. "
        "`convoy train --print_config` prints the complete config. See [Recipes and config](../guides/recipes.md), and "
        "[Augmentation](../guides/augmentation.md) for the operations of `augment.ops`.\n\n"
        "A duration is set in steps, epochs or images, by at most one of its four fields: "
        "`--config.eval_every_epochs=2` also overrides a recipe's `eval_every_steps`.\n\n"
        "The last column says what happens if a field is changed when a run resumes from a checkpoint. Before the "
        "first checkpoint, every field may change. See "
        "[Checkpoints and resume](../concepts/checkpoints-and-resume.md).\n\n"
        "- **fixed**: the run refuses to resume. Pass the same value, or start a new run in another `--workdir`.\n"
        "- **free**: takes effect from this start on. It changes what is logged, kept and read, not what is computed.\n"
        "- **extend**: the run may become longer, with `--extend`.\n"
        "- **first start**: the value that leaves the choice to Convoy keeps what the first start chose; another value "
        "must be equal to it. "
        "`--virtual_replicas` changes the number of virtual replicas.\n"
        "- **content**: fixed, but the file may have moved: its content is compared, not its path.\n\n"
    )
    sections = dict.fromkeys(name.rpartition(".")[0] for name in about)
    for section in sections:
        text += f"## {section or 'Run'}\n\n"
        rows = []
        for name, meaning in about.items():
            if name.rpartition(".")[0] == section:
                kind, default = _CONFIG_TYPES[type(defaults[name])], _value(defaults[name])
                rows.append((f"`{name}`", kind, default, meaning + _allowed(name), _on_resume(name)))
        text += _table(("Field", "Type", "Default", "Meaning", "On resume"), rows)
    return text + _recipes(defaults)


def _value(value: object) -> str:
    return "`" + (value if isinstance(value, str) and value else repr(value)) + "`"


def _allowed(name: str) -> str:
    """Returns the allowed values of a field as text to follow its meaning."""
    if name in checks.CHOICES:
        return f". One of {', '.join(f'`{value}`' for value in checks.CHOICES[name])}"
    if name == "model.name":
        built_in = [*checks.MODELS_WITHOUT_WEIGHTS[:-2], *checks.NAMED_WEIGHTS.values()]
        return f": {', '.join(f'`{value}`' for value in built_in)}, {_LOCATED}"
    if name in _REGISTRIES:
        return f": {', '.join(f'`{value}`' for value in _registered(_REGISTRIES[name]))}, {_LOCATED}"
    limits = str(checks.RANGES.get(name, "")).partition(" (")[0]
    return f". {limits[0].upper()}{limits[1:]}" if limits else ""


def _on_resume(name: str) -> str:
    if name.startswith(configs.OPERATIONAL_FIELDS):
        return "free"
    if name in ("epochs", "steps"):
        return "extend"
    if name in configs.AUTOMATIC:
        return "first start"
    return "content" if name in ("model.name", "model.weights", *_REGISTRIES) else "fixed"


def _recipes(defaults: Mapping[str, object]) -> str:
    changed = {}
    for recipe in configs.shipped_recipes():
        fields = dict(configs.fields(configs.load_recipe(recipe)))
        changed[recipe] = {name: value for name, value in fields.items() if value != defaults[name]}
    text = (
        "## Recipes\n\nWhat the shipped recipes change; an empty cell is the default. `--config=NAME` selects one, "
        f"`{configs.DEFAULT_RECIPE}` is used without it. Figures are in [Recipes](../results/recipes.md).\n\n"
    )
    about = [importlib.import_module(f"convoy.configs.{recipe}").__doc__ or "" for recipe in changed]
    text += _table(
        ("Recipe", "Purpose"),
        [(f"`{recipe}`", doc.splitlines()[0]) for recipe, doc in zip(changed, about, strict=True)],
    )
    long = ("augment.ops", "model.weights")
    names = [name for name in meanings() if any(name in fields for fields in changed.values()) and name not in long]
    rows = [
        (f"`{name}`", *(_value(fields[name]) if name in fields else "" for fields in changed.values()))
        for name in names
    ]
    text += _table(("Field", *(f"`{recipe}`" for recipe in changed)), rows)
    for name in long:
        rows = [(f"`{recipe}`", _value(fields[name])) for recipe, fields in changed.items() if name in fields]
        text += _table(("Recipe", f"`{name}`"), rows)
    return text


def _api() -> str:
    if sorted(convoy.__all__) != sorted(name for names in _API.values() for name in names):
        raise AssertionError("docs/make_reference.py: _API does not group the names of convoy.__all__")
    text = (
        "`import convoy` imports no TensorFlow: names are loaded when they are first used. Functions log through "
        '`logging.getLogger("convoy")`, print nothing, and raise a [`ConvoyError`](#convoy.ConvoyError) for expected '
        "failures. In signatures, `_Path` is `str | os.PathLike[str]`. The examples build on each other, from top to "
        "bottom. For an introduction see "
        "[Python API](../guides/python.md).\n\n"
    )
    for title, names in _API.items():
        text += f"## {title}\n\n"
        for name in names:
            options = "" if name in _CONSTRUCTED or name[0].islower() else "      merge_init_into_class: false\n"
            options += "      members: false\n" if name in _CONSTRUCTED or title == "Errors" else ""
            options += "      inherited_members: true\n" if name == "Run" else ""
            text += f"::: convoy.{name}\n" + ("    options:\n" + options if options else "") + "\n"
        if title == "Callbacks":
            text += "### Arguments of hooks\n\n"
            options = "    options:\n      heading_level: 4\n      merge_init_into_class: false\n"
            text += "".join(f"::: {Callback.__module__}.{name}\n{options}\n" for name in _ARGUMENTS_OF_HOOKS)
    return text


def _run_directory() -> str:
    text = (
        "`--workdir`, or `RUN`: all that a training run reads and writes. Only the chief writes, except where another "
        "writer is named. Files are replaced atomically: `NAME.tmp` is a write in progress. When a run resumes, lines "
        "and rows after the step of the checkpoint are dropped, so that every step is in the files once. See "
        "[Checkpoints and resume](../concepts/checkpoints-and-resume.md).\n\n"
    )
    files = run_contents.FILES.items()
    text += _table(("File", "Content", "Written by"), [(_shown(name), *each) for name, each in files])
    text += (
        "## Checkpoints\n\nA checkpoint is a NumPy `.npz` file: `numpy.load` opens it. It is complete or absent, and "
        "its checksums are verified when it is read. It contains no code.\n\n"
    )
    text += _table(("Member", "Content"), [(_shown(name), each) for name, each in run_contents.CHECKPOINT.items()])
    text += f"Fields of `metadata.json`:\n\n{_fields(run_contents.CHECKPOINT_METADATA)}"
    text += (
        "## metrics.jsonl\n\n`step`, `split` (`train` or `validation`), and values by [tag](tensorboard-tags.md); a "
        "value that is not finite is null. `convoy.open_run(RUN).metrics()` reads it.\n\n"
    )
    text += (
        "## events.jsonl\n\n`event`, `time` in seconds since 1970, and details. Callbacks may add other events. "
        "`attempt` is recorded under `convoy launch`. `convoy.open_run(RUN).events()` reads the file.\n\n"
    )
    events = run_contents.EVENTS.items()
    text += _table(
        ("Event", "When", "Details"),
        [
            (f"`{name}`", when, ", ".join(f"`{each}`" for each in details.split(", ")))
            for name, (when, details) in events
        ],
    )
    columns = ", ".join(f"`{name}`" for name in (*results.COLUMNS, *SINGLE_LABEL.metrics))
    of_labels = ", ".join(f"`{name}`" for name in MULTI_LABEL.metrics)
    text += (
        f"## results.csv\n\nColumns: {columns}, and the metrics of `config.metrics`. With several labels per image the "
        f"metrics are {of_labels}. `time` is local time, and metrics are as in [TensorBoard tags]"
        "(tensorboard-tags.md). With `--checkpoint=mean:3` there is a column `checkpoint`, such as "
        "`mean:3 (steps 80-100)`; `step` is the last of them.\n\n"
    )
    text += f"## result.json\n\n{_fields({k: v for k, v in attributes(TrainingResult).items() if k != 'workdir'})}"
    text += f"## learning_curve.json\n\n{_fields(run_contents.LEARNING_CURVE)}"
    columns = ", ".join(f"`{name}`" for name in predictions.COLUMNS)
    of_labels = ", ".join(f"`{name}`" for name in label_predictions.COLUMNS)
    text += (
        f"## Evaluations\n\n`predictions_SPLIT.csv` has the columns {columns}. With several labels per image they are "
        f"{of_labels}, and one per class with its probability. A text that a spreadsheet would run as a formula has a "
        "leading apostrophe. `evaluation_SPLIT.json`:\n\n"
    )
    text += _fields(attributes(predictions.Evaluation))
    text += (
        "## Cross-validation\n\nThe directory of `convoy train --folds=K` has K run directories, `fold-1` to `fold-K`. "
        "Of the other files it has those that describe a run, as in the fold that began last; the evaluations of all "
        "folds together, on the split `out_of_fold`; and events.jsonl with the events of all folds, with `fold` and "
        "with steps that are counted over all folds. The dataset.json of a fold has its number `fold` and the number "
        "of `folds`, that of the directory only the latter. Its result.json:\n\n"
    )
    text += _fields({k: v for k, v in attributes(CrossValidation).items() if k != "workdir"})
    return text + f"## launch.json\n\nNot written by `convoy launch kubernetes`.\n\n{_fields(run_contents.LAUNCH)}"


def _dataset_directory() -> str:
    text = (
        "`--data`: what `convoy convert` writes. A new dataset appears in one step, and a further split becomes part "
        "of it when manifest.json is replaced; until then the conversion works in `OUTPUT.partial`, or in "
        "`SPLIT.partial` in the dataset, and resumes from it after an interruption. Training writes nothing here. "
        "TFDS reads the same directory. See [Data](../guides/data.md).\n\n"
        "In directories of other tools, the index of a split is kept in `.convoy`, or in `~/.cache/convoy` if the "
        "directory is not writable.\n\n"
    )
    text += _table(("File", "Content"), [(_shown(name), each) for name, each in contents.FILES.items()])
    text += f"## manifest.json\n\n{_fields(contents.MANIFEST)}Fields of a split:\n\n{_fields(contents.SPLIT)}"
    records = [(f"`{name}`", *each) for name, each in contents.RECORD.items()]
    text += f"## Records\n\n{_table(('Feature', 'Type', 'Content'), records)}"
    for file, types, about in (("index", INDEX_TYPES, contents.INDEX), ("images", IMAGE_TYPES, contents.IMAGES)):
        rows = [(f"`{name}`", dtype.__name__, about[name]) for name, dtype in types.items()]
        text += (
            f"## {file}-SPLIT.npz\n\nNumPy arrays with one entry per record, in shard order.\n\n"
            f"{_table(('Array', 'Type', 'Content'), rows)}"
        )
    return text + f"## quarantine.jsonl\n\n{_fields(contents.QUARANTINE)}"


def _exit_codes() -> str:
    about, _, rest = (exit_codes.__doc__ or "").partition("\n\n")
    return (
        f"{about}\n\n{rest.strip()}\n\n"
        "Restarts are limited by `--max_restarts` of [`convoy launch`](cli.md#convoy-launch): consecutive restarts "
        "without a new checkpoint. See [Fault tolerance](../guides/fault-tolerance.md).\n"
    )


def _tensorboard_tags() -> str:
    text = (
        "`tensorboard --logdir RUN/tensorboard` shows these. A run directory has four of TensorBoard's runs: `train`, "
        "`validation`, `media` (pictures), and `.`, the folder itself. See [Monitoring](../guides/monitoring.md).\n\n"
        "## Scalars\n\nAlso the keys of [metrics.jsonl](run-directory.md#metricsjsonl), except for `best/top1`. They "
        "are on the Scalars, Time Series and Custom Scalars pages.\n\n"
    )
    for title, found in (("", tags.SCALARS), ("## Images, curves, histograms, texts and graphs\n\n", tags.OTHERS)):
        text += title + _table(("Tag", "Run", "Meaning"), [(_shown(tag), *each) for tag, each in found.items()])
    return text


def main() -> None:
    """Writes the pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
