"""Parses and checks the flags `--devices` and `--strategy`, without TensorFlow."""

import re
from dataclasses import dataclass

from convoy.core.cluster import Cluster
from convoy.core.errors import UsageError, did_you_mean

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")


@dataclass(frozen=True)
class Devices:
    """Parsed value of `--devices`.

    Attributes:
      kind: `auto`, `cpu` or `gpu`.
      count: number of logical CPU devices, for `cpu`.
      gpus: GPU indices, for `gpu`; empty for all.
    """

    kind: str
    count: int = 1
    gpus: tuple[int, ...] = ()


def parse_devices(text: str) -> Devices:
    """Parses `auto`, `cpu`, `cpu:N`, `gpu` or `gpu:0,1`.

    Raises:
      UsageError: any other text.
    """
    match = re.fullmatch(r"(auto|cpu|gpu)(?::([0-9]{1,9}(?:,[0-9]{1,9})*))?", text)
    if not match or (match[1] == "auto" and match[2]) or (match[1] == "cpu" and "," in (match[2] or "")):
        raise UsageError(f"--devices={text}: pass auto, cpu:N (N logical devices) or gpu:0,1 (GPU indices).")
    kind, numbers = match[1], tuple(int(number) for number in (match[2] or "").split(",") if number)
    if kind == "cpu":
        count = numbers[0] if numbers else 1
        if not 1 <= count <= 64:
            raise UsageError(f"--devices={text}: pass 1 to 64 logical CPU devices.")
        return Devices("cpu", count=count)
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"--devices={text}: a GPU is listed twice. Pass each index once.")
    return Devices(kind, gpus=numbers)


def check_strategy(name: str, cluster: Cluster | None) -> None:
    """Raises a UsageError if the strategy is unknown or does not match the cluster."""
    if name not in STRATEGIES:
        raise UsageError(f"--strategy={name}{did_you_mean(name, STRATEGIES)}: pass one of {', '.join(STRATEGIES)}.")
    if cluster and name not in ("auto", "multi_worker"):
        raise UsageError(
            f"--strategy={name} with the {cluster.num_workers} workers of {cluster.source}: omit --strategy. "
            f"{cluster.how_to_train_alone}"
        )
    if name == "multi_worker" and not cluster:
        raise UsageError(
            "--strategy=multi_worker without a cluster: set TF_CONFIG, pass --worker_hosts and --worker_index, or "
            "start workers with `convoy launch local --processes=2 -- train ...`."
        )
