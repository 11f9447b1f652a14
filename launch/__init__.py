"""Starts workers, watches them and restarts them. Depends on the trainer's command line, files and exit codes only."""

if __name__ != "convoy.launch":
    raise ImportError(f"import convoy.launch, not {__name__}")
