"""`convoy launch kubernetes` through a real kubectl, against a server that has only discovery and published schemas."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from convoy.cli import main
from convoy.core.cluster import KEY_VARIABLE
from tests.launch.kubernetes.api_server import ApiServer

FLAGS = ("--replicas=2", "--gpus=1", "--image=registry/convoy:1", "--pvc=team", "--mount=/team", "--name=run")
TRAIN = ("--", "train", "--data=/team/data", "--workdir=/team/run")
_OLDEST = (1, 27)  # the first that asks the server to validate fields


def missing() -> str:
    """Returns why there is no usable kubectl, or ""."""
    if not shutil.which("kubectl"):
        return "needs kubectl"
    command = ["kubectl", "version", "--client", "--output=json"]
    version = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["clientVersion"]
    number = (int(version["major"]), int(re.sub(r"\D", "", version["minor"])))
    return "" if number >= _OLDEST else f"needs kubectl {_OLDEST[0]}.{_OLDEST[1]} or newer, not {number[0]}.{number[1]}"


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "kubectl is there")


@pytest.fixture
def launch(capsys, monkeypatch, tmp_path):
    """Runs `convoy launch kubernetes` with the kubectl of this host; returns its exit code, output and errors."""
    monkeypatch.setenv(KEY_VARIABLE, "own")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))  # where kubectl caches what a server offers

    def run(server, *flags):
        server.write_config(tmp_path / "config")
        code = main(["convoy", "launch", "kubernetes", *FLAGS, *flags, *TRAIN])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_every_manifest_is_admitted_as_rendered(launch):
    with ApiServer() as server:
        code, output, errors = launch(server, "--namespace=vision")
        assert (code, errors) == (0, ""), errors
        rendered = list(yaml.safe_load_all(launch(server, "--namespace=vision", "--dry_run")[1]))
        created = list(server.objects.values())
    assert "jobset.jobset.x-k8s.io/run created" in output and " logs -f " in output
    assert {manifest["kind"] for manifest in created} == {
        *("JobSet", "Secret", "NetworkPolicy", "Deployment", "Service")
    }
    for manifest in created:
        annotations = manifest["metadata"].pop("annotations")
        assert annotations.keys() == {"kubectl.kubernetes.io/last-applied-configuration"}
        assert manifest["metadata"].setdefault("namespace", "vision") == "vision"
    key = lambda manifest: manifest["kind"]  # noqa: E731
    for manifest in rendered:
        manifest["metadata"].setdefault("namespace", "vision")
    assert sorted(created, key=key) == sorted(rendered, key=key)


def test_a_second_launch_finds_the_run(launch):
    with ApiServer() as server:
        launch(server)
        code, output, _ = launch(server)
    assert code == 0
    assert "run already exists" in output and " logs -f " not in output


def test_fields_that_the_schemas_do_not_have_are_refused(launch, tmp_path):
    with ApiServer() as server:
        text = launch(server, "--dry_run")[1]
        assert "restartPolicy" in text and "maxRestarts" in text
        for misspelt in (text.replace("restartPolicy", "restartPolicies"), text.replace("maxRestarts", "maxRestart")):
            done = subprocess.run(["kubectl", "apply", "-f", "-"], input=misspelt, capture_output=True, text=True)
            assert done.returncode == 1 and "strict decoding error" in done.stderr, done.stderr
            server.objects.clear()


def test_a_cluster_that_does_not_answer_is_reported_with_the_fix(launch):
    with ApiServer() as server:
        pass
    code, _, errors = launch(server)
    assert code == 2
    assert "--context" in errors
