"""Optimizer, losses, checkpoints and the loop that all stages of training share."""
