"""`python -m trainer ...` is `convoy train ...`."""

import sys

from convoy.cli import main

raise SystemExit(main(["convoy", "train", *sys.argv[1:]]))
