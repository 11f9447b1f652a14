"""Starts worker processes. Knows the trainer only by its command line and exit codes."""
