"""The training loop: steps, checkpoints, signals, curves."""
