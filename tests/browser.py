"""A real browser for tests: headless Chromium, driven over its DevTools protocol.

with Browser(folder) as browser:
    browser.open("http://localhost:6006/#scalars")
    browser.text()            # visible text, including shadow roots
    browser.screenshot(path)
    browser.problems          # script exceptions, console errors, dialogs
"""

import base64
import itertools
import json
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.processes import kill_session

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_SECONDS = 60.0

# `innerText` leaves out the shadow trees of web components.
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
    """Returns the JSON answer of a local server."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=_SECONDS) as answer:
        return json.loads(answer.read())


def missing_browser() -> str | None:
    """Returns why there is no browser; None if there is one."""
    if not any(map(shutil.which, NAMES)):
        return f"none of {', '.join(NAMES)} is installed"
    return None


class Browser:
    """One browser window. A context manager that kills the browser on exit."""

    def __init__(self, folder: Path, *, size: tuple[int, int] = (1500, 1000)):
        """Entering the context starts the browser.

        Args:
          folder: new folder for profile and log.
          size: size of the window in pixels.
        """
        self._folder = folder
        self._size = size
        self._numbers = itertools.count(1)
        self.problems: list[str] = []

    def __enter__(self) -> "Browser":
        """Starts the browser."""
        from websocket import create_connection  # only in the test extra

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
        """Kills the browser."""
        kill_session(self._process)

    def open(self, url: str) -> None:
        """Opens a page; its scripts may still run when this returns."""
        self._call("Page.navigate", url="about:blank")  # otherwise a change of only the fragment would not reload
        self._call("Page.navigate", url=url)

    def text(self) -> str:
        """Returns the text on the page, one line per text node."""
        return self.value(_ALL_TEXT)

    def value(self, script: str) -> Any:  # noqa: ANN401 (any JSON value)
        """Returns the value of a script; None while the page loads."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer.get("result", {}).get("value")

    def wait_for(self, *expected: str, seconds: float = _SECONDS) -> str:
        """Waits until the page contains all `expected` texts; returns its text."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.text() or ""
            missing = [text for text in expected if text not in found]
            if not missing:
                return found
            assert time.monotonic() < deadline, f"{missing} not found in:\n{found}"
            time.sleep(0.05)

    def wait_until(self, script: str, seconds: float = _SECONDS) -> None:
        """Waits until the value of a script is true."""
        deadline = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < deadline, f"still false: {script}"
            time.sleep(0.02)

    def emulate(self, width: int, height: int, *, dark: bool = False) -> None:
        """Sets the size of the window in pixels, and the color scheme that pages are asked for."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """Saves a screenshot of the window as PNG."""
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
            self.problems.append(parameters["entry"]["text"])  # such as a content-security-policy violation
        elif message.get("method") == "Page.javascriptDialogOpening":
            self.problems.append(f"a dialog opened: {parameters['message']}")
            answer = {"id": next(self._numbers), "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            self._socket.send(json.dumps(answer))
