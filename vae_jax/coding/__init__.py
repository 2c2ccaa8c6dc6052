"""Lossless compression: what a bound on log p(x) is worth in bits of a file."""
