"""The connection to a node's agent through an actor of Ray.

connection = RayConnection(node, actor, hello={...})
"""

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from convoy.launch.agents.connection import GOODBYE_SECONDS, Connection, Problem
from convoy.launch.ray.cluster import Node

_TICK_SECONDS = 0.1


class RayConnection(Connection):
    """A thread that calls the actor again and again: with orders, and for reports."""

    carrier = "Ray"
    hello_seconds = 180.0  # Ray starts a Python process for the actor first; if that fails, it says so

    def __init__(self, node: Node, actor: Any, hello: Mapping[str, Any]):
        """Starts the thread.

        Args:
          node: node of the actor.
          actor: handle of an `AgentActor`.
          hello: content of the first order.
        """
        super().__init__(node, hello)
        self._actor = actor
        self._orders: deque[Mapping[str, Any]] = deque([{"hello": hello}])
        self._reports: deque[dict[str, Any]] = deque()
        self._failure: Problem | None = None
        self._heard = time.monotonic()
        self._is_left = threading.Event()
        # A separate thread: a hanging file server may block the launcher, and agents must not take it for dead then.
        self._thread = threading.Thread(target=self._exchange, daemon=True)
        self._thread.start()

    def send(self, order: Mapping[str, Any]) -> None:
        """Sends an order."""
        self._orders.append(order)

    def leave(self) -> None:
        """Starts `close` without waiting."""
        self._is_left.set()

    def close(self, seconds: float = GOODBYE_SECONDS) -> None:
        """Ends the actor; its agent then stops its workers."""
        import ray

        self.leave()
        self._thread.join(seconds)
        ray.kill(self._actor)

    def _exchange(self) -> None:
        import ray

        try:
            while not self._is_left.is_set():
                orders = [self._orders.popleft() for _ in range(len(self._orders))]
                reports = self._actor.exchange.remote(orders)
                while not ray.wait([reports], timeout=_TICK_SECONDS)[0]:
                    if self._is_left.is_set():
                        return
                self._reports += ray.get(reports)
                self._heard = time.monotonic()
        except Exception as error:  # of Ray or of the actor; the connection ends with any of them
            self._failure = self._problem_of(error)

    def _has_ended(self) -> bool:
        return self._failure is not None

    def _receive(self) -> list[dict[str, Any]]:
        return [self._reports.popleft() for _ in range(len(self._reports))]

    def _silence(self) -> float:
        return time.monotonic() - self._heard

    def _problem_of_end(self) -> Problem:
        assert self._failure
        return self._failure

    def _problem_of(self, error: Exception) -> Problem:
        lines = str(getattr(error, "cause", None) or error).strip().splitlines() or [type(error).__name__]
        if missing := next((line.strip() for line in lines if "No module named" in line), ""):
            return Problem(
                f"the Python of Ray on host {self.host} cannot import Convoy ({missing}). Install this host's version "
                "there",
                is_permanent=True,
            )
        what = "stopped responding" if self.hello else "cannot start an agent"
        return Problem(f"host {self.host} {what} (Ray: {lines[0].rstrip('.')})")
