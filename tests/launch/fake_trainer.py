"""Stands for `convoy train` in tests of launchers: real processes that keep the worker contract, without TensorFlow.

    fake_trainer.py train --workdir=RUN --plan=PLAN.json

The plan: `steps`, `checkpoint_every`, `hold_at` (by attempt a step: there it waits for a signal or a kill), `talk`
(lines that the chief writes at its end), `child` (a command that every worker leaves running) and `attempts`, by number
and rank what a worker does: `{"at": step, "do": "exit", "code": 1}`, `{"do": "ignore_signals"}`. Step 0 is before the
cluster is there. Workers talk over the addresses in TF_CONFIG: each step the chief asks all others, and who hears
nothing ends with 138.
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

flags = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[2:])
run, plan = Path(flags["workdir"]), json.loads(Path(flags["plan"]).read_text())
attempt = int(os.environ["CONVOY_ATTEMPT"])
cluster = json.loads(os.environ.get("TF_CONFIG", '{"cluster": {"worker": [""]}, "task": {"index": 0}}'))
addresses, rank = cluster["cluster"]["worker"], cluster["task"]["index"]
todo = plan.get("attempts", {}).get(str(attempt), {}).get(str(rank), {})
hold_at = plan.get("hold_at", {}).get(str(attempt))
signals_received = []
step = None


def event(name, **details):
    with open(run / "events.jsonl", "a") as file:
        file.write(json.dumps({"event": name, "time": time.time(), **details}) + "\n")


def newest_checkpoint():
    return max((int(path.stem.split("-")[1]) for path in (run / "checkpoints").glob("step-*.npz")), default=0)


def save():
    event("checkpoint", step=step)
    path = run / "checkpoints" / f"step-{step:09d}.npz"
    path.with_suffix(".tmp").write_text("")
    path.with_suffix(".tmp").rename(path)


def end(code, error=""):
    if error:
        print(error, file=sys.stderr)
        text = json.dumps({"rank": rank, "time": time.time(), "step": step, "exit_code": code, "error": error})
        Path(os.environ["CONVOY_ERROR_FILE"]).write_text(text)
    sys.stdout.flush()
    os._exit(code)


def act(at):
    if todo.get("at") != at:
        return
    if todo["do"] == "exit":
        end(todo["code"], todo.get("error", "") and f"ValueError: {todo['error']}")
    if todo["do"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if todo["do"] == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if todo["do"] == "leave":  # a peer that goes without a word and yet stays
        for peer in peers:
            peer.close()
        threading.Event().wait()


def receive(peer):
    peer.settimeout(PEER_TIMEOUT)
    try:
        return peer.recv(1)
    except OSError:
        return b""


def lost():
    if rank == 0:
        event("peer_lost", message="stopped sending heartbeats")
    end(138)


def own_address():
    host, port = addresses[rank].split(":")
    return host, int(port)


def connect():
    if len(addresses) == 1:
        return []
    if rank == 0:
        with socket.create_server(own_address()) as server:
            server.settimeout(20)
            return [server.accept()[0] for _ in addresses[1:]]
    with socket.create_server(own_address()):  # its own port is free too
        host, port = addresses[0].split(":")
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                return [socket.create_connection((host, int(port)), timeout=20)]
            assert time.monotonic() < deadline
            time.sleep(0.005)


def report():
    """Writes down for the test what this process is."""
    pids = run.parent / "pids"
    pids.mkdir(exist_ok=True)
    facts = {
        "pid": os.getpid(),
        "addresses": addresses,
        "environment": dict(os.environ),
        "cores": sorted(os.sched_getaffinity(0)),
        "status": dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines()),
    }
    path = pids / f"{attempt}-{rank}.json"
    path.with_suffix(".tmp").write_text(json.dumps(facts))
    path.with_suffix(".tmp").rename(path)


def answer_rounds():
    """Is a worker that is not the chief."""
    global step
    (chief,) = peers
    step = newest_checkpoint()
    while True:
        order = receive(chief)
        if order == b"s":
            step += 1
            act(step)
        elif order == b"q":
            end(138)
        elif order == b"d":
            end(0)
        elif order != b"n":
            lost()
        with contextlib.suppress(OSError):
            chief.sendall(b"p" if signals_received else b".")


def ask(order):
    """Sends an order to every peer; returns the rank of one that was told to end, or None."""
    asked_by = 0 if signals_received else None
    for peer in peers:
        try:
            peer.sendall(order)
        except OSError:
            lost()
    for number, peer in enumerate(peers, start=1):
        if order in (b"s", b"n"):
            answer = receive(peer)
            if not answer:
                lost()
            asked_by = number if answer == b"p" and asked_by is None else asked_by
    return asked_by


def lead():
    """Is the chief."""
    global step
    step = first = newest_checkpoint()
    event("restored" if first else "start", step=first)
    print(f"begins at step {first}")
    while step < plan["steps"]:
        if step == hold_at:
            order = b"n"
            time.sleep(0.01)
        else:
            order = b"s"
            step += 1
            act(step)
        asked_by = ask(order)
        if step == first + 1 and order == b"s":
            event("first_step", step=step)
        if order == b"s":
            print(f"step {step}")
        if asked_by is not None:
            save()
            event("preempted", step=step, worker=asked_by)
            ask(b"q")
            end(138)
        if order == b"s" and step % plan["checkpoint_every"] == 0:
            save()
    event("done", step=step)
    ask(b"d")
    for line in range(plan.get("talk", 0)):
        print("talk", line)
    print("the last line", end="")
    end(0)


def interrupt(*_):
    end(130)


for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: signals_received.append(number))
signal.signal(signal.SIGINT, interrupt)
if todo.get("do") == "ignore_signals":
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
if "child" in plan:
    subprocess.Popen(plan["child"])
report()
act(0)
if rank == 0:
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
peers = connect()
lead() if rank == 0 else answer_rounds()
