"""`convoy launch kubernetes`: its flags, and what it does with them."""

import shlex
import sys
from collections.abc import Sequence

from absl import flags as absl_flags

from convoy.launch.kubernetes.request import ENGINES, Request, checked
from convoy.launch.trainer_command import trains

REQUIRED = ("replicas", "image")

_MAX_RESTARTS = 20
_FIRST_FREE_PORT = 1024  # below it only root may listen
# Say how manifests reach the cluster, not what is in them.
_NOT_IN_HEADER = ("dry_run", "kubectl", "context")
_NEEDS = {
    "jobset": "Needs JobSet 0.10 or newer in the cluster: https://jobset.sigs.k8s.io/docs/installation",
    "tfjob": "Needs Kubeflow's Training Operator v1 in the cluster.",
}


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this engine."""
    flags.set_default("max_restarts", _MAX_RESTARTS)
    flags["max_restarts"].help = (
        "how many restarts the run may have in all; those after a pod was evicted or preempted are not counted. "
        "Training Operator (--engine=tfjob) only knows 0 and any number"
    )
    text, number = absl_flags.DEFINE_string, absl_flags.DEFINE_integer
    number("replicas", None, "kubernetes: number of workers, a pod each", lower_bound=1, flag_values=flags)
    number("gpus", 0, "kubernetes: GPUs of each worker", lower_bound=0, flag_values=flags)
    text(
        "image", None, "kubernetes: image with Convoy in it; launch/kubernetes/Dockerfile makes one", flag_values=flags
    )
    text("name", "", "kubernetes: the run's name in the cluster; from --workdir where left out", flag_values=flags)
    text("namespace", "", "kubernetes: namespace; kubectl's own where left out", flag_values=flags)
    text("pvc", "", "kubernetes: claim (ReadWriteMany) that holds --data and --workdir", flag_values=flags)
    text("mount", "/mnt", "kubernetes: where pods have the claim", flag_values=flags)
    text("cpus", "", "kubernetes: cores asked for each worker, such as 8 or 500m", flag_values=flags)
    text("memory", "", "kubernetes: memory asked for each worker, and its limit, such as 32Gi", flag_values=flags)
    text("shm_size", "1Gi", "kubernetes: size of /dev/shm, part of a worker's memory", flag_values=flags)
    absl_flags.DEFINE_multi_string(
        "node_selector",
        [],
        "kubernetes: label KEY=VALUE of the nodes that may run workers; repeatable",
        flag_values=flags,
    )
    absl_flags.DEFINE_multi_string(
        "tolerations",
        [],
        "kubernetes: taint KEY[=VALUE][:EFFECT] that workers tolerate, beside that of GPUs; repeatable",
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "engine",
        "jobset",
        ENGINES,
        "kubernetes: whose controller watches the pods; tfjob is Kubeflow's Training Operator v1",
        flag_values=flags,
    )
    text(
        "service_account",
        "",
        "kubernetes: service account of the pods; without it they get no token",
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "image_pull_policy",
        "",
        ("", "Always", "IfNotPresent", "Never"),
        "kubernetes: when nodes pull the image",
        flag_values=flags,
    )
    text("queue", "", "kubernetes: Kueue's queue for the run", flag_values=flags)
    absl_flags.DEFINE_bool("tensorboard", True, "kubernetes: run TensorBoard beside the workers", flag_values=flags)
    absl_flags.DEFINE_bool(
        "network_policy",
        True,
        "kubernetes: let nobody but the run's workers reach them, whose ports ask for no password",
        flag_values=flags,
    )
    number(
        "port",
        2222,
        "kubernetes: that workers listen on",
        lower_bound=_FIRST_FREE_PORT,
        upper_bound=65535,
        flag_values=flags,
    )
    absl_flags.DEFINE_bool("dry_run", False, "kubernetes: print the manifests and do nothing", flag_values=flags)
    text("kubectl", "kubectl", "kubernetes: the program", flag_values=flags)
    text("context", "", "kubernetes: kubectl's context, that is, which cluster", flag_values=flags)


def run(flags: absl_flags.FlagValues, command: Sequence[str]) -> int:
    """Renders the manifests for the trainer's `command` (`train` and its flags), and prints or applies them.

    Raises:
      UsageError: flags that Kubernetes would refuse, or kubectl does.
    """
    from convoy.launch.kubernetes.kubectl import Kubectl, delete_line, how_to_follow, was_there
    from convoy.launch.kubernetes.manifests import manifests
    from convoy.launch.kubernetes.yaml_text import to_yaml

    request = requested(flags, command)
    text = to_yaml(manifests(request), header=f"{typed(flags, command)}\n\n{_NEEDS[request.engine]}")
    if not request.pvc and trains(command):
        print(
            "convoy: without --pvc=CLAIM the run directory is the pods' own: nothing of it outlives a restart.",
            file=sys.stderr,
        )
    if flags.dry_run:
        print(text, end="")
        return 0
    kubectl = Kubectl(flags.kubectl, context=flags.context, namespace=request.namespace)
    answer = kubectl.apply(text)
    print(answer)
    if was_there(request, answer):
        print(
            f"convoy: {request.name} was there already. If it has ended, take it away and launch again; it "
            f"goes on from its newest checkpoint:\n  {delete_line(request, kubectl)}"
        )
        return 0
    workers = "1 worker" if request.replicas == 1 else f"{request.replicas} workers"
    print(f"convoy: {request.name} is in the cluster, with {workers}.\n{how_to_follow(request, kubectl)}")
    return 0


def requested(flags: absl_flags.FlagValues, command: Sequence[str]) -> Request:
    """Returns what the flags ask for, checked.

    Raises:
      UsageError: it cannot be.
    """
    names = [name for name in Request.__dataclass_fields__ if name != "command"]
    return checked(Request(command=tuple(command), **{name: flags[name].value for name in names}))


def typed(flags: absl_flags.FlagValues, command: Sequence[str]) -> str:
    """Returns the command line that gives these manifests."""
    words = ["convoy", "launch", "kubernetes"]
    for name in flags:
        flag = flags[name]
        if flag.present and name not in _NOT_IN_HEADER and name not in ("help", "helpfull", "helpshort", "helpxml"):
            words += flag.serialize().splitlines() if isinstance(flag.value, list) else [flag.serialize()]
    return shlex.join([*words, "--", *command])
