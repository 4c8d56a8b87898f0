"""Errors that were mended: rows from before them say so wherever they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml


def known() -> int:
    """How many there are; what a run that begins now keeps."""
    return len(_fixes())


def missing(row: Mapping[str, Any]) -> list[str]:
    """What was mended after the run of a row began and touches it."""
    return [fix["what"] for fix in _fixes()[row.get("fixes", 0) :] if _touches(fix, row)]


def _touches(fix: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    if row["data"] not in fix.get("data", [row["data"]]):
        return False
    return "losses" not in fix or bool(set(fix["losses"]) & _losses(row["recipe"]))


@cache
def _losses(recipe: str) -> set[str]:
    return {name for edge in yaml.safe_load(recipe)["losses"] for name in edge}


@cache
def _fixes() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("fixes.yaml").read_text(encoding="utf-8"))
    return found
