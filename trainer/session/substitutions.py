"""Collects the substituted records of all workers on the chief, and reports each once."""

import dataclasses
from collections.abc import Callable
from typing import Any

from convoy.input_pipeline.reading.substitutes import Substitution
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.records import read_json_lines

SUBSTITUTED = "substituted"  # the event


class Substitutions:
    """Substituted records over all workers and all starts of a run, collected on the chief."""

    def __init__(self, run: RunDirectory, worker_group: WorkerGroup, report: Callable[[dict[str, Any], str], None]):
        """Reads the substitutions of earlier starts from events.jsonl.

        Args:
          run: the run directory.
          worker_group: the workers.
          report: called on the chief for each new substitution, with its details and a sentence.
        """
        self._worker_group = worker_group
        self._report = report
        reported = read_json_lines(run.events) if worker_group.is_chief else []
        self._indices = {event["index"] for event in reported if event.get("event") == SUBSTITUTED and "index" in event}
        self._sent: set[int] = set()  # indices this worker has sent to the chief since it started

    def note(self, step: int, found: list[Substitution]) -> None:
        """Sends a worker's substitutions in the batch of a step to the chief, which reports those of all workers."""
        for substitution in found:
            if substitution.index not in self._sent:
                self._sent.add(substitution.index)
                self._worker_group.send_to_chief({"step": step, **dataclasses.asdict(substitution)})
        for record in self._worker_group.receive():
            if record["index"] not in self._indices:
                self._indices.add(record["index"])
                self._report(
                    record,
                    f"{record['shard']}: record {record['index']} at offset {record['offset']} {record['reason']}; "
                    f"record {record['substitute']} is used instead.",
                )

    @property
    def count(self) -> int:
        """Number of substituted records, on the chief."""
        return len(self._indices)
