"""What is to run in the cluster, checked before anything is sent there: a name that is refused, a folder that is on no
volume, or a quantity that is none would otherwise be told much later, and far from whoever typed it.

    request = checked(Request(engine="jobset", command=["train", ...], replicas=2, image="registry/convoy:gpu", ...))
"""

import math
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from convoy.core.errors import UsageError
from convoy.launch.trainer_command import flag_value, trains

ENGINES = ("jobset", "tfjob")

_LONGEST_LABEL = 63  # of DNS, and of a label's value
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035, what JobSet and Training Operator demand
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|[KMGTPE]i|[MGTPE])?")
_LABEL_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_LABEL = re.compile(rf"(?P<key>([-a-z0-9.]+/)?{_LABEL_NAME})=(?P<value>({_LABEL_NAME})?)")
_TOLERATION = re.compile(
    rf"(?P<key>([-a-z0-9.]+/)?{_LABEL_NAME})(=(?P<value>({_LABEL_NAME})?))?"
    r"(:(?P<effect>NoSchedule|PreferNoSchedule|NoExecute))?"
)


@dataclass(frozen=True)
class Request:
    """What to run and where.

    Attributes:
      engine: `jobset` or `tfjob`: whose controller watches the pods.
      command: the trainer's: `train` and its flags.
      replicas: number of workers, a pod each.
      image: that holds Convoy.
      name: of the run in the cluster; from the run directory where empty.
      namespace: empty for kubectl's own.
      gpus: of each worker.
      pvc: the claim that holds the data and the run directory; empty where the image or the cluster brings them.
      mount: where the claim is mounted.
      cpus, memory: Kubernetes quantities, empty where none is asked for.
      shm_size: of /dev/shm, a quantity too.
      node_selector: `KEY=VALUE` each, of nodes that may run workers.
      tolerations: `KEY[=VALUE][:EFFECT]` each, of taints that workers may run beside.
      service_account: empty for the namespace's default, without its token.
      image_pull_policy: empty for Kubernetes' choice.
      queue: of Kueue, empty for none.
      port: that workers listen on.
      max_restarts: over the life of the run.
      grace_seconds: that a worker has for saving.
      tensorboard: whether one runs beside the workers.
      network_policy: whether only workers may reach workers.
    """

    engine: str
    command: Sequence[str]
    replicas: int
    image: str
    name: str = ""
    namespace: str = ""
    gpus: int = 0
    pvc: str = ""
    mount: str = "/mnt"
    cpus: str = ""
    memory: str = ""
    shm_size: str = "1Gi"
    node_selector: Sequence[str] = field(default_factory=tuple)
    tolerations: Sequence[str] = field(default_factory=tuple)
    service_account: str = ""
    image_pull_policy: str = ""
    queue: str = ""
    port: int = 2222
    max_restarts: int = 20
    grace_seconds: float = 60.0
    tensorboard: bool = True
    network_policy: bool = True

    @property
    def workdir(self) -> str:
        """The run directory, as the pods see it."""
        return posixpath.normpath(flag_value(self.command, "workdir"))


def checked(request: Request) -> Request:
    """Returns the request with what follows from the rest filled in: its name, and no TensorBoard where none can be.

    Raises:
      UsageError: something that Kubernetes would refuse, or that could not train.
    """
    longest = _longest_name(request)
    request = replace(
        request,
        name=request.name or _name_of(request, longest),
        mount=posixpath.normpath(request.mount) if request.mount else "",
        tensorboard=request.tensorboard and bool(request.pvc) and trains(request.command),
    )
    if not _NAME.fullmatch(request.name) or len(request.name) > longest:
        raise UsageError(
            f"--name={request.name}: give up to {longest} small letters, digits and dashes, a letter first: pods' host "
            f"names are made of it. `{_name_from(request.name, longest)}` would do."
        )
    if not re.fullmatch(r"\S+", request.image):
        raise UsageError(f"--image={request.image!r} is no image. Example: --image=registry/convoy:gpu.")
    for flag in ("namespace", "service_account", "pvc", "queue"):
        value = getattr(request, flag)
        is_label = flag in ("namespace", "queue")
        most = _LONGEST_LABEL if is_label else 253
        if value and (not _SUBDOMAIN.fullmatch(value) or len(value) > most or (is_label and "." in value)):
            raise UsageError(f"--{flag}={value} is no name in Kubernetes: small letters, digits and dashes make one.")
    for flag, example in (("cpus", "8"), ("memory", "32Gi"), ("shm_size", "1Gi")):
        value = getattr(request, flag)
        if not _QUANTITY.fullmatch(value) and (value or flag == "shm_size"):
            raise UsageError(f"--{flag}={value} is no quantity in Kubernetes. Example: --{flag}={example}.")
    if not math.isfinite(request.grace_seconds):
        raise UsageError(f"--grace_seconds={request.grace_seconds}: a pod is killed some day. Example: 60.")
    node_selector(request)
    tolerations(request)
    _check_folders(request)
    return request


def node_selector(request: Request) -> dict[str, str]:
    """Returns the labels that a node must have.

    Raises:
      UsageError: one is not written as a label.
    """
    labels = {}
    for text in request.node_selector:
        match = _LABEL.fullmatch(text)
        if not match:
            raise UsageError(
                f"--node_selector={text}: give a node's label as KEY=VALUE, and the flag once for each. "
                "`kubectl get nodes --show-labels` shows them."
            )
        labels[match["key"]] = match["value"]
    return labels


def tolerations(request: Request) -> list[dict[str, str]]:
    """Returns the taints that the workers tolerate: those asked for, and the usual one of nodes with GPUs.

    Raises:
      UsageError: one is not written as a taint.
    """
    found = []
    if request.gpus:
        found.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    for text in request.tolerations:
        match = _TOLERATION.fullmatch(text)
        if not match:
            raise UsageError(
                f"--tolerations={text}: give a taint as KEY, KEY=VALUE or KEY=VALUE:EFFECT (NoSchedule, "
                "PreferNoSchedule or NoExecute), and the flag once for each."
            )
        toleration = {"key": match["key"], "operator": "Exists" if match["value"] is None else "Equal"}
        toleration |= {} if match["value"] is None else {"value": match["value"]}
        found.append(toleration | ({"effect": match["effect"]} if match["effect"] else {}))
    return found


def _check_folders(request: Request) -> None:
    folders = {name: flag_value(request.command, name) for name in ("data", "workdir")}
    if not folders["data"] and trains(request.command):
        raise UsageError("--data must be given after `-- train`: the folder of TFRecords, as the pods see it.")
    if not request.pvc:
        return
    if not request.mount.startswith("/") or request.mount == "/" or ":" in request.mount:
        raise UsageError(f"--mount={request.mount}: give the folder where --pvc={request.pvc} is mounted: /PATH.")
    for name, folder in folders.items():
        if folder and not PurePosixPath(posixpath.normpath(folder)).is_relative_to(request.mount):
            raise UsageError(
                f"--{name}={folder} is not on --pvc={request.pvc}, which pods have at --mount={request.mount}: all "
                f"workers read it there, in every attempt. Give {request.mount}/..., or another --mount."
            )


def _longest_name(request: Request) -> int:
    """Returns how long a run's name may be for all names made of it to be labels of DNS."""
    last = request.replicas - 1
    # Kubernetes adds five letters to the name of an Indexed Job's pod, and JobSet's webhook counts them in.
    pod = f"-worker-0-{last}-abcde" if request.engine == "jobset" else f"-worker-{last}"
    return _LONGEST_LABEL - max(len(pod), len("-tensorboard"))


def _name_of(request: Request, longest: int) -> str:
    name = PurePosixPath(request.workdir).name
    return _name_from(name if trains(request.command) else f"{name[: longest - 7]}-{request.command[0]}", longest)


def _name_from(text: str, longest: int) -> str:
    """Returns the name that is most like a text."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    name = name if name[:1].isalpha() else f"run-{name}"
    return name[:longest].strip("-")
