"""Checks that a run would start with this config, devices, dataset and newest checkpoint of RUN.

    check_plan(config, gathered, worker_group, workdir="run", resume=answer["resume"], num_images=50_000)

Pure functions of gathered data. Imports no TensorFlow.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from convoy.core.errors import UsageError
from convoy.core.text import counted
from convoy.trainer import config as configs
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.doctor.findings import DoctorFinding, failed, ok, skipped
from convoy.trainer.session.agreement import require_equal


def check_plan(
    config: ml_collections.ConfigDict,
    gathered: Mapping[int, dict[str, Any]],
    worker_group: WorkerGroup,
    *,
    workdir: str,
    resume: Mapping[str, Any] | None,
    num_images: int | None,
) -> list[DoctorFinding]:
    """Checks that all workers have the same config, and reports the run's plan.

    Args:
      config: validated config of the chief.
      gathered: data of each connected worker by rank: `config` as JSON data, `auto` with the resolved values of `auto`
        fields (None if unknown), and `count`, the number of devices (0 if unknown).
      worker_group: the workers.
      workdir: run directory.
      resume: `resume` from `TfProbe.start_up`.
      num_images: size of the training split; None if unknown.
    """
    findings = []
    if resume and resume["problem"]:
        findings.append(failed("resume", "cannot-resume", resume["problem"], of_all=True))
    elif resume and resume["step"] is not None:
        findings.append(ok("resume", "resumes", f"{workdir} resumes from step {resume['step']}", of_all=True))
        config = configs.with_recorded_choices(config, resume["choices"])
    elif resume:
        findings.append(ok("resume", "new-run", f"no checkpoint in {workdir}: new run", of_all=True))
    resumes = resume is not None and resume["step"] is not None
    return [*findings, _check_config(config, gathered, worker_group, num_images, resumes=resumes)]


def _check_config(
    config: ml_collections.ConfigDict,
    gathered: Mapping[int, dict[str, Any]],
    worker_group: WorkerGroup,
    num_images: int | None,
    *,
    resumes: bool,
) -> DoctorFinding:
    counts = [other["count"] for other in gathered.values()]
    try:
        if len(gathered) == worker_group.num_workers:
            _compare_configs(config, [gathered[rank] for rank in range(worker_group.num_workers)], worker_group)
        if len(gathered) < worker_group.num_workers or not all(counts):
            return skipped("config", "devices-unknown", "not all workers' devices are known", of_all=True)
        if len(set(counts)) > 1:
            return skipped("config", "devices-differ", "the workers' devices differ", of_all=True)
        num_images = num_images or config.batch_size
        plan = configs.resolve(config, num_images=num_images, replicas=sum(counts), resumes=resumes)
    except UsageError as error:
        return failed("config", "bad-config", str(error), of_all=True)
    text = (
        f"batch {plan.global_batch_size}, replicas {plan.replicas}, virtual replicas {plan.virtual_replicas}: "
        f"{counted(plan.replica_batch_size, 'image')} per device, {plan.virtual_batch_size} per virtual replica"
    )
    return ok("config", "config-fits", text, of_all=True)


def _compare_configs(
    config: ml_collections.ConfigDict, gathered: list[dict[str, Any]], worker_group: WorkerGroup
) -> None:
    """Raises the same UsageError as `train`."""
    require_equal(worker_group, gathered, "config", UsageError, "Start all workers with the same flags.")
    if all(other["auto"] for other in gathered):
        # A resumed run keeps its recorded choices.
        left = [field for field in ("precision", "xla") if config[field] == "auto"]
        came_to = [{"config": {field: other["auto"][field] for field in left}} for other in gathered]
        require_equal(worker_group, came_to, "config", UsageError, "Set it explicitly on all workers instead of auto.")
