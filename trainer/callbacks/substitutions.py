"""Reports every substituted record once: on the console, in events.jsonl, and as a count at the end of the run."""

import dataclasses

from convoy.input_pipeline.reading.substitutes import Substitution
from convoy.trainer.callbacks.console import TrainingConsole
from convoy.trainer.callbacks.run_logger import RunLogger
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.records import read_json_lines

_EVENT = "substituted"


class Substitutions:
    """Substituted records over all workers and all starts of a run, collected on the chief."""

    def __init__(self, run: RunDirectory, worker_group: WorkerGroup, run_logger: RunLogger, console: TrainingConsole):
        """Reads the substitutions of earlier starts from events.jsonl."""
        self._worker_group = worker_group
        self._run_logger = run_logger
        self._console = console
        reported = read_json_lines(run.events) if worker_group.is_chief else []
        self._indices = {event["index"] for event in reported if event.get("event") == _EVENT and "index" in event}
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
                self._run_logger.event(_EVENT, **record)
                self._console.say(
                    f"{record['shard']}: record {record['index']} at offset {record['offset']} {record['reason']}; "
                    f"record {record['substitute']} is used instead."
                )

    @property
    def count(self) -> int:
        """Number of substituted records, on the chief."""
        return len(self._indices)
