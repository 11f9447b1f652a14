"""Starts workers, watches and restarts them. Knows the trainer only by its command line, files and exit codes."""
