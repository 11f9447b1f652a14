"""Manifests against what Kubernetes, JobSet and Training Operator publish of themselves."""

import dataclasses
import json
import re
from types import SimpleNamespace

import kubernetes_validate
import pytest
import yaml
from kubeflow.training import ApiClient
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from convoy.core.cluster import find_cluster
from convoy.launch.kubernetes.manifests import manifests
from convoy.launch.kubernetes.request import Request, checked
from convoy.launch.kubernetes.yaml_text import to_yaml

KUBERNETES = "1.31"  # the first in which a Job's podFailurePolicy is stable
COMMAND = ("train", "--data=/team/data", "--workdir=/team/run")
EVERYTHING = {
    "namespace": "vision",
    "name": "shelf-7",
    "gpus": 8,
    "cpus": "32",
    "memory": "256Gi",
    "shm_size": "16Gi",
    "node_selector": ("cloud.example.com/pool=a100", "zone=y"),
    "tolerations": ("spot=true:NoSchedule", "maintenance", "owner=1e3"),
    "service_account": "trainer",
    "image_pull_policy": "IfNotPresent",
    "queue": "team-queue",
    "port": 3333,
    "max_restarts": 7,
    "grace_seconds": 100.5,
}


def request(engine="jobset", command=COMMAND, **fields):
    fields = {"replicas": 2, "image": "registry/convoy:1", "pvc": "team", "mount": "/team", **fields}
    return checked(Request(engine=engine, command=command, **fields))


def by_kind(*args, **fields):
    """Returns the manifests as a cluster would read them from the YAML text, by their kind."""
    rendered = list(yaml.safe_load_all(to_yaml(manifests(request(*args, **fields)), header="")))
    return {manifest["kind"]: manifest for manifest in rendered}


def workers(objects):
    """Returns the workers' pod template."""
    if "TFJob" in objects:
        return objects["TFJob"]["spec"]["tfReplicaSpecs"]["Worker"]["template"]
    return objects["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]


def pods(objects):
    return [workers(objects)["spec"], objects["Deployment"]["spec"]["template"]["spec"]]


@pytest.mark.parametrize("fields", [{}, EVERYTHING, {"pvc": "", "replicas": 1}])
class TestPublishedSchemas:
    def test_know_every_field_of_the_core_objects(self, fields):
        for engine in ("jobset", "tfjob"):
            objects = by_kind(engine, **fields)
            template = workers(objects)
            own = [manifest for kind, manifest in objects.items() if kind not in ("JobSet", "TFJob")]
            spec = {"restartPolicy": "Never", **template["spec"]}
            own.append(
                {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", **template["metadata"]}, "spec": spec}
            )
            if engine == "jobset":
                job = objects["JobSet"]["spec"]["replicatedJobs"][0]["template"]
                own.append({"apiVersion": "batch/v1", "kind": "Job", **job})
            for manifest in own:
                kubernetes_validate.validate(manifest, KUBERNETES, strict=True)

    def test_know_every_field_of_the_jobset(self, fields):
        manifest = by_kind("jobset", **fields)["JobSet"]
        assert JobsetV1alpha2JobSet.from_dict(manifest).to_dict() == manifest

    def test_know_every_field_of_the_tfjob(self, fields):
        manifest = by_kind("tfjob", **fields)["TFJob"]
        assert as_training_operator_knows(manifest) == manifest


def as_training_operator_knows(manifest):
    """Returns a TFJob without what its published model has no name for."""
    client, answer = ApiClient(), SimpleNamespace(data=json.dumps(manifest))
    return client.sanitize_for_serialization(client.deserialize(answer, "KubeflowOrgV1TFJob"))


def test_fields_that_nobody_knows_would_be_noticed():
    jobset, tfjob = by_kind("jobset")["JobSet"], by_kind("tfjob")["TFJob"]
    jobset["spec"]["failurePolicy"]["rules"][0]["onJobFailureMessage"] = ["x"]
    tfjob["spec"]["runPolicy"]["backoff"] = 1
    assert JobsetV1alpha2JobSet.from_dict(jobset).to_dict() != jobset
    assert as_training_operator_knows(tfjob) != tfjob


class TestJobSet:
    def test_is_one_indexed_job_whose_pods_come_and_go_together(self):
        spec = by_kind(replicas=3)["JobSet"]["spec"]
        (workers,) = spec["replicatedJobs"]
        job = workers["template"]["spec"]
        assert (workers["name"], workers["replicas"], job["completionMode"], job["backoffLimit"]) == (
            "worker",
            1,
            "Indexed",
            0,
        )
        assert job["completions"] == job["parallelism"] == 3
        assert job["template"]["spec"]["restartPolicy"] == "Never"

    def test_ends_on_what_another_start_cannot_mend_and_does_not_count_disruptions(self):
        spec = by_kind(max_restarts=7)["JobSet"]["spec"]
        exit_codes, disruption = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
        assert exit_codes["onExitCodes"] == {"containerName": "worker", "operator": "In", "values": [1, 2, 3]}
        assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
        assert spec["failurePolicy"]["maxRestarts"] == 7
        # Messages as Kubernetes' Job controller writes them (pkg/controller/job/pod_failure_policy.go).
        refused = (
            "Container worker for pod a/run-worker-0-1-x7k2p failed with exit code 2 matching FailJob rule at index 0"
        )
        evicted = "Pod a/run-worker-0-1-x7k2p has condition DisruptionTarget matching FailJob rule at index 1"
        actions = [self.action(spec, "PodFailurePolicy", message) for message in (refused, evicted)]
        assert actions == ["FailJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
        assert (
            self.action(spec, "BackoffLimitExceeded", "Job has reached the specified backoff limit") == "RestartJobSet"
        )

    @staticmethod
    def action(spec, reason, message):
        """Returns what JobSet does: the first rule that fits, else a restart that is counted."""
        for rule in spec["failurePolicy"]["rules"]:
            patterns = rule.get("onJobFailureMessagePatterns", [""])
            if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
                return rule["action"]
        return "RestartJobSet"

    def test_tells_workers_the_names_that_its_pods_get(self):
        manifest = by_kind(replicas=3, name="shelf", port=3333)["JobSet"]
        (container,) = workers({"JobSet": manifest})["spec"]["containers"]
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        name, network = manifest["metadata"]["name"], manifest["spec"]["network"]
        assert network["enableDNSHostnames"] and network["publishNotReadyAddresses"]
        # What Job controller and kubelet add: `<jobset>-<replicatedJob>-<job index>-<pod index>` is the host name.
        variables |= {"JOB_COMPLETION_INDEX": "1", "HOSTNAME": f"{name}-worker-0-1"}
        cluster = find_cluster(variables)
        assert cluster.addresses == tuple(f"shelf-worker-0-{index}.{network['subdomain']}:3333" for index in range(3))
        assert cluster.index == 1

    def test_reads_the_number_of_the_restart_from_the_label_that_jobset_sets(self):
        (container,) = workers(by_kind())["spec"]["containers"]
        (restarts,) = [variable for variable in container["env"] if variable["name"] == "CONVOY_RESTARTS"]
        path = restarts["valueFrom"]["fieldRef"]["fieldPath"]
        assert path == "metadata.labels['jobset.sigs.k8s.io/restart-attempt']"


class TestTFJob:
    def test_has_workers_only_that_training_operator_finds_by_container_and_port(self):
        spec = by_kind("tfjob", replicas=3, port=3333, max_restarts=7)["TFJob"]["spec"]
        assert list(spec["tfReplicaSpecs"]) == ["Worker"]
        worker = spec["tfReplicaSpecs"]["Worker"]
        assert (worker["replicas"], worker["restartPolicy"]) == (3, "ExitCode")
        (container,) = worker["template"]["spec"]["containers"]
        assert container["name"] == "tensorflow"
        assert container["ports"] == [{"name": "tfjob-port", "containerPort": 3333, "protocol": "TCP"}]
        assert spec["runPolicy"] == {"backoffLimit": 7, "cleanPodPolicy": "Running"}


@pytest.mark.parametrize("engine", ["jobset", "tfjob"])
class TestPods:
    def test_run_the_worker_with_the_trainers_command(self, engine):
        (container,) = workers(by_kind(engine))["spec"]["containers"]
        assert container["command"] == ["convoy"]
        echo = ["--secondary_exit_delay=10"] if engine == "jobset" else []
        assert container["args"] == ["launch", "worker", "--grace_seconds=60", *echo, "--", *COMMAND]

    def test_pass_words_on_as_they_were_typed(self, engine):
        odd = ["a b", "it's", 'say "x"', "$HOME", "$(CONVOY_PORT)", "$$(A)", "$", "# no", "é\n- x", "1e3", "", "y"]
        command = (*COMMAND, *odd)
        (container,) = workers(by_kind(engine, command=command))["spec"]["containers"]
        assert [expanded(word) for word in container["args"][-len(odd) :]] == odd

    def test_may_do_no_more_than_they_need(self, engine):
        for pod in pods(by_kind(engine)):
            assert pod["securityContext"]["runAsNonRoot"]
            assert pod["securityContext"]["fsGroup"] == 10001  # also the group of the image's user
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["automountServiceAccountToken"] is False
            assert pod["enableServiceLinks"] is False
            (container,) = pod["containers"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }

    def test_have_the_claim_where_the_run_is_and_shared_memory(self, engine):
        training, tensorboard = pods(by_kind(engine, shm_size="16Gi"))
        assert training["containers"][0]["volumeMounts"] == [
            {"name": "run", "mountPath": "/team"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ]
        assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}} in training["volumes"]
        assert tensorboard["containers"][0]["volumeMounts"] == [{"name": "run", "mountPath": "/team", "readOnly": True}]
        for pod in (training, tensorboard):
            assert {"name": "run", "persistentVolumeClaim": {"claimName": "team"}} in pod["volumes"]

    def test_are_given_longer_than_the_worker_gives_the_trainer(self, engine):
        pod = workers(by_kind(engine, grace_seconds=100.5))["spec"]
        assert "--grace_seconds=100.5" in pod["containers"][0]["args"]
        assert pod["terminationGracePeriodSeconds"] >= 120

    def test_get_the_resources_and_nodes_that_were_asked_for(self, engine):
        pod = workers(by_kind(engine, **EVERYTHING))["spec"]
        assert pod["containers"][0]["resources"] == {
            "requests": {"cpu": "32", "memory": "256Gi"},
            "limits": {"memory": "256Gi", "nvidia.com/gpu": "8"},
        }
        assert pod["nodeSelector"] == {"cloud.example.com/pool": "a100", "zone": "y"}
        assert pod["tolerations"] == [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
            {"key": "maintenance", "operator": "Exists"},
            {"key": "owner", "operator": "Equal", "value": "1e3"},
        ]
        assert pod["serviceAccountName"] == "trainer"
        assert pod["containers"][0]["imagePullPolicy"] == "IfNotPresent"

    def test_ask_for_no_gpu_and_spread_over_hosts_where_cores_train(self, engine):
        pod = workers(by_kind(engine))["spec"]
        assert "resources" not in pod["containers"][0] and "tolerations" not in pod
        (spread,) = pod["topologySpreadConstraints"]
        assert spread["topologyKey"] == "kubernetes.io/hostname"
        assert spread["labelSelector"]["matchLabels"].items() <= workers(by_kind(engine))["metadata"]["labels"].items()

    def test_reach_each_other_and_nobody_else_reaches_them(self, engine):
        objects = by_kind(engine)
        spec = objects["NetworkPolicy"]["spec"]
        (rule,) = spec["ingress"]
        (sender,) = rule["from"]
        own = workers(objects)["metadata"]["labels"].items()
        others = objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
        for selector in (spec["podSelector"]["matchLabels"], sender["podSelector"]["matchLabels"]):
            assert selector.items() <= own and not selector.items() <= others
        assert "ports" not in rule  # NCCL's are chosen by the system
        assert spec["policyTypes"] == ["Ingress"]

    def test_wait_in_a_queue_of_kueue(self, engine):
        objects = by_kind(engine, queue="team-queue")
        queued = [kind for kind in objects if "kueue.x-k8s.io/queue-name" in objects[kind]["metadata"]["labels"]]
        assert len(queued) == 1 and queued[0] in ("JobSet", "TFJob")


class TestTensorBoard:
    def test_reads_the_runs_events_behind_a_service(self):
        objects = by_kind(name="shelf")
        (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
        assert container["command"] == ["tensorboard"]
        assert container["args"] == ["--logdir=/team/run/tensorboard", "--bind_all", "--port=6006"]
        labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
        assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
        assert objects["Service"]["spec"]["selector"] == labels
        assert objects["Service"]["metadata"]["name"] == "shelf-tensorboard"

    @pytest.mark.parametrize("fields", [{"tensorboard": False}, {"pvc": ""}])
    def test_is_left_out_where_it_is_not_wanted_or_could_see_nothing(self, fields):
        assert not {"Deployment", "Service"} & by_kind(**fields).keys()


def test_without_a_network_policy_the_rest_stays():
    assert by_kind().keys() - by_kind(network_policy=False).keys() == {"NetworkPolicy"}


def test_every_object_is_in_the_namespace_and_found_by_the_runs_label():
    for manifest in by_kind(namespace="vision", name="shelf").values():
        assert manifest["metadata"]["namespace"] == "vision"
        assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == "shelf"


def test_strings_stay_strings_for_parsers_that_read_more_into_them():
    # go-yaml, which kubectl reads with, takes these for booleans and numbers; PyYAML would not quote all of them.
    words = ["y", "N", "on", "1e3", "0o17", "1_000", "12:30", "0x1f", "1.", "null", "~"]
    text = to_yaml([{"words": words}], header="a command\nof two lines")
    assert [line.strip() for line in text.splitlines() if line.strip().startswith("- ")] == [
        f"- '{word}'" for word in words
    ]
    assert text.startswith("# a command\n# of two lines\n---\n")


def test_the_request_of_a_test_names_every_field_there_is():
    fields = {field.name for field in dataclasses.fields(Request)}
    assert fields - EVERYTHING.keys() == {
        *("engine", "command", "replicas", "image", "pvc", "mount", "tensorboard", "network_policy")
    }


def expanded(word):
    """Returns a word of a command as a container gets it: Kubernetes reads `$$` as `$` and replaces `$(NAME)`."""
    return re.sub(r"\$(\$|\([^)]*\))", lambda match: "$" if match[1] == "$" else f"<{match[1]}>", word)
