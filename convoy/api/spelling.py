"""Errors in the words of Python: `devices=gpu:9` instead of `--devices=gpu:9`."""

import contextlib
import re
from collections.abc import Iterator

from convoy.core.errors import ConvoyError

_FLAG = re.compile(r"(?<![\w-])--(\w+)")
_PARAMETERS = {"format": "formats", "like": "a sample submission"}


@contextlib.contextmanager
def spelled_for_python() -> Iterator[None]:
    """Replaces flags by parameters in the message of an error of the block, but not in commands between backticks."""
    try:
        yield
    except ConvoyError as error:
        error.args = (in_python(str(error)),)
        raise


def in_python(message: str) -> str:
    """Returns a message with `--name` replaced by the parameter `name`."""
    parts = message.split("`")
    parts[::2] = [_FLAG.sub(lambda flag: _PARAMETERS.get(flag[1], flag[1]), part) for part in parts[::2]]
    return "`".join(parts)
