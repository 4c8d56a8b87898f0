"""What cannot be compiled, told before anything is."""

from __future__ import annotations

from typing import Any

from kdkit.graph.graph import Graph
from kdkit.registry import KdkitError


def check_compile(compile: Any, update: str, graph: Graph) -> None:
    """Raise `KdkitError` where `compile` is no word, or these models do not allow it."""
    if compile not in (True, False, "auto"):
        raise KdkitError(f"compile must be True, False or 'auto', got {compile!r}")
    if compile is True and update == "sequential":
        raise KdkitError("compile: peers that are updated one after the other are not compiled; leave it out")
    if compile is True and (why := eager(graph)):
        raise KdkitError(why)


def eager(graph: Graph) -> str:
    """Why a model cannot be compiled, which it says by an attribute `eager`; empty where every one can."""
    for name in graph.nodes:
        if graph.nodes[name].kind != "ema" and (why := getattr(graph.model(name), "eager", "")):
            return f"model {name!r}: {why}"
    return ""
