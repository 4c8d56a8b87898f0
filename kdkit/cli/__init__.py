"""The command line: one thin function for each verb. Nothing heavy is imported before a verb needs it."""

from kdkit.cli import deploying, reporting, studying, suites, training, what_there_is  # noqa: F401  each adds its verbs
from kdkit.cli.app import app


def main() -> None:
    """The console script `kdkit`."""
    app()
