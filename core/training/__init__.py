"""The training loop and what it needs: loading, optimizers, checkpoints, metrics."""
