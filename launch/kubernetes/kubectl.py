"""Hands manifests to a cluster with kubectl, and says in kubectl's own commands how to follow what they started.

kubectl = Kubectl("kubectl", context="", namespace="team")
print(kubectl.apply(text)), print(how_to_follow(request, kubectl))
"""

import shlex
import subprocess

from convoy.core.errors import UsageError
from convoy.launch.kubernetes.manifests import TENSORBOARD_PORT
from convoy.launch.kubernetes.request import Request

# What kubectl says, and the mend.
_MENDS = {
    'no matches for kind "JobSet"': "This cluster has no JobSet: https://jobset.sigs.k8s.io/docs/installation tells "
    "how to install it; with Training Operator v1 there give --engine=tfjob.",
    "onJobFailureMessagePatterns": "This cluster's JobSet is older than 0.10: upgrade it.",
    'no matches for kind "TFJob"': "This cluster has no Training Operator v1: give --engine=jobset, the default.",
    "immutable": "A run of this name is there already and cannot be changed: delete it first, or give another --name.",
    "connection to the server": "Choose a cluster with --context; `kubectl config get-contexts` lists them.",
}


class Kubectl:
    """The program `kubectl` with the cluster and the namespace it is to talk to."""

    def __init__(self, program: str = "kubectl", *, context: str = "", namespace: str = ""):
        """Runs nothing yet. Args: program: name or path. context, namespace: empty for kubectl's own."""
        self._command = [program, *([f"--context={context}"] if context else [])]
        self._command += [f"--namespace={namespace}"] if namespace else []

    def line(self, arguments: str) -> str:
        """Returns what a person types to run kubectl with these arguments."""
        return f"{shlex.join(self._command)} {arguments}"

    def apply(self, text: str) -> str:
        """Sends manifests to the cluster; returns what kubectl says.

        Raises:
          UsageError: kubectl is missing or refuses; the message ends with the mend where that is known.
        """
        try:
            done = subprocess.run([*self._command, "apply", "-f", "-"], input=text.encode(), capture_output=True)
        except OSError as error:
            raise UsageError(
                f"{self._command[0]} cannot be run ({error.strerror}). Install kubectl or name it with --kubectl=PATH; "
                "--dry_run prints the manifests for somebody who has it."
            ) from None
        said = done.stderr.decode(errors="replace").strip()
        if done.returncode:
            fix = next((f"\n{fix}" for sign, fix in _MENDS.items() if sign in said), "")
            # Nothing is taken back; the next try applies it again with the rest.
            applied = done.stdout.decode(errors="replace").strip().replace("\n", ", ")
            stays = f"\nWhat was not refused is in the cluster: {applied}." if applied else ""
            raise UsageError(f"`{self.line('apply')}` failed (exit code {done.returncode}): {said}{fix}{stays}")
        return "\n".join(filter(None, (done.stdout.decode(errors="replace").strip(), said)))


def was_there(request: Request, answer: str) -> bool:
    """Returns whether kubectl's answer says that the run was in the cluster before, so that nothing starts anew."""
    signs = (f"/{request.name} unchanged", f"/{request.name} configured")
    return any(line.startswith(request.engine) and line.endswith(signs) for line in answer.splitlines())


def how_to_follow(request: Request, kubectl: Kubectl) -> str:
    """Returns the commands by which a person follows a run, and takes it away."""
    instance = f"app.kubernetes.io/name=convoy,app.kubernetes.io/instance={request.name}"
    chief = f"-l jobset.sigs.k8s.io/jobset-name={request.name},batch.kubernetes.io/job-completion-index=0 --tail=-1"
    if request.engine == "tfjob":
        chief = f"{request.name}-worker-0"
    lines = [
        ("log", kubectl.line(f"logs -f {chief}")),
        ("state", kubectl.line(f"get {request.engine},pods -l {instance} -o wide")),
    ]
    if request.tensorboard:
        port = TENSORBOARD_PORT
        forward = kubectl.line(f"port-forward service/{request.name}-tensorboard {port}")
        lines.append(("tensorboard", f"{forward}    # then http://localhost:{port}"))
    lines.append(("delete", delete_line(request, kubectl)))
    return "\n".join(f"  {what:<11}  {line}" for what, line in lines)


def delete_line(request: Request, kubectl: Kubectl) -> str:
    """Returns the command that takes all of a run away, but for its files."""
    kinds = [request.engine]
    kinds += ["networkpolicy"] if request.network_policy else []
    kinds += ["deployment", "service"] if request.tensorboard else []
    # Helm labels its releases with an instance too: without the other label those would go as well.
    whose = f"app.kubernetes.io/managed-by=convoy,app.kubernetes.io/instance={request.name}"
    return kubectl.line(f"delete {','.join(kinds)} -l {whose}")
