"""Makes the `Example:` of docstrings code on the site: an extension of griffe, which reads them."""

import textwrap
from typing import Any

import griffe


class CodeExamples(griffe.Extension):
    """Puts the indented lines after `Example:` into a fence."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the docstring of an object."""
        if obj.docstring:
            before, heading, code = obj.docstring.value.partition("\nExample:\n")
            if heading:
                fenced = f"```python\n{textwrap.dedent(code).strip()}\n```"
                obj.docstring.value = f"{before}{heading}{textwrap.indent(fenced, '  ')}"
