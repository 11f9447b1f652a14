"""Chooses the hosts of an attempt: as many of the reachable ones as the run's virtual replicas allow.

hosts = chosen_hosts([2, 2, 1], virtual_replicas=4, least=1)      # (0, 1): 4 devices divide 4, all 5 would not
"""

import functools
from collections.abc import Sequence


def chosen_hosts(devices: Sequence[int], *, virtual_replicas: int, least: int) -> tuple[int, ...] | None:
    """Returns the indices of the hosts that train, or None if no choice is possible.

    Prefers the largest number of devices that divides `virtual_replicas`, then the largest number of hosts with exactly
    that many devices in total, then the hosts that come first.

    Args:
      devices: number of devices of each host, in order of preference.
      virtual_replicas: virtual replicas of the run.
      least: minimum number of hosts, at least 1.
    """

    @functools.cache
    def pick(first: int, hosts: int, total: int) -> tuple[int, ...] | None:
        if hosts == 0:
            return () if total == 0 else None
        if first == len(devices) or total <= 0:
            return None
        others = pick(first + 1, hosts - 1, total - devices[first])
        return pick(first + 1, hosts, total) if others is None else (first, *others)

    totals = [total for total in range(virtual_replicas, 0, -1) if virtual_replicas % total == 0]
    for total in totals:
        for hosts in range(len(devices), least - 1, -1):
            if (chosen := pick(0, hosts, total)) is not None:
                return chosen
    return None
