"""Models whose latents are structured or discrete: joints and recognition models."""
