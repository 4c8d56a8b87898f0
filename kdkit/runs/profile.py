"""Where a step's time went, as a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kdkit.console import show, table
from kdkit.train.profile import Part


def show_parts(parts: Sequence[Part], wall: float, idle: float) -> None:
    """Print the parts of a step, the largest first; a recorded step is one part.

    Args:
        parts: what was measured.
        wall: milliseconds from one step to the next.
        idle: milliseconds of these in which the accelerator did nothing.
    """
    device = any(part.device for part in parts)
    rows = [
        (part.name, f"{part.host:.3g}", f"{part.device:.3g}" if device else "", f"{100 * part.host / wall:.0f}")
        for part in sorted(parts, key=lambda part: -max(part.host, part.device))
    ]
    rows.append(("a step, all in all", f"{wall:.3g}", f"{wall - idle:.3g}" if device else "", "100"))
    if device:
        rows.append(("of which the accelerator is idle", "", f"{idle:.3g}", ""))
    show(table(["part of a step", ">host ms", ">device ms", ">% of host"], rows), sys.stdout)
