"""A TensorBoard server for tests, and its HTTP API."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.browser import get_json

_SECONDS = 60.0
_WITHOUT_TENSORFLOW = "import sys; sys.modules['tensorflow'] = None; "


@dataclass(frozen=True)
class Server:
    """A TensorBoard that has loaded its folder; `url` ends with a slash."""

    url: str

    def ask(self, path: str, **parameters: object) -> Any:  # noqa: ANN401 (any JSON value)
        """Returns the response of a plugin."""
        return get_json(f"{self.url}data/plugin/{path}?{urllib.parse.urlencode(parameters, doseq=True)}")

    def tags(self, plugin: str, path: str = "tags") -> dict[str, set[str]]:
        """Returns a plugin's tags by run."""
        return {run: set(tags) for run, tags in self.ask(f"{plugin}/{path}").items()}

    def scalars(self, run: str, tag: str) -> list[tuple[int, float]]:
        """Returns a curve: steps and values."""
        return [(step, value) for _, step, value in self.ask("scalars/scalars", run=run, tag=tag)]

    def hparams(self, path: str, **body: object) -> Any:  # noqa: ANN401 (any JSON value)
        """Returns the response of the HParams plugin."""
        request = urllib.request.Request(
            f"{self.url}data/plugin/hparams/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=_SECONDS) as answer:
            return json.loads(answer.read())


@contextlib.contextmanager
def tensorboard(logdir: Path, log: Path, *arguments: str, fast: bool) -> Iterator[Server]:
    """Starts TensorBoard on a folder and waits until it has loaded it; kills it on leaving.

    Args:
      logdir: the folder.
      log: file for its output.
      *arguments: further flags.
      fast: load with its data server and without TensorFlow; else in Python, with TensorFlow.
    """
    command = [sys.executable, "-c", f"{_WITHOUT_TENSORFLOW * fast}from tensorboard.main import run_main; run_main()"]
    command += [f"--logdir={logdir}", "--port=0", "--host=127.0.0.1", f"--load_fast={str(fast).lower()}"]
    with open(log, "wb") as file:
        process = subprocess.Popen([*command, *arguments], stdout=file, stderr=file, start_new_session=True)
    try:
        deadline = time.monotonic() + _SECONDS
        while not (match := re.search(r"(http://\S+:\d+/)", log.read_text(errors="replace"))):
            assert time.monotonic() < deadline and process.poll() is None, log.read_text(errors="replace")
            time.sleep(0.02)
        server = Server(match[1])
        while not any(server.ask("scalars/tags").values()):
            assert time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.05)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
