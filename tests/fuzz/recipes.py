"""Recipes and overrides: `convoy train --print_config` prints what they say, or refuses it in one line or two."""

import contextlib
import io
import math
import random
import re
from ast import literal_eval
from pathlib import Path
from typing import Any, NamedTuple

from convoy import cli
from convoy.core import exit_codes
from convoy.trainer import config as configs
from convoy.trainer.config import renamed
from tests.fuzz.runner import ANNOUNCED, FAULT, UNHARMED, Outcome, refused
from tests.fuzz.tables import mutated

_FIELDS = dict(configs.fields(configs.default_config()))
_LENGTHS = ("steps", "epochs")
_UNITS = ("", "_steps", "_epochs", "_images")
_TEXTS = (
    *"None nan inf -inf -1 0 -0 0x0 0e0 1 2 7 32 1e3 1_0 0x10 1e400 true False yes block windowed seed42 adam".split(),
    *"convnet cosine () (0.5,) 0.1,0.9 [1,2 {} flip %s {x} = a=b --seed=3 ' ~/x $HOME __import__('os')".split(),
    *("", " ", "9" * 40, "crop(scale=0.5..1) | flip", "a\nb", "\x1b[2J", "\u202eabc", "\udc80", "\u0662", "x" * 10**5),
    *("\x00", '"'),
)
_VALUES = (
    *"None True False -1 0 1 2 7 64 1.5 0.25 10**30 2**63 1e-9 float('nan') float('inf') '' 'block' 'windowed'".split(),
    *r"'seed42' 'adam' 'x'*10**5 'a\nb' '\x1b[2J' b'x' '\udc80' () (0.5,) (0.1,0.9) [0.5] {} object() print 1j".split(),
    *("...", "('a',)", "(None, 1)", "lambda: 0", "{'name': 'x'}"),
)
_ENDS = (
    *("return config",) * 60,
    *"return None|return config.to_dict()|return config.unlock()|return config.lock()|return config.model".split("|"),
    *r"raise ValueError('a\nb')|raise KeyError|raise SystemExit|raise SystemExit('enough')|exit(0)".split("|"),
    *r"raise UnicodeError('\x1b[2J')|raise ExceptionGroup|yield config|assert False|1 / 0|open('missing')".split("|"),
    *"return get_config()|import no_such_module|return type(config)()|config.new = 1; return config".split("|"),
    "return type(config)({'steps': 3, 'batch_size': 8})",
    "return type(config)(dict(config, z=1))",
    "config.unlock(); del config['steps']; return config",
    "config = type(config)(dict(config, steps='x')); return config",
)
_PIECES = (b"\x00", b"\xff", b"\n", b"\t", b"(", b"'", b":", b"0", b"\xef\xbb\xbf", b"#")
_EARLIER = {new: old for old, new in renamed.FIELDS.items()}
_SHIPPED = sorted(configs.shipped_recipes())


class Case(NamedTuple):
    """A recipe, as the text of a file or the name of a shipped one; fields it sets; and the flags."""

    recipe: bytes | str
    written: dict[str, str]
    flags: tuple[str, ...]
    overrides: dict[str, str | None]
    is_damaged: bool


class Subject:
    def __init__(self, folder: Path):
        self._path = folder / "mine.py"

    def make(self, rng: random.Random, number: int) -> Case:
        recipe: bytes | str = rng.choice(_SHIPPED)
        written: dict[str, str] = {}
        is_damaged = False
        if rng.random() < 0.7:
            for _ in range(rng.choice((0, 1, 1, 2, 3))):
                field = rng.choice(list(_FIELDS))
                written[field] = _expression(rng, field)
            if rng.random() < 0.1:
                written[_misspelt(rng, rng.choice(list(_FIELDS)))] = "1"
            recipe = _text(rng, written)
            if is_damaged := rng.random() < 0.2:
                recipe = mutated(rng, recipe, _PIECES)
        flags, overrides = [], {}
        for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
            field = rng.choice(list(_FIELDS))
            if rng.random() < 0.08:
                field = _misspelt(rng, field)
            text = _text_of(rng, field)
            if field in overrides and isinstance(_FIELDS.get(field), tuple):
                continue  # values of a list that is given twice are joined
            name = _EARLIER.get(field, field) if rng.random() < 0.5 else field
            flag, value = [f"--config.{name}={text}"], text
            match rng.randrange(16):
                case 0:
                    flag, value = [f"--config.{name}"], None
                case 1:
                    flag, value = [f"--noconfig.{name}"], "False"
                case 2 | 3:
                    flag = [f"--config.{name}", text]
            flags += flag
            overrides.pop(field, None)
            overrides[field] = value
        return Case(recipe, written, tuple(flags), overrides, is_damaged)

    def check(self, case: Case) -> Outcome:
        renamed.current.cache_clear()
        name = case.recipe
        if isinstance(name, bytes):
            self._path.write_bytes(name)
            name = str(self._path)
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = cli.main(["convoy", "train", "--print_config", f"--config={name}", *case.flags])
        if code:
            named = (name, "config.", "config has", "--config", *(flag.lstrip("-") for flag in case.flags))
            warnings = "".join(line for line in errors.getvalue().splitlines(True) if " warning: " in line)
            outcome = refused(errors.getvalue().removeprefix(warnings), *named, lines=2)
            return outcome if code == exit_codes.USAGE else Outcome(FAULT, f"exit code {code}: {errors.getvalue()}")
        printed = dict(re.findall(r"^config\.([\w.]+) = (.*)$", output.getvalue(), re.M))
        if fault := self._fault(case, printed):
            return Outcome(FAULT, f"{fault}: {errors.getvalue()}")
        return Outcome(ANNOUNCED if errors.getvalue() else UNHARMED)

    def _fault(self, case: Case, printed: dict[str, str]) -> str:
        """Returns which field is not printed as it is written, or ""."""
        expected: dict[str, Any] = dict(_FIELDS)
        if isinstance(case.recipe, str) or case.is_damaged:
            expected = dict(configs.fields(_run(case.recipe)))
        else:
            expected |= {field: eval(value) for field, value in case.written.items()}
        if extra := case.overrides.keys() - _FIELDS.keys() or printed.keys() ^ expected.keys():
            return f"unknown fields {extra} are accepted"
        for field, values in renamed.VALUES.items():
            if isinstance(expected[field], str):
                expected[field] = values.get(expected[field], expected[field])
        for field in _replaced(expected, case.overrides):
            expected[field] = 0
        for field, text in case.overrides.items():
            if not _is_text_of(renamed.VALUES.get(field, {}).get(text, text), _value(printed[field])):
                return f"--config.{field}={text!r} gives {printed[field]}"
            del expected[field]
        wrong = {field: value for field, value in expected.items() if not _is_same(value, _value(printed[field]))}
        return "".join(f"config.{field} = {value!r} gives {printed[field]}. " for field, value in wrong.items())


def _text(rng: random.Random, written: dict[str, str]) -> bytes:
    lines = [f"    config.{field} = {value}" for field, value in written.items()]
    lines.append(f"    {rng.choice(_ENDS)}")
    name = rng.choice(("get_config",) * 40 + ("get_configs", "config"))
    head = rng.choice(("from convoy.trainer.config import default_config",) * 40 + ("import convoy.trainer.configs",))
    body = "\n".join([f"def {name}():", "    config = default_config()", *lines, ""])
    return f"{head}\n\n\n{body}".encode("utf-8", "surrogatepass")


def _misspelt(rng: random.Random, field: str) -> str:
    place = rng.randrange(len(field))
    near = field[:place] + rng.choice(("", "x", ".", "_", field[place] * 2)) + field[place + 1 :]
    section, _, name = field.rpartition(".")
    return rng.choice((near, near, section, name.upper(), f"{field}.x", "", "\u00e9"))


def _expression(rng: random.Random, field: str) -> str:
    """Returns a value as Python code: usually of the field's type."""
    if rng.random() < 0.2:
        return rng.choice(_VALUES)
    match _FIELDS[field]:
        case bool():
            return rng.choice(("True", "False"))
        case int():
            return str(rng.choice((0, 1, 2, 8, 32, 100)))
        case float():
            return str(rng.choice((0.1, 0.5, 0.9, 1.0, 1)))
        case tuple():
            return rng.choice(("()", "(0.25, 0.5)"))
    return repr(_FIELDS[field])


def _text_of(rng: random.Random, field: str) -> str:
    """Returns a value as on the command line: usually of the field's type."""
    if rng.random() < 0.3 or field not in _FIELDS:
        return rng.choice(_TEXTS)
    return _expression(rng, field).strip("'")


def _run(recipe: bytes | str):
    if isinstance(recipe, str):
        return configs.load_recipe(recipe)
    names: dict[str, Any] = {}
    exec(compile(recipe, "mine.py", "exec"), names)
    return names["get_config"]()


def _replaced(expected: dict[str, Any], overrides: dict[str, str | None]) -> list[str]:
    """Returns the fields that other units on the command line replace, as docs/guides/recipes.md says."""
    found = []
    if "epochs" in overrides and "steps" not in overrides:
        found.append("steps")
    for field, text in overrides.items():
        base = re.sub("_(steps|epochs|images)$", "", field)
        family = [base + unit for unit in _UNITS]
        if field in family and set(family) <= _FIELDS.keys() and text and _number(text) != 0:
            found += [other for other in family if other not in overrides]
    return found


def _value(text: str) -> Any:
    """Returns a value from its `repr`."""
    try:
        return literal_eval(text)
    except ValueError:
        return literal_eval(re.sub(r"\b(nan|inf)\b", lambda found: {"nan": "'nan'", "inf": "1e999"}[found[0]], text))


def _is_same(written: object, printed: object) -> bool:
    if isinstance(written, list | tuple) and isinstance(printed, list | tuple):
        return len(written) == len(printed) and all(map(_is_same, written, printed))
    if isinstance(written, float) and math.isnan(written):
        return printed == "nan"
    if isinstance(printed, float) and isinstance(written, int):
        written = float(written)
    return written == printed and isinstance(written, bool) == isinstance(printed, bool)


def _is_text_of(text: str | None, printed: object) -> bool:
    """Returns whether a value is what was written on the command line."""
    if isinstance(printed, bool):
        return {None: True, "true": True, "1": True, "false": False, "0": False}.get(text and text.lower()) is printed
    if text is None:
        return False
    if isinstance(printed, int | float) or printed == "nan":
        return printed == "nan" if text == "nan" else _number(text) == printed
    if isinstance(printed, tuple):
        value = literal_eval(text)
        return _is_same(value if isinstance(value, tuple | list) else (value,), printed)
    return text == printed


def _number(text: str) -> float:
    return int(text, 0) if re.fullmatch(r"[-+]?(0[xX][0-9a-fA-F]+|[1-9][0-9_]*)", text) else float(text)
