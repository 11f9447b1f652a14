"""A real browser for tests: Chromium without a screen, driven over its DevTools protocol.

with Browser(folder) as browser:
    browser.open("http://localhost:6006/#scalars")
    browser.text()            # what a person reads there, shadow roots included
    browser.screenshot(path)
    browser.problems          # exceptions of scripts, errors on its console, dialogs that opened
"""

import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_SECONDS = 60.0

# Web components keep their text in trees of their own, which `innerText` of the page leaves out.
_ALL_TEXT = """
(() => {
  const parts = [];
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) { parts.push(node.textContent.trim()); return; }
    if (['SCRIPT', 'STYLE', 'TEMPLATE', 'DOM-MODULE'].includes(node.nodeName)) return;
    if (node.nodeType === Node.ELEMENT_NODE && getComputedStyle(node).display === 'none') return;
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
  };
  walk(document.body);
  return parts.filter((part) => part).join('\\n');
})()
"""


def get_json(url: str) -> Any:  # noqa: ANN401 (any JSON value)
    """Returns what a server of this machine answers."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=_SECONDS) as answer:
        return json.loads(answer.read())


def missing_browser() -> str | None:
    """Returns why there is no browser; None where there is one."""
    if not any(map(shutil.which, NAMES)):
        return f"none of {', '.join(NAMES)} is installed"
    return None


class Browser:
    """One window. A context manager: on leaving it the browser is gone."""

    def __init__(self, folder: Path, *, size: tuple[int, int] = (1500, 1000)):
        """Starts nothing yet.

        Args:
          folder: for its profile and its log, made anew.
          size: of the window, pixels.
        """
        self._folder = folder
        self._size = size
        self._numbers = itertools.count(1)
        self.problems: list[str] = []

    def __enter__(self) -> "Browser":
        """Starts the browser."""
        from websocket import create_connection  # of the test extras; other tests do without

        self._folder.mkdir(parents=True)
        log = self._folder / "log"
        command = [next(filter(None, map(shutil.which, NAMES))), "--headless", "--no-sandbox", "--disable-gpu"]
        command += [f"--user-data-dir={self._folder / 'profile'}", "--remote-debugging-port=0", "--hide-scrollbars"]
        command += [f"--window-size={self._size[0]},{self._size[1]}", "--remote-allow-origins=*", "about:blank"]
        with open(log, "wb") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        try:
            page = next(page for page in get_json(f"{self._address(log)}/json/list") if page["type"] == "page")
            self._socket = create_connection(page["webSocketDebuggerUrl"], timeout=_SECONDS, http_proxy_host=None)
            for domain in ("Page", "Runtime", "Log"):
                self._call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def open(self, url: str) -> None:
        """Opens a page; scripts may still be at work when this returns."""
        self._call("Page.navigate", url="about:blank")  # else a change behind the # would load nothing
        self._call("Page.navigate", url=url)

    def text(self) -> str:
        """Returns the text on the page, a line each piece."""
        return self.value(_ALL_TEXT)

    def value(self, script: str) -> Any:  # noqa: ANN401 (any JSON value)
        """Returns what a script comes to; None while the page is being loaded."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer.get("result", {}).get("value")

    def wait_for(self, *expected: str, seconds: float = _SECONDS) -> str:
        """Waits until each text stands on the page; returns all that does."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.text() or ""
            missing = [text for text in expected if text not in found]
            if not missing:
                return found
            assert time.monotonic() < deadline, f"{missing} does not appear; there is:\n{found}"
            time.sleep(0.05)

    def screenshot(self, path: Path) -> None:
        """Saves what is seen as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _address(self, log: Path) -> str:
        deadline = time.monotonic() + _SECONDS
        while not (match := re.search(r"DevTools listening on ws://([^/]+)/", log.read_text(errors="replace"))):
            assert time.monotonic() < deadline and self._process.poll() is None, log.read_text(errors="replace")
            time.sleep(0.02)
        return f"http://{match[1]}"

    def _call(self, method: str, **parameters: object) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                return message.get("result", {})
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(parameters["entry"]["text"])  # what a policy of the page has blocked, for one
        elif message.get("method") == "Page.javascriptDialogOpening":
            self.problems.append(f"a dialog opened: {parameters['message']}")
            answer = {"id": next(self._numbers), "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            self._socket.send(json.dumps(answer))
