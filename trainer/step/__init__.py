"""The training step: forward and backward passes, reduction, update, and the state they change."""
