"""The workers of a run: strategy, rendezvous, liveness, stop requests."""
