"""`convoy launch kubernetes` from the command line, with a fake kubectl that records its input."""

import json
import re
import shlex
import sys

import pytest
import yaml

from convoy.cli import main
from convoy.core.cluster import KEY_VARIABLE
from convoy.core.errors import UsageError
from convoy.launch.kubernetes.request import Request, checked

FLAGS = ("--replicas=2", "--image=registry/convoy:1", "--pvc=team", "--mount=/team", "--name=run")
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
def launch(capsys, monkeypatch):
    """Runs `convoy launch kubernetes`; returns its exit code, output and errors."""
    monkeypatch.setenv(KEY_VARIABLE, "own")

    def run(*flags, train=TRAIN):
        code = main(["convoy", "launch", "kubernetes", *flags, *train])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def kubectl(tmp_path):
    """A fake kubectl: `path` runs it, `answer` sets its output, `call` returns its arguments and input."""

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
    def test_prints_only_the_manifests_and_the_command_that_renders_them(self, launch, tmp_path):
        flags = ("--node_selector=a=b", "--node_selector=c=d", "--notensorboard", "--env=A=b", "--cpus=")
        flags = (*flags, f"--kubectl={tmp_path}/none")
        code, output, errors = launch(*FLAGS, *flags, "--dry_run", train=(*TRAIN, "--config.x=a b\n# $(C)"))
        assert (code, errors) == (0, "")
        header, _, _ = output.partition("---\n")
        assert all(line.startswith("#") for line in header.splitlines())
        words = shlex.split(header.partition("\n#\n")[0].replace("\n# ", "\n")[2:])
        assert words[:3] == ["convoy", "launch", "kubernetes"]
        assert set(words[3:]) == {*FLAGS, *flags[:5], *TRAIN, "--config.x=a b\n# $(C)"}
        again = launch(*words[3 : words.index("--")], "--dry_run", train=words[words.index("--") :])
        assert again == (code, output, errors)
        assert [manifest["kind"] for manifest in yaml.safe_load_all(output)] == ["NetworkPolicy", "Secret", "JobSet"]

    def test_every_run_has_its_own_key_which_is_in_the_secret_alone(self, launch, monkeypatch):
        monkeypatch.delenv(KEY_VARIABLE)
        texts = [launch(*FLAGS, "--dry_run")[1] for _ in range(2)]
        first, second = ({m["kind"]: m for m in yaml.safe_load_all(text)}["Secret"]["stringData"] for text in texts)
        assert first != second and len(first["key"]) == 64
        assert texts[0].count(first["key"]) == 1

    def test_names_the_required_controller(self, launch):
        assert "\n# Needs JobSet 0.10" in launch(*FLAGS, "--dry_run")[1]

    def test_without_a_claim_warns_and_has_no_tensorboard(self, launch):
        code, output, errors = launch("--replicas=1", "--image=i", "--dry_run")
        assert code == 0 and "kind: Deployment" not in output
        assert "warning" in errors and "--pvc=CLAIM" in errors and errors.count("\n") == 1


class TestApply:
    def test_applies_the_manifests_and_prints_how_to_follow(self, launch, kubectl):
        text = launch(*FLAGS, "--namespace=vision", "--dry_run")[1]
        code, output, _ = launch(*FLAGS, "--namespace=vision", "--context=big", f"--kubectl={kubectl.path}")
        assert code == 0
        prefix = ["--context=big", "--namespace=vision"]
        assert kubectl.call() == [[*prefix, "apply", "-f", "-"], text]
        first, _, *lines = output.splitlines()
        assert first == "jobset.jobset.x-k8s.io/run created"
        commands = {line.split(maxsplit=1)[0]: shlex.split(line, comments=True)[1:] for line in lines}
        start = [str(kubectl.path), *prefix]
        chief = "jobset.sigs.k8s.io/jobset-name=run,batch.kubernetes.io/job-completion-index=0"
        run = "app.kubernetes.io/name=convoy,app.kubernetes.io/instance=run"
        own = "app.kubernetes.io/managed-by=convoy,app.kubernetes.io/instance=run"
        assert commands == {
            "log": [*start, "logs", "-f", "-l", chief, "--tail=-1"],
            "state": [*start, "get", "jobset,pods", "-l", run, "-o", "wide"],
            "tensorboard": [*start, "port-forward", "service/run-tensorboard", "6006"],
            "delete": [*start, "delete", "jobset,secret,networkpolicy,deployment,service", "-l", own],
        }

    def test_without_tensorboard_its_commands_are_missing(self, launch, kubectl):
        output = launch(*FLAGS, "--notensorboard", f"--kubectl={kubectl.path}")[1]
        assert "port-forward" not in output
        assert " delete jobset,secret,networkpolicy -l " in output

    @pytest.mark.parametrize("state", ["unchanged", "configured"])
    def test_an_existing_run_is_reported_with_the_command_that_deletes_it(self, launch, kubectl, state):
        kubectl.answer(
            out=f"networkpolicy.networking.k8s.io/run-workers unchanged\njobset.jobset.x-k8s.io/run {state}\n"
        )
        code, output, _ = launch(*FLAGS, f"--kubectl={kubectl.path}")
        assert code == 0
        assert "run already exists" in output and "logs -f" not in output
        selector = "app.kubernetes.io/managed-by=convoy,app.kubernetes.io/instance=run"
        assert f" delete jobset,secret,networkpolicy,deployment,service -l {selector}\n" in output

    @pytest.mark.parametrize(
        ("message", "fix"),
        [
            (
                'error: resource mapping not found for name: "run" namespace: "" from "STDIN": no matches for kind '
                '"JobSet" in version "jobset.x-k8s.io/v1alpha2"\nensure CRDs are installed first',
                "https://jobset.sigs.k8s.io/docs/installation",
            ),
            (
                'strict decoding error: unknown field "spec.failurePolicy.rules[0].onJobFailureMessagePatterns"',
                "older than 0.10",
            ),
            (
                "The JobSet is invalid: spec.failurePolicy: Value is immutable",
                "app.kubernetes.io/instance=run",
            ),
            ("The connection to the server localhost:8080 was refused", "--context"),
            ("something else", "something else"),
        ],
    )
    def test_errors_of_kubectl_are_passed_on_with_a_fix(self, launch, kubectl, message, fix):
        kubectl.answer(err=message, code=1)
        code, output, errors = launch(*FLAGS, f"--kubectl={kubectl.path}")
        assert (code, output) == (2, "")
        assert errors.startswith(f"convoy: `'{kubectl.path}' apply` failed (exit code 1): {message}")
        assert fix in errors

    def test_missing_kubectl(self, launch, tmp_path):
        code, _, errors = launch(*FLAGS, f"--kubectl={tmp_path}/kubectl")
        assert code == 2
        assert f"--kubectl={tmp_path}/kubectl" in errors and "No such file or directory" in errors
        assert "--kubectl=PATH" in errors and "--dry_run" in errors


class TestInvalidFlags:
    @pytest.mark.parametrize(
        ("flag", "fix"),
        [
            ("--name=Shelf_7", "--name=shelf-7"),
            ("--name=7", "--name=run-7"),
            ("--name=" + "a" * 47, f"--name={'a' * 46}."),
            ("--image=a b", "registry/convoy"),
            ("--namespace=A", ""),
            ("--pvc=a/b", ""),
            ("--queue=a_b", ""),
            ("--service_account=-", ""),
            ("--priority_class=High", ""),
            ("--image_pull_secrets=a_b", ""),
            ("--image_pull_secrets=", "--image_pull_secrets=''"),
            ("--env=7=x", "--env=NCCL_DEBUG=INFO"),
            ("--env=CONVOY_TEST_UNSET", "--env=CONVOY_TEST_UNSET"),
            ("--env=TF_CONFIG={}", "Remove"),
            ("--cpus=many", "--cpus=8"),
            ("--memory=32GB", "--memory=32Gi"),
            ("--shm_size=", "--shm_size=1Gi"),
            ("--node_selector=gpu", "KEY=VALUE"),
            ("--tolerations=a=b:Never", "KEY[=VALUE][:EFFECT]"),
            ("--mount=team", "--pvc=team"),
            ("--mount=/", "--pvc=team"),
            ("--mount=/te", "--data=/team/data"),
            ("--grace_seconds=inf", "--grace_seconds=60"),
            ("--port=80", ""),
            ("--replicas=0", ""),
            ("--engine=job", "jobset"),
            ("--engine=tfjob", "JobSet"),
            ("--engine=tfjob", "convoy launch ray"),
        ],
    )
    def test_are_named_with_a_fix(self, launch, flag, fix):
        code, output, errors = launch(*FLAGS, flag, "--dry_run")
        assert (code, output) == (2, "")
        name, _, value = flag.removeprefix("--").partition("=")
        assert name in errors and value in errors and fix in errors and errors.count("\n") == 1

    @pytest.mark.parametrize(
        ("train", "expected"),
        [
            (("--data=/team/data", "--workdir=run"), "--workdir=run is not on --pvc=team"),
            (("--data=/team/../data", "--workdir=/team/run"), "--data=/team/../data is not on --pvc=team"),
            (("--data=/teams", "--workdir=/team/run"), "--data=/teams is not on --pvc=team"),
            (("--workdir=/team/run",), "--data"),
            (("--data=/team/data",), "--workdir"),
        ],
    )
    def test_trainer_folders(self, launch, train, expected):
        code, _, errors = launch(*FLAGS, "--dry_run", train=("--", "train", *train))
        assert code == 2 and expected in errors

    def test_missing_flags_are_named(self, launch):
        code, _, errors = launch("--dry_run")
        assert code == 2 and "--replicas" in errors and "--image" in errors


class TestNames:
    @pytest.mark.parametrize(
        ("workdir", "name"),
        [("/t/run", "run"), ("/t/Shelf_7.b/", "shelf-7-b"), ("/t/2026-11", "run-2026-11"), ("/t/__", "run")],
    )
    def test_begin_like_the_run_directory(self, workdir, name):
        command = ("train", "--data=/t/d", f"--workdir={workdir}")
        assert re.fullmatch(rf"{name}-[0-9a-f]{{6}}", checked(Request(command, 2, "i")).name)

    def test_are_the_same_for_every_launch_of_a_run_and_for_no_other(self):
        def name(*flags, workdir="/t/a/run", **fields):
            return checked(Request(("train", "--data=/t/d", f"--workdir={workdir}", *flags), 2, "i", **fields)).name

        claim = {"pvc": "c", "mount": "/t"}
        assert name(**claim) == name("--config.epochs=3", **claim, gpus=8) == name(workdir="/t/b/../a/run/", **claim)
        others = [name(workdir="/t/b/run", **claim), name(pvc="d", mount="/t")]
        assert len({name(**claim), *others}) == 3
        # Without a claim there is nothing to resume: another command is another run.
        assert name() == name() and name() != name("--config.epochs=3")

    @pytest.mark.parametrize("replicas", [1, 10, 11, 1000])
    def test_are_limited_by_the_pods_host_names(self, replicas):
        command = ("train", "--data=/t/d", f"--workdir=/t/{'a' * 80}")
        name = checked(Request(command, replicas, "i")).name
        pod = f"-worker-0-{replicas - 1}-abcde"
        assert len(name) == 63 - max(len(pod), len("-tensorboard"))
        with pytest.raises(UsageError, match="--name=a"):
            checked(Request(command, replicas, "i", name=name + "a"))

    def test_doctor_has_its_own_name_and_no_tensorboard(self):
        request = checked(Request(("doctor", "--workdir=/t/run"), 2, "i", pvc="c", mount="/t"))
        assert re.fullmatch("run-doctor-[0-9a-f]{6}", request.name) and not request.tensorboard


class TestUserFiles:
    @pytest.fixture
    def recipe(self, tmp_path, monkeypatch):
        """A recipe with a module beside it, in the current folder."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine.py").write_text("from beside import A\n\n\ndef get_config():\n    return A\n")
        (tmp_path / "beside.py").write_text("A = 1\n")
        return tmp_path / "mine.py"

    def test_are_sent_and_deleted_with_the_run(self, launch, kubectl, recipe):
        train = (*TRAIN, "--config=mine.py")
        output = launch(*FLAGS, f"--kubectl={kubectl.path}", train=train)[1]
        (manifest,) = [m for m in yaml.safe_load_all(kubectl.call()[1]) if m["kind"] == "ConfigMap"]
        assert recipe.read_text() in manifest["data"].values()
        assert " delete jobset,secret,networkpolicy,configmap,deployment,service -l " in output

    def test_too_large_to_send_are_named(self, launch, recipe):
        (recipe.parent / "beside.py").write_text(f"A = '{'x' * 300_000}'")
        code, output, errors = launch(*FLAGS, "--dry_run", train=(*TRAIN, "--config=mine.py"))
        assert (code, output, errors.count("\n")) == (2, "", 1)
        assert "mine.py" in errors and "--image" in errors and "--pvc" in errors

    def test_missing_here_are_named_unless_on_the_claim(self, launch, recipe):
        code, _, errors = launch(*FLAGS, "--dry_run", train=(*TRAIN, "--config=absent.py"))
        assert code == 0 and "absent.py" in errors and errors.count("\n") == 1
        assert launch(*FLAGS, "--dry_run", train=(*TRAIN, "--config=/team/absent.py"))[::2] == (0, "")
