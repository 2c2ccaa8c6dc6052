"""Estimators of bounds and of their gradients: (key, params, x) -> nats."""
