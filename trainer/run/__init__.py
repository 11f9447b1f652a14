"""The run directory: writing it, reading its records, listing runs."""
