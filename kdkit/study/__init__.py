"""What one model knows of another, and what its features are worth elsewhere: comparisons, probes, figures."""
