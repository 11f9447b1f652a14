"""Cross-validation: one run per fold of a dataset, and what they predict together."""
