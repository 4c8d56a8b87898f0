"""Scripts that measure; each writes its raw rows under `results/`."""
