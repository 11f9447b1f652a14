"""Which of the hosts that answer train: as many as the run's virtual replicas allow.

hosts = chosen_hosts([2, 2, 1], virtual_replicas=4, least=1)      # (0, 1): three hosts have 5 devices, these have 4
"""

import functools
from collections.abc import Sequence


def chosen_hosts(devices: Sequence[int], *, virtual_replicas: int, least: int) -> tuple[int, ...] | None:
    """Returns the places of the hosts that train, or None where no choice fits.

    The most devices that divide `virtual_replicas`, on the most hosts that have just so many, the first of them.

    Args:
      devices: of each host, in the order of preference.
      virtual_replicas: V of the run.
      least: number of hosts, 1 or more.
    """

    @functools.cache
    def pick(first: int, hosts: int, wanted: int) -> tuple[int, ...] | None:
        if hosts == 0:
            return () if wanted == 0 else None
        if first == len(devices) or wanted <= 0:
            return None
        others = pick(first + 1, hosts - 1, wanted - devices[first])
        return pick(first + 1, hosts, wanted) if others is None else (first, *others)

    totals = [total for total in range(virtual_replicas, 0, -1) if virtual_replicas % total == 0]
    for total in totals:
        for hosts in range(len(devices), least - 1, -1):
            if (chosen := pick(0, hosts, total)) is not None:
                return chosen
    return None
