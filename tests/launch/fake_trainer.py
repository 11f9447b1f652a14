"""Replaces `convoy train` in tests of launchers: real processes with the trainer's contract, without TensorFlow.

    fake_trainer.py train --workdir=RUN --plan=PLAN.json

Fields of the plan: `steps`, `checkpoint_every`, `hold_at` (by attempt, the step at which to wait for a signal or a
kill), `talk` (number of lines that the chief prints at the end), `child` (a command that every worker leaves running),
and `attempts` (by attempt and rank, the action of a worker: `{"at": step, "do": "exit", "code": 1}` or
`{"do": "ignore_signals"}`; step 0 is before the workers connect). Workers communicate over the addresses in TF_CONFIG:
the chief sends a message to all others per step, and a worker that receives nothing exits with 138.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

PEER_TIMEOUT = 0.6

# Messages of the chief; the others answer STEP and HOLD with RUNNING or PREEMPTED.
STEP, HOLD, QUIT, DONE = b"s", b"n", b"q", b"d"
RUNNING, PREEMPTED = b".", b"p"

flags = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[2:])
run, plan = Path(flags["workdir"]), json.loads(Path(flags["plan"]).read_text())
attempt = int(os.environ["CONVOY_ATTEMPT"])
cluster = json.loads(os.environ.get("TF_CONFIG", '{"cluster": {"worker": [""]}, "task": {"index": 0}}'))
addresses, rank = cluster["cluster"]["worker"], cluster["task"]["index"]
action = plan.get("attempts", {}).get(str(attempt), {}).get(str(rank), {})
hold_at = plan.get("hold_at", {}).get(str(attempt))
signals_received = []
step = None


def write_whole(path, text):
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").rename(path)


def write_event(name, **details):
    with open(run / "events.jsonl", "a") as file:
        file.write(json.dumps({"event": name, "time": time.time(), **details}) + "\n")


def newest_checkpoint():
    return max((int(path.stem.split("-")[1]) for path in (run / "checkpoints").glob("step-*.npz")), default=0)


def save():
    write_event("checkpoint", step=step)
    write_whole(run / "checkpoints" / f"step-{step:09d}.npz", "")


def end(code, error=""):
    if error:
        print(error, file=sys.stderr)
        text = json.dumps({"rank": rank, "time": time.time(), "step": step, "exit_code": code, "error": error})
        Path(os.environ["CONVOY_ERROR_FILE"]).write_text(text)
    sys.stdout.flush()
    os._exit(code)


def act(at):
    """Performs this worker's action if it is due at a step."""
    if action.get("at") != at:
        return
    if action["do"] == "exit":
        end(action["code"], action.get("error", "") and f"ValueError: {action['error']}")
    if action["do"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action["do"] == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if action["do"] == "leave":  # closes its connections but keeps running
        for peer in peers:
            peer.close()
        threading.Event().wait()


def receive(peer):
    peer.settimeout(PEER_TIMEOUT)
    try:
        return peer.recv(1)
    except OSError:
        return b""


def peer_lost():
    if rank == 0:
        write_event("peer_lost", message="stopped sending heartbeats")
    end(138)


def own_address():
    host, port = addresses[rank].split(":")
    return host, int(port)


def connect():
    """Returns the connections to the peers: the chief's to all others, those of the others to the chief."""
    if len(addresses) == 1:
        return []
    if rank == 0:
        with socket.create_server(own_address()) as server:
            server.settimeout(20)
            return [server.accept()[0] for _ in addresses[1:]]
    with socket.create_server(own_address()):  # fails if the launcher assigned a port in use
        host, port = addresses[0].split(":")
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                return [socket.create_connection((host, int(port)), timeout=20)]
            assert time.monotonic() < deadline
            time.sleep(0.005)


def report_process():
    """Writes a description of this process for the test."""
    pids = run.parent / "pids"
    pids.mkdir(exist_ok=True)
    facts = {
        "pid": os.getpid(),
        "addresses": addresses,
        "environment": dict(os.environ),
        "cores": sorted(os.sched_getaffinity(0)),
        "status": dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines()),
    }
    write_whole(pids / f"{attempt}-{rank}.json", json.dumps(facts))


def run_worker():
    """Runs a worker that is not the chief."""
    global step
    (chief,) = peers
    step = newest_checkpoint()
    while True:
        message = receive(chief)
        if message == STEP:
            step += 1
            act(step)
        elif message == QUIT:
            end(138)
        elif message == DONE:
            end(0)
        elif message != HOLD:
            peer_lost()
        with contextlib.suppress(OSError):
            chief.sendall(PREEMPTED if signals_received else RUNNING)


def broadcast(message):
    """Sends a message to all peers; returns the rank of a worker that got a signal, or None."""
    preempted = 0 if signals_received else None
    for peer in peers:
        try:
            peer.sendall(message)
        except OSError:
            peer_lost()
    for number, peer in enumerate(peers, start=1):
        if message in (STEP, HOLD):
            answer = receive(peer)
            if not answer:
                peer_lost()
            preempted = number if answer == PREEMPTED and preempted is None else preempted
    return preempted


def run_chief():
    global step
    step = first = newest_checkpoint()
    write_event("restored" if first else "start", step=first)
    print(f"begins at step {first}")
    while step < plan["steps"]:
        if step == hold_at:
            message = HOLD
            time.sleep(0.01)
        else:
            message = STEP
            step += 1
            act(step)
        preempted = broadcast(message)
        if step == first + 1 and message == STEP:
            write_event("first_step", step=step)
        if message == STEP:
            print(f"step {step}")
        if preempted is not None:
            save()
            write_event("preempted", step=step, worker=preempted)
            broadcast(QUIT)
            end(138)
        if message == STEP and step % plan["checkpoint_every"] == 0:
            save()
    write_event("done", step=step)
    broadcast(DONE)
    for line in range(plan.get("talk", 0)):
        print("talk", line)
    print("the last line", end="")
    end(0)


def interrupt(*_):
    end(130)


for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: signals_received.append(number))
signal.signal(signal.SIGINT, interrupt)
if action.get("do") == "ignore_signals":
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
if "child" in plan:
    subprocess.Popen(plan["child"])
report_process()
act(0)
if rank == 0:
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
peers = connect()
run_chief() if rank == 0 else run_worker()
