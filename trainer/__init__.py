"""Trains, evaluates and applies a classifier."""
