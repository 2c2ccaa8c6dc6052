"""Experiment scripts: one command, one claim; README.md here holds the results."""
