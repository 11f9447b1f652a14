"""Peers that need nothing: they do 10 units of work a round, `double` does 20, `family` computes in processes of its
own, and some fail, each in its way.

With the option `healthy` these don't.
"""

import os
import subprocess
import sys
import time

from benchmarks.workers import Prepared, SkippedError, Stopwatch, adopt_orphans, serve, session_cpu_seconds

# A process that computes, and leaves one behind that does so too.
_BUSY = "import time; [None for _ in iter(lambda: time.process_time() < 0.2, False)]"
_CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {_BUSY!r}]); {_BUSY}"


def prepare(name, options):
    healthy = options.get("healthy")
    if name == "absent":
        raise SkippedError("the package absent is not installed")
    if name == "broken" and not healthy:
        raise ValueError("cannot be prepared")
    if name == "family":
        adopt_orphans()

    def time_round():
        if name == "dying" and not healthy:
            os._exit(7)
        watch = Stopwatch(session_cpu_seconds)
        time.sleep(options["seconds"])
        with open(options["log"], "a") as log:
            log.write(f"{name}\n")
        if name == "family":
            subprocess.run([sys.executable, "-c", _CHILD], check=True)
            os.waitpid(-1, 0)
        print("noise on the output", file=sys.stdout)
        return watch.stop(20 if name == "double" else 10)

    return Prepared(time_round, {"pid": os.getpid(), "cores": len(os.sched_getaffinity(0))})


if __name__ == "__main__":
    serve(prepare)
