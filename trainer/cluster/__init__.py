"""Distribution strategy, rendezvous, liveness and stop requests of the workers of a run."""
