"""Runs the Python blocks of a page one after the other in one process, as a notebook does.

Args: folder of the page. Input: one JSON line per block, with `file`, `line` and `code`. Output: one JSON line per
block, with the traceback or "".
"""

import json
import linecache
import os
import sys
import traceback


def main() -> None:
    """Runs all blocks. What they print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.chdir(sys.argv[1])
    sys.path[0] = sys.argv[1]
    names = {"__name__": "__main__"}
    for line in sys.stdin:
        cell = json.loads(line)
        source = "\n" * cell["line"] + cell["code"]  # so that tracebacks have the lines of the page
        linecache.cache[cell["file"]] = (len(source), None, source.splitlines(keepends=True), cell["file"])
        failure = ""
        try:
            exec(compile(source, cell["file"], "exec"), names)
        except BaseException:
            failure = traceback.format_exc()
        sys.stdout.flush()
        print(json.dumps(failure), file=replies)


if __name__ == "__main__":
    main()
