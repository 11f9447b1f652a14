"""The actor on a node: passes orders of the launcher to an agent on this node, and the agent's reports back.

    reports = ray.get(actor.exchange.remote(orders))

When Ray ends the actor, the agent loses its connection and stops the workers. The agent is no child of the actor,
because Ray kills the children of an actor that it ends, and the workers could not save.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from convoy import __version__
from convoy.launch.agents.messages import Messages

_WAIT_SECONDS = 0.2  # how long a call waits for reports, and with that the longest delay of an order


class AgentActor:
    """A running agent on this node, made by the first order."""

    def __init__(self, folder: str, variables: Mapping[str, str]):
        """Starts nothing yet.

        Args:
          folder: working directory of the agent and the workers.
          variables: environment variables for the agent, in addition to those that Ray sets.
        """
        self._folder = folder
        self._variables = dict(variables)
        self._messages: Messages | None = None

    def exchange(self, orders: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Passes orders to the agent and returns its reports; waits a moment if there are none.

        Raises:
          RuntimeError: the agent has ended.
        """
        if not self._messages:
            if not os.path.isdir(self._folder):
                return [{"hello": {"version": __version__, "sees_run": True, "problem": self._no_folder()}}]
            self._messages = self._started()
        for order in orders:
            self._messages.send(order)
        self._messages.beat()
        if not (reports := self._messages.receive()):
            self._messages.wait(_WAIT_SECONDS)
            reports = self._messages.receive()
        if not reports and self._messages.are_over:
            raise RuntimeError("its agent has ended; the actor's log has the reason")
        return reports

    def _no_folder(self) -> str:
        return f"it has no folder {self._folder}, the current one. Run this command in a folder that all nodes have"

    def _started(self) -> Messages:
        agent = subprocess.Popen(
            [sys.executable, "-m", "convoy.launch.agents.agent", "--detach"],
            cwd=self._folder,
            env={**os.environ, **self._variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        agent.wait()  # it has forked
        assert agent.stdin and agent.stdout
        self._pipes = agent.stdin, agent.stdout  # kept open
        return Messages(agent.stdout.fileno(), agent.stdin.fileno())
