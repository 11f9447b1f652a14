"""Checkpoint files, and saving them in the background."""
