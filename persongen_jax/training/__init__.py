"""A training step and what keeps a run alive: optimizer, checkpoints, logs, signals."""
