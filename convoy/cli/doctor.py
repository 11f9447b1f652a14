"""`convoy doctor`: checks what `convoy train` with the same flags would use.

convoy doctor --data=data --workdir=run
convoy launch local --processes=2 -- doctor --data=data --workdir=run
srun convoy doctor --data=data --workdir=run
"""

from absl import flags as absl_flags

from convoy.cli.foreign_records import record_format
from convoy.cli.train import define_run_flags
from convoy.core.devices import parse_devices
from convoy.core.processes import terminable


def define_flags(flags: absl_flags.FlagValues, arguments: list[str]) -> list[str]:
    """Defines the flags of `convoy train`."""
    return define_run_flags(flags, arguments, startup_seconds=30.0)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> int:
    """Runs all checks; returns 0 if nothing failed, otherwise 2."""
    from convoy.trainer.doctor.checks import DoctorOptions, run_checks

    if flags.deterministic is not None:
        flags.config.deterministic = flags.deterministic
    options = DoctorOptions(
        config=flags.config,
        data=flags.data or "",
        workdir=flags.workdir or "",
        devices_flag=flags.devices,
        devices=parse_devices(flags.devices),
        strategy_name=flags.strategy,
        interface=flags.interface,
        startup_seconds=flags.startup_timeout,
        heartbeat_seconds=flags.heartbeat_timeout,
        worker_hosts=tuple(flags.worker_hosts),
        worker_index=flags.worker_index,
        record_format=record_format(flags, flags.data),
        extend=flags.extend,
        virtual_replicas=flags.virtual_replicas,
    )
    with terminable():  # removes the file that the checks write to RUN, also after SIGTERM
        return 0 if run_checks(options) else 2
