"""Whether an output is a terminal on which lines can be redrawn."""

import os
from typing import IO


def can_redraw(output: IO[str] | None) -> bool:
    """Returns whether an output is a terminal that shows progress bars.

    A notebook runs `!convoy ...` in a pseudo-terminal, and shows every redrawn line as another one. Its kernel is told
    by the variables that it sets for such commands (`ipykernel.zmqshell`, `jupyter_client`).
    """
    if output is None or not output.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    has_kernels_pager = os.environ.get("GIT_PAGER") == "cat" and "CLICOLOR_FORCE" in os.environ
    return not has_kernels_pager and "JPY_PARENT_PID" not in os.environ
