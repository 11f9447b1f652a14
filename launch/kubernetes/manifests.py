"""A run in Kubernetes' words: functions from a checked `Request` to manifests, without side effects.

    text = to_yaml(manifests(request), header="...")

With `jobset` the workers are the pods of one Indexed Job in a JobSet, which restarts all of them together. What becomes
of a pod that ends badly:

| exit code                          | the Job fails with     | JobSet                                        |
|------------------------------------|------------------------|-----------------------------------------------|
| 1, 2, 3                            | PodFailurePolicy       | fails: another start would end the same       |
| any, of a pod that was disrupted   | PodFailurePolicy       | restarts, and does not count it               |
| any other: 137, 138, 143           | BackoffLimitExceeded   | restarts, `max_restarts` times                |

Disrupted is what the cluster itself took away: evicted, preempted, its spot node recalled. JobSet tells the two
PodFailurePolicies apart by the Job's message, which it can since version 0.10 (onJobFailureMessagePatterns).

The Job fails with the first pod that it sees failing. So a worker that ends with 138 only because it lost another waits
until the Job has acted on that one (`--secondary_exit_delay`), which takes it a second or two.

With `tfjob` (Training Operator v1) each worker that ends with 128 or more is started again by itself; since the others
end with 138 when they lose it, that too restarts all. Smaller exit codes end the run.
"""

import math
from collections.abc import Sequence
from typing import Any

from convoy.launch.kubernetes.request import Request, node_selector, tolerations

Manifest = dict[str, Any]

TENSORBOARD_PORT = 6006

# The user of our image is in no group that a volume knows: the pod joins this one, and volumes are given to it.
_GROUP = 10001
_LONGER_THAN_GRACE = 30  # seconds: the worker, and not the kubelet, ends a trainer that does not end
_SECONDARY_EXIT_DELAY = 10  # longer than a kubelet takes to tell that a container ended
_NEVER_RESTARTED = [1, 2, 3]
_JOBSET_CONTAINER = "worker"
_TFJOB_CONTAINER, _TFJOB_PORT = "tensorflow", "tfjob-port"  # by these names Training Operator finds them
_RESTART_LABEL = "jobset.sigs.k8s.io/restart-attempt"


def manifests(request: Request) -> list[Manifest]:
    """Returns all objects of a run, in the order in which they are best created."""
    objects = [network_policy(request)] if request.network_policy else []
    objects.append(jobset(request) if request.engine == "jobset" else tfjob(request))
    if request.tensorboard:
        objects += [tensorboard_deployment(request), tensorboard_service(request)]
    return objects


def jobset(request: Request) -> Manifest:
    """Returns the JobSet (jobset.x-k8s.io/v1alpha2) of a run's workers."""
    environment = [
        {"name": "CONVOY_WORKERS", "value": str(request.replicas)},
        {"name": "CONVOY_SUBDOMAIN", "value": request.name},
        {"name": "CONVOY_PORT", "value": str(request.port)},
        {
            "name": "CONVOY_RESTARTS",
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{_RESTART_LABEL}']"}},
        },
    ]
    job = {
        "completionMode": "Indexed",
        "completions": request.replicas,
        "parallelism": request.replicas,
        "backoffLimit": 0,  # a worker alone is of no use: it is JobSet that starts all of them again
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": _JOBSET_CONTAINER,
                        "operator": "In",
                        "values": _NEVER_RESTARTED,
                    },
                },
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {
            "metadata": {"labels": labels(request, "worker")},
            "spec": {
                "restartPolicy": "Never",
                **_worker_pod(request, _JOBSET_CONTAINER, "workers", environment),
            },
        },
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
                "rules": [  # the first that fits counts
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


def tfjob(request: Request) -> Manifest:
    """Returns the TFJob (kubeflow.org/v1) of a run's workers, of which number 0 is the chief."""
    worker = {
        "replicas": request.replicas,
        "restartPolicy": "ExitCode",
        "template": {
            "metadata": {"labels": labels(request, "worker")},
            "spec": _worker_pod(request, _TFJOB_CONTAINER, _TFJOB_PORT, []),
        },
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "TFJob",
        "metadata": _metadata(request, request.name, "worker", queued=True),
        "spec": {
            "runPolicy": {"backoffLimit": request.max_restarts, "cleanPodPolicy": "Running"},
            "tfReplicaSpecs": {"Worker": worker},
        },
    }


def network_policy(request: Request) -> Manifest:
    """Returns the NetworkPolicy by which only the run's workers reach each other: their ports ask for no password.

    It names no ports: NCCL listens on some that the system chooses.
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


def tensorboard_deployment(request: Request) -> Manifest:
    """Returns the Deployment of the run's TensorBoard, which may read the claim and not write it."""
    probe = {"httpGet": {"path": "/", "port": "http"}, "timeoutSeconds": 10}
    logdir = f"{request.workdir}/tensorboard"
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
    """Returns the Service by which the run's TensorBoard is found."""
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
    """Returns words that Kubernetes passes on as they were: it replaces `$(NAME)` in commands, and `$$` by `$`."""
    return [word.replace("$", "$$") for word in words]


def _worker_pod(request: Request, container: str, port: str, environment: list[Manifest]) -> Manifest:
    """Returns the specification of a worker's pod, but for `restartPolicy`."""
    delay = [f"--secondary_exit_delay={_SECONDARY_EXIT_DELAY}"] if request.engine == "jobset" else []
    launch = ["launch", "worker", f"--grace_seconds={request.grace_seconds:g}", *delay, "--"]
    return {
        **_pod(request),
        # Longer than the worker gives the trainer for saving.
        "terminationGracePeriodSeconds": math.ceil(request.grace_seconds) + _LONGER_THAN_GRACE,
        **_placement(request),
        "containers": [
            {
                "name": container,
                "image": request.image,
                **_pull_policy(request),
                "command": ["convoy"],
                "args": verbatim([*launch, *request.command]),
                **({"env": environment} if environment else {}),
                "ports": [{"name": port, "containerPort": request.port, "protocol": "TCP"}],
                **_resources(request),
                "terminationMessagePolicy": "FallbackToLogsOnError",  # `kubectl describe pod` shows the last lines
                "securityContext": _container_security(),
                "volumeMounts": [
                    *([{"name": "run", "mountPath": request.mount}] if request.pvc else []),
                    {"name": "shm", "mountPath": "/dev/shm"},
                ],
            }
        ],
        "volumes": [
            *([{"name": "run", "persistentVolumeClaim": {"claimName": request.pvc}}] if request.pvc else []),
            # What a container has there by itself is 64 MB: too little for NCCL and for the input pipeline's workers.
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": request.shm_size}},
        ],
    }


def _pod(request: Request) -> Manifest:
    account = {"serviceAccountName": request.service_account} if request.service_account else {}
    return {
        **(account or {"automountServiceAccountToken": False}),
        # A Service called `convoy` in the namespace would set CONVOY_PORT.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "fsGroup": _GROUP,
            "fsGroupChangePolicy": "OnRootMismatch",  # not file by file at every start
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _placement(request: Request) -> Manifest:
    placement: Manifest = {}
    if selector := node_selector(request):
        placement["nodeSelector"] = selector
    if tolerated := tolerations(request):
        placement["tolerations"] = tolerated
    if request.replicas > 1 and not request.gpus:
        # Workers without GPUs compete for a host's cores. Those with GPUs are better off on few hosts.
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
    requested = {"cpu": request.cpus, "memory": request.memory}
    limits = {
        "memory": request.memory,
        "nvidia.com/gpu": str(request.gpus or ""),
    }  # a limit of cores would only slow down
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
