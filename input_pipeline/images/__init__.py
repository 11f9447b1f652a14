"""Single images: decoding, re-encoding, perceptual hashes, and the pool of worker processes that does it."""
