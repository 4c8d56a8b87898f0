"""What the registry knows of the losses, for people: all in a table, or one explained."""

from __future__ import annotations

import inspect
from textwrap import fill

from rich.console import Group

import kdkit.losses  # noqa: F401  fills the registry
from kdkit.console import table
from kdkit.graph.edge import Edge
from kdkit.models.heads.kinds import HEADS
from kdkit.recipe.named import find_loss
from kdkit.registry import FILLED_WORDS, LOSSES, constructor, reads


def losses_table() -> Group:
    """A line for each loss."""
    infos = sorted(LOSSES.values(), key=lambda info: info.name)
    rows = [(info.name, ", ".join(info.taps), f"{info.weight:g}", info.summary.rstrip(".")) for info in infos]
    return table(("loss", "tap", ">weight", "what it is"), rows)


def heads_table() -> Group:
    """A line for each head."""
    rows = [(name, info.summary.rstrip(".")) for name, info in sorted(HEADS.items())]
    return table(("head", "what it is"), rows)


def explained(word: str) -> str:
    """A loss's docstring, with what the registry knows of it, or with what a class of one's own says of itself.

    Args:
        word: as in a recipe: a registered name, `file.py:Class` or `package.module:Class`; or a head's name.

    Raises:
        KdkitError: no such loss, file or class, or a class that breaks the contract.
    """
    if word in HEADS and word not in LOSSES:
        head = HEADS[word]
        options = f"{', '.join(head.words) or 'none'}; as every head's: l2, maps, grid, weight_norm, teacher"
        return f"{word}\n\n{head.summary}\n\nin a recipe  head: {word}\noptions      {options}"
    cls, info = find_loss(word)
    edge = Edge(cls)
    own = {name: p.default for name, p in constructor(cls).items() if name not in FILLED_WORDS}
    options = ", ".join(
        name if default is inspect.Parameter.empty else f"{name}={default!r}" for name, default in own.items()
    )
    weight = info.weight if info else 1.0
    facts = {
        "in a recipe": f"- {word}: {{weight: {weight:g}}}",
        "in Python": f"from kdkit.losses import {cls.__name__}" if info else f"kdkit.Edge({cls.__name__})",
        "options": fill(options or "none", 100, subsequent_indent=" " * 13, break_on_hyphens=False),
        "reads": f"{', '.join(reads(cls))} at {' and '.join(edge.natural_taps)}",
    }
    if info:
        facts |= {"weight": f"{weight:g} ({info.weight_source})", "head": info.head or "none", "paper": info.paper}
    elif edge.min_batch > 1:
        facts["samples"] = f"{edge.min_batch} of a batch at least"
    lines = [f"{fact:<11}  {what}" for fact, what in facts.items()]
    doc = inspect.cleandoc(cls.__doc__ or "")
    return "\n".join([word, "", *([doc, ""] if doc else []), *lines])
