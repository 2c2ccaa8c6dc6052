"""Data sets as arrays, and batches drawn from them."""
