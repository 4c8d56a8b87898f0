"""Where a number comes from: versions, commit, machine."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kdkit.runs.fixes import known
from kdkit.runs.folder import RunFolder, read_json

PACKAGES = ("kdkit", "torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics")


def provenance() -> dict[str, Any]:
    """Versions, commit of the source tree (with `+` where it has uncommitted changes), machine, known mends, time."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "commit": commit(),
        "machine": machine(),
        "fixes": known(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def begun(papers: Mapping[str, Any], folder: RunFolder) -> dict[str, Any]:
    """The papers of a run that goes on: when it began, which mends it knew then, and the commits that it ran under."""
    before = read_json(folder.provenance)
    commits = [one for text in (before.get("commit"), papers["commit"]) for one in str(text or "").split(", ") if one]
    kept = {"started": before.get("started", papers["started"]), "commit": ", ".join(dict.fromkeys(commits)) or None}
    return {**papers, **kept, "fixes": min(before.get("fixes") or 0, papers["fixes"])}


def commit() -> str | None:
    """Commit of the checkout that kdkit runs from; `None` for an installed wheel."""
    here = Path(__file__).resolve().parent
    head = _git(here, "rev-parse", "--short=12", "HEAD")
    tracked = _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
    if not head or not tracked:
        return None
    return head + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no", "--", "..") else "")


def machine() -> dict[str, Any]:
    """What it ran on; no name or address of the machine."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(count)],
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(folder: Path, *words: str) -> str:
    try:
        command = ["git", "-C", str(folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
