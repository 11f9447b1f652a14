"""Verification of a dataset directory, byte by byte, and index repair."""
