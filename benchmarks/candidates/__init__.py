"""Candidates for the shipped recipes, and every run that was made to compare them (results.jsonl)."""
