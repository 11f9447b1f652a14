"""Runs the examples of the docstrings of all public names, in the order of `convoy.__all__`, in the current folder.

python -m tests.api.examples_program

Prints, as JSON, the names of functions and classes without an example.
"""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator

import convoy


def public_objects() -> Iterator[tuple[str, object]]:
    """Yields the public names of `convoy`, and after each class those of its methods and properties."""
    for name in convoy.__all__:
        value = getattr(convoy, name)
        yield name, value
        if inspect.isclass(value) and value.__module__.startswith("convoy.api."):
            members = {key: member for kind in reversed(value.__mro__[:-1]) for key, member in vars(kind).items()}
            for key, member in members.items():
                if not key.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                    yield f"{name}.{key}", member


def example_of(value: object) -> str:
    """Returns the code after `Example:` in a docstring; empty without one."""
    _, _, text = (inspect.getdoc(value) or "").partition("\nExample:\n")
    return textwrap.dedent(text)


def run(code: str, names: dict[str, object], place: str) -> None:
    """Runs an example, and shows the value of each line that is an expression, as a notebook does of the last one."""
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Expr):
            value = eval(compile(ast.Expression(statement.value), place, "eval"), names)
            as_html = getattr(value, "_repr_html_", None)
            assert repr(value) and (as_html is None or as_html().startswith("<div>")), place
        else:
            exec(compile(ast.Module([statement], []), place, "exec"), names)


def main() -> None:
    """Runs all examples."""
    without = []
    for name, value in public_objects():
        assert inspect.getdoc(value), f"{name} has no docstring"
        code = example_of(value)
        if not code and not isinstance(value, property):
            without.append(name)
        run(code, {"convoy": convoy}, f"example of {name}")
    print(json.dumps(without))


if __name__ == "__main__":
    main()
