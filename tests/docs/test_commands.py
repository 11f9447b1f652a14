"""Every `convoy` command line in the documentation has an existing command, and its flags and config fields.

Checked are the ```sh fences of README.md, CONTRIBUTING.md and docs. After a line `<!-- own field -->`, the next fence
may set config fields that a recipe or a user's piece adds.
"""

import functools
import importlib
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from absl import flags as absl_flags

from convoy import cli
from convoy.cli import launch
from convoy.trainer import config as configs

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
OWN_FIELD = "<!-- own field -->"

_PUNCTUATION = set("();<>|&")
_PLACEHOLDER = re.compile(r"[A-Z]{2}|[A-Z]$|\.\.\.|[$<{]")  # in a value that stands for others
_HELP = {"--help", "--helpfull", "-h", "--version"}


@functools.cache
def flags_of(command: str, word: str = "") -> dict[str, absl_flags.Flag]:
    flags, _ = cli._defined(importlib.import_module(f"convoy.cli.{command}"), [word] if word else [])
    return {name: flags[name] for name in flags}


@functools.cache
def config_fields() -> set[str]:
    return {name for name, _ in configs.fields(configs.default_config())}


def commands_in(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yields the line number and text of each command in the sh fences of a page, and whether it has own fields."""
    fence, own_field, before, joined, first = "", False, "", "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"\s*(```+|~~~+)\s*(\w*)", line):
            own_field = OWN_FIELD in before if not fence else own_field
            fence = (match[2] or "text") if not fence else ""
        elif fence == "sh":
            joined = f"{joined} {line.strip()}" if first else line.strip()
            first = first or number
            if joined.endswith("\\"):
                joined = joined[:-1]
            else:
                yield first, joined, own_field
                first = 0
        before = line if line.strip() else before


def faults_of(command: str, *, own_field: bool = False) -> Iterator[str]:
    """Yields what is wrong with a line of shell."""
    try:
        lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError as error:
        if "convoy " in command:
            yield f"not a shell command ({error})"
        return
    ends = [number for number, word in enumerate(words) if set(word) <= _PUNCTUATION]
    for start, end in zip([-1, *ends], [*ends, len(words)], strict=True):
        part = words[start + 1 : end]
        if part[-1:] == ["2"] and words[end : end + 1] in ([">"], [">&"], [">>"]):
            part.pop()
        if "convoy" in part and not {"cd", "pip", "git", "mkdir", "ls"} & set(part[:1]):
            yield from faults_of_arguments(part[part.index("convoy") + 1 :], own_field=own_field)


def faults_of_arguments(words: Sequence[str], *, own_field: bool) -> Iterator[str]:
    if not words or words[0] in _HELP or words[0].isupper():  # COMMAND
        return
    name, *arguments = words
    if name not in cli.COMMANDS:
        yield f"no command {name!r}"
        return
    has_rest = name in ("launch", "sweep") and "--" in arguments
    rest = arguments[arguments.index("--") + 1 :] if has_rest else []
    arguments = arguments[: arguments.index("--")] if has_rest else arguments
    if has_rest:
        yield from faults_of_arguments(rest or ["''"], own_field=own_field)
    engine = next((word for word in arguments if word in launch._ENGINES), "") if name == "launch" else ""
    if name == "launch" and not engine and not _HELP & {*arguments} and "ENGINE" not in arguments:
        yield "no engine"
        return
    flags, takes_value = flags_of(name, engine), ""
    for word in arguments:
        given, equals, value = word.partition("=")
        if takes_value and not word.startswith("--"):
            given, equals, value = takes_value, "=", word
        takes_value = ""
        if word in _HELP:
            continue
        if not given.startswith("--"):
            if not getattr(importlib.import_module(f"convoy.cli.{name}"), "TAKES_ARGUMENTS", False):
                yield f"unexpected argument {word!r}"
            continue
        if field := re.fullmatch(r"--(?:no)?config\.(.*)", given):
            if "config" not in flags:
                yield f"convoy {name} has no config"
            elif field[1] not in config_fields() and not own_field and not field[1].isupper():
                yield f"no config field {field[1]!r}"
            takes_value = "" if equals else given
            continue
        flag = flags.get(given[2:], flags.get(given.removeprefix("--no")))
        if flag is None:
            yield f"convoy {name} {engine}".rstrip() + f" has no flag {given}"
        elif equals and not _PLACEHOLDER.search(value) and given != "--config":
            try:
                flag.parser.parse(value)
            except (ValueError, TypeError) as error:
                yield f"{word}: {error}"
        elif not equals and not flag.boolean:
            takes_value = given


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=lambda page: page.stem)
def test_commands_of_page_are_valid(page):
    found = [
        f"{page.relative_to(REPOSITORY)}:{number}: {fault}"
        for number, command, own_field in commands_in(page.read_text("utf-8"))
        for fault in faults_of(command, own_field=own_field)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "command",
    [
        "convoy --version",
        "CUDA_VISIBLE_DEVICES=0 convoy train --data=data --workdir run --nodeterministic  # a comment",
        "convoy train --config=mine.py --config.batch_size=32 --config.optimizer.learning_rate 0.1 && convoy runs runs",
        "convoy launch ssh --hosts=hosts.txt --max_restarts=N -- train --data=data --workdir=run",
        "srun convoy doctor --data=data | tee log.txt",
        "pip install convoy-train; cd convoy",
    ],
)
def test_valid_command(command):
    assert not list(faults_of(command))


@pytest.mark.parametrize(
    "command",
    [
        "convoy trian --data=data",
        "convoy train --workdri=run",
        "convoy train --config.batch_sise=32",
        "convoy evaluate --config.batch_size=32",
        "convoy train --strategy=mirorred",
        "convoy train data",
        "convoy convert --images=photos && convoy train --batch_size=2",
        "convoy launch local --hosts=hosts.txt -- train --data=data",
        "convoy launch local --processes=2 -- train --data=data --workdri=run",
        "convoy launch --processes=2 -- train --data=data",
        "convoy sweep --space=space.py --trials=many --workdir=sweep -- train --data=data",
        "convoy train --data='data",
    ],
)
def test_fault_is_found(command):
    assert len(list(faults_of(command))) == 1


def test_faults_have_line_numbers_and_own_fields_are_marked():
    lines = [
        "```sh",
        "ls",
        "convoy train \\",
        "    --config.mine=1",
        "```",
        OWN_FIELD,
        "```sh",
        "convoy train --config.mine=1",
        "```",
        "```text",
        "convoy train --config.mine=1",
        "```",
    ]
    found = [(line, len(list(faults_of(text, own_field=own)))) for line, text, own in commands_in("\n".join(lines))]
    assert found == [(2, 0), (3, 1), (8, 0)]
