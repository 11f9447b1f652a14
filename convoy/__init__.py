"""The command line: one file a command, each with its flags and one call into the room that does the work."""

__version__ = "0.1.0"
