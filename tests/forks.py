"""Starts `python -m MODULE` in forks of a process that has imported TensorFlow, which takes long.

This module is the program of that process too. It ends when its socket is closed. Where the start itself is tested, or
variables that TensorFlow reads while it is imported, use `processes.run` and `processes.started`.
"""

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.processes import REPOSITORY, kill_session, process_environment

_NETWORK = 0x40000000  # Linux: CLONE_NEWNET


@dataclass(frozen=True)
class Result:
    """Exit code and output of a process that has ended."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """Standard output, then standard error."""
        return self.stdout + self.stderr

    def report(self) -> Any:
        """Returns the last line of standard output, decoded from JSON; fails if the exit code is not 0."""
        assert self.returncode == 0, self.output
        return json.loads(self.stdout.splitlines()[-1])


class ForkedProcess:
    """A process in its own session, with the attributes and methods of `subprocess.Popen` that tests use.

    Args:
      command: module and arguments.
      status: file descriptor that yields a line with the process id, and one with the exit code at the end.
      stdin: pipe to its standard input.
      stdout: pipe from its standard output.
    """

    def __init__(self, command: list[str], status: int, stdin: IO[str] | None = None, stdout: IO[str] | None = None):
        self.args, self.stdin, self.stdout = command, stdin, stdout
        self.returncode: int | None = None
        self._status = os.fdopen(status, "rb", buffering=0)
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        """Returns the exit code, or None if the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end; returns the exit code, which is negative for a signal."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def send_request(requests: socket.socket, request: Mapping[str, Any], streams: list[int]) -> int:
    """Starts a module; returns the descriptor of a `ForkedProcess`.

    Args:
      requests: socket of the process with TensorFlow.
      request: `command`, `cwd`, `environment` and `network`, the file of its network namespace or "".
      streams: descriptors of standard input, output and error.
    """
    status, end = os.pipe()
    try:
        socket.send_fds(requests, [json.dumps(request).encode()], [*streams, end])
    finally:
        os.close(end)
    return status


class Forks:
    """Starts the process with TensorFlow when it is first needed, and ends it on `close`."""

    def __init__(self) -> None:
        self._requests: socket.socket | None = None
        self._server: subprocess.Popen | None = None

    @contextlib.contextmanager
    def started(
        self,
        *command: object,
        output: Path,
        errors: Path | None = None,
        cwd: Path = REPOSITORY,
        text: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Iterator[ForkedProcess]:
        """Starts a module with arguments and kills its session on exit.

        Args:
          command: module and arguments.
          output: file for standard output.
          errors: file for standard error, instead of `output`.
          cwd: working directory.
          text: standard input.
          environment: variables in addition to `process_environment`.
        """
        words = [str(word) for word in command]
        with contextlib.ExitStack() as stack:
            stdin = stack.enter_context(tempfile.TemporaryFile())
            stdin.write(text.encode())
            stdin.seek(0)
            stdout = stack.enter_context(open(output, "wb"))
            stderr = stack.enter_context(open(errors, "wb")) if errors else stdout
            streams = [stream.fileno() for stream in (stdin, stdout, stderr)]
            process = ForkedProcess(words, self._start(words, cwd, process_environment(**(environment or {})), streams))
        try:
            yield process
        finally:
            kill_session(process)

    def run(self, *command: object, timeout: float = 300, **options) -> Result:
        """Runs a module with arguments to the end and returns its output; options are those of `started`."""
        with tempfile.TemporaryDirectory() as folder:
            output, errors = Path(folder, "output"), Path(folder, "errors")
            with self.started(*command, output=output, errors=errors, **options) as process:
                code = process.wait(timeout)
            return Result(code, output.read_text(), errors.read_text())

    def popen(self, command: Sequence[str], *, stderr: IO[bytes], env: Mapping[str, str], **_: object) -> ForkedProcess:
        """Stands in for `subprocess.Popen` of a Python module with pipes in text mode.

        Args:
          command: `[sys.executable, "-m", MODULE, ...]`, or that after `nsenter --net=FILE --`.
          stderr: open file.
          env: environment.
        """
        network = command[1].removeprefix("--net=") if command[0] == "nsenter" else ""
        python, option, *module = command[3:] if network else command
        assert (python, option) == (sys.executable, "-m"), command
        (stdin, to_stdin), (from_stdout, stdout) = os.pipe(), os.pipe()
        try:
            status = self._start(module, REPOSITORY, env, [stdin, stdout, stderr.fileno()], network)
        finally:
            os.close(stdin)
            os.close(stdout)
        return ForkedProcess(module, status, os.fdopen(to_stdin, "w"), os.fdopen(from_stdout))

    def inheritable_socket(self) -> int:
        """Returns a file descriptor with which programs that inherit it call `send_request`."""
        return self._server_socket().fileno()

    def close(self) -> None:
        """Ends the process with TensorFlow."""
        if self._requests and self._server:
            self._requests.close()
            self._server.wait()

    def _start(
        self,
        command: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        streams: list[int],
        network: str = "",
    ) -> int:
        """Returns the descriptor of a `ForkedProcess`; `network` is the file of its network namespace."""
        request = {"command": command, "cwd": str(cwd), "environment": dict(environment), "network": network}
        return send_request(self._server_socket(), request, streams)

    def _server_socket(self) -> socket.socket:
        if self._requests is None:
            self._requests, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with other:
                self._server = subprocess.Popen(
                    [sys.executable, "-m", __name__, str(other.fileno())],
                    cwd=REPOSITORY,
                    env=process_environment(),
                    pass_fds=[other.fileno()],
                    start_new_session=True,
                )
        return self._requests


def _requested_command(requests: socket.socket) -> list[str]:
    """Forks for every request; returns in the new process, with the module and the arguments to run."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 4)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # of an earlier request
                pass
        if not message:
            sys.exit()
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    requests.close()
    *streams, status = descriptors
    if process := os.fork():
        for stream in streams:
            os.close(stream)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        os.write(status, f"{code}\n".encode())
        os._exit(0)
    os.setsid()
    os.write(status, f"{os.getpid()}\n".encode())
    os.close(status)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    request = json.loads(message)
    if request["network"]:
        with open(request["network"]) as namespace:
            assert ctypes.CDLL(None).setns(namespace.fileno(), _NETWORK) == 0
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # TMPDIR may differ
    return request["command"]


def _main() -> None:
    from convoy.input_pipeline.tf_startup import start_tensorflow

    requests = socket.socket(fileno=int(sys.argv[1]))
    start_tensorflow()
    for name in ("convoy.trainer.loop", "matplotlib.figure", "tensorboard.compat.proto.summary_pb2"):
        importlib.import_module(name)
    module, *sys.argv[1:] = _requested_command(requests)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
