"""The files for managed clouds: valid YAML, whose commands have existing flags and ask for what the file provides.

Their services validate more of them; docs/guides/managed-clouds.md lists what was checked by hand.
"""

import re
import shlex

import pytest
import yaml

from convoy.core.cluster import find_cluster
from convoy.launch.trainer_command import flag_value
from tests.docs.test_commands import faults_of
from tests.processes import REPOSITORY

FOLDER = REPOSITORY / "examples" / "clouds"
FILES = sorted(FOLDER.glob("*.yaml"))


def content(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))


def shell_commands(name):
    """Returns the commands of a file: of its comment, and those that its service runs."""
    text = (FOLDER / f"{name}.yaml").read_text("utf-8")
    lines = re.sub(r"\\\n", "", content(name).get("run", "")).splitlines() if name == "skypilot" else []
    if name == "rayjob":
        lines.append(content(name)["spec"]["entrypoint"])
    if name == "vertex":
        pools = content(name)["workerPoolSpecs"]
        lines += [shlex.join(pool["containerSpec"]["command"] + pool["containerSpec"]["args"]) for pool in pools]
    if name == "parallelcluster":
        lines.append(
            " ".join(line.strip("# ") for line in text.splitlines() if re.match("#.*(convoy launch| -- )", line))
        )
    return [re.sub(r"\S*/convoy ", "convoy ", line) for line in lines if "convoy " in line]


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_commands_have_existing_flags(name):
    commands = shell_commands(name)
    assert commands
    for command in commands:
        assert "convoy launch " in command and " -- train " in command
        assert not list(faults_of(command))


def test_ray_job_reserves_what_its_worker_pods_have():
    spec = content("rayjob")["spec"]
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    words = shlex.split(spec["entrypoint"])
    assert int(flag_value(words, "nodes")) == group["replicas"] == group["minReplicas"]
    assert flag_value(words, "gpus_per_node") == container["resources"]["limits"]["nvidia.com/gpu"]


def test_slurm_command_fits_the_cluster():
    (command,) = shell_commands("parallelcluster")
    (queue,) = content("parallelcluster")["Scheduling"]["SlurmQueues"]
    words = shlex.split(command)
    assert flag_value(words, "partition") == queue["Name"]
    assert int(flag_value(words, "nodes")) <= queue["ComputeResources"][0]["MaxCount"]


def test_cluster_of_vertex_ai_is_understood():
    """TF_CONFIG as in Vertex AI's documentation of distributed training, with two pools."""
    hosts = ["cmle-training-workerpool0-ab-0:2222", "cmle-training-workerpool1-ab-0:2222"]
    text = (
        f'{{"cluster": {{"chief": ["{hosts[0]}"], "worker": ["{hosts[1]}"]}}, "environment": "cloud", '
        '"task": {"type": "worker", "index": 0, "trial": ""}, "job": "{}"}'
    )
    cluster = find_cluster({"TF_CONFIG": text})
    assert (list(cluster.addresses), cluster.index) == (hosts, 1)
