"""Runs the command line: `python -m convoy` is the same as `convoy`."""

from convoy.cli import entry_point

if __name__ == "__main__":
    entry_point()
