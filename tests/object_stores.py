"""Object stores on this machine, and a proxy between a client and a store that makes answers late, wrong or short.

with s3_server(tmp_path) as url, FaultyProxy(url, seed=0, failing=0.05) as proxy:
    with environment(s3_variables(proxy.url)):
        ...

The faults depend on the seed and on the number of the request only, so that a test meets the same ones each time.
"""

import base64
import contextlib
import http.client
import os
import random
import shutil
import socket
import sys
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from convoy.core.remote import RemotePath, upload
from convoy.launch.ports import reserved_ports
from tests.processes import started, wait_until

_FAULTS = ("500", "503", "429", "reset", "truncated", "short", "slow")
_AZURE_KEY = base64.b64encode(b"a key for tests").decode()
_HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Starts an empty S3 server in a process of its own; yields its URL. `folder` is for its output."""
    command = [sys.executable, "-m", "moto.server", "--host=127.0.0.1", "--port={port}"]
    with _server(command, folder / "s3.log") as url:
        yield url


@contextlib.contextmanager
def gcs_server(folder: Path) -> Iterator[str]:
    """As `s3_server`, of Google's protocol."""
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=127.0.0.1", "--port={port}"]
    with _server([*command, "--in-memory"], folder / "gcs.log") as url:
        yield url


@contextlib.contextmanager
def azure_server(folder: Path) -> Iterator[str]:
    """As `s3_server`, of Azure's protocol. Skips the test if the server is not installed."""
    program = shutil.which("azurite-blob", path=f"{sys.prefix}/node_modules/.bin{os.pathsep}{os.environ['PATH']}")
    if not program:
        pytest.skip("azurite is not installed")
    command = [program, "--blobHost=127.0.0.1", "--blobPort={port}", "--inMemoryPersistence", "--disableTelemetry"]
    # Its client asks for a newer version of the protocol than it has.
    with (
        environment({"AZURITE_ACCOUNTS": f"test:{_AZURE_KEY}"}),
        _server([*command, "--skipApiVersionCheck"], folder / "azure.log") as url,
    ):
        yield url


@contextlib.contextmanager
def _server(command: Sequence[str], output: Path) -> Iterator[str]:
    with reserved_ports(1) as (port,):
        pass
    with started([argument.format(port=port) for argument in command], output=output) as process:

        def answers() -> bool:
            assert process.poll() is None, output.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        wait_until(answers, f"the start of {command}")
        yield f"http://127.0.0.1:{port}"


def s3_variables(url: str) -> dict[str, str]:
    """Returns the environment of a client of an S3 server."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def gcs_variables(url: str) -> dict[str, str]:
    """Returns the environment of a client of a server of Google's protocol."""
    return {"STORAGE_EMULATOR_HOST": url, "GOOGLE_CLOUD_PROJECT": "test", "NO_GCE_CHECK": "true"}


def azure_variables(url: str) -> dict[str, str]:
    """Returns the environment of a client of a server of Azure's protocol."""
    account = f"AccountName=test;AccountKey={_AZURE_KEY};BlobEndpoint={url}/test"
    return {"AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;{account}"}


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of this process, and undoes it at the end, for file systems too."""
    import fsspec

    before = {name: os.environ.get(name) for name in variables}
    _forget_file_systems(fsspec)
    os.environ.update(variables)
    try:
        yield
    finally:
        _forget_file_systems(fsspec)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _forget_file_systems(fsspec: Any) -> None:
    for scheme in ("s3", "gs", "az"):
        with contextlib.suppress(ImportError):
            fsspec.get_filesystem_class(scheme).clear_instance_cache()


def make_bucket(url: str) -> None:
    """Creates the bucket of a URL such as `s3://bucket`."""
    import fsspec

    fsspec.filesystem(url.partition("://")[0]).mkdir(url)


def upload_folder(folder: Path, target: RemotePath) -> None:
    """Copies all files of a folder into a store."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        upload(path, target / path.relative_to(folder).as_posix())


class FaultyProxy:
    """Forwards requests to a server while its context is open, some of them with a fault.

    Attributes:
      url: address of the proxy.
      faults: number of faults so far, by kind: `500`, `503`, `429`, `reset` (the connection ends without an answer),
        `truncated` (it ends within the content), `short` (the answer is complete, and has less than was asked for),
        `slow`.
      requests: methods and paths of all requests so far.
      is_down: whether all requests are answered with 503.
    """

    def __init__(self, target: str, *, seed: int = 0, failing: float = 0.0, kinds: Sequence[str] = _FAULTS):
        """Args: target: URL of the server. seed: of the faults. failing: share of faulty requests. kinds: of faults."""
        self.faults: Counter[str] = Counter()
        self.requests: list[tuple[str, str]] = []
        self.is_down = False
        self._random, self._failing, self._kinds = random.Random(seed), failing, kinds
        self._lock = threading.Lock()
        self._target = urllib.parse.urlsplit(target).netloc
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # noqa: N802
                with contextlib.suppress(ConnectionError):
                    proxy._forward(self)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *client: Any) -> None:
                if not isinstance(sys.exc_info()[1], ConnectionError):  # of a client that was killed
                    super().handle_error(*client)

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FaultyProxy":
        """Starts to forward."""
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops; later connections are refused."""
        self._server.shutdown()
        self._server.server_close()

    def _forward(self, handler: BaseHTTPRequestHandler) -> None:
        fault = self._next_fault(handler)
        body = _body_of(handler)
        if fault == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            handler.close_connection = True
            handler.connection.close()
            return
        if fault.isdecimal():
            self._answer(handler, int(fault), {}, b"")
            return
        connection = http.client.HTTPConnection(self._target, timeout=60)
        with contextlib.closing(connection):
            # The signature covers the address that the client has used.
            headers = {name: value for name, value in handler.headers.items() if name.lower() not in _HOP_BY_HOP}
            connection.request(handler.command, handler.path, body, headers)
            response = connection.getresponse()
            content = response.read()
        headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP}
        is_part = response.status == 206 and len(content) > 1
        if fault == "short" and is_part:
            content = content[: len(content) // 2]
            headers = {name: value for name, value in headers.items() if not name.lower().startswith("x-amz-checksum")}
            headers["Content-Length"] = str(len(content))
        sent = content[: len(content) // 2] if fault == "truncated" and is_part else content
        headers.setdefault("Content-Length", str(len(content)))
        self._answer(handler, response.status, headers, sent, in_two=fault == "slow")
        if len(sent) < len(content):
            handler.close_connection = True

    def _next_fault(self, handler: BaseHTTPRequestHandler) -> str:
        with self._lock:
            self.requests.append((handler.command, urllib.parse.unquote(handler.path)))
            if self.is_down:
                return "503"
            is_faulty, kind = self._random.random() < self._failing, self._random.choice(self._kinds)
            if not is_faulty:
                return ""
            self.faults[kind] += 1
            return kind

    @staticmethod
    def _answer(
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: Mapping[str, str],
        content: bytes,
        *,
        in_two: bool = False,
    ) -> None:
        handler.send_response_only(status)
        for name, value in ({"Content-Length": str(len(content))} | dict(headers)).items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        handler.wfile.write(content[: len(content) // 2])
        handler.wfile.flush()
        if in_two:
            threading.Event().wait(0.2)  # within the time limits of all clients
        handler.wfile.write(content[len(content) // 2 :])
        handler.wfile.flush()


def _body_of(handler: BaseHTTPRequestHandler) -> bytes | None:
    if handler.headers.get("Transfer-Encoding", "").lower() == "chunked":
        parts = []
        while size := int(handler.rfile.readline().split(b";")[0], 16):
            parts.append(handler.rfile.read(size))
            handler.rfile.readline()
        handler.rfile.readline()
        return b"".join(parts)
    length = int(handler.headers.get("Content-Length", 0))
    return handler.rfile.read(length) if length else None
