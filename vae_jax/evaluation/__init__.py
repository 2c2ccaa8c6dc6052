"""Measurements on a fitted model."""
