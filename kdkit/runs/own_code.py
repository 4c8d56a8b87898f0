"""A model or a loss of the user's own that fails in the middle of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kdkit.fault import own_line, what
from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder


@contextmanager
def own_code(folder: RunFolder) -> Iterator[None]:
    """An exception that passed through a file of the user's is told with its line, and with what is kept of the run.

    Raises:
        KdkitError: instead of it.
    """
    try:
        yield
    except KdkitError:
        raise
    except Exception as error:  # anybody's code fails in any way
        if not (line := own_line(error)):
            raise
        left = f"{folder.kept} holds the run so far" if folder.kept else "there is no checkpoint yet"
        raise KdkitError(f"{line}\n  {what(error)}\n  training has stopped; {left}") from error
