"""Published numbers, each with its source."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Published:
    """A number that somebody published.

    Attributes:
        top1: in percent.
        epochs: of its schedule.
        epoch: `last`, `best`, or `unsaid`, which is compared with the last.
        source: where it stands.
        protocol: the packaged one that it was trained under.
        overrides: what was changed of that.
    """

    top1: float
    epochs: int
    epoch: str
    source: str
    protocol: str
    overrides: tuple[str, ...]


def published(data: str, teacher: str, student: str, method: str) -> Published | None:
    """The number of a method on a pair, if there is one."""
    for group in _groups():
        for pair in group["pairs"] if group["data"] == data else ():
            if (pair["teacher"], pair["student"]) == (teacher, student) and method in pair["top1"]:
                changed = (*group.get("overrides", ()), *pair.get("overrides", ()))
                told = {word: group[word] for word in ("epochs", "epoch", "source", "protocol")}
                return Published(pair["top1"][method], **told, overrides=changed)
    return None


@cache
def _groups() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    return found
