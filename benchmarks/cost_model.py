"""Cost model of a training step on `R` devices: computation plus a reduction over the network.

    link = Link.of_gigabits(100, latency_seconds=20e-6)
    reduction = all_reduce_seconds(512, num_bytes=45e6, link=link)
    efficiency(compute_seconds=0.1, step_seconds(0.1, reduction))

A ring all-reduce sends the minimum number of bytes, `2 (R - 1) / R` of the values, in `2 (R - 1)` successive messages
(Patarasuk and Yuan 2009). Recursive halving and doubling sends as many bytes in `2 log2 R` messages (Thakur,
Rabenseifner and Gropp 2005). Time is messages times latency plus bytes over bandwidth; additions count as computation,
and copies made by the software are not included.
"""

import math
from dataclasses import dataclass

SHAPES = ("ring", "halving")


@dataclass(frozen=True)
class Link:
    """The network link of a device.

    Attributes:
      bytes_per_second: bandwidth in one direction; the other direction is independent.
      latency_seconds: time of an empty message from one process to another.
    """

    bytes_per_second: float
    latency_seconds: float

    @classmethod
    def of_gigabits(cls, gigabits_per_second: float, latency_seconds: float) -> "Link":
        """Returns a link with a bandwidth in Gbit/s."""
        return cls(gigabits_per_second * 1e9 / 8, latency_seconds)


def reduced_bytes(parameters: int, bytes_per_parameter: int) -> int:
    """Returns the size of all gradients in bytes: 4 per parameter in float32, 2 in bfloat16."""
    return parameters * bytes_per_parameter


def all_reduce_bytes(devices: int, num_bytes: float) -> float:
    """Returns the bytes that each device sends, and receives, to sum `num_bytes` of values."""
    return 2 * (devices - 1) / devices * num_bytes


def all_reduce_messages(devices: int, shape: str = "ring") -> int:
    """Returns the number of successive messages.

    Args:
      devices: 1 or more.
      shape: "ring", or "halving" for recursive halving and doubling, which needs two more messages if the number of
        devices is not a power of two.
    """
    if shape == "ring":
        return 2 * (devices - 1)
    return 2 * math.ceil(math.log2(devices))


def all_reduce_seconds(devices: int, num_bytes: float, link: Link, shape: str = "ring") -> float:
    """Returns the seconds in which `devices` sum `num_bytes` of values; 0 for one device."""
    wires = all_reduce_bytes(devices, num_bytes) / link.bytes_per_second
    return wires + all_reduce_messages(devices, shape) * link.latency_seconds


def step_seconds(compute_seconds: float, reduction_seconds: float, overlap: float = 0.0) -> float:
    """Returns the seconds of a step.

    Args:
      compute_seconds: forward and backward pass and update on the images of one device.
      reduction_seconds: reduction of the gradients.
      overlap: fraction of the computation during which the reduction may run, in [0, 1]. 0 for Convoy, which reduces
        once, after the last gradient.
    """
    return compute_seconds + max(0.0, reduction_seconds - overlap * compute_seconds)


def efficiency(compute_seconds: float, step: float) -> float:
    """Returns the weak scaling efficiency: throughput of R devices divided by R times that of one."""
    return compute_seconds / step


def measured_link(devices: int, num_bytes: float, reduction_seconds: float, tiny_seconds: float) -> Link:
    """Returns the link that explains two measurements.

    Args:
      devices: number of devices in both.
      num_bytes: size of the large reduction.
      reduction_seconds: time of the large reduction.
      tiny_seconds: time of a reduction of a few bytes.
    """
    wires = max(reduction_seconds - tiny_seconds, 1e-9)
    return Link(all_reduce_bytes(devices, num_bytes) / wires, tiny_seconds / all_reduce_messages(devices))
