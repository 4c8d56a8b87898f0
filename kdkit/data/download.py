"""Downloads that are whole under their name, or not there."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

from kdkit.data.files import printable

FAILURES = (RuntimeError, OSError, EOFError)
"""What a download ends with where there is no network, another file, or no room."""

PART = ".kdkit-"
PATIENCE, STALE = 60.0, 3600.0  # seconds without a byte: a server is given up; a part is nobody's any more


def may_download(root: Any, download: bool | None) -> bool:
    """Whether a data set is fetched where it is missing: by default into kdkit's own cache folder only."""
    own = root is None and not os.environ.get("KDKIT_DATA")
    return own if download is None else download


def told_missing(folder: Path, downloads: bool) -> str:
    """What is said of a data set's folder where there is none; else nothing."""
    if folder.is_dir():
        return ""
    if downloads:
        return f"{folder} will be downloaded"
    return f"{folder} was not found; set data.root=FOLDER or KDKIT_DATA, or data.download=true"


def fetch(folder: Path, name: str, get: Callable[[str], object]) -> None:
    """Make `folder`/`name`, or put whole files where some were damaged.

    Each process has a part of its own: of two at the same time either's is as good. What one that was killed left
    goes with the next download.

    Args:
        folder: is made.
        name: of the data set's folder in it.
        get: downloads into a folder and unpacks there, or raises one of `FAILURES`.

    Raises:
        FAILURES: it is as it was before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{PART}*"):
        if left.is_dir() and _idle(left) > STALE:
            rmtree(left, ignore_errors=True)
    before = socket.getdefaulttimeout()
    with TemporaryDirectory(dir=folder, prefix=PART, ignore_cleanup_errors=True) as part:
        socket.setdefaulttimeout(PATIENCE)
        try:
            get(part)
        except HTTPException as error:  # whatever a server that is none has said
            raise RuntimeError(printable(" ".join(str(error).split()) or type(error).__name__)) from error
        finally:
            socket.setdefaulttimeout(before)
        got, there = Path(part) / name, folder / name
        try:
            os.replace(got, there)
        except OSError:  # it is there: damaged, or of a faster process
            if not there.is_dir():
                raise
            for file in [path for path in got.rglob("*") if path.is_file()]:
                (there / file.relative_to(got)).parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, there / file.relative_to(got))


def _idle(part: Path) -> float:
    """Seconds since anything was written there."""
    try:
        newest = max(os.stat(path).st_mtime for path in (part, *part.rglob("*")))
    except OSError:  # it goes just now
        return 0.0
    return time.time() - newest
