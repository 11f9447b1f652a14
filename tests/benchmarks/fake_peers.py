"""Peers that need nothing: `steady` and `double` do 10 and 20 units of work a round, the others fail in their ways."""

import os
import sys
import time

from benchmarks.workers import Prepared, SkippedError, Stopwatch, serve


def prepare(name, options):
    if name == "absent":
        raise SkippedError("the package absent is not installed")
    if name == "broken":
        raise ValueError("cannot be prepared")

    def time_round():
        if name == "dying":
            os._exit(7)
        watch = Stopwatch()
        time.sleep(options["seconds"])
        with open(options["log"], "a") as log:
            log.write(f"{name}\n")
        print("noise on the output", file=sys.stdout)
        return watch.stop(20 if name == "double" else 10)

    return Prepared(time_round, {"pid": os.getpid(), "cores": len(os.sched_getaffinity(0))})


if __name__ == "__main__":
    serve(prepare)
