"""What went wrong in somebody else's code, and on which line of it."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

import torch

HERE = str(Path(__file__).resolve().parent)
TORCH = str(Path(torch.__file__).resolve().parent)
INSTALLED = {"site-packages", "dist-packages"}
PYTHON = sysconfig.get_path("stdlib")


def what(error: BaseException) -> str:
    """`ValueError: must be positive`."""
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}".rstrip(": ")


def where(error: BaseException) -> str:
    """`my_net.py:7: return self.fc(x)`; empty where torch and kdkit are alone.

    It is the deepest line of the user's own, else of a library.
    """
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {(error.text or '').strip()}"
    frames = _outside(error)
    return own_line(error) or (_shown(frames[-1]) if frames else "")


def own_line(error: BaseException) -> str:
    """The deepest line of a file of the user's own; empty where there is none."""
    own = [f for f in _outside(error) if not INSTALLED & set(Path(f.filename).parts)]
    return _shown(own[-1]) if own else ""


def _outside(error: BaseException) -> list[traceback.FrameSummary]:
    """Frames that are neither kdkit's nor torch's nor Python's."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("<", HERE, TORCH))]
    return [f for f in frames if INSTALLED & set(Path(f.filename).parts) or not f.filename.startswith(PYTHON)]


def _shown(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno}: {frame.line}"
