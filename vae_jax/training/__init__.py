"""Running any `Algorithm`: compiled loops, checkpoints, a journal."""
