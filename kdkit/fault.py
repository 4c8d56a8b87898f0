"""What went wrong in somebody else's code, and on which line of it."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

HERE = str(Path(__file__).resolve().parent)
TORCH = str(Path(torch.__file__).resolve().parent)


def what(error: Exception) -> str:
    """`ValueError: must be positive`."""
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}".rstrip(": ")


def where(error: Exception) -> str:
    """`my_net.py:7: return self.fc(x)`; empty where torch and kdkit are alone.

    It is the deepest line of the user's own, else of a library.
    """
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {(error.text or '').strip()}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("<", HERE, TORCH))]
    own = [f for f in frames if "site-packages" not in Path(f.filename).parts] or frames
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""
