"""Says of every record that had to be substituted, once: on the console, in events.jsonl, and how many in the end."""

import dataclasses
import json
from pathlib import Path

from convoy.input_pipeline.reading.substitutes import Substitution
from convoy.trainer.callbacks.console import TrainingConsole
from convoy.trainer.callbacks.run_logger import RunLogger
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.run.directory import RunDirectory

_EVENT = "substituted"


class Substitutions:
    """Of all workers and all starts of a run; the chief's are the ones that count."""

    def __init__(self, run: RunDirectory, worker_group: WorkerGroup, run_logger: RunLogger, console: TrainingConsole):
        """Knows of those that events.jsonl holds."""
        self._worker_group = worker_group
        self._run_logger = run_logger
        self._console = console
        self._indices = _written_before(run.events) if worker_group.is_chief else set()
        self._own: set[int] = set()  # those of this start that the chief was told of

    def note(self, step: int, found: list[Substitution]) -> None:
        """Notes what a worker found in its batch of update number `step`; the chief writes down what others did too."""
        for substitution in found:
            if substitution.index not in self._own:
                self._own.add(substitution.index)
                self._worker_group.tell({"step": step, **dataclasses.asdict(substitution)})
        for told in self._worker_group.told():
            if told["index"] not in self._indices:
                self._indices.add(told["index"])
                self._run_logger.event(_EVENT, **told)
                self._console.say(
                    f"{told['shard']}: record {told['index']} at offset {told['offset']} {told['reason']}; record "
                    f"{told['substitute']} stands in for it."
                )

    @property
    def count(self) -> int:
        """How many records, on the chief."""
        return len(self._indices)


def _written_before(events: Path) -> set[int]:
    indices = set()
    for line in events.read_bytes().splitlines() if events.exists() else []:
        try:
            event = json.loads(line)
            if event["event"] == _EVENT:
                indices.add(event["index"])
        except (ValueError, KeyError, TypeError):  # a crash cut it short
            continue
    return indices
