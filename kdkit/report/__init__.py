"""A run's page: one file that opens from disk, with its recipe as a graph, its curves, figures and provenance."""
