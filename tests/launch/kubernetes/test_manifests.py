"""Manifests, validated with the published schemas of Kubernetes and JobSet."""

import dataclasses
import re
from base64 import b64decode

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from convoy.core.cluster import KEY_VARIABLE, find_cluster
from convoy.launch.kubernetes.manifests import manifests
from convoy.launch.kubernetes.request import Request, checked
from convoy.launch.kubernetes.yaml_text import to_yaml
from convoy.launch.user_files import UserFiles

KUBERNETES = "1.31"  # the first version with a stable podFailurePolicy
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
    "env": ("A=b", "COST=$5 $(A)"),
    "service_account": "trainer",
    "image_pull_secrets": ("registry-login", "other"),
    "priority_class": "high",
    "code": UserFiles(("é.py",), (), {"0/é.py": b"A = 1\n\tB = 2 \n", "0/sub/a b.py": b"\xe9"}),
    "image_pull_policy": "IfNotPresent",
    "queue": "team-queue",
    "port": 3333,
    "max_restarts": 7,
    "grace_seconds": 100.5,
    "key": "0123456789abcdef",
}


def request(command=COMMAND, **fields):
    fields = {"replicas": 2, "image": "registry/convoy:1", "pvc": "team", "mount": "/team", **fields}
    return checked(Request(command=command, **fields))


def by_kind(**fields):
    """Returns the manifests as parsed from the YAML text, by kind."""
    rendered = list(yaml.safe_load_all(to_yaml(manifests(request(**fields)), header="")))
    return {manifest["kind"]: manifest for manifest in rendered}


def workers(objects):
    """Returns the workers' pod template."""
    return objects["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]


def pods(objects):
    return [workers(objects)["spec"], objects["Deployment"]["spec"]["template"]["spec"]]


@pytest.mark.parametrize("fields", [{}, EVERYTHING, {"pvc": "", "replicas": 1}])
class TestPublishedSchemas:
    def test_core_objects(self, fields):
        objects = by_kind(**fields)
        template = workers(objects)
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", **template["metadata"]}}
        job = {"apiVersion": "batch/v1", "kind": "Job", **objects["JobSet"]["spec"]["replicatedJobs"][0]["template"]}
        others = [manifest for kind, manifest in objects.items() if kind != "JobSet"]
        for manifest in [*others, {**pod, "spec": template["spec"]}, job]:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)

    def test_jobset(self, fields):
        manifest = by_kind(**fields)["JobSet"]
        assert JobsetV1alpha2JobSet.from_dict(manifest).to_dict() == manifest


def test_unknown_fields_are_detected():
    jobset = by_kind()["JobSet"]
    jobset["spec"]["failurePolicy"]["rules"][0]["onJobFailureMessage"] = ["x"]
    assert JobsetV1alpha2JobSet.from_dict(jobset).to_dict() != jobset


class TestJobSet:
    def test_is_one_indexed_job_without_single_pod_restarts(self):
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

    def test_fails_on_permanent_errors_and_does_not_count_disruptions(self):
        spec = by_kind(max_restarts=7)["JobSet"]["spec"]
        exit_codes, disruption = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
        assert exit_codes["onExitCodes"] == {"containerName": "worker", "operator": "In", "values": [1, 2, 3]}
        assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
        assert spec["failurePolicy"]["maxRestarts"] == 7
        # Messages of the Kubernetes Job controller (pkg/controller/job/pod_failure_policy.go).
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
        """Returns JobSet's action: the first matching rule, or a counted restart."""
        for rule in spec["failurePolicy"]["rules"]:
            patterns = rule.get("onJobFailureMessagePatterns", [""])
            if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
                return rule["action"]
        return "RestartJobSet"

    def test_workers_derive_the_pod_names(self):
        manifest = by_kind(replicas=3, name="shelf", port=3333)["JobSet"]
        (container,) = workers({"JobSet": manifest})["spec"]["containers"]
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        name, network = manifest["metadata"]["name"], manifest["spec"]["network"]
        assert network["enableDNSHostnames"] and network["publishNotReadyAddresses"]
        # Added by the Job controller and the kubelet; a host name is <jobset>-<replicatedJob>-<job index>-<pod index>.
        variables |= {"JOB_COMPLETION_INDEX": "1", "HOSTNAME": f"{name}-worker-0-1"}
        cluster = find_cluster(variables)
        assert cluster.addresses == tuple(f"shelf-worker-0-{index}.{network['subdomain']}:3333" for index in range(3))
        assert cluster.index == 1

    def test_reads_the_number_of_the_restart_from_the_label_that_jobset_sets(self):
        (container,) = workers(by_kind())["spec"]["containers"]
        (restarts,) = [variable for variable in container["env"] if variable["name"] == "CONVOY_RESTARTS"]
        path = restarts["valueFrom"]["fieldRef"]["fieldPath"]
        assert path == "metadata.labels['jobset.sigs.k8s.io/restart-attempt']"


class TestPods:
    def test_run_launch_worker_with_the_trainer_command(self):
        (container,) = workers(by_kind())["spec"]["containers"]
        assert container["command"] == ["convoy"]
        flags = ["--grace_seconds=60", "--secondary_exit_delay=10"]
        assert container["args"] == ["launch", "worker", *flags, "--", *COMMAND]

    def test_arguments_are_not_expanded(self):
        odd = ["a b", "it's", 'say "x"', "$HOME", "$(CONVOY_PORT)", "$$(A)", "$", "# no", "é\n- x", "1e3", "", "y"]
        command = (*COMMAND, *odd)
        (container,) = workers(by_kind(command=command))["spec"]["containers"]
        assert [expanded(word) for word in container["args"][-len(odd) :]] == odd

    def test_have_least_privileges(self):
        for pod in pods(by_kind()):
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

    def test_mount_the_claim_and_shared_memory(self):
        training, tensorboard = pods(by_kind(shm_size="16Gi"))
        assert training["containers"][0]["volumeMounts"] == [
            {"name": "run", "mountPath": "/team"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ]
        assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}} in training["volumes"]
        assert tensorboard["containers"][0]["volumeMounts"] == [{"name": "run", "mountPath": "/team", "readOnly": True}]
        for pod in (training, tensorboard):
            assert {"name": "run", "persistentVolumeClaim": {"claimName": "team"}} in pod["volumes"]

    def test_have_a_longer_grace_period_than_the_trainer(self):
        pod = workers(by_kind(grace_seconds=100.5))["spec"]
        assert "--grace_seconds=100.5" in pod["containers"][0]["args"]
        assert pod["terminationGracePeriodSeconds"] >= 120

    def test_get_the_requested_resources_and_nodes(self):
        pod = workers(by_kind(**EVERYTHING))["spec"]
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
        assert pod["priorityClassName"] == "high"
        assert pod["containers"][0]["imagePullPolicy"] == "IfNotPresent"

    @pytest.mark.parametrize(
        ("fields", "requests"),
        [
            ({}, {"cpu": "2", "memory": "4Gi"}),
            ({"gpus": 4}, {"cpu": "8", "memory": "32Gi"}),
            ({"gpus": 4, "cpus": "500m"}, {"cpu": "500m", "memory": "32Gi"}),
            ({"cpus": "", "memory": ""}, None),
        ],
    )
    def test_request_resources_by_default(self, fields, requests):
        resources = workers(by_kind(**fields))["spec"]["containers"][0].get("resources", {})
        assert resources.get("requests") == requests
        assert "memory" not in resources.get("limits", {})  # what was not asked for must not kill a worker

    def test_get_the_variables_verbatim(self, monkeypatch):
        monkeypatch.setenv("WANDB_API_KEY", "secret")
        (container,) = workers(by_kind(env=("COST=$5 $(A)", "EMPTY=", "WANDB_API_KEY")))["spec"]["containers"]
        values = {variable["name"]: expanded(variable.get("value", "")) for variable in container["env"]}
        assert (values["COST"], values["EMPTY"], values["WANDB_API_KEY"]) == ("$5 $(A)", "", "secret")

    def test_pull_the_image_with_the_secrets(self):
        for pod in pods(by_kind(image_pull_secrets=("a", "b"))):
            assert pod["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]

    def test_mount_the_users_files_under_their_paths(self):
        objects = by_kind(code=EVERYTHING["code"])
        pod, config_map = workers(objects)["spec"], objects["ConfigMap"]
        (volume,) = [volume["configMap"] for volume in pod["volumes"] if volume["name"] == "code"]
        assert volume["name"] == config_map["metadata"]["name"] and config_map["immutable"]
        texts = {key: text.encode() for key, text in config_map["data"].items()}
        content = texts | {key: b64decode(text) for key, text in config_map["binaryData"].items()}
        mounted = {item["path"]: content[item["key"]] for item in volume["items"]}
        assert mounted == EVERYTHING["code"].content
        (container,) = pod["containers"]
        (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "code"]
        assert {"name": "CONVOY_CODE", "value": mount["mountPath"]} in container["env"]

    def test_files_of_another_launch_are_not_replaced(self):
        names = {
            by_kind(code=UserFiles(("a",), (), {"a": text}))["ConfigMap"]["metadata"]["name"] for text in (b"", b"x")
        }
        assert len(names) == 2

    def test_without_gpus_spread_over_hosts(self):
        pod = workers(by_kind())["spec"]
        assert "tolerations" not in pod
        (spread,) = pod["topologySpreadConstraints"]
        assert spread["topologyKey"] == "kubernetes.io/hostname"
        assert spread["labelSelector"]["matchLabels"].items() <= workers(by_kind())["metadata"]["labels"].items()

    def test_only_workers_can_connect_to_workers(self):
        objects = by_kind()
        spec = objects["NetworkPolicy"]["spec"]
        (rule,) = spec["ingress"]
        (sender,) = rule["from"]
        own = workers(objects)["metadata"]["labels"].items()
        others = objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
        for selector in (spec["podSelector"]["matchLabels"], sender["podSelector"]["matchLabels"]):
            assert selector.items() <= own and not selector.items() <= others
        assert "ports" not in rule  # NCCL's ports are chosen by the system
        assert spec["policyTypes"] == ["Ingress"]

    def test_get_the_key_from_the_secret(self):
        objects = by_kind(key="0123")
        (container,) = workers(objects)["spec"]["containers"]
        (reference,) = [v["valueFrom"]["secretKeyRef"] for v in container["env"] if v["name"] == KEY_VARIABLE]
        assert reference["name"] == objects["Secret"]["metadata"]["name"]
        assert objects["Secret"]["stringData"] == {reference["key"]: "0123"}
        assert "Secret" not in by_kind()

    def test_kueue_queue_is_set_on_the_jobset_only(self):
        objects = by_kind(queue="team-queue")
        queued = [kind for kind in objects if "kueue.x-k8s.io/queue-name" in objects[kind]["metadata"]["labels"]]
        assert queued == ["JobSet"]


class TestTensorBoard:
    def test_serves_the_event_files_of_the_run(self):
        objects = by_kind(name="shelf")
        (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
        assert container["command"] == ["tensorboard"]
        assert container["args"] == ["--logdir=/team/run/tensorboard", "--bind_all", "--port=6006"]
        labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
        assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
        assert objects["Service"]["spec"]["selector"] == labels
        assert objects["Service"]["metadata"]["name"] == "shelf-tensorboard"

    def test_shows_all_folds_of_a_cross_validation(self):
        objects = by_kind(command=(*COMMAND, "--folds=5"))
        (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
        assert container["args"][0] == "--logdir=/team/run"

    @pytest.mark.parametrize("fields", [{"tensorboard": False}, {"pvc": ""}])
    def test_is_left_out_if_disabled_or_without_a_claim(self, fields):
        assert not {"Deployment", "Service"} & by_kind(**fields).keys()


def test_network_policy_is_optional():
    assert by_kind().keys() - by_kind(network_policy=False).keys() == {"NetworkPolicy"}


def test_all_objects_have_the_namespace_and_the_instance_label():
    for manifest in by_kind(namespace="vision", name="shelf").values():
        assert manifest["metadata"]["namespace"] == "vision"
        assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == "shelf"


def test_ambiguous_strings_are_quoted():
    # go-yaml, which kubectl uses, reads these as booleans and numbers; PyYAML does not quote all of them.
    words = ["y", "N", "on", "1e3", "0o17", "1_000", "12:30", "0x1f", "1.", "null", "~"]
    text = to_yaml([{"words": words}], header="a command\nof two lines")
    assert [line.strip() for line in text.splitlines() if line.strip().startswith("- ")] == [
        f"- '{word}'" for word in words
    ]
    assert text.startswith("# a command\n# of two lines\n---\n")


def test_everything_sets_every_optional_field():
    fields = {field.name for field in dataclasses.fields(Request)}
    assert fields - EVERYTHING.keys() == {
        *("command", "replicas", "image", "pvc", "mount", "tensorboard", "network_policy")
    }


def expanded(word):
    """Returns an argument as the container receives it: `$$` becomes `$`, and `$(NAME)` is expanded."""
    return re.sub(r"\$(\$|\([^)]*\))", lambda match: "$" if match[1] == "$" else f"<{match[1]}>", word)
