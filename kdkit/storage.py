"""Files that are written whole or not at all, and by one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import BinaryIO

from filelock import FileLock

OURS = ".kdkit."  # how the names of what is not yet a file begin


@contextmanager
def whole(path: Path, before: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write into: under another name until all of it lies on the disk; a reader sees the old one or the new.

    Ctrl-C waits for the file: in the middle of `torch.save` it would be told as a full disk, or end the process.
    A disk that hangs is left by `kill`.

    Args:
        path: what it is called in the end; its folder is made.
        before: what the file that has this name now is called from then on; left out, it is lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _unbroken():
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=OURS)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            if before is not None and path.exists():
                os.replace(path, before)
            os.replace(name, path)
            _settle(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Reading a file and writing it again, while no other process of this user and machine does so."""
    name = hashlib.blake2b(f"{Path.home()} {path.resolve()}".encode(), digest_size=8).hexdigest()
    with FileLock(Path(tempfile.gettempdir()) / f"kdkit-{name}.lock"):  # beside it, it would stay
        yield


@contextmanager
def _unbroken() -> Iterator[None]:
    """Ctrl-C, pressed once or often, is answered at the end."""
    answer = signal.getsignal(signal.SIGINT)
    if not callable(answer) or current_thread() is not main_thread():  # nobody answers, or not here
        yield
        return
    pressed: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda number, frame: pressed.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, answer)
        if pressed:
            answer(signal.SIGINT, pressed[-1])


def crc32(content: bytes) -> str:
    """A checksum in eight letters; no flipped bit keeps it."""
    return f"{zlib.crc32(content):08x}"


def _settle(folder: Path) -> None:
    """The new name itself lies on the disk, too, where a folder can be told to see to that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
