"""Augmentation: a recipe's line (`line`), what its operations compute, and a page that shows them."""
