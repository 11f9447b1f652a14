"""The two kinds of mistake a person can mend. The command line prints their text, without a traceback, and exits with their code."""


class UsageError(Exception):
    """A flag, a config field or a combination of them that cannot work. The message names it, its value and the mend."""

    exit_code = 2


class DataError(Exception):
    """Data or a checkpoint that cannot be used. The message names the file, what is wrong with it and the mend."""

    exit_code = 3
