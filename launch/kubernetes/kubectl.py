"""Applies manifests with kubectl, and lists the kubectl commands to follow and delete the run.

kubectl = Kubectl("kubectl", context="", namespace="team")
print(kubectl.apply(text, delete=delete_line(request, kubectl)))
print(follow_commands(request, kubectl))
"""

import shlex
import subprocess

from convoy.core.errors import UsageError
from convoy.launch.kubernetes.manifests import TENSORBOARD_PORT
from convoy.launch.kubernetes.request import Request

_OTHER_CLUSTER = "Select a cluster with --context; `kubectl config get-contexts` lists them."
# Part of kubectl's message, and the suggested fix.
_FIXES = {
    'no matches for kind "JobSet"': "JobSet is not installed in this cluster. Install it: "
    "https://jobset.sigs.k8s.io/docs/installation",
    "onJobFailureMessagePatterns": "The cluster's JobSet is older than 0.10. Upgrade it.",
    "immutable": "A run with this name exists and cannot be changed. Pass another --name, or delete it first:\n"
    "  {delete}",
    "connection to the server": _OTHER_CLUSTER,
    "failed to download openapi": _OTHER_CLUSTER,  # the first request of `kubectl apply`
}


class Kubectl:
    """The `kubectl` program with its cluster and namespace."""

    def __init__(self, program: str = "kubectl", *, context: str = "", namespace: str = ""):
        """Args: program: name or path. context, namespace: empty for kubectl's current one."""
        self._command = [program, *([f"--context={context}"] if context else [])]
        self._command += [f"--namespace={namespace}"] if namespace else []

    def line(self, arguments: str) -> str:
        """Returns the shell command that runs kubectl with these arguments."""
        return f"{shlex.join(self._command)} {arguments}"

    def apply(self, text: str, *, delete: str) -> str:
        """Applies manifests to the cluster; returns kubectl's output. `delete`: the command that deletes them.

        Raises:
          UsageError: kubectl is missing or failed; the message suggests a fix if one is known.
        """
        try:
            done = subprocess.run([*self._command, "apply", "-f", "-"], input=text.encode(), capture_output=True)
        except OSError as error:
            raise UsageError(
                f"--kubectl={self._command[0]} cannot be run ({error.strerror}). Install kubectl, pass "
                "--kubectl=PATH, or print the manifests with --dry_run and apply them elsewhere."
            ) from None
        output, errors = (stream.decode(errors="replace").strip() for stream in (done.stdout, done.stderr))
        if done.returncode:
            fix = next((f"\n{fix.format(delete=delete)}" for sign, fix in _FIXES.items() if sign in errors), "")
            # No rollback: the next attempt applies all manifests again.
            applied = f"\nAlready applied: {', '.join(output.splitlines())}." if output else ""
            raise UsageError(f"`{self.line('apply')}` failed (exit code {done.returncode}): {errors}{fix}{applied}")
        return "\n".join(filter(None, (output, errors)))


def already_exists(request: Request, output: str) -> bool:
    """Returns whether `kubectl apply` reported that the run existed before, so that nothing was started."""
    endings = (f"/{request.name} unchanged", f"/{request.name} configured")
    return any(line.startswith("jobset") and line.endswith(endings) for line in output.splitlines())


def follow_commands(request: Request, kubectl: Kubectl) -> str:
    """Returns the commands to follow a run and to delete it, one per line."""
    instance = f"app.kubernetes.io/name=convoy,app.kubernetes.io/instance={request.name}"
    chief = f"-l jobset.sigs.k8s.io/jobset-name={request.name},batch.kubernetes.io/job-completion-index=0 --tail=-1"
    lines = [
        ("log", kubectl.line(f"logs -f {chief}")),
        ("state", kubectl.line(f"get jobset,pods -l {instance} -o wide")),
    ]
    if request.tensorboard:
        port = TENSORBOARD_PORT
        forward = kubectl.line(f"port-forward service/{request.name}-tensorboard {port}")
        lines.append(("tensorboard", f"{forward}    # then http://localhost:{port}"))
    lines.append(("delete", delete_line(request, kubectl)))
    return "\n".join(f"  {what:<11}  {line}" for what, line in lines)


def delete_line(request: Request, kubectl: Kubectl) -> str:
    """Returns the command that deletes all objects of a run from the cluster; its files stay."""
    kinds = ["jobset", "secret"]
    kinds += ["networkpolicy"] if request.network_policy else []
    kinds += ["configmap"] if request.code.content else []
    kinds += ["deployment", "service"] if request.tensorboard else []
    # Helm uses the instance label too: without `managed-by` its releases of the same name would be deleted as well.
    selector = f"app.kubernetes.io/managed-by=convoy,app.kubernetes.io/instance={request.name}"
    return kubectl.line(f"delete {','.join(kinds)} -l {selector}")
