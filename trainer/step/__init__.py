"""The training step: forward and backward pass, reduction, update, and the state that it changes."""
