import subprocess
import sys

PROGRAM = """
import os, resource
from convoy.core.errors import ConvoyError
from convoy.input_pipeline.images import worker_pool
open_files = len(os.listdir("/dev/fd")) - 1 + {more}
resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
try:
    {call}
except ConvoyError as error:
    print(type(error).__name__, error)
"""


def test_helper_process_that_cannot_start_is_named():
    run = "worker_pool.run(len, [''], workers=1, progress=print, place=lambda task, done: '')"
    for more, call in ((0, "worker_pool.warm_up('json')"), (0, run), (7, run), (12, run)):
        command = [sys.executable, "-c", PROGRAM.format(call=call, more=more)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.stdout.startswith("ConvoyError a helper process cannot start (Too many open files)"), done
        assert not done.stderr
