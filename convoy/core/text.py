"""Formats numbers: percentages, sizes, counts, durations, bars; and hides secrets in text."""

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Passwords in URLs, and values whose name says that they are secret: in the query of a URL, or of a variable.
_SECRETS = re.compile(
    r"""(?P<before>://[^/\s:@'"]*:)[^\s@'"]+(?=@)"""
    r"""|(?P<name>[?&][\w.-]*(?i:token|secret|signature|password|credential|key|sig)=)[^&\s'"]+"""
    r"""|(?P<variable>\b[A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY)[A-Z0-9_]*=)[^\s'"]+"""
)


@dataclass(frozen=True)
class Bar:
    """One bar of a bar chart; `length` is in percent of the longest bar."""

    label: str
    count: int
    length: float


def bars(labels: Iterable[str], counts: Sequence[int]) -> list[Bar]:
    """Returns one bar per label."""
    most = max([1, *counts])
    return [
        Bar(label, int(count), round(100 * int(count) / most, 1)) for label, count in zip(labels, counts, strict=True)
    ]


def percent(part: int, whole: int) -> str:
    """Returns `part` of `whole` as a percentage: `12 %`, `0.4 %`, `<0.1 %`."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.1:
        return "<0.1 %"
    return f"{share:.1f} %" if 0 < share < 10 or 99 < share < 100 else f"{share:.0f} %"


def share(value: float | None, digits: int = 1) -> str:
    """Returns a fraction (0 to 1) as a percentage: `71.4 %`; `-` for None and NaN."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.{digits}f} %"


def megabytes(size: float) -> str:
    """Returns a number of bytes as text: `3.4 MB`, or `12.5 GB` from 10 GB on."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e10 else f"{size / 1e6:,.1f} MB"


def counted(number: int, thing: str, plural: str = "") -> str:
    """Returns a number and its noun: `1 image`, `1,200 images`."""
    return f"{number:,} {thing if number == 1 else plural or thing + 's'}"


def is_count(text: str) -> bool:
    """Returns whether text is an integer from 0 on, in ASCII digits. `isdigit` is true of "²" too."""
    return bool(re.fullmatch("[0-9]{1,18}", text))


def weights_text(step: int, checkpoint: str) -> str:
    """Returns which weights were used: `step 1,200`, or `checkpoint` if it names several."""
    return checkpoint or f"step {step:,}"


def models_text(weights: Sequence[tuple[int, str]]) -> str:
    """Returns which weights of several models were used, from (step, checkpoint) of each.

    Such as `2 models (step 1,200, step 900)`.
    """
    return f"{len(weights)} models ({', '.join(itertools.starmap(weights_text, weights))})"


def joined(items: Sequence[str], conjunction: str) -> str:
    """Returns one item or more as a list in a sentence: `a`, `a or b`, `a, b or c`."""
    *others, last = items
    return f"{', '.join(others)} {conjunction} {last}" if others else last


def duration_text(seconds: float) -> str:
    """Returns seconds as `m:ss` or `h:mm:ss`."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def one_line(text: str) -> str:
    """Returns text, such as that of a file, with line breaks and control characters as `\\n` and `\\x1b`."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def without_secrets(text: str) -> str:
    """Returns text with passwords and keys replaced by `***`: in URLs, and in assignments such as `API_KEY=...`."""
    return _SECRETS.sub(lambda found: f"{found['before'] or found['name'] or found['variable']}***", text)
