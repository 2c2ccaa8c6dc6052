"""Fits that are not one gradient of one objective, as `Algorithm` records."""
