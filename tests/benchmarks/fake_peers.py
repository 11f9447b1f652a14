"""Peers that need nothing: they do 10 units of work a round, `double` does 20, and some fail, each in its way.

With the option `healthy` these don't.
"""

import os
import sys
import time

from benchmarks.workers import Prepared, SkippedError, Stopwatch, serve


def prepare(name, options):
    healthy = options.get("healthy")
    if name == "absent":
        raise SkippedError("the package absent is not installed")
    if name == "broken" and not healthy:
        raise ValueError("cannot be prepared")

    def time_round():
        if name == "dying" and not healthy:
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
