"""Exit codes of all commands. Launchers and schedulers decide by them whether to restart a run.

| code | meaning | launcher |
|---|---|---|
| 0 | done | stops |
| 1 | error in the program | restarts while the run makes progress; not if a callback failed |
| 2 | wrong flags or config; a failed check of `convoy doctor` | stops |
| 3 | unusable data or checkpoint; a fault found by `convoy verify` | stops |
| 130 | interrupted by Ctrl-C; saved if possible | stops |
| 138 | retryable: preempted and saved, peer lost, hang, start-up timeout | restarts all workers |
| 128 + N | killed by signal N, such as 137 (SIGKILL) and 143 (SIGTERM) | restarts all workers |

138 is above 128 because Kubeflow and others retry exit codes from 128 on. It is also what a shell reports for
signal 10, SIGUSR1.
"""

DONE = 0
ERROR = 1
USAGE = 2
DATA = 3
SIGNAL_BASE = 128
INTERRUPTED = 130
RETRYABLE = 138
