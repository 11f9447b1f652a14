"""Cluster discovery from TF_CONFIG, SLURM, Kubernetes and flags."""

import json
import os
import re

import pytest

from convoy.core.cluster import HOSTS_VARIABLE, KEY_VARIABLE, find_cluster, host_and_port
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


@pytest.fixture(autouse=True)
def scontrol(monkeypatch, tmp_path):
    """Puts a `scontrol` that expands the nodes of `slurm` first on the PATH."""
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\ntest "$*" = "show hostnames n[1-3]" && echo n1 n2 n3\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


def kubernetes(index=1, workers=3, **variables):
    return {
        "JOB_COMPLETION_INDEX": str(index),
        "CONVOY_WORKERS": str(workers),
        "HOSTNAME": f"train-workers-0-{index}",
        **variables,
    }


def test_no_description_means_a_single_process():
    assert find_cluster({}) is None


class TestTfConfig:
    def test_workers_and_own_rank(self):
        cluster = find_cluster(tf_config({"worker": HOSTS}, index=1))
        assert cluster.addresses == tuple(HOSTS)
        assert (cluster.index, cluster.is_chief, cluster.num_workers, cluster.source) == (1, False, 3, "TF_CONFIG")
        assert cluster.jobs == (("worker", 0), ("worker", 1), ("worker", 2))

    def test_worker_0_is_chief_without_a_chief_job(self):
        assert find_cluster(tf_config({"worker": HOSTS})).is_chief

    @pytest.mark.parametrize(("job", "index", "rank"), [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)])
    def test_chief_comes_before_workers(self, job, index, rank):
        cluster = find_cluster(tf_config({"worker": HOSTS[1:], "chief": HOSTS[:1]}, job, index))
        assert cluster.addresses == tuple(HOSTS)
        assert (cluster.index, cluster.is_chief) == (rank, rank == 0)
        assert cluster.jobs == (("chief", 0), ("worker", 0), ("worker", 1))

    @pytest.mark.parametrize("text", ["", "  ", "{}", '{"environment": "cloud"}', '{"cluster": {}, "task": {}}'])
    def test_empty_description_is_ignored(self, text):
        assert find_cluster({"TF_CONFIG": text}) is None

    @pytest.mark.parametrize("part", ['"task": {"type": "worker", "index": 0}', '"sparseCluster": {"worker": {}}'])
    def test_a_task_without_a_cluster_does_not_train_alone(self, part):
        with pytest.raises(UsageError, match="TF_CONFIG=.* no cluster"):
            find_cluster({"TF_CONFIG": f"{{{part}}}"})

    def test_one_address_twice(self):
        with pytest.raises(UsageError, match=f"TF_CONFIG: workers 0 and 2 have the same address {HOSTS[0]}"):
            find_cluster(tf_config({"worker": [*HOSTS[:2], HOSTS[0]]}))

    def test_one_worker_is_not_a_cluster(self):
        assert find_cluster(tf_config({"worker": HOSTS[:1]})) is None

    @pytest.mark.parametrize(
        "text",
        [
            *("{", "[]", "7", '{"cluster": 3}', '{"cluster": {"worker": 3}}', '{"cluster": {}, "task": 3}', "[" * 3000),
            *('{"cluster": []}', '{"cluster": {"worker": {"a:1": 0, "b:1": 1}}, "task": {"index": 0}}'),
            '{"cluster": {"worker": ["a:1"], "worker": ["b:1", "c:1"]}, "task": {"index": 0}}',
        ],
    )
    def test_invalid_json_is_shown_with_an_example(self, text):
        with pytest.raises(UsageError, match=r"TF_CONFIG=.*Example: \{\"cluster\"") as caught:
            find_cluster({"TF_CONFIG": text})
        assert repr(text) in str(caught.value)

    @pytest.mark.parametrize("index", [None, True, 1.0, "1.0", "", [1]])
    def test_index_that_is_no_integer(self, index):
        with pytest.raises(UsageError, match=f'TF_CONFIG: "index": {re.escape(json.dumps(index))}'):
            find_cluster(tf_config({"worker": HOSTS}, index=index))

    def test_index_as_text_or_of_the_only_task_of_its_type(self):
        assert find_cluster(tf_config({"worker": HOSTS}, index="2")).index == 2
        assert find_cluster(tf_config({"chief": HOSTS[:1], "worker": HOSTS[1:]}, "chief", None)).index == 0

    def test_two_chiefs(self):
        with pytest.raises(UsageError, match="TF_CONFIG has 2 tasks of type chief"):
            find_cluster(tf_config({"chief": HOSTS[:2], "worker": HOSTS[2:]}))

    @pytest.mark.parametrize("job", ["evaluator", "ps"])
    def test_unknown_task_type(self, job):
        for environment in (tf_config({"worker": HOSTS}, job), tf_config({"worker": HOSTS, job: ["d:1"]})):
            with pytest.raises(UsageError, match=f"TF_CONFIG.*'{job}'"):
                find_cluster(environment)

    def test_of_kubeflow_with_services_and_environment(self):
        hosts = [f"shelf-worker-{index}.vision.svc:2222" for index in range(2)]
        config = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": 1}, "environment": "cloud"}
        cluster = find_cluster({"TF_CONFIG": json.dumps(config)})
        assert (cluster.addresses, cluster.index) == (tuple(hosts), 1)

    def test_of_kubeflow_dynamic_workers_is_rejected(self):
        config = {"cluster": {"worker": {"1": HOSTS[1]}, "ps": []}, "task": {"type": "worker", "index": 1}}
        with pytest.raises(UsageError, match="TF_CONFIG"):
            find_cluster({"TF_CONFIG": json.dumps(config)})

    def test_task_that_is_not_in_the_cluster(self):
        with pytest.raises(UsageError, match="TF_CONFIG: task worker 3 "):
            find_cluster(tf_config({"worker": HOSTS}, index=3))

    @pytest.mark.parametrize("address", ["a", "a:", ":2222", "a:0", "a:65536", "a:b"])
    def test_invalid_address(self, address):
        with pytest.raises(UsageError, match=f"TF_CONFIG: address '{address}'.*HOST:PORT"):
            find_cluster(tf_config({"worker": ["b:1", address]}))


class TestSlurm:
    def test_tasks_are_placed_in_blocks_with_one_port_each(self):
        for rank in range(5):
            cluster = find_cluster(slurm(rank))
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
    def test_tasks_follow_the_distribution_of_the_step(self, variables, hosts):
        cluster = find_cluster({**slurm(), **variables})
        assert [address.partition(":")[0] for address in cluster.addresses] == hosts.split()
        assert len(set(cluster.addresses)) == 5

    def test_arbitrary_distribution_is_rejected(self):
        with pytest.raises(UsageError, match="SLURM_DISTRIBUTION=arbitrary.*`srun --distribution=block`"):
            find_cluster({**slurm(), "SLURM_DISTRIBUTION": "arbitrary"})

    def test_task_on_an_unexpected_host_is_rejected(self):
        here = {**slurm(3), "SLURM_NODEID": "1", "SLURM_LOCALID": "1"}
        assert find_cluster(here).index == 3
        with pytest.raises(UsageError, match="task 3 .*SLURM_NODEID=0; expected 1"):
            find_cluster({**here, "SLURM_NODEID": "0"})
        with pytest.raises(UsageError, match="task 3 .*SLURM_LOCALID=0; expected 1"):
            find_cluster({**slurm(3), "SLURM_LOCALID": "0"})

    def test_hosts_from_the_launcher(self):
        hosts = {HOSTS_VARIABLE: "a,b07,c"}
        assert find_cluster({**slurm(), **hosts}).addresses[2] == "b07:20112"

    def test_jobs_on_one_host_have_different_ports(self):
        ports = set()
        for job in (*range(745, 755), 20_000_001):  # with five tasks each
            cluster = find_cluster(slurm(job=job))
            ports |= {int(address.rpartition(":")[2]) for address in cluster.addresses}
        assert len(ports) == 11 * 2
        assert min(ports) == 20000
        assert max(ports) < 32768, "these are ephemeral ports"

    def test_batch_script_is_not_a_cluster(self):
        batch = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_PROCID": "0"}
        assert find_cluster(batch) is None

    def test_one_task_is_not_a_cluster(self):
        assert find_cluster(slurm(nodes="n1", tasks_per_node="1", tasks=1)) is None

    @pytest.mark.parametrize("text", ["", "2,1", "2(x3)", "many", "2(x2),2"])
    def test_task_counts_that_do_not_match_the_hosts(self, text):
        with pytest.raises(UsageError, match=r"SLURM_STEP_TASKS_PER_NODE=.*5 tasks on 3 hosts.*--distribution=block"):
            find_cluster(slurm(tasks_per_node=text))

    def test_single_host_needs_no_scontrol(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path / "empty"))
        assert find_cluster(slurm(nodes="n7", tasks_per_node="2", tasks=2)).addresses == ("n7:20112", "n7:20113")

    def test_command_typed_in_a_terminal_of_one_task_trains_alone(self):
        terminal = {**slurm(), "SLURM_PTY_PORT": "40001", "SLURM_TASK_PID": str(os.getppid())}
        assert find_cluster(terminal) is None
        assert find_cluster({**terminal, "SLURM_TASK_PID": str(os.getpid())}).num_workers == 5, "the task itself"
        del terminal["SLURM_PTY_PORT"]
        assert find_cluster(terminal).num_workers == 5, "a script that all tasks run"

    def test_rank_out_of_range(self):
        with pytest.raises(UsageError, match="SLURM: index 5 .* 0 and 4"):
            find_cluster(slurm(rank=5))

    @pytest.mark.parametrize("text", ["x", "-1", "1e3", "\u00b2", "9" * 50])
    @pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID"])
    def test_invalid_number(self, name, text):
        with pytest.raises(UsageError, match=f"{name}={text!r}"):
            find_cluster({**slurm(), name: text})

    @pytest.mark.parametrize(("name", "text"), [("TASKS_PER_NODE", "1(x999999999)"), ("NUM_TASKS", "999999999")])
    def test_counts_that_would_fill_the_memory(self, name, text):
        with pytest.raises(UsageError, match=f"SLURM_STEP_{name}={re.escape(repr(text))}"):
            find_cluster({**slurm(), f"SLURM_STEP_{name}": text})

    def test_missing_scontrol(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path / "empty"))
        with pytest.raises(UsageError, match=r"`scontrol show hostnames` failed .*TF_CONFIG.*--worker_hosts"):
            find_cluster(slurm())

    def test_hosts_from_scontrol(self, monkeypatch, tmp_path):
        scontrol = tmp_path / "scontrol"
        scontrol.write_text('#!/bin/sh\ntest "$*" = "show hostnames n[1-3]" && printf "n1\\nn2\\nn3\\n"\n')
        scontrol.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert find_cluster(slurm()).addresses[-1] == "n3:20112"


class TestKubernetes:
    def test_pods_of_an_indexed_job(self):
        cluster = find_cluster(kubernetes())
        assert cluster.addresses == ("train-workers-0-0:2222", "train-workers-0-1:2222", "train-workers-0-2:2222")
        assert (cluster.index, cluster.is_chief, cluster.source) == (1, False, "Kubernetes")

    def test_subdomain_and_port(self):
        variables = {"CONVOY_SUBDOMAIN": "train", "CONVOY_PORT": "3333", "HOSTNAME": "job-workers-0-1.train.ns.svc"}
        cluster = find_cluster(kubernetes(**variables))
        assert cluster.addresses[2] == "job-workers-0-2.train:3333"

    @pytest.mark.parametrize("missing", ["JOB_COMPLETION_INDEX", "CONVOY_WORKERS", "HOSTNAME"])
    def test_incomplete_variables_are_ignored(self, missing):
        environment = kubernetes()
        del environment[missing]
        assert find_cluster(environment) is None

    def test_unexpected_host_name(self):
        with pytest.raises(UsageError, match="HOSTNAME=pod-xyz .*JOB_COMPLETION_INDEX"):
            find_cluster(kubernetes(HOSTNAME="pod-xyz"))

    def test_index_out_of_range(self):
        with pytest.raises(UsageError, match="Kubernetes: index 3 .* 0 and 2"):
            find_cluster(kubernetes(index=3))


class TestFlags:
    def test_hosts_and_index(self):
        cluster = find_cluster({}, hosts=HOSTS, index=2)
        assert (cluster.addresses, cluster.index, cluster.source) == (tuple(HOSTS), 2, "--worker_hosts")

    def test_one_host_is_not_a_cluster(self):
        assert find_cluster({}, hosts=HOSTS[:1], index=0) is None

    @pytest.mark.parametrize("index", [None, -1, 3])
    def test_index_that_is_missing_or_out_of_range(self, index):
        with pytest.raises(UsageError, match=f"--worker_index={index}: .*0 to 2"):
            find_cluster({}, hosts=HOSTS, index=index)

    def test_index_without_hosts(self):
        with pytest.raises(UsageError, match="--worker_index=1 .*--worker_hosts="):
            find_cluster({}, index=1)

    def test_host_without_port(self):
        with pytest.raises(UsageError, match="--worker_hosts: address 'b'"):
            find_cluster({}, hosts=["a:1", "b"], index=0)


def test_precedence():
    environment, flags = {**tf_config({"worker": HOSTS}), **slurm(), **kubernetes()}, {"hosts": HOSTS, "index": 0}
    assert find_cluster(environment, **flags).source == "--worker_hosts"
    sources = []
    for removed in ("", "TF_CONFIG", "SLURM_PROCID"):
        environment.pop(removed, None)
        sources.append(find_cluster(environment).source)
    assert sources == ["TF_CONFIG", "SLURM", "Kubernetes"]


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        (tf_config({"worker": HOSTS}), "TF_CONFIG"),
        (slurm(), "SLURM_STEP_NUM_TASKS"),
        (kubernetes(), "JOB_COMPLETION_INDEX"),
    ],
)
class TestDescriptionThatWasNotMeant:
    def test_message_and_cluster_name_the_variable_to_unset(self, environment, variable):
        assert f"{variable} describes the cluster: unset it" in find_cluster(environment).how_to_train_alone
        broken = {name: value.replace("n[1-3]", "n[7]").replace("a:2222", "a") for name, value in environment.items()}
        broken |= {"HOSTNAME": "other"} if "HOSTNAME" in broken else {}
        with pytest.raises(UsageError, match=f"{variable} describes the cluster: unset it"):
            find_cluster(broken)

    def test_without_that_variable_or_its_value_there_is_one_process(self, environment, variable):
        assert find_cluster({name: value for name, value in environment.items() if name != variable}) is None
        assert find_cluster({**environment, variable: ""}) is None

    def test_flags_win_over_one_that_is_broken(self, environment, variable):
        flags = {"hosts": HOSTS, "index": 1}
        assert find_cluster({**environment, variable: "broken"}, **flags).source == "--worker_hosts"


class TestAddresses:
    def test_ipv6(self):
        cluster = find_cluster({}, hosts=["[::1]:2222", "[fd00::2]:2222"], index=1)
        assert [host_and_port(address) for address in cluster.addresses] == [("::1", 2222), ("fd00::2", 2222)]

    @pytest.mark.parametrize(
        "address",
        [
            "::1:2222",
            "fd00::2",
            "[::1:2222",
            "[localhost]:1",
            "a:b:1",
            "a:0x10",
            "a:\u0662",
            " a:1",
            "a\n:1",
            "u@a:1",
            "\u0430:1",
        ],
    )
    def test_invalid(self, address):
        with pytest.raises(UsageError, match=re.escape(repr(address))):
            find_cluster({}, hosts=["a:1", address], index=0)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("A:1", "a:1"),
            ("a:1", "a:01"),
            ("a.b.:1", "a.b:1"),
            ("localhost:1", "127.0.0.1:1"),
            ("[::1]:1", "localhost:1"),
            ("[fd00::2]:1", "[fd00:0::2]:1"),
        ],
    )
    def test_two_spellings_of_one(self, one, other):
        with pytest.raises(UsageError, match="workers 0 and 2 have the same address"):
            find_cluster({}, hosts=[one, "b:1", other], index=0)

    def test_two_ports_of_one_host(self):
        assert find_cluster({}, hosts=["localhost:1", "127.0.0.1:2"], index=0).num_workers == 2


def test_key_is_in_no_text():
    cluster = find_cluster({**kubernetes(), KEY_VARIABLE: "secret"})
    assert cluster.key == "secret" and "secret" not in f"{cluster} {cluster.tasks()}"
