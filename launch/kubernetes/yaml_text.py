"""Manifests as a text that people read and every YAML parser reads alike.

text = to_yaml([{"apiVersion": ...}], header="convoy launch kubernetes ...")
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

# What kubectl's parser takes for something else than a string, and PyYAML writes without quotes: `y`, `1e3`, `0o7`.
_MISTAKEN = re.compile(r"[-+.\d][-+.:\da-fox_]*|y|n|yes|no|on|off|true|false|null|~", re.IGNORECASE)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, _: Any) -> bool:
        return True  # the same labels are written out again, not referred to

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        return super().increase_indent(flow, False)


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if _MISTAKEN.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _string)


def to_yaml(manifests: Sequence[Mapping[str, Any]], *, header: str) -> str:
    """Returns the manifests as YAML documents behind a comment.

    Args:
      manifests: mappings, sequences, strings, numbers and booleans, in the order in which they are written.
      header: the comment's text; of several lines each becomes one of the comment.
    """
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    options = {"sort_keys": False, "explicit_start": True, "width": 100, "allow_unicode": True}
    return comment + yaml.dump_all(manifests, Dumper=_Dumper, **options)
