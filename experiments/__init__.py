"""Experiment scripts: one command, one claim."""
