"""The run directory as the trainer writes and lists it."""
