"""The validated description of a run in the cluster. Invalid names, paths and quantities fail here, before kubectl.

request = checked(Request(command=["train", ...], replicas=2, image="registry/convoy:gpu", ...))
"""

import hashlib
import json
import math
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from convoy.core.cluster import DEFAULT_PORT
from convoy.core.errors import UsageError
from convoy.core.registry import is_code
from convoy.core.remote import is_remote
from convoy.launch.trainer_command import flag_value, trains
from convoy.launch.user_files import UserFiles
from convoy.launch.worker_variables import worker_variables

AUTO = "auto"
_LONGEST_LABEL = 63  # of a DNS label and of a Kubernetes label value
_LONGEST_SUBDOMAIN = 253
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035, as JobSet requires
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|[KMGTPE]i|[MGTPE])?")
_LABEL_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_LABEL = re.compile(rf"(?P<key>([-a-z0-9.]+/)?{_LABEL_NAME})=(?P<value>({_LABEL_NAME})?)")
_TOLERATION = re.compile(
    rf"(?P<key>([-a-z0-9.]+/)?{_LABEL_NAME})(=(?P<value>({_LABEL_NAME})?))?"
    r"(:(?P<effect>NoSchedule|PreferNoSchedule|NoExecute))?"
)
# Requests per GPU, or of a worker without: enough to train, and small enough for nodes with one GPU.
_AUTO_CPUS, _AUTO_GIB_PER_GPU, _AUTO_GIB = 2, 8, 4
_DIGEST_LENGTH = 6  # of the end of a default name
# `kubectl apply` also stores an object, as JSON, in an annotation: at most 256 KiB, less than the 1 MiB of a ConfigMap.
_MOST_CODE_BYTES = 200_000


@dataclass(frozen=True)
class Request:
    """What to run in the cluster: the trainer's command, and the flags of the same names, explained in `engine.py`.

    Empty strings: the cluster's default, or no such object. `code`: the user's files, which the pods get. `key`: see
    `trainer_command.key_variable`.
    """

    command: Sequence[str]
    replicas: int
    image: str
    name: str = ""
    namespace: str = ""
    gpus: int = 0
    pvc: str = ""
    mount: str = "/mnt"
    cpus: str = AUTO
    memory: str = AUTO
    shm_size: str = "1Gi"
    node_selector: Sequence[str] = field(default_factory=tuple)
    tolerations: Sequence[str] = field(default_factory=tuple)
    env: Sequence[str] = field(default_factory=tuple)
    service_account: str = ""
    image_pull_policy: str = ""
    image_pull_secrets: Sequence[str] = field(default_factory=tuple)
    priority_class: str = ""
    queue: str = ""
    port: int = DEFAULT_PORT
    max_restarts: int = 20
    grace_seconds: float = 60.0
    tensorboard: bool = True
    network_policy: bool = True
    code: UserFiles = field(default_factory=UserFiles)
    key: str = field(default="", repr=False)

    @property
    def workdir(self) -> str:
        """The path of the run directory inside the pods."""
        return posixpath.normpath(flag_value(self.command, "workdir") or "")


def checked(request: Request) -> Request:
    """Returns the validated request with its name filled in, and without TensorBoard if there is nothing to show.

    Raises:
      UsageError: a value that Kubernetes would reject, or with which training could not work.
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
            f"--name={request.name} is not a valid host name for pods. Use at most {longest} lowercase letters, digits "
            f"and dashes, starting with a letter, such as --name={_name_from(request.name, longest)}."
        )
    if not re.fullmatch(r"\S+", request.image):
        raise UsageError(f"--image={request.image!r} is not an image name. Example: --image=registry/convoy:gpu.")
    names = [(flag, getattr(request, flag)) for flag in ("namespace", "service_account", "pvc", "queue")]
    names += [("priority_class", request.priority_class)]
    names += [("image_pull_secrets", name or "''") for name in request.image_pull_secrets]
    for flag, value in names:
        is_label = flag in ("namespace", "queue")
        limit = _LONGEST_LABEL if is_label else _LONGEST_SUBDOMAIN
        if value and (not _SUBDOMAIN.fullmatch(value) or len(value) > limit or (is_label and "." in value)):
            raise UsageError(
                f"--{flag}={value} is not a Kubernetes name. Use at most {limit} lowercase letters, digits and dashes."
            )
    for flag, example in (("cpus", "8"), ("memory", "32Gi"), ("shm_size", "1Gi")):
        value = getattr(request, flag)
        if not _QUANTITY.fullmatch(value) and (flag == "shm_size" or value not in ("", AUTO)):
            raise UsageError(f"--{flag}={value} is not a Kubernetes quantity. Example: --{flag}={example}.")
    if not math.isfinite(request.grace_seconds):
        raise UsageError(f"--grace_seconds={request.grace_seconds} is not finite. Example: --grace_seconds=60.")
    node_selector(request)
    tolerations(request)
    worker_variables(request.env)
    _check_folders(request)
    if (size := sum(map(len, request.code.content.values()))) > _MOST_CODE_BYTES:
        raise UsageError(
            f"{', '.join(request.code.names)} and what they import are {size:,} bytes, more than the "
            f"{_MOST_CODE_BYTES:,} that can be sent to pods. Add them to --image, or put them on --pvc and pass their "
            "paths there."
        )
    return request


def cpus(request: Request) -> str:
    """Returns how many cores a worker requests; empty for none."""
    return str(_AUTO_CPUS * max(1, request.gpus)) if request.cpus == AUTO else request.cpus


def memory(request: Request) -> str:
    """Returns how much memory a worker requests; empty for none."""
    return f"{_AUTO_GIB_PER_GPU * request.gpus or _AUTO_GIB}Gi" if request.memory == AUTO else request.memory


def node_selector(request: Request) -> dict[str, str]:
    """Returns the labels that a node must have, by key.

    Raises:
      UsageError: not KEY=VALUE.
    """
    labels = {}
    for text in request.node_selector:
        match = _LABEL.fullmatch(text)
        if not match:
            raise UsageError(
                f"--node_selector={text} is not KEY=VALUE. Pass one label per flag; "
                "`kubectl get nodes --show-labels` lists them."
            )
        labels[match["key"]] = match["value"]
    return labels


def tolerations(request: Request) -> list[dict[str, str]]:
    """Returns the workers' tolerations: the requested ones, and nvidia.com/gpu if they use GPUs.

    Raises:
      UsageError: not KEY[=VALUE][:EFFECT].
    """
    found = []
    if request.gpus:
        found.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    for text in request.tolerations:
        match = _TOLERATION.fullmatch(text)
        if not match:
            raise UsageError(
                f"--tolerations={text} is not KEY[=VALUE][:EFFECT], with EFFECT one of NoSchedule, PreferNoSchedule, "
                "NoExecute. Pass one taint per flag."
            )
        toleration = {"key": match["key"], "operator": "Exists" if match["value"] is None else "Equal"}
        toleration |= {} if match["value"] is None else {"value": match["value"]}
        found.append(toleration | ({"effect": match["effect"]} if match["effect"] else {}))
    return found


def _check_folders(request: Request) -> None:
    folders = {name: flag_value(request.command, name) for name in ("data", "workdir")}
    if not folders["data"] and trains(request.command):
        raise UsageError("--data is missing. Pass --data=DIR after `-- train`: the dataset's path inside the pods.")
    if not request.pvc:
        return
    if not request.mount.startswith("/") or request.mount == "/" or ":" in request.mount:
        raise UsageError(
            f"--mount={request.mount} is not an absolute path below /. Pass the path at which pods mount "
            f"--pvc={request.pvc}, such as --mount=/mnt."
        )
    for name, folder in folders.items():
        if not folder or is_code(folder) or (name == "data" and is_remote(folder)):
            continue
        if not PurePosixPath(posixpath.normpath(folder)).is_relative_to(request.mount):
            raise UsageError(
                f"--{name}={folder} is not on --pvc={request.pvc}, which pods mount at --mount={request.mount}. "
                f"Pass --{name}={request.mount}/..., or another --mount."
            )


def _longest_name(request: Request) -> int:
    """Returns the longest name for which all names derived from it are valid DNS labels."""
    # Kubernetes appends five letters to the name of an Indexed Job's pod, and JobSet's webhook counts them.
    pod = f"-worker-0-{request.replicas - 1}-abcde"
    return _LONGEST_LABEL - max(len(pod), len("-tensorboard"))


def _name_of(request: Request, longest: int) -> str:
    """Returns a name after RUN, whose end tells runs in folders of the same name apart."""
    # Without a claim, RUN is in the pods and nothing can be resumed: only the same command is the same run.
    run = [request.pvc, request.workdir] if request.pvc else [request.image, *request.command]
    end = hashlib.sha256(json.dumps(run).encode()).hexdigest()[:_DIGEST_LENGTH]
    end = f"-{end}" if trains(request.command) else f"-{request.command[0]}-{end}"
    return _name_from(PurePosixPath(request.workdir).name, longest - len(end)) + end


def _name_from(text: str, longest: int) -> str:
    """Returns a valid name that resembles `text`."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    name = name if name[:1].isalpha() else f"run-{name}"
    return name[:longest].strip("-")
