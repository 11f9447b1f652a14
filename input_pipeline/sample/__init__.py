"""Drawing of a small product-like image set: silhouettes, patterns, photographs, and the whole set."""
