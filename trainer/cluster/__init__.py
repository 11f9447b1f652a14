"""The workers of a run: which there are, who is gone or stuck, and what all of them agree on."""
