"""Where kdkit keeps what it made: trained teachers and caches."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`KDKIT_HOME`, else `~/.cache/kdkit`."""
    return Path(os.environ.get("KDKIT_HOME") or Path.home() / ".cache" / "kdkit")
