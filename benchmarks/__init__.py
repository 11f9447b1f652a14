"""Side-by-side measurements against peers: each is a command that prints a table of medians and ratios."""
