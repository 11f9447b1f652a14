"""Draws a small product-like image set: silhouettes, patterns, photographs of them, and the set as a whole."""
