"""The flags of `convoy launch kubernetes`, and its entry point."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from absl import flags as absl_flags

from convoy.core.cluster import DEFAULT_PORT, KEY_VARIABLE
from convoy.core.errors import UsageError
from convoy.core.flags import FlagDefiner
from convoy.core.text import counted
from convoy.launch.kubernetes.kubectl import Kubectl, already_exists, delete_line, follow_commands
from convoy.launch.kubernetes.manifests import manifests
from convoy.launch.kubernetes.request import AUTO, Request, checked
from convoy.launch.kubernetes.yaml_text import to_yaml
from convoy.launch.trainer_command import flag_value, key_variable, trains
from convoy.launch.user_files import user_files
from convoy.launch.worker_variables import define_env_flag

REQUIRED = ("replicas", "image")

_ENGINE = "jobset"
_MAX_RESTARTS = 20
_FIRST_FREE_PORT = 1024  # ports below are for root
# These do not change the manifests.
_NOT_IN_HEADER = ("dry_run", "kubectl", "context", "help", "helpfull", "helpshort", "helpxml")
_PREREQUISITE = "Needs JobSet 0.10 or newer in the cluster: https://jobset.sigs.k8s.io/docs/installation"
_SECRET = "The Secret is new each time: keep this out of version control."


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this engine."""
    define = FlagDefiner(flags)
    flags.set_default("max_restarts", _MAX_RESTARTS)
    restarts = flags["max_restarts"]
    restarts.help = "maximum number of restarts of the run; restarts after a pod was evicted or preempted do not count"
    define.integer("replicas", None, "kubernetes: number of workers, one pod per worker", lower_bound=1)
    define.integer("gpus", 0, "kubernetes: GPUs per worker", lower_bound=0)
    define.string("image", None, "kubernetes: container image with Convoy (see launch/kubernetes/Dockerfile)")
    define.string(
        "name",
        "",
        "kubernetes: name of the run in the cluster; by default that of the run directory and a digest of --pvc and "
        "--workdir, so that a run has the same name whenever it is launched, and no other run has it",
    )
    define.string("namespace", "", "kubernetes: namespace; kubectl's current one by default")
    define.string("pvc", "", "kubernetes: ReadWriteMany claim that contains --data and --workdir")
    define.string("mount", "/mnt", "kubernetes: path at which pods mount the claim")
    define.string(
        "cpus", AUTO, "kubernetes: CPU request per worker, such as 8 or 500m; auto is 2 per GPU, or 2; empty for none"
    )
    define.string(
        "memory",
        AUTO,
        "kubernetes: memory request and limit per worker, such as 32Gi; auto requests 8Gi per GPU, or 4Gi, without a "
        "limit; empty for none",
    )
    define.string("shm_size", "1Gi", "kubernetes: size of /dev/shm; counts as memory of the worker")
    define.multi_string(
        "node_selector", [], "kubernetes: label KEY=VALUE that a node must have to run workers; repeatable"
    )
    define.multi_string(
        "tolerations",
        [],
        "kubernetes: taint `KEY[=VALUE][:EFFECT]` that workers tolerate, in addition to nvidia.com/gpu; repeatable",
    )
    define.string("engine", _ENGINE, f"kubernetes: controller that watches the pods; only {_ENGINE}")
    define.string("service_account", "", "kubernetes: service account of the pods; no token by default")
    define.enum("image_pull_policy", "", ("", "Always", "IfNotPresent", "Never"), "kubernetes: image pull policy")
    define.multi_string(
        "image_pull_secrets", [], "kubernetes: secret with the login of the image's registry; repeatable"
    )
    define.string("priority_class", "", "kubernetes: priority class of the workers")
    define_env_flag(flags, "kubernetes", kept_in="the pods' specification")
    define.string("queue", "", "kubernetes: Kueue queue of the run")
    define.bool("tensorboard", True, "kubernetes: also run TensorBoard")
    define.bool(
        "network_policy",
        True,
        "kubernetes: only the run's workers may connect to its workers, whose ports are unauthenticated",
    )
    define.integer(
        "port", DEFAULT_PORT, "kubernetes: port that workers listen on", lower_bound=_FIRST_FREE_PORT, upper_bound=65535
    )
    define.bool("dry_run", False, "kubernetes: print the manifests and exit")
    define.string("kubectl", "kubectl", "kubernetes: name or path of kubectl")
    define.string("context", "", "kubernetes: kubectl context, which selects the cluster")


def run(flags: absl_flags.FlagValues, command: Sequence[str]) -> int:
    """Renders the manifests for the trainer's `command` (`train` and its flags), then prints or applies them.

    Returns:
      The exit code.

    Raises:
      UsageError: invalid flags, or an error from kubectl.
    """
    request = requested(flags, command)
    text = to_yaml(manifests(request), header=f"{command_line(flags, command)}\n\n{_PREREQUISITE}\n{_SECRET}")
    if not request.pvc and trains(command) and not flag_value(command, "backup"):
        print(
            "convoy: warning: no --pvc: the run directory is inside the pods and is lost at every restart. "
            "Pass --pvc=CLAIM, or --backup=s3://bucket/run after `-- train`.",
            file=sys.stderr,
        )
    for name in request.code.missing:
        if request.pvc and PurePosixPath(name).is_relative_to(request.mount):
            continue
        print(
            f"convoy: warning: {name} does not exist here and is not sent: the pods need it in --image or on --pvc.",
            file=sys.stderr,
        )
    if flags.dry_run:
        print(text, end="")
        return 0
    kubectl = Kubectl(flags.kubectl, context=flags.context, namespace=request.namespace)
    output = kubectl.apply(text, delete=delete_line(request, kubectl))
    print(output)
    if already_exists(request, output):
        print(
            f"convoy: {request.name} already exists, nothing was started. If it has ended, delete it and launch again "
            f"to resume from its latest checkpoint:\n  {delete_line(request, kubectl)}"
        )
        return 0
    print(
        f"convoy: {request.name}: created, {counted(request.replicas, 'worker')}.\n{follow_commands(request, kubectl)}"
    )
    return 0


def requested(flags: absl_flags.FlagValues, command: Sequence[str]) -> Request:
    """Returns the validated request that the flags describe.

    Raises:
      UsageError: an invalid flag.
    """
    if flags.engine != _ENGINE:
        if flags.engine == "tfjob":
            raise UsageError(
                "--engine=tfjob: this engine was removed with Kubeflow's Training Operator v1. Leave out --engine to "
                "use JobSet, or launch on a Ray cluster (KubeRay) with `convoy launch ray`."
            )
        raise UsageError(f"--engine={flags.engine}: this engine does not exist. Leave out --engine to use {_ENGINE}.")
    values: dict[str, Any] = {name: flags[name].value for name in Request.__dataclass_fields__ if name in flags}
    values |= {"key": key_variable()[KEY_VARIABLE], "code": user_files(command)}
    return checked(Request(command=tuple(command), **values))


def command_line(flags: absl_flags.FlagValues, command: Sequence[str]) -> str:
    """Returns the command line that renders these manifests."""
    words = ["convoy", "launch", "kubernetes"]
    for name in flags:
        flag = flags[name]
        if flag.present and name not in _NOT_IN_HEADER:
            words += flag.serialize().splitlines() if isinstance(flag.value, list) else [flag.serialize()]
    return shlex.join([*words, "--", *command])
