"""Starts workers, watches and restarts them. Knows the trainer only by its command line, files and exit codes."""

if __name__ != "convoy.launch":
    raise ImportError(f"import convoy.launch, not {__name__}")
