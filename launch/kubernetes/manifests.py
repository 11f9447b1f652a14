"""Kubernetes manifests of a run: pure functions of a checked `Request`.

    text = to_yaml(manifests(request), header="...")

The workers are the pods of one Indexed Job in a JobSet, which restarts all of them together. If a pod fails:

| exit code                        | failure reason of the Job | JobSet                                            |
|----------------------------------|---------------------------|---------------------------------------------------|
| 1, 2, 3                          | PodFailurePolicy          | fails: a restart would fail the same way          |
| any, and the pod was disrupted   | PodFailurePolicy          | restarts, without counting the restart            |
| any other, such as 137, 138, 143 | BackoffLimitExceeded      | restarts, up to `max_restarts` times              |

A pod is disrupted when the cluster removes it: evicted, preempted, or on a spot node that was reclaimed. JobSet
distinguishes the two PodFailurePolicy cases by the Job's message (onJobFailureMessagePatterns, JobSet 0.10).

The Job fails with the first pod that it sees failing. A worker that exits with 138 only because it lost another one
therefore waits (`--secondary_exit_delay`) until the Job has acted on the other, which takes a second or two.
"""

import math
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from convoy.core import exit_codes
from convoy.core.cluster import KEY_VARIABLE
from convoy.core.user_code import SENT_CODE_VARIABLE
from convoy.launch.kubernetes.request import AUTO, Request, cpus, memory, node_selector, tolerations
from convoy.launch.trainer_command import flag_value
from convoy.launch.worker_variables import worker_variables

Manifest = dict[str, Any]

TENSORBOARD_PORT = 6006

_GROUP = 10001  # of the image's user; volumes are made writable for it
_EXTRA_GRACE_SECONDS = 30  # so that the worker kills a trainer that does not exit before the kubelet kills both
_SECONDARY_EXIT_DELAY = 10  # seconds; longer than a kubelet takes to report that a container ended
_NEVER_RESTARTED = [exit_codes.ERROR, exit_codes.USAGE, exit_codes.DATA]
_CONTAINER = "worker"
_CODE_FOLDER = "/etc/convoy/code"
_SECRET_ENTRY = "key"
_RESTART_LABEL = "jobset.sigs.k8s.io/restart-attempt"


def manifests(request: Request) -> list[Manifest]:
    """Returns all objects of a run in the order of creation."""
    objects = [network_policy(request)] if request.network_policy else []
    objects += [secret(request)] if request.key else []
    objects += [code(request)] if request.code.content else []
    objects.append(jobset(request))
    if request.tensorboard:
        objects += [tensorboard_deployment(request), tensorboard_service(request)]
    return objects


def jobset(request: Request) -> Manifest:
    """Returns the JobSet (jobset.x-k8s.io/v1alpha2) of a run's workers."""
    job = {
        "completionMode": "Indexed",
        "completions": request.replicas,
        "parallelism": request.replicas,
        "backoffLimit": 0,  # JobSet restarts all workers together
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": _CONTAINER,
                        "operator": "In",
                        "values": _NEVER_RESTARTED,
                    },
                },
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {"metadata": {"labels": labels(request, "worker")}, "spec": _worker_pod(request)},
    }
    on_policy = {"onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(request, request.name, "worker", queued=True),
        "spec": {
            "network": {
                "enableDNSHostnames": True,
                "subdomain": request.name,
                "publishNotReadyAddresses": True,
            },
            "failurePolicy": {
                "maxRestarts": request.max_restarts,
                "rules": [  # the first match counts
                    {
                        "name": "disrupted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        **on_policy,
                        "onJobFailureMessagePatterns": ["has condition DisruptionTarget"],
                    },
                    {"name": "refused", "action": "FailJobSet", **on_policy},
                ],
            },
            "replicatedJobs": [
                {
                    "name": "worker",
                    "replicas": 1,
                    "template": {"metadata": {"labels": labels(request, "worker")}, "spec": job},
                }
            ],
        },
    }


def network_policy(request: Request) -> Manifest:
    """Returns the NetworkPolicy that lets only the run's workers connect to its workers.

    It covers all ports, because NCCL listens on ports that the system chooses.
    """
    workers = {"matchLabels": labels(request, "worker")}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(request, f"{request.name}-workers", "worker"),
        "spec": {
            "podSelector": workers,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": workers}]}],
        },
    }


def code(request: Request) -> Manifest:
    """Returns the ConfigMap with the user's files. Other files have another name, so that no run's files change."""
    texts, others = {}, {}
    for key, name in _code_keys(request).items():
        content = request.code.content[name]
        try:
            texts[key] = content.decode()
        except UnicodeDecodeError:
            others[key] = b64encode(content).decode()
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(request, _code_name(request), "worker"),
        "immutable": True,
        "data": texts,
        **({"binaryData": others} if others else {}),
    }


def _code_name(request: Request) -> str:
    return f"{request.name}-code-{request.code.digest}"


def _code_keys(request: Request) -> Mapping[str, str]:
    """Returns the names of the user's files by key in the ConfigMap, where keys may not be paths."""
    names = enumerate(request.code.content)
    return {f"{number}-{re.sub('[^-._A-Za-z0-9]', '_', name)[-200:]}": name for number, name in names}


def secret(request: Request) -> Manifest:
    """Returns the Secret with the key by which the run's workers authenticate each other."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(request, f"{request.name}-workers", "worker"),
        "type": "Opaque",
        "stringData": {_SECRET_ENTRY: request.key},
    }


def tensorboard_deployment(request: Request) -> Manifest:
    """Returns the Deployment of the run's TensorBoard, which mounts the claim read-only."""
    probe = {"httpGet": {"path": "/", "port": "http"}, "timeoutSeconds": 10}
    # Of a cross-validation, TensorBoard finds the folds itself.
    logdir = request.workdir if flag_value(request.command, "folds") else f"{request.workdir}/tensorboard"
    container = {
        "name": "tensorboard",
        "image": request.image,
        **_pull_policy(request),
        "command": ["tensorboard"],
        "args": verbatim([f"--logdir={logdir}", "--bind_all", f"--port={TENSORBOARD_PORT}"]),
        "ports": [{"name": "http", "containerPort": TENSORBOARD_PORT, "protocol": "TCP"}],
        "startupProbe": {**probe, "periodSeconds": 5, "failureThreshold": 60},
        "readinessProbe": {**probe, "periodSeconds": 10},
        "livenessProbe": {**probe, "periodSeconds": 30, "failureThreshold": 5},
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}},
        "securityContext": _container_security(),
        "volumeMounts": [{"name": "run", "mountPath": request.mount, "readOnly": True}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(request, f"{request.name}-tensorboard", "tensorboard"),
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels(request, "tensorboard")},
            "template": {
                "metadata": {"labels": labels(request, "tensorboard")},
                "spec": {
                    **_pod(request),
                    "containers": [container],
                    "volumes": [{"name": "run", "persistentVolumeClaim": {"claimName": request.pvc}}],
                },
            },
        },
    }


def tensorboard_service(request: Request) -> Manifest:
    """Returns the Service of the run's TensorBoard."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(request, f"{request.name}-tensorboard", "tensorboard"),
        "spec": {
            "selector": labels(request, "tensorboard"),
            "ports": [{"name": "http", "port": TENSORBOARD_PORT, "targetPort": "http"}],
        },
    }


def labels(request: Request, component: str) -> dict[str, str]:
    """Returns the labels of a run's `worker` or `tensorboard` pods."""
    return {
        "app.kubernetes.io/name": "convoy",
        "app.kubernetes.io/instance": request.name,
        "app.kubernetes.io/component": component,
    }


def verbatim(words: Sequence[str]) -> list[str]:
    """Returns arguments with `$` escaped: Kubernetes expands `$(NAME)` in commands and replaces `$$` by `$`."""
    return [word.replace("$", "$$") for word in words]


def _worker_pod(request: Request) -> Manifest:
    """Returns the specification of a worker's pod."""
    environment: list[Manifest] = [
        {"name": "CONVOY_WORKERS", "value": str(request.replicas)},
        {"name": "CONVOY_SUBDOMAIN", "value": request.name},
        {"name": "CONVOY_PORT", "value": str(request.port)},
        {
            "name": "CONVOY_RESTARTS",
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{_RESTART_LABEL}']"}},
        },
    ]
    if request.key:
        reference = {"name": f"{request.name}-workers", "key": _SECRET_ENTRY}
        environment.append({"name": KEY_VARIABLE, "valueFrom": {"secretKeyRef": reference}})
    variables = worker_variables(request.env)
    if request.code.content:
        variables[SENT_CODE_VARIABLE] = _CODE_FOLDER
    environment += [{"name": name, "value": verbatim([value])[0]} for name, value in variables.items()]
    volumes, mounts = _volumes(request)
    flags = [f"--grace_seconds={request.grace_seconds:g}", f"--secondary_exit_delay={_SECONDARY_EXIT_DELAY}"]
    launch = ["launch", "worker", *flags, "--"]
    return {
        "restartPolicy": "Never",
        **_pod(request),
        "terminationGracePeriodSeconds": math.ceil(request.grace_seconds) + _EXTRA_GRACE_SECONDS,
        **_placement(request),
        "containers": [
            {
                "name": _CONTAINER,
                "image": request.image,
                **_pull_policy(request),
                "command": ["convoy"],
                "args": verbatim([*launch, *request.command]),
                "env": environment,
                "ports": [{"name": "workers", "containerPort": request.port, "protocol": "TCP"}],
                **_resources(request),
                "terminationMessagePolicy": "FallbackToLogsOnError",  # `kubectl describe pod` shows the last lines
                "securityContext": _container_security(),
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }


def _volumes(request: Request) -> tuple[list[Manifest], list[Manifest]]:
    """Returns the volumes of a worker's pod, and where they are mounted."""
    # The default /dev/shm of 64 MB is too small for NCCL and for the input pipeline's processes.
    volumes: list[Manifest] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": request.shm_size}}]
    mounts: list[Manifest] = [{"name": "shm", "mountPath": "/dev/shm"}]
    if request.pvc:
        volumes.insert(0, {"name": "run", "persistentVolumeClaim": {"claimName": request.pvc}})
        mounts.insert(0, {"name": "run", "mountPath": request.mount})
    if request.code.content:
        items = [{"key": key, "path": name} for key, name in _code_keys(request).items()]
        volumes.append({"name": "code", "configMap": {"name": _code_name(request), "items": items}})
        mounts.append({"name": "code", "mountPath": _CODE_FOLDER, "readOnly": True})
    return volumes, mounts


def _pod(request: Request) -> Manifest:
    account = {"serviceAccountName": request.service_account} if request.service_account else {}
    secrets = [{"name": name} for name in request.image_pull_secrets]
    return {
        **(account or {"automountServiceAccountToken": False}),
        **({"imagePullSecrets": secrets} if secrets else {}),
        # A Service named `convoy` in the namespace would set CONVOY_PORT.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "fsGroup": _GROUP,
            "fsGroupChangePolicy": "OnRootMismatch",  # no recursive chown at every start
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _placement(request: Request) -> Manifest:
    placement: Manifest = {"priorityClassName": request.priority_class} if request.priority_class else {}
    if selector := node_selector(request):
        placement["nodeSelector"] = selector
    if tolerated := tolerations(request):
        placement["tolerations"] = tolerated
    if request.replicas > 1 and not request.gpus:
        # CPU workers compete for a host's cores, so spread them. GPU workers communicate faster on few hosts.
        placement["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels(request, "worker")},
            }
        ]
    return placement


def _resources(request: Request) -> Manifest:
    requested = {"cpu": cpus(request), "memory": memory(request)}
    # No CPU limit: it would only throttle. Memory is limited only to what the user found to be enough.
    limits = {"memory": "" if request.memory == AUTO else request.memory, "nvidia.com/gpu": str(request.gpus or "")}
    resources = {
        name: values
        for name, among in (("requests", requested), ("limits", limits))
        if (values := {resource: value for resource, value in among.items() if value})
    }
    return {"resources": resources} if resources else {}


def _metadata(request: Request, name: str, component: str, *, queued: bool = False) -> Manifest:
    queue = {"kueue.x-k8s.io/queue-name": request.queue} if queued and request.queue else {}
    return {
        "name": name,
        **({"namespace": request.namespace} if request.namespace else {}),
        "labels": {**labels(request, component), "app.kubernetes.io/managed-by": "convoy", **queue},
    }


def _pull_policy(request: Request) -> Manifest:
    return {"imagePullPolicy": request.image_pull_policy} if request.image_pull_policy else {}


def _container_security() -> Manifest:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
