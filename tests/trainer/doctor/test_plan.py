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


def test_one_config_for_all_says_what_a_run_would_be():
    (finding,) = findings(worker(), worker())
    assert (finding.severity, "replicas 2, virtual replicas 2" in finding.text) == (Severity.OK, True)


def test_a_config_that_differs_names_field_and_worker():
    (finding,) = findings(worker(), worker(batch_size=96))
    assert finding.severity == Severity.ERROR
    assert "config.batch_size" in finding.text
    assert "96 on worker 1 (b:2222). Start all workers with the same flags." in finding.text


def test_what_auto_comes_to_may_not_differ():
    (finding,) = findings(worker(), worker(auto=V100))
    assert finding.severity == Severity.ERROR
    assert "config.precision: 'bfloat16' on worker 0 (a:2222), 'float32' on worker 1 (b:2222)" in finding.text
    fixed = {"precision": "float32"}
    assert findings(worker(**fixed), worker(auto=V100, **fixed), **fixed)[0].severity == Severity.OK
    assert findings(worker(), worker(auto=None))[0].severity == Severity.OK


def test_a_run_that_goes_on_keeps_the_precision_it_has():
    resume = {"step": 40, "problem": "", "choices": {"virtual_replicas": 4, "precision": "float32"}}
    found = findings(worker(), worker(auto=V100), resume=resume)
    assert [finding.severity for finding in found] == [Severity.OK, Severity.OK]
    assert "virtual replicas 4" in found[1].text


@pytest.mark.parametrize(
    ("counts", "why"),
    [((0, 2), "not all"), ((0, 0), "not all"), ((2,), "not all"), ((1, 2), "the workers' devices differ")],
)
def test_devices_that_are_not_known_or_do_not_fit_leave_it_open(counts, why):
    (finding,) = findings(*(worker(count) for count in counts))
    assert (finding.severity, finding.text.startswith(why)) == (Severity.SKIPPED, True)
