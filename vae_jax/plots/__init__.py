"""Figures from NumPy arrays; imports nothing of ours."""
