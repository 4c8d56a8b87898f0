"""Ctrl-C in the middle of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kdkit.runs.folder import RunFolder


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; its text says what is saved of the run that trained.

    Attributes:
        folder: of that run, which may be a teacher's.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        if folder.checkpoint.exists():
            super().__init__(f"{folder.checkpoint} holds the {'teacher' if folder.teacher else 'run'} so far")
        else:
            super().__init__(f"{folder.path} has no checkpoint yet, for its first epoch is not over")


@contextmanager
def interruptible(folder: RunFolder) -> Iterator[None]:
    """Ctrl-C inside, which Lightning answers by leaving Python, becomes `Interrupted`."""
    try:
        yield
    except Interrupted:  # of a teacher, told already
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise  # somebody means it
        raise Interrupted(folder) from None
