"""`python -m trainer ...` is `convoy train ...`."""

import sys

from convoy.cli import entry_point

if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    entry_point()
