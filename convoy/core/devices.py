"""The flags `--devices` and `--strategy`, parsed and checked without TensorFlow."""

import re
from dataclasses import dataclass

from convoy.core.cluster import Cluster
from convoy.core.errors import UsageError, did_you_mean

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")


@dataclass(frozen=True)
class Devices:
    """What `--devices` asked for.

    Attributes:
      kind: `auto`, `cpu` or `gpu`.
      count: logical CPU devices, for `cpu`.
      gpus: which GPUs, for `gpu`; all where empty.
    """

    kind: str
    count: int = 1
    gpus: tuple[int, ...] = ()


def parse_devices(text: str) -> Devices:
    """Returns what `auto`, `cpu`, `cpu:N`, `gpu` or `gpu:0,1` asks for.

    Raises:
      UsageError: it is none of these.
    """
    match = re.fullmatch(r"(auto|cpu|gpu)(?::(\d+(?:,\d+)*))?", text)
    if not match or (match[1] == "auto" and match[2]) or (match[1] == "cpu" and "," in (match[2] or "")):
        raise UsageError(f"--devices={text}: give auto, cpu:N (N logical devices) or gpu:0,1 (which GPUs).")
    kind, numbers = match[1], tuple(int(number) for number in (match[2] or "").split(",") if number)
    if kind == "cpu":
        count = numbers[0] if numbers else 1
        if not 1 <= count <= 64:
            raise UsageError(f"--devices={text}: give 1 to 64 logical CPU devices.")
        return Devices("cpu", count=count)
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"--devices={text}: a GPU is named twice.")
    return Devices(kind, gpus=numbers)


def check_strategy(name: str, cluster: Cluster | None) -> None:
    """Raises a UsageError where the strategy is unknown, or does not fit the cluster."""
    if name not in STRATEGIES:
        raise UsageError(f"--strategy={name}{did_you_mean(name, STRATEGIES)}: give one of {', '.join(STRATEGIES)}.")
    if cluster and name not in ("auto", "multi_worker"):
        raise UsageError(
            f"--strategy={name} with the {cluster.num_workers} workers of {cluster.source}: "
            "leave --strategy out, or unset the cluster."
        )
    if name == "multi_worker" and not cluster:
        raise UsageError(
            "--strategy=multi_worker without a cluster: set TF_CONFIG, give --worker_hosts and --worker_index, or "
            "start it with `convoy launch local --processes=2 -- train ...`."
        )
