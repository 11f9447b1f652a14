"""Manifests as readable YAML that every parser reads the same way.

text = to_yaml([{"apiVersion": ...}], header="convoy launch kubernetes ...")
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

# Strings that kubectl's parser reads as another type although PyYAML leaves them unquoted: `y`, `1e3`, `0o7`.
_AMBIGUOUS = re.compile(r"[-+.\d][-+.:\da-fox_]*|y|n|yes|no|on|off|true|false|null|~", re.IGNORECASE)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, _: object) -> bool:
        return True  # repeat equal mappings instead of writing anchors

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        return super().increase_indent(flow, False)


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if _AMBIGUOUS.fullmatch(text) else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _string)


def to_yaml(manifests: Sequence[Mapping[str, Any]], *, header: str) -> str:
    """Returns the manifests as YAML documents after a comment.

    Args:
      manifests: nested mappings, sequences, strings, numbers and booleans, in the order of output.
      header: text of the comment; may have several lines.
    """
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    return comment + yaml.dump_all(
        manifests, Dumper=_Dumper, sort_keys=False, explicit_start=True, width=100, allow_unicode=True
    )
