"""`python -m convoy` is `convoy`."""

from convoy.cli import entry_point

if __name__ == "__main__":
    entry_point()
