"""What a suite shows while it runs: a line for whatever happens and, on a terminal, the running ones beneath."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import TextIO

from rich.console import Group
from rich.live import Live
from rich.text import Text

from kdkit.bench.job import Job
from kdkit.console import console, duration, table

Tell = Callable[[str], None]


@dataclass
class Running:
    """A run that was begun, seen from outside: by the rows that it writes into its folder.

    Attributes:
        job: the run.
        expected: seconds that all of it may take, by its like.
        since: when it was begun (monotonic).
        epoch: that is over.
        top1: of the table's model, after it.
    """

    job: Job
    expected: float | None = None
    since: float = field(default_factory=monotonic)
    epoch: int = 0
    top1: float | None = None

    def __post_init__(self) -> None:
        self.look()
        self.first, self.at = self.epoch, self.since

    def look(self) -> None:
        """Read the newest row."""
        with suppress(OSError, ValueError), self.job.folder.metrics.open(encoding="utf-8", newline="") as file:
            rows = [(int(row["epoch"]), row.get(f"val/{self.job.cell.node}/top1")) for row in csv.DictReader(file)]
            if rows and rows[-1][0] != self.epoch:
                self.epoch, self.at = rows[-1][0], monotonic()
                self.top1 = next((float(top1) for _, top1 in reversed(rows) if top1), None)

    @property
    def left(self) -> float | None:
        """Seconds, by its own pace, or by its like where it has none yet."""
        total, passed = self.job.cell.recipe.trainer.max_epochs, monotonic() - self.at
        if self.epoch > self.first:
            return max(0.0, (self.at - self.since) / (self.epoch - self.first) * (total - self.epoch) - passed)
        return None if self.expected is None else max(0.0, self.expected * (1 - self.epoch / total) - passed)


@dataclass(frozen=True)
class State:
    """A suite at a moment.

    Attributes:
        running: what was begun.
        done: runs that came to their end.
        failed: runs that did not.
        left: in words, how many are left and how long they take.
    """

    running: list[Running]
    done: int
    failed: int
    left: str


def shown(state: State) -> Group:
    """The running ones as a table."""
    rows = []
    for run in state.running:
        run.look()
        cell = run.job.cell
        top1 = "" if run.top1 is None else f"{100 * run.top1:.2f}"
        left = "?" if run.left is None else duration(run.left)
        rows.append(
            (cell.pair, cell.method, str(cell.seed), f"{run.epoch}/{cell.recipe.trainer.max_epochs}", top1, left)
        )
    failed = f", {state.failed} failed" if state.failed else ""
    title = f"{state.done} done{failed}; {state.left}; {len(rows)} running"
    return table(("pair", "method", ">seed", ">epoch", ">top-1 %", ">time left"), rows, title)


@contextmanager
def progress(file: TextIO | None = None) -> Iterator[tuple[Tell, Callable[[State], None] | None]]:
    """Functions that tell a line and, on a terminal, show the state beneath all lines.

    Args:
        file: where to; standard output when left out.
    """
    out = console(sys.stdout if file is None else file)

    def tell(text: str) -> None:
        out.print(Text(text), soft_wrap=True)

    if not out.is_terminal:
        yield tell, None
        return
    with Live(console=out, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False) as live:
        yield tell, lambda state: live.update(shown(state), refresh=True)
