"""Suites: many runs under one protocol, planned, run, kept as rows, and set as tables that can be believed."""
