"""A SLURM cluster on one machine: the real daemons, each on its own host of a `Network`.

    with SlurmCluster(folder, network, {"n1": 1, "n2": 1}) as slurm:      # cores by node
        slurm.run("sbatch", "--parsable", "job.sbatch").stdout            # a client command, on `head`
        slurm.stop_node("n2"), slurm.start_node("n2")                     # power failure and recovery

The controller and munge run on `head`, like the client commands. A SLURM installation of this machine is not affected.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.network import HEAD, Network, missing_for_networks

_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "salloc", "scontrol", "squeue", "scancel")
_READY_SECONDS = 60.0

# Timeouts of seconds where real clusters have minutes: a dead node is noticed after SlurmdTimeout, and a requeued job
# cannot start before its old credentials have expired.
_CONFIG = """
ClusterName=convoy
SlurmctldHost=head({head})
SlurmctldPort=6817
SlurmdPort=6818
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
MessageTimeout=5
TCPTimeout=2
KillWait=5
MinJobAge=300
JobRequeue=1
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


def missing_for_slurm() -> str:
    """Returns the reason why this machine cannot run a SLURM cluster; empty if it can."""
    missing = [program for program in _PROGRAMS if not shutil.which(program)]
    return f"{', '.join(missing)} not installed" if missing else missing_for_networks()


class SlurmCluster:
    """Running daemons. A context manager that ends them, and all processes that they started, on leaving."""

    def __init__(self, folder: Path, network: Network, cores: Mapping[str, int]):
        """Starts nothing yet.

        Args:
          folder: for configuration, state and logs.
          network: network with a host for each node.
          cores: number of cores by node.
        """
        self.folder = folder
        self.network = network
        self._cores = dict(cores)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> "SlurmCluster":
        """Starts the daemons and waits until all nodes are idle."""
        for name in ("state", *self._cores):
            (self.folder / name).mkdir(parents=True)
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={node} NodeAddr={self.network.addresses[node]} CPUs={cores} RealMemory=4000"
            for node, cores in self._cores.items()
        )
        (self.folder / "slurm.conf").write_text(
            _CONFIG.format(
                head=self.network.addresses[HEAD],
                folder=self.folder,
                nodes=nodes,
                names=",".join(self._cores),
            )
        )
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        try:
            self._start_munge()
            self._start("slurmctld", HEAD, "slurmctld", "-D", "-c")
            for node in self._cores:
                self.start_node(node)
            self.wait_for(lambda: all(self.node_state(node) == "IDLE" for node in self._cores), "all nodes idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ends all daemons."""
        for host in (*self._cores, HEAD):
            self.network.kill_all(host)
        for daemon in self._daemons.values():
            daemon.wait()

    def start_node(self, node: str) -> None:
        """Starts a node's daemon."""
        self._start(node, node, "slurmd", "-D", "-N", node)

    def stop_node(self, node: str) -> None:
        """Kills everything on a node."""
        self.network.kill_all(node)
        self._daemons.pop(node).wait()

    def command(self, *command: object, host: str = HEAD) -> list[str]:
        """Returns the command line that runs a command on a host of the cluster; run it with `environment`."""
        return self.network.command(host, *command)

    def run(self, *command: object, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a client command on `head`."""
        result = subprocess.run(
            self.command(*command), env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        assert not check or result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result

    def node_state(self, node: str) -> str:
        """Returns `IDLE`, `ALLOCATED`, `DOWN`, ...; empty while the controller does not answer."""
        return self._field("node", node, "State").partition("+")[0].rstrip("*")

    def job(self, job: str, field: str = "JobState") -> str:
        """Returns a field of `scontrol show job`; by default the job's state."""
        return self._field("job", job, field)

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = _READY_SECONDS) -> None:
        """Polls until a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"no {what} within {seconds:g} s:\n{self.logs()}"
            time.sleep(0.05)

    def logs(self) -> str:
        """Returns the ends of the daemons' logs."""
        return "\n".join(
            f"{path.name}:\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(self.folder.glob("*.log"))
        )

    def _field(self, kind: str, name: str, field: str) -> str:
        words = self.run("scontrol", "show", kind, name, "--oneliner", check=False).stdout.split()
        return next((word.partition("=")[2] for word in words if word.startswith(f"{field}=")), "")

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        socket = self.folder / "munge.socket"
        paths = [f"--key-file={key}", f"--socket={socket}", f"--pid-file={self.folder / 'munge.pid'}"]
        paths += [f"--log-file={self.folder / 'munge.log'}", f"--seed-file={self.folder / 'munge.seed'}"]
        self._start("munged", HEAD, "munged", "--foreground", "--force", *paths)
        self.wait_for(socket.exists, "munge")

    def _start(self, name: str, host: str, *command: str) -> None:
        with open(self.folder / f"{name}.output.log", "ab") as output:
            self._daemons[name] = subprocess.Popen(
                self.network.command(host, *command),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
