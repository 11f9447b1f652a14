"""A web server on this machine that serves the files of a folder, whole or cut short."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FileServer:
    """Serves the files of a folder while its context is open.

    Attributes:
      requests: paths of the requests so far.
      sent_bytes: how much of each file is sent, before the connection is closed; None for all.
      asked: set by the first request.
      may_end: the end of a file is sent once it is set, as it is from the start.
    """

    def __init__(self, folder: Path):
        """Args: folder: the folder."""
        self.requests: list[str] = []
        self.sent_bytes: int | None = None
        self.asked, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802
                server.requests.append(self.path)
                server.asked.set()
                file = folder / self.path.lstrip("/")
                if not file.is_file():
                    self.send_error(404)
                    return
                content = file.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                sent = content[: server.sent_bytes]
                try:
                    self.wfile.write(sent[: len(sent) // 2])
                    self.wfile.flush()
                    server.may_end.wait()
                    self.wfile.write(sent[len(sent) // 2 :])
                except ConnectionError:  # the client was killed
                    pass

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def url(self, name: str) -> str:
        """Returns the address of a file."""
        return f"http://127.0.0.1:{self._server.server_port}/{name}"

    def __enter__(self) -> "FileServer":
        """Starts to serve."""
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops; later connections are refused."""
        self.may_end.set()
        self._server.shutdown()
        self._server.server_close()
