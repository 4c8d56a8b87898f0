"""`python -m kdkit.cli`."""

from kdkit.cli import main

main()
