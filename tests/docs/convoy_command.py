"""The command `convoy` of tested pages: runs in a fork of the process with TensorFlow, as in `tests.forks`.

Environment: PAGE_FORKS, the inherited socket for requests; PAGE_FLAGS, JSON of flags that are added by command;
PAGE_PROCESSES, a file for the process ids.
"""

import contextlib
import json
import os
import signal
import socket
import sys

from tests.forks import ForkedProcess, send_request

_FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def with_added_flags(arguments: list[str], added: dict[str, list[str]]) -> list[str]:
    """Returns the arguments with the flags of the command, which may be that of a launcher: `launch ... -- train`."""
    launched = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    command = (launched or arguments)[:1]
    return [*arguments, *(flag for name in command for flag in added.get(name, ()))]


def main() -> None:
    """Runs the command; ends as it does, by the same signal too."""
    arguments = with_added_flags(sys.argv[1:], json.loads(os.environ["PAGE_FLAGS"]))
    try:
        requests = socket.socket(fileno=int(os.environ["PAGE_FORKS"]))
    except OSError:  # started by a program that closes descriptors
        os.execv(sys.executable, [sys.executable, "-m", "convoy", *arguments])
    request = {"command": ["convoy", *arguments], "cwd": os.getcwd(), "environment": dict(os.environ), "network": ""}
    process = ForkedProcess(request["command"], send_request(requests, request, [0, 1, 2]))

    def forward(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    with open(os.environ["PAGE_PROCESSES"], "a", encoding="utf-8") as file:
        file.write(f"{process.pid}\n")
    code = process.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
