"""The template engine of the report pages: everything is escaped, and a name cannot change the text around it.

page_template(Path(__file__).with_name("report.html.j2")).render(name=name)

A page may include `style.css`, and import `pic` from `thumbnail.html.j2`.
"""

import functools
import unicodedata
from pathlib import Path

import jinja2

from convoy.core.text import counted, duration_text, megabytes, percent, share

_NAME_LENGTH = 160
_BIDIRECTIONAL = frozenset(("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"))


@functools.cache  # compiling one takes longer than filling it in
def page_template(path: Path) -> jinja2.Template:
    """Returns an HTML template that may use the files of its own folder and of this one."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        shown=shown,
        share=lambda *value: share(*value).replace(" ", "\u00a0"),  # a line must not break before its percent sign
        megabytes=megabytes,
        duration=duration_text,
        number=lambda value: f"{value:,}",
    )
    environment.globals.update(percent=percent, counted=counted)
    return environment.get_template(path.name)


def shown(name: str, length: int = _NAME_LENGTH) -> str:
    """Returns a name with escape codes in place of characters that are invisible or change the text around them.

    Args:
      name: any text.
      length: characters; a longer name is cut.
    """
    text = "".join(_escape(c) if _is_disturbing(c) else c for c in name[: 2 * length])
    if len(text) > length or len(name) > 2 * length:
        return text[: length - 1] + "…"
    return text


def _is_disturbing(character: str) -> bool:
    return (
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(character) in _BIDIRECTIONAL
        or character in "\u200e\u200f\u061c"
    )


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code > 0xFF else f"\\x{code:02x}"
