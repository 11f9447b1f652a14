"""TF_CONFIG, SLURM variables and --worker_hosts: a cluster that agrees with what describes it, or a one-line refusal.

What describes it is read a second time here, by the documents of its makers.
"""

import copy
import json
import logging
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from convoy.core.cluster import HOSTS_VARIABLE, Cluster, find_cluster
from convoy.core.errors import UsageError
from tests.fuzz.runner import ANNOUNCED, FAULT, UNHARMED, Outcome, refused

_SLURM_FIRST, _SLURM_END = 20000, 32768  # ports
_HOSTS = (
    *"a b c n1.cluster n2 A 10.0.0.1 10.0.0.2 localhost 127.0.0.1 [::1] [fd00::2] ::1 [fd00:0::2] [ a,b".split(),
    *("http://a", "user@a", "", " a", "a b", "a\n", "\x1b[2J", "\u0430", "x" * 300),
)
_PORTS = ("2222", "2223", "2224", "2225", "0", "65535", "65536", "-1", "", "x", "02222", "\u0662", "1e3", " 2222")
_NUMBERS = ("0", "1", "2", "3", "4", "-1", "", " ", "x", "1.5", "1e3", "007", "\u0662", "9" * 30, "70000", "2 ", "+1")
_VALUES = (None, True, False, -1, 0, 1, 2, 1.5, 10**30, float("nan"), "0", "1", "", "x", "chief", [], {}, [[]])
_NODES = ("n0", "n0,n0", "n0,,n1", ",", "n[0-1]", "n[", " n0,n1", "\x1b[2Jn0,n1", "n0,n1,n2")
_COUNTS = ("2(x2)", "1(x3)", "2,,1", "", "0,2", "2(x99999999)", "(x2)", "1(x2),0", "x")
_DOCUMENTS = ("", " ", "{}", "[]", "null", "0", "[" * 100_000, '{"cluster":' * 5000, "x" * 10**6)


class Case(NamedTuple):
    """Variables, and the values of --worker_hosts and --worker_index."""

    environment: Mapping[str, str]
    hosts: tuple[str, ...] = ()
    index: int | None = None


class Subject:
    def __init__(self, folder: Path):
        self._announced = False
        handler = logging.Handler()
        handler.emit = self._note
        logging.getLogger("convoy").addHandler(handler)

    def _note(self, record: logging.LogRecord) -> None:
        self._announced = True

    def make(self, rng: random.Random, number: int) -> Case:
        environment: dict[str, str] = {}
        kind = number % 4
        if kind in (0, 3) and (kind == 0 or rng.random() < 0.5):
            environment["TF_CONFIG"] = _tf_config(rng)
        if kind in (1, 3) and (kind == 1 or rng.random() < 0.5):
            environment |= _slurm(rng)
        if kind >= 2 and rng.random() < 0.8:
            hosts = tuple(_address(rng) for _ in range(rng.choice((0, 1, 2, 2, 3, 3, 4))))
            return Case(environment, hosts, rng.choice((None, -1, 0, 0, 0, 1, 1, 2, 9)))
        return Case(environment)

    def check(self, case: Case) -> Outcome:
        self._announced = False
        try:
            found = find_cluster(case.environment, hosts=case.hosts, index=case.index)
        except UsageError as error:
            return refused(str(error), *case.environment, "--worker_hosts", "--worker_index", "SLURM")
        if fault := _fault(case, found):
            return Outcome(FAULT, f"{fault}: {found}")
        return Outcome(ANNOUNCED if self._announced else UNHARMED, detail="cluster" if found else "one process")


def _address(rng: random.Random) -> str:
    if rng.random() < 0.85:
        return f"{rng.choice(_HOSTS[:8])}:{rng.choice(_PORTS[:4])}"
    return f"{rng.choice(_HOSTS)}:{rng.choice(_PORTS)}"


def _tf_config(rng: random.Random) -> str:
    config: Any = {"cluster": {}, "task": {"type": "worker", "index": rng.choice((0, 0, 1, 2))}}
    if rng.random() < 0.4:
        config["cluster"]["chief"] = [_address(rng)]
        config["task"]["type"] = rng.choice(("chief", "worker"))
    config["cluster"]["worker"] = [_address(rng) for _ in range(rng.choice((1, 2, 2, 3, 3, 5)))]
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        container = rng.choice(list(_containers(config)))
        key = rng.choice([*container] if isinstance(container, dict) else range(len(container)))
        change = rng.randrange(4)
        if change == 0:
            del container[key]
        elif change == 1 and isinstance(container, dict):
            name = rng.choice(("evaluator", "ps", "Worker", "workers", "", "index", "environment", "cluster", "trial"))
            container[name] = container.pop(key) if rng.random() < 0.5 else copy.deepcopy(rng.choice(_VALUES))
        else:
            container[key] = copy.deepcopy(rng.choice(_VALUES))
        if not config:
            return "{}"
    text = json.dumps(config)
    match rng.randrange(12):
        case 0:
            place = rng.randrange(len(text))
            return text[:place] + rng.choice(("", '"', "{", "\x00", "\\", "é")) + text[place + rng.randrange(3) :]
        case 1:  # a key twice
            return text.replace('"worker": [', '"worker": ["z:1", "z:2"], "worker": [', 1)
        case 2:
            return text.replace('"task": {', '"task": {"index": 7, "type": "chief", ', 1)
        case 3:
            return rng.choice((*_DOCUMENTS, text * 2))
    return text


def _containers(value: Any) -> Iterator[dict | list]:
    if isinstance(value, dict | list) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _containers(inner)


def _slurm(rng: random.Random) -> dict[str, str]:
    counts = [rng.choice((1, 1, 2, 2, 3)) for _ in range(rng.choice((1, 2, 2, 3)))]
    hosts = [f"n{number}" for number in range(len(counts))]
    host = rng.randrange(len(counts))
    local = rng.randrange(counts[host])
    environment = {
        "SLURM_JOB_ID": str(rng.randrange(10**6)),
        "SLURM_STEP_NUM_TASKS": str(sum(counts)),
        "SLURM_STEP_NODELIST": ",".join(hosts),
        "SLURM_STEP_TASKS_PER_NODE": ",".join(map(str, counts)),
        "SLURM_PROCID": str(sum(counts[:host]) + local),
        "SLURM_NODEID": str(host),
        "SLURM_LOCALID": str(local),
    }
    if rng.random() < 0.3:
        environment[HOSTS_VARIABLE] = ",".join(hosts)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        name = rng.choice([*environment, "SLURM_DISTRIBUTION", "SLURM_DIST_PLANESIZE", "SLURM_PTY_PORT"])
        environment.setdefault("SLURM_TASK_PID", "1") if name == "SLURM_PTY_PORT" else None
        if rng.random() < 0.3:
            environment.pop(name, None)
        elif name == "SLURM_DISTRIBUTION":
            environment[name] = rng.choice(("block", "cyclic", "cyclic:block", "plane", "arbitrary", "", "x", "*"))
        elif name in ("SLURM_STEP_NODELIST", HOSTS_VARIABLE):
            environment[name] = rng.choice(_NODES)
        elif name == "SLURM_STEP_TASKS_PER_NODE":
            environment[name] = rng.choice(_COUNTS)
        else:
            environment[name] = rng.choice(_NUMBERS)
    return environment


def _fault(case: Case, found: Cluster | None) -> str:
    """Returns how a cluster contradicts what describes it, or ""."""
    environment = {name: value for name, value in case.environment.items() if value.strip()}
    if case.hosts:
        expected, index = list(case.hosts), case.index
    elif case.index is not None:
        return "--worker_index without --worker_hosts is accepted"
    elif (tf_config := _read_tf_config(environment.get("TF_CONFIG", "{}"))) is None:
        return "a damaged TF_CONFIG is accepted"
    elif tf_config[0]:
        expected, index = tf_config
    else:
        return _slurm_fault(environment, found)
    if index is None or not 0 <= index < len(expected):
        return f"index {index} of {len(expected)} workers is accepted"
    if wrong := [address for address in expected if not _is_address(address)]:
        return f"addresses {wrong} are accepted"
    if len(expected) == 1:
        return "a cluster of one" if found else ""
    if not found:
        return f"{expected} is ignored"
    if [_plain(address) for address in found.addresses] != [_plain(address) for address in expected]:
        return f"addresses differ from {expected}"
    if len(set(map(_plain, expected))) != len(expected):
        return "one address twice is accepted"
    return "" if found.index == index else f"index {index} expected"


def _read_tf_config(text: str) -> tuple[list[str], int] | None:
    """Returns addresses and own rank; no addresses if it describes no cluster, and None if it is damaged."""
    try:
        config = json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    cluster, task = config.get("cluster", {}), config.get("task", {})
    if not (isinstance(cluster, dict) and isinstance(task, dict)):
        return None
    if not cluster:
        return None if task else ([], 0)
    if not cluster.keys() <= {"chief", "worker"} or not all(isinstance(tasks, list) for tasks in cluster.values()):
        return None
    chief, workers = cluster.get("chief", []), cluster.get("worker", [])
    own = chief if task.get("type") == "chief" else workers
    index = task.get("index")
    if index is None and len(own) == 1:
        index = 0
    if isinstance(index, str) and re.fullmatch("[0-9]+", index):
        index = int(index)
    if len(chief) > 1 or type(index) is not int or task.get("type", "worker") not in ("chief", "worker"):
        return None
    if not 0 <= index < len(own):
        return None
    return [*chief, *workers], index + (0 if own is chief else len(chief))


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is repeated")
    return dict(pairs)


def _is_address(address: object) -> bool:
    match = re.fullmatch(r"(?:[a-zA-Z0-9._-]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})", str(address))
    return bool(match) and 0 < int(match[1]) < 65536


def _plain(address: str) -> tuple[str, int]:
    host, _, port = address.lower().rpartition(":")
    return {"127.0.0.1": "localhost", "[::1]": "localhost", "[fd00:0::2]": "[fd00::2]"}.get(host, host), int(port)


def _slurm_fault(environment: Mapping[str, str], found: Cluster | None) -> str:
    step = {"SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_PROCID"} <= environment.keys()
    if not step or environment["SLURM_STEP_NUM_TASKS"] in ("0", "1") or "SLURM_PTY_PORT" in environment:
        return "a cluster without a step of several tasks" if found and not step else ""
    if not found:
        return "a step of several tasks is ignored"
    counts = [
        int(count)
        for count, times in re.findall(r"([0-9]+)(?:\(x([0-9]+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"])
        for _ in range(int(times or 1))
    ]
    hosts = environment.get(HOSTS_VARIABLE, environment["SLURM_STEP_NODELIST"]).split(",")
    pairs = [address.rpartition(":") for address in found.addresses]
    if {host: sum(own == host for own, _, _ in pairs) for host in hosts} != dict(zip(hosts, counts, strict=True)):
        return f"{counts} tasks on {hosts} expected"
    if not all(re.fullmatch(r"[a-zA-Z0-9._-]+", host) for host in hosts) or len(set(hosts)) != len(hosts):
        return f"hosts {hosts} are accepted"
    if len(set(found.addresses)) != len(pairs) or len(pairs) != int(environment["SLURM_STEP_NUM_TASKS"]):
        return "not one address per task"
    if not all(_SLURM_FIRST <= int(port) < _SLURM_END for _, _, port in pairs):
        return "a port of others"
    node = hosts.index(pairs[found.index][0])
    if found.index != int(environment["SLURM_PROCID"]) or node != int(environment.get("SLURM_NODEID", node)):
        return "another task than SLURM_PROCID"
    return ""
