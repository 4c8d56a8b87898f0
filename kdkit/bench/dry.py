"""Every pair and method of a suite tried before anything is trained: what cannot run is told at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from kdkit.bench.engines.processes import context, why_it_died
from kdkit.bench.expand import Cell
from kdkit.fault import what, where
from kdkit.recipe import RecipeError
from kdkit.registry import KdkitError


def distinct(cells: Iterable[Cell]) -> list[Cell]:
    """One seed of each pair and method."""
    return list({(cell.pair, cell.method): cell for cell in reversed(list(cells))}.values())[::-1]


def refused(cells: Sequence[Cell]) -> Iterator[tuple[Cell, str]]:
    """The cells that cannot run, each with a line that says why, as soon as it is known.

    `kdkit.runs.dry_run` tries them, one after the other, in a process of its own: code that ends its process is told,
    too. Those whose teacher cannot run are left out, for they cannot for that reason. Where that process cannot begin,
    as under a script without `if __name__ == "__main__":`, nothing is known to be wrong.

    Args:
        cells: each is tried; `distinct` gives those that are worth it.
    """
    left, lost = list(cells), set[str]()
    while left:
        for cell, why in _tried(tuple(left)):
            left.pop(0)
            if why and cell.needs not in lost:
                lost.add(cell.content)
                yield cell, why


def _tried(cells: Sequence[Cell]) -> Iterator[tuple[Cell, str]]:
    """Cells in their order, up to the one that ends the process; what is wrong is empty where nothing is."""
    ours, theirs = context().Pipe(duplex=False)
    words = (cells, dict(os.environ), str(Path.cwd()), theirs)
    process: BaseProcess = context().Process(target=_work, args=words, daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    try:
        try:
            ours.recv()
        except EOFError:
            yield from ((cell, "") for cell in cells)
            return
        for cell in cells:
            try:
                yield cell, ours.recv()
            except EOFError:
                process.join()
                yield cell, f"its process died ({why_it_died(process.exitcode)})"
                return
    finally:
        process.terminate()
        process.join()


def _work(cells: Sequence[Cell], environment: Mapping[str, str], here: str, answer: Connection) -> None:
    """The process: that it began, and a line for each cell."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(here)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks for it ends it
    from kdkit.models import copied

    answer.send("")
    for _, pair in groupby(cells, key=lambda cell: cell.pair):
        with copied():
            for cell in pair:
                answer.send(_why(cell))


def _why(cell: Cell) -> str:
    """What is wrong with a cell, in a line."""
    from kdkit.runs.dry_run import dry_run

    try:
        dry_run(cell.recipe, values=False)
    except KdkitError as error:
        told = map(str, error.problems) if isinstance(error, RecipeError) else [str(error)]
        return " ".join("; ".join(told).split())
    except Exception as error:  # anybody's code fails in any way
        return f"{what(error)} {where(error)}".strip()
    return ""
