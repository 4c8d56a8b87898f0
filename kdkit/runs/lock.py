"""One process trains into a folder at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from filelock import FileLock, Timeout

from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder, first_rank


class BusyError(KdkitError):
    """Another process trains into a folder."""


@contextmanager
def only_here(folder: RunFolder, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a run's folder, which is made; the lock dies with its process.

    The other ranks of one run train together with the first, which holds the lock for all of them.

    Args:
        folder: the run's.
        waiting: called with the words for who holds it, before that is waited for; left out: nobody waits.

    Raises:
        BusyError: somebody else holds it and nobody waits.
        KdkitError: the folder cannot be written.
    """
    if not first_rank():
        yield
        return
    lock = FileLock(folder.lock)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        holder = _holder(folder)  # read before it is tried, for a try may empty the file
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting is None:
                raise BusyError(f"another process trains into {folder.path} ({holder}); {folder.elsewhere}") from None
            waiting(holder)
            lock.acquire()
    except OSError as error:
        raise KdkitError(f"{folder.path} cannot be written: {error.strerror}; {folder.elsewhere}") from error
    try:
        with suppress(OSError):  # Windows keeps everybody from a locked file
            folder.lock.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock.release()


def check_free(folder: RunFolder, *, resume: bool, overwrite: bool) -> None:
    """Whether a run may be written here, and nobody is at it now; nothing is made.

    Raises:
        BusyError: another process trains there.
        KdkitError: as `RunFolder.check`.
    """
    if folder.lock.exists():
        with only_here(folder):
            pass
    folder.check(resume=resume, overwrite=overwrite)


def _holder(folder: RunFolder) -> str:
    with suppress(OSError):
        if pid := folder.lock.read_text(encoding="utf-8").strip():
            return f"pid {pid}, lock {folder.lock}"
    return f"lock {folder.lock}"
