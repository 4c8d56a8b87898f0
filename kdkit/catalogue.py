"""What the registry knows of the losses, for people: all in a table, or one explained."""

from __future__ import annotations

import inspect
from textwrap import fill

from rich.console import Group

import kdkit.losses  # noqa: F401  fills the registry
from kdkit.console import table
from kdkit.registry import LOSSES, LossInfo, constructor


def losses_table() -> Group:
    """A line for each loss."""
    infos = sorted(LOSSES.values(), key=lambda info: info.name)
    rows = [(info.name, ", ".join(info.taps), f"{info.weight:g}", info.summary.rstrip(".")) for info in infos]
    return table(("loss", "tap", ">weight", "what it is"), rows)


def explained(info: LossInfo) -> str:
    """A loss's docstring, with what the registry knows of it."""
    own = {name: p.default for name, p in constructor(info.cls).items() if name not in info.filled}
    options = ", ".join(
        name if default is inspect.Parameter.empty else f"{name}={default!r}" for name, default in own.items()
    )
    facts = {
        "in a recipe": f"- {info.name}: {{weight: {info.weight:g}}}",
        "in Python": f"from kdkit.losses import {info.cls.__name__}",
        "options": fill(options or "none", 100, subsequent_indent=" " * 13, break_on_hyphens=False),
        "reads": f"{', '.join(info.reads)} at {' and '.join(info.taps)}",
        "weight": f"{info.weight:g} ({info.weight_source})",
        "head": info.head or "none",
        "paper": info.paper,
    }
    lines = [f"{word:<11}  {fact}" for word, fact in facts.items()]
    return "\n".join([info.name, "", inspect.getdoc(info.cls) or "", "", *lines])
