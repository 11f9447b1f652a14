"""What a training step on `R` devices should take: its computing, and a reduction that waits for wires.

    link = Link.of_gigabits(100, latency_seconds=20e-6)
    reduction = all_reduce_seconds(512, num_bytes=45e6, link=link)
    efficiency(compute_seconds=0.1, step_seconds(0.1, reduction))

The ring all-reduce sends the fewest bytes that any can, `2 (R - 1) / R` of the values, in `2 (R - 1)` messages one
after another (Patarasuk and Yuan 2009). Recursive halving and doubling sends as many bytes in `2 log2 R` messages
(Thakur, Rabenseifner and Gropp 2005). Time is messages times latency plus bytes over bandwidth; the additions count as
computing and are left out, as is whatever copying the software does.
"""

import math
from dataclasses import dataclass

SHAPES = ("ring", "halving")


@dataclass(frozen=True)
class Link:
    """What a device sends through.

    Attributes:
      bytes_per_second: in one direction; the other is free at the same time.
      latency_seconds: of a message of no length, from one process to another.
    """

    bytes_per_second: float
    latency_seconds: float

    @classmethod
    def of_gigabits(cls, gigabits_per_second: float, latency_seconds: float) -> "Link":
        """Returns a link whose bandwidth is given as links are sold."""
        return cls(gigabits_per_second * 1e9 / 8, latency_seconds)


def reduced_bytes(parameters: int, bytes_per_parameter: int) -> int:
    """Returns the size of all gradients: 4 bytes a parameter in float32, 2 in bfloat16."""
    return parameters * bytes_per_parameter


def all_reduce_bytes(devices: int, num_bytes: float) -> float:
    """Returns what each device sends, and receives, to sum `num_bytes` of values."""
    return 2 * (devices - 1) / devices * num_bytes


def all_reduce_messages(devices: int, shape: str = "ring") -> int:
    """Returns how many messages follow one another.

    Args:
      devices: 1 or more.
      shape: "ring", or "halving" for recursive halving and doubling, which adds a pair of messages where the number of
        devices is no power of two.
    """
    if shape == "ring":
        return 2 * (devices - 1)
    return 2 * math.ceil(math.log2(devices))


def all_reduce_seconds(devices: int, num_bytes: float, link: Link, shape: str = "ring") -> float:
    """Returns the time in which `devices` sum `num_bytes` of values; 0 for one."""
    wires = all_reduce_bytes(devices, num_bytes) / link.bytes_per_second
    return wires + all_reduce_messages(devices, shape) * link.latency_seconds


def step_seconds(compute_seconds: float, reduction_seconds: float, overlap: float = 0.0) -> float:
    """Returns the time of a step.

    Args:
      compute_seconds: forward, backward and update of one device's images.
      reduction_seconds: of the gradients.
      overlap: share of the computing during which the reduction may run, in [0, 1]. Convoy's step reduces once, after
        the last gradient: 0.
    """
    return compute_seconds + max(0.0, reduction_seconds - overlap * compute_seconds)


def efficiency(compute_seconds: float, step: float) -> float:
    """Returns weak scaling's efficiency: the images a second of R devices over R times those of one."""
    return compute_seconds / step


def measured_link(devices: int, num_bytes: float, reduction_seconds: float, tiny_seconds: float) -> Link:
    """Returns the link that explains two measurements.

    Args:
      devices: in both.
      num_bytes: of the large reduction.
      reduction_seconds: of the large reduction.
      tiny_seconds: of a reduction of a few bytes.
    """
    wires = max(reduction_seconds - tiny_seconds, 1e-9)
    return Link(all_reduce_bytes(devices, num_bytes) / wires, tiny_seconds / all_reduce_messages(devices))
