import json

import pytest

from convoy.core.cluster import HOSTS_VARIABLE, find_cluster
from convoy.core.errors import UsageError

HOSTS = ["a:2222", "b:2223", "c:2224"]


def tf_config(tasks, job="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": tasks, "task": {"type": job, "index": index}})}


def slurm(rank=0, *, nodes="n[1-3]", tasks_per_node="2(x2),1", tasks=5, job=7):
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_TASKS_PER_NODE": tasks_per_node,
        "SLURM_PROCID": str(rank),
    }


def expand(nodes):
    return {"n[1-3]": ["n1", "n2", "n3"], "n1": ["n1"]}[nodes]


def kubernetes(index=1, workers=3, **variables):
    return {
        "JOB_COMPLETION_INDEX": str(index),
        "CONVOY_WORKERS": str(workers),
        "HOSTNAME": f"train-workers-0-{index}",
        **variables,
    }


def test_a_process_without_any_of_it_is_alone():
    assert find_cluster({}) is None


class TestTfConfig:
    def test_names_the_workers_and_this_one(self):
        cluster = find_cluster(tf_config({"worker": HOSTS}, index=1))
        assert cluster.addresses == tuple(HOSTS)
        assert (cluster.index, cluster.is_chief, cluster.num_workers, cluster.source) == (1, False, 3, "TF_CONFIG")
        assert cluster.jobs == (("worker", 0), ("worker", 1), ("worker", 2))

    def test_has_worker_0_as_chief_where_it_names_none(self):
        assert find_cluster(tf_config({"worker": HOSTS})).is_chief

    @pytest.mark.parametrize(("job", "index", "rank"), [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)])
    def test_has_the_chief_first_and_workers_behind_it(self, job, index, rank):
        cluster = find_cluster(tf_config({"worker": HOSTS[1:], "chief": HOSTS[:1]}, job, index))
        assert cluster.addresses == tuple(HOSTS)
        assert (cluster.index, cluster.is_chief) == (rank, rank == 0)
        assert cluster.jobs == (("chief", 0), ("worker", 0), ("worker", 1))

    @pytest.mark.parametrize("text", ["", "  ", "{}", '{"task": {"type": "worker", "index": 0}}'])
    def test_that_is_empty_says_nothing(self, text):
        assert find_cluster({"TF_CONFIG": text}) is None

    def test_of_one_worker_is_no_cluster(self):
        assert find_cluster(tf_config({"worker": HOSTS[:1]})) is None

    @pytest.mark.parametrize(
        "text", ["{", "[]", "7", '{"cluster": 3}', '{"cluster": {"worker": 3}}', '{"cluster": {}, "task": 3}']
    )
    def test_that_is_garbage_is_shown_with_an_example(self, text):
        with pytest.raises(UsageError, match=r"TF_CONFIG=.* cannot be read .*It looks like \{\"cluster\"") as caught:
            find_cluster({"TF_CONFIG": text})
        assert repr(text) in str(caught.value)

    @pytest.mark.parametrize("job", ["evaluator", "ps"])
    def test_with_a_task_that_convoy_does_not_have_is_refused(self, job):
        for environment in (tf_config({"worker": HOSTS}, job), tf_config({"worker": HOSTS, job: ["d:1"]})):
            with pytest.raises(UsageError, match=f"names a task '{job}': Convoy's workers are of type chief or worker"):
                find_cluster(environment)

    def test_of_training_operator_names_services_and_an_environment(self):
        hosts = [f"shelf-worker-{index}.vision.svc:2222" for index in range(2)]
        config = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": 1}, "environment": "cloud"}
        cluster = find_cluster({"TF_CONFIG": json.dumps(config)})
        assert (cluster.addresses, cluster.index) == (tuple(hosts), 1)

    def test_of_training_operators_dynamic_workers_which_names_one_alone_is_refused(self):
        config = {"cluster": {"worker": {"1": HOSTS[1]}, "ps": []}, "task": {"type": "worker", "index": 1}}
        with pytest.raises(UsageError, match="TF_CONFIG"):
            find_cluster({"TF_CONFIG": json.dumps(config)})

    def test_with_a_task_that_its_cluster_lacks_is_refused(self):
        with pytest.raises(UsageError, match="this task is worker 3, which its cluster .* lacks"):
            find_cluster(tf_config({"worker": HOSTS}, index=3))

    @pytest.mark.parametrize("address", ["a", "a:", ":2222", "a:0", "a:65536", "a:b"])
    def test_with_an_address_without_host_or_port_is_refused(self, address):
        with pytest.raises(UsageError, match=f"TF_CONFIG has the address '{address}': give HOST:PORT"):
            find_cluster(tf_config({"worker": ["b:1", address]}))


class TestSlurm:
    def test_places_tasks_on_hosts_in_blocks_with_a_port_each(self):
        for rank in range(5):
            cluster = find_cluster(slurm(rank), expand_hosts=expand)
            assert cluster.addresses == ("n1:20112", "n1:20113", "n2:20112", "n2:20113", "n3:20112")
            assert (cluster.index, cluster.source) == (rank, "SLURM")

    @pytest.mark.parametrize(
        ("variables", "hosts"),
        [
            ({"SLURM_DISTRIBUTION": "block:cyclic"}, "n1 n1 n2 n2 n3"),
            ({"SLURM_DISTRIBUTION": "cyclic"}, "n1 n2 n3 n1 n2"),
            ({"SLURM_DISTRIBUTION": "cyclic:block"}, "n1 n2 n3 n1 n2"),
            ({"SLURM_DISTRIBUTION": "plane", "SLURM_DIST_PLANESIZE": "2"}, "n1 n1 n2 n2 n3"),
            ({"SLURM_DISTRIBUTION": "plane", "SLURM_DIST_PLANESIZE": "1"}, "n1 n2 n3 n1 n2"),
        ],
    )
    def test_places_tasks_on_hosts_as_the_step_distributes_them(self, variables, hosts):
        cluster = find_cluster({**slurm(), **variables}, expand_hosts=expand)
        assert [address.partition(":")[0] for address in cluster.addresses] == hosts.split()
        assert len(set(cluster.addresses)) == 5

    def test_of_a_layout_that_it_does_not_tell_is_refused_with_the_mend(self):
        with pytest.raises(
            UsageError, match="SLURM_DISTRIBUTION=arbitrary does not tell .* `srun --distribution=block`"
        ):
            find_cluster({**slurm(), "SLURM_DISTRIBUTION": "arbitrary"}, expand_hosts=expand)

    def test_of_a_task_that_runs_elsewhere_is_refused_with_the_mend(self):
        here = {**slurm(3), "SLURM_NODEID": "1", "SLURM_LOCALID": "1"}
        assert find_cluster(here, expand_hosts=expand).index == 3
        with pytest.raises(UsageError, match=r"task 3 at another place \(SLURM_NODEID=0, SLURM_LOCALID=1\)"):
            find_cluster({**here, "SLURM_NODEID": "0"}, expand_hosts=expand)

    def test_takes_the_hosts_from_a_launcher_where_there_is_one(self):
        hosts = {HOSTS_VARIABLE: "a,b07,c"}
        assert find_cluster({**slurm(), **hosts}, expand_hosts=None).addresses[2] == "b07:20112"

    def test_gives_jobs_on_one_host_different_ports_that_a_server_may_have(self):
        ports = set()
        for job in (*range(745, 755), 20_000_001):  # of five tasks each
            cluster = find_cluster(slurm(job=job), expand_hosts=expand)
            ports |= {int(address.rpartition(":")[2]) for address in cluster.addresses}
        assert len(ports) == 11 * 2
        assert min(ports) == 20000
        assert max(ports) < 32768, "the system gives these to outgoing connections"

    def test_in_a_batch_script_outside_of_a_step_is_no_cluster(self):
        batch = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_PROCID": "0"}
        assert find_cluster(batch, expand_hosts=expand) is None

    def test_with_one_task_is_no_cluster(self):
        assert find_cluster(slurm(nodes="n1", tasks_per_node="1", tasks=1), expand_hosts=expand) is None

    @pytest.mark.parametrize("text", ["", "2,1", "2(x3)", "many", "2(x2),2"])
    def test_with_tasks_that_do_not_fit_the_hosts_is_refused_with_the_mend(self, text):
        with pytest.raises(UsageError, match=r"SLURM_STEP_TASKS_PER_NODE=.*5 tasks of 3 hosts.*--distribution=block"):
            find_cluster(slurm(tasks_per_node=text), expand_hosts=expand)

    def test_with_a_rank_beyond_its_tasks_is_refused(self):
        with pytest.raises(UsageError, match="SLURM: this task has index 5, and there are 5 workers"):
            find_cluster(slurm(rank=5), expand_hosts=expand)

    def test_with_a_number_that_is_none_is_refused(self):
        with pytest.raises(UsageError, match="SLURM_PROCID='x' in the environment is no number"):
            find_cluster({**slurm(), "SLURM_PROCID": "x"}, expand_hosts=expand)

    def test_without_scontrol_names_the_ways_out(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(
            UsageError, match=r"`scontrol show hostnames` failed .*set TF_CONFIG, or give --worker_hosts"
        ):
            find_cluster(slurm())

    def test_asks_scontrol_for_the_hosts(self, monkeypatch, tmp_path):
        scontrol = tmp_path / "scontrol"
        scontrol.write_text('#!/bin/sh\ntest "$*" = "show hostnames n[1-3]" && printf "n1\\nn2\\nn3\\n"\n')
        scontrol.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert find_cluster(slurm()).addresses[-1] == "n3:20112"


class TestKubernetes:
    def test_names_the_pods_of_an_indexed_job(self):
        cluster = find_cluster(kubernetes())
        assert cluster.addresses == ("train-workers-0-0:2222", "train-workers-0-1:2222", "train-workers-0-2:2222")
        assert (cluster.index, cluster.is_chief, cluster.source) == (1, False, "Kubernetes")

    def test_finds_them_behind_a_headless_service_on_a_port_of_choice(self):
        variables = {"CONVOY_SUBDOMAIN": "train", "CONVOY_PORT": "3333", "HOSTNAME": "job-workers-0-1.train.ns.svc"}
        cluster = find_cluster(kubernetes(**variables))
        assert cluster.addresses[2] == "job-workers-0-2.train:3333"

    @pytest.mark.parametrize("missing", ["JOB_COMPLETION_INDEX", "CONVOY_WORKERS", "HOSTNAME"])
    def test_with_half_of_the_variables_is_no_cluster(self, missing):
        environment = kubernetes()
        del environment[missing]
        assert find_cluster(environment) is None

    def test_with_a_host_name_of_another_kind_is_refused(self):
        with pytest.raises(UsageError, match="HOSTNAME=pod-xyz does not end in JOB_COMPLETION_INDEX=1"):
            find_cluster(kubernetes(HOSTNAME="pod-xyz"))

    def test_with_an_index_beyond_its_workers_is_refused(self):
        with pytest.raises(UsageError, match="Kubernetes: this task has index 3, and there are 3 workers"):
            find_cluster(kubernetes(index=3))


class TestFlags:
    def test_name_the_workers(self):
        cluster = find_cluster({}, hosts=HOSTS, index=2)
        assert (cluster.addresses, cluster.index, cluster.source) == (tuple(HOSTS), 2, "--worker_hosts")

    def test_of_one_host_are_no_cluster(self):
        assert find_cluster({}, hosts=HOSTS[:1], index=0) is None

    @pytest.mark.parametrize("index", [None, -1, 3])
    def test_without_a_place_among_the_hosts_are_refused(self, index):
        with pytest.raises(UsageError, match=f"--worker_index={index}: give 0 to 2"):
            find_cluster({}, hosts=HOSTS, index=index)

    def test_with_a_place_but_no_hosts_are_refused(self):
        with pytest.raises(UsageError, match="--worker_index=1 needs --worker_hosts=HOST:PORT,HOST:PORT"):
            find_cluster({}, index=1)

    def test_with_a_host_without_port_are_refused(self):
        with pytest.raises(UsageError, match="--worker_hosts has the address 'b': give HOST:PORT"):
            find_cluster({}, hosts=["a:1", "b"], index=0)


def test_tf_config_goes_before_slurm_before_kubernetes_before_flags():
    environment, sources = {**tf_config({"worker": HOSTS}), **slurm(), **kubernetes()}, []
    for gone in ("", "TF_CONFIG", "SLURM_PROCID", "CONVOY_WORKERS"):
        environment.pop(gone, None)
        sources.append(find_cluster(environment, hosts=HOSTS, index=0, expand_hosts=expand).source)
    assert sources == ["TF_CONFIG", "SLURM", "Kubernetes", "--worker_hosts"]
