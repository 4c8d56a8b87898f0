"""Runs: a recipe becomes a folder with weights, metrics and the record of how they came about."""
