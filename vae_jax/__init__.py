"""Variational autoencoders as pure functions in JAX."""
