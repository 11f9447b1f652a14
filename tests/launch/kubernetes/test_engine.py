"""`convoy launch kubernetes` as people use it; in kubectl's place is a program that writes down what it was given."""

import json
import shlex
import sys

import pytest
import yaml

from convoy.cli import main
from convoy.core.errors import UsageError
from convoy.launch.kubernetes.request import Request, checked

FLAGS = ("--replicas=2", "--image=registry/convoy:1", "--pvc=team", "--mount=/team")
TRAIN = ("--", "train", "--data=/team/data", "--workdir=/team/run")

KUBECTL = """#!{python}
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
answer = json.loads((folder / "answer.json").read_text())
(folder / "call.json").write_text(json.dumps([sys.argv[1:], sys.stdin.read()]))
print(answer.get("out", ""), end="")
print(answer.get("err", ""), end="", file=sys.stderr)
sys.exit(answer.get("code", 0))
"""


@pytest.fixture
def launch(capsys):
    """Runs `convoy launch kubernetes`; returns its exit code, output and errors."""

    def run(*flags, train=TRAIN):
        code = main(["convoy", "launch", "kubernetes", *flags, *train])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def kubectl(tmp_path):
    """A program in kubectl's place: `kubectl.path`, what it is to answer, and what it was called with."""

    class Kubectl:
        path = tmp_path / "my kubectl"

        def answer(self, **answer):
            (tmp_path / "answer.json").write_text(json.dumps(answer))

        def call(self):
            return json.loads((tmp_path / "call.json").read_text())

    Kubectl.path.write_text(KUBECTL.format(python=sys.executable))
    Kubectl.path.chmod(0o755)
    program = Kubectl()
    program.answer(out="jobset.jobset.x-k8s.io/run created\n")
    return program


class TestDryRun:
    def test_prints_manifests_and_nothing_else_behind_the_command_that_gives_them(self, launch, tmp_path):
        flags = ("--node_selector=a=b", "--node_selector=c=d", "--notensorboard", f"--kubectl={tmp_path}/none")
        code, output, errors = launch(*FLAGS, *flags, "--dry_run", train=(*TRAIN, "--config.x=a b\n# $(C)"))
        assert (code, errors) == (0, "")
        header, _, _ = output.partition("---\n")
        assert all(line.startswith("#") for line in header.splitlines())
        words = shlex.split(header.partition("\n#\n")[0].replace("\n# ", "\n")[2:])
        assert words[:3] == ["convoy", "launch", "kubernetes"]
        assert set(words[3:]) == {*FLAGS, *flags[:3], *TRAIN, "--config.x=a b\n# $(C)"}
        again = launch(*words[3 : words.index("--")], "--dry_run", train=words[words.index("--") :])
        assert again == (code, output, errors)
        assert [manifest["kind"] for manifest in yaml.safe_load_all(output)] == ["NetworkPolicy", "JobSet"]

    def test_says_which_controller_the_cluster_needs(self, launch):
        assert "\n# Needs JobSet 0.10 or newer in the cluster" in launch(*FLAGS, "--dry_run")[1]
        assert "\n# Needs Kubeflow's Training Operator v1" in launch(*FLAGS, "--engine=tfjob", "--dry_run")[1]

    def test_without_a_claim_says_what_is_lost(self, launch):
        code, output, errors = launch("--replicas=1", "--image=i", "--dry_run")
        assert code == 0 and "kind: Deployment" not in output
        assert errors == (
            "convoy: without --pvc=CLAIM the run directory is the pods' own: nothing of it outlives a restart.\n"
        )


class TestApply:
    def test_hands_the_manifests_to_kubectl_and_says_how_to_follow(self, launch, kubectl):
        text = launch(*FLAGS, "--namespace=vision", "--dry_run")[1]
        code, output, _ = launch(*FLAGS, "--namespace=vision", "--context=big", f"--kubectl={kubectl.path}")
        assert code == 0
        prefix = ["--context=big", "--namespace=vision"]
        assert kubectl.call() == [[*prefix, "apply", "-f", "-"], text]
        kubectl_line = shlex.join([str(kubectl.path), *prefix])
        assert output == (
            "jobset.jobset.x-k8s.io/run created\n"
            "convoy: run is in the cluster, with 2 workers.\n"
            f"  log          {kubectl_line} logs -f -l jobset.sigs.k8s.io/jobset-name=run,"
            "batch.kubernetes.io/job-completion-index=0 --tail=-1\n"
            f"  state        {kubectl_line} get jobset,pods "
            "-l app.kubernetes.io/name=convoy,app.kubernetes.io/instance=run -o wide\n"
            f"  tensorboard  {kubectl_line} port-forward service/run-tensorboard 6006    # then http://localhost:6006\n"
            f"  delete       {kubectl_line} delete jobset,networkpolicy,deployment,service "
            "-l app.kubernetes.io/managed-by=convoy,app.kubernetes.io/instance=run\n"
        )

    def test_names_the_pod_of_a_tfjobs_chief(self, launch, kubectl):
        output = launch(*FLAGS, "--engine=tfjob", "--notensorboard", f"--kubectl={kubectl.path}")[1]
        assert " logs -f run-worker-0\n" in output
        assert "tensorboard" not in output
        assert (
            " delete tfjob,networkpolicy -l app.kubernetes.io/managed-by=convoy,app.kubernetes.io/instance=run\n"
            in output
        )

    @pytest.mark.parametrize(
        ("engine", "kind"), [("jobset", "jobset.jobset.x-k8s.io"), ("tfjob", "tfjob.kubeflow.org")]
    )
    @pytest.mark.parametrize("state", ["unchanged", "configured"])
    def test_says_so_when_the_run_was_there_already_and_nothing_starts(self, launch, kubectl, engine, kind, state):
        kubectl.answer(out=f"networkpolicy.networking.k8s.io/run-workers unchanged\n{kind}/run {state}\n")
        code, output, _ = launch(*FLAGS, f"--engine={engine}", f"--kubectl={kubectl.path}")
        assert code == 0
        assert "convoy: run was there already. If it has ended, take it away and launch again" in output
        whose = "app.kubernetes.io/managed-by=convoy,app.kubernetes.io/instance=run"
        assert f" delete {engine},networkpolicy,deployment,service -l {whose}\n" in output

    @pytest.mark.parametrize(
        ("said", "mend"),
        [
            (
                'error: resource mapping not found for name: "run" namespace: "" from "STDIN": no matches for kind '
                '"JobSet" in version "jobset.x-k8s.io/v1alpha2"\nensure CRDs are installed first',
                "This cluster has no JobSet: https://jobset.sigs.k8s.io/docs/installation",
            ),
            (
                'strict decoding error: unknown field "spec.failurePolicy.rules[0].onJobFailureMessagePatterns"',
                "older than 0.10",
            ),
            (
                "The JobSet is invalid: spec.failurePolicy: Value is immutable",
                "delete it first, or give another --name",
            ),
            ("The connection to the server localhost:8080 was refused", "Choose a cluster with --context"),
            ("something else", "something else"),
        ],
    )
    def test_passes_on_what_kubectl_refuses_with_the_mend(self, launch, kubectl, said, fix):
        kubectl.answer(err=said, code=1)
        code, output, errors = launch(*FLAGS, f"--kubectl={kubectl.path}")
        assert (code, output) == (2, "")
        assert errors.startswith(f"convoy: `'{kubectl.path}' apply` failed (exit code 1): {said}")
        assert fix in errors

    def test_without_kubectl_names_the_ways_out(self, launch, tmp_path):
        code, _, errors = launch(*FLAGS, f"--kubectl={tmp_path}/kubectl")
        assert code == 2
        assert "kubectl cannot be run (No such file or directory)" in errors
        assert "--kubectl=PATH" in errors and "--dry_run" in errors


class TestMistakes:
    @pytest.mark.parametrize(
        ("flags", "told"),
        [
            (("--name=Shelf_7",), "--name=Shelf_7: give up to 46 small letters, digits and dashes, a letter first"),
            (("--name=Shelf_7",), "`shelf-7` would do"),
            (("--name=7",), "`run-7` would do"),
            (("--name=" + "a" * 47,), f"`{'a' * 46}` would do"),
            (("--image=a b",), "--image='a b' is no image"),
            (("--namespace=A",), "--namespace=A is no name in Kubernetes"),
            (("--pvc=a/b",), "--pvc=a/b is no name in Kubernetes"),
            (("--queue=a_b",), "--queue=a_b is no name"),
            (("--service_account=-",), "--service_account=- is no name"),
            (("--cpus=many",), "--cpus=many is no quantity in Kubernetes. Example: --cpus=8."),
            (("--memory=32GB",), "--memory=32GB is no quantity in Kubernetes. Example: --memory=32Gi."),
            (("--shm_size=",), "--shm_size= is no quantity in Kubernetes. Example: --shm_size=1Gi."),
            (("--node_selector=gpu",), "--node_selector=gpu: give a node's label as KEY=VALUE"),
            (
                ("--tolerations=a=b:Never",),
                "--tolerations=a=b:Never: give a taint as KEY, KEY=VALUE or KEY=VALUE:EFFECT",
            ),
            (("--mount=team",), "--mount=team: give the folder where --pvc=team is mounted: /PATH."),
            (("--mount=/",), "--mount=/: give the folder where"),
            (("--mount=/te",), "--data=/team/data is not on --pvc=team, which pods have at --mount=/te:"),
            (("--grace_seconds=inf",), "--grace_seconds=inf: a pod is killed some day"),
            (("--port=80",), "port"),
            (("--replicas=0",), "replicas"),
            (("--engine=job",), "engine"),
        ],
    )
    def test_are_named_with_the_mend(self, launch, flags, told):
        code, output, errors = launch(*FLAGS, *flags, "--dry_run")
        assert (code, output) == (2, "")
        assert told in errors and errors.count("\n") == 1

    @pytest.mark.parametrize(
        ("train", "told"),
        [
            (("--data=/team/data", "--workdir=run"), "--workdir=run is not on --pvc=team"),
            (("--data=/team/../data", "--workdir=/team/run"), "--data=/team/../data is not on --pvc=team"),
            (("--data=/teams", "--workdir=/team/run"), "--data=/teams is not on --pvc=team"),
            (("--workdir=/team/run",), "--data must be given after `-- train`"),
            (("--data=/team/data",), "--workdir must be given after `-- train`"),
        ],
    )
    def test_in_the_trainers_folders_are_named(self, launch, train, told):
        code, _, errors = launch(*FLAGS, "--dry_run", train=("--", "train", *train))
        assert code == 2 and told in errors

    def test_missing_flags_are_named(self, launch):
        assert launch("--dry_run")[::2] == (
            2,
            "convoy: --replicas and --image must be given. --help shows an example.\n",
        )


class TestNames:
    @pytest.mark.parametrize(
        ("workdir", "name"),
        [("/t/run", "run"), ("/t/Shelf_7.b/", "shelf-7-b"), ("/t/2026-11", "run-2026-11"), ("/t/__", "run")],
    )
    def test_come_from_the_run_directory(self, workdir, name):
        command = ("train", "--data=/t/d", f"--workdir={workdir}")
        assert checked(Request("jobset", command, 2, "i")).name == name

    @pytest.mark.parametrize("engine", ["jobset", "tfjob"])
    @pytest.mark.parametrize("replicas", [1, 10, 11, 1000])
    def test_are_as_long_as_their_pods_host_names_allow(self, engine, replicas):
        command = ("train", "--data=/t/d", f"--workdir=/t/{'a' * 80}")
        name = checked(Request(engine, command, replicas, "i")).name
        pod = f"-worker-0-{replicas - 1}-abcde" if engine == "jobset" else f"-worker-{replicas - 1}"
        assert len(name) == 63 - max(len(pod), len("-tensorboard"))
        with pytest.raises(UsageError, match="--name=a"):
            checked(Request(engine, command, replicas, "i", name=name + "a"))

    def test_of_a_look_at_the_cluster_are_not_the_runs(self):
        request = checked(Request("jobset", ("doctor", "--workdir=/t/run"), 2, "i", pvc="c", mount="/t"))
        assert (request.name, request.tensorboard) == ("run-doctor", False)
