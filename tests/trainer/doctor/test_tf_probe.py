"""TensorFlow in a process beside: what becomes of the doctor when it hangs or dies there."""

import time
from dataclasses import replace

import pytest

from convoy.core.cluster import Cluster
from convoy.core.devices import parse_devices
from convoy.launch.ports import reserved_ports
from convoy.trainer import config as configs
from convoy.trainer.doctor.tf_probe import NoAnswerError, Setup, TfProbe, _auto

NOTHING = Setup(
    config=None, data="", workdir="", devices=parse_devices("cpu:1"), strategy_name="auto", heartbeat_seconds=30
)


@pytest.mark.slow
def test_blocked_collective_times_out():
    with reserved_ports(2) as ports:
        addresses = tuple(f"127.0.0.1:{port}" for port in ports)
    lonely = Cluster(addresses, 0, "flags", (("worker", 0), ("worker", 1)))
    with TfProbe(NOTHING) as side:
        assert side.start_up(180)["versions"]["keras"]
        began = time.monotonic()
        with pytest.raises(NoAnswerError, match="no answer within 3 s"):
            side.reduce(lonely, 3)
        assert time.monotonic() - began < 60  # instead of TensorFlow's minutes
        with pytest.raises(NoAnswerError, match="TensorFlow's process ended"):  # and what follows does not wait
            side.checkpoint_bytes(60)


def test_crash_reports_exit_code():
    with TfProbe(NOTHING) as side:
        side._process.kill()
        with pytest.raises(NoAnswerError, match=r"TensorFlow's process ended \(exit code -9\)"):
            side.start_up(60)


@pytest.mark.parametrize(
    ("flag", "comes_to"),
    [
        ("gpu:0", {"precision": "bfloat16", "xla": True}),
        ("gpu:1", {"precision": "float32", "xla": True}),
        ("auto", {"precision": "float32", "xla": True}),
        ("gpu:2", None),
    ],
)
def test_auto_uses_the_requested_gpus(flag, comes_to):
    gpus = [{"name": name, "capability": capability} for name, capability in (("A100", (8, 0)), ("V100", (7, 0)))]
    setup = replace(NOTHING, devices=parse_devices(flag), config=configs.default_config())
    assert _auto(setup, gpus) == comes_to
    assert _auto(replace(setup, config=None), gpus) is None
