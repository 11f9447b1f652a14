"""Whether the workers' configs are one, and what a run of it would be."""

import pytest

from convoy.core.cluster import Cluster
from convoy.core.finding import Severity
from convoy.trainer import config as configs
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.doctor.plan import check_plan

PEERS = WorkerGroup(Cluster(("a:2222", "b:2222"), 0, "flags", ()))
A100, V100 = {"precision": "bfloat16", "xla": True}, {"precision": "float32", "xla": True}


def worker(count=1, auto=A100, **changes):
    config = configs.default_config()
    config.update(changes)
    return {"config": configs.to_json(config), "count": count, "auto": auto}


def findings(*workers, resume=None, **changes):
    config = configs.default_config()
    config.update(changes)
    gathered = dict(enumerate(workers))
    return check_plan(config, gathered, PEERS, workdir="run", resume=resume, num_images=10_000)


def test_same_config_reports_plan():
    (finding,) = findings(worker(), worker())
    assert (finding.severity, "replicas 2, virtual replicas 2" in finding.text) == (Severity.OK, True)


def test_different_config_names_field_and_worker():
    (finding,) = findings(worker(), worker(batch_size=96))
    assert finding.severity == Severity.ERROR
    assert "config.batch_size" in finding.text
    assert "96 on worker 1 (b:2222)" in finding.text


def test_resolved_auto_must_be_equal():
    (finding,) = findings(worker(), worker(auto=V100))
    assert finding.severity == Severity.ERROR
    assert "config.precision: 'bfloat16' on worker 0 (a:2222), 'float32' on worker 1 (b:2222)" in finding.text
    fixed = {"precision": "float32"}
    assert findings(worker(**fixed), worker(auto=V100, **fixed), **fixed)[0].severity == Severity.OK
    assert findings(worker(), worker(auto=None))[0].severity == Severity.OK


def test_resumed_run_keeps_precision():
    resume = {"step": 40, "problem": "", "choices": {"virtual_replicas": 4, "precision": "float32"}}
    found = findings(worker(), worker(auto=V100), resume=resume)
    assert [finding.severity for finding in found] == [Severity.OK, Severity.OK]
    assert "virtual replicas 4" in found[1].text


def test_devices_that_do_not_divide_are_refused_with_the_flag_of_a_run_that_has_begun():
    resume = {"step": 40, "problem": "", "choices": {"virtual_replicas": 3, "precision": "float32"}}
    flag = "--virtual_replicas=2"
    assert flag in findings(worker(), worker(), resume=resume)[1].text
    assert flag not in findings(worker(virtual_replicas=3), worker(virtual_replicas=3), virtual_replicas=3)[0].text


@pytest.mark.parametrize(
    ("counts", "code"),
    [((0, 2), "devices-unknown"), ((0, 0), "devices-unknown"), ((2,), "devices-unknown"), ((1, 2), "devices-differ")],
)
def test_unknown_or_different_devices_skip_the_check(counts, code):
    (finding,) = findings(*(worker(count) for count in counts))
    assert (finding.severity, finding.code) == (Severity.SKIPPED, code)
