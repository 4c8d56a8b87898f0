"""What a suite still needs: runs in order, what stands already, and how long the rest will take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from rich.console import Group

from kdkit.bench.expand import Cell
from kdkit.bench.rows import Row, key
from kdkit.bench.suite import TEACHER
from kdkit.console import duration, table


@dataclass(frozen=True)
class Plan:
    """A suite's cells and the rows that there are.

    Attributes:
        cells: in the order of need.
        rows: by key.
    """

    cells: list[Cell]
    rows: Mapping[tuple[str, str], Row]

    @classmethod
    def of(cls, cells: Sequence[Cell], rows: Iterable[Row]) -> Plan:
        """Two cells of one column that are the same run are one."""
        return cls(list({cell.key: cell for cell in reversed(cells)}.values())[::-1], {key(row): row for row in rows})

    @property
    def left(self) -> list[Cell]:
        """What has no row."""
        return [cell for cell in self.cells if cell.key not in self.rows]

    def elsewhere(self, cell: Cell) -> Row | None:
        """The row of the same run in another column: a student alone that two pairs share."""
        return next((row for row in self.rows.values() if row["content"] == cell.content), None)

    def seconds(self, cell: Cell) -> float | None:
        """What a run will take by the rows of its like: same pair and method, else same pair, else any of the suite."""
        if self.elsewhere(cell):
            return 0.0
        like = [row for row in self.rows.values() if row.get("minutes") and row["epochs"]]
        if cell.method == TEACHER:
            ranks = [[row for row in like if row["content"] == cell.content]]
        else:
            students = [row for row in like if row["method"] != TEACHER]
            pair = [row for row in students if row["pair"] == cell.pair]
            ranks = [[row for row in pair if row["method"] == cell.method], pair]
            ranks += [[row for row in students if row["method"] == cell.method], students]
        best = next((rows for rows in ranks if rows), None)
        if best is None:
            return None
        return 60 * cell.recipe.trainer.max_epochs * float(mean(row["minutes"] / row["epochs"] for row in best))

    def shown(self, processes: int) -> Group:
        """The plan as a table: a line for each pair and method."""
        lines: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells:
            lines.setdefault((cell.pair, cell.method), []).append(cell)
        cells = []
        for (pair, method), group in lines.items():
            done = [c for c in group if c.key in self.rows]
            rest = [c for c in group if c.key not in self.rows]
            cells.append((pair, method, _epochs(group[0]), str(len(group)), str(len(done)), self._time(rest)))
        title = f"{len(self.cells)} runs, {len(self.cells) - len(self.left)} done; {self.estimate(processes)}"
        return table(("pair", "method", ">epochs", ">runs", ">done", ">time left"), cells, title)

    def estimate(self, processes: int) -> str:
        """The time of all that is left."""
        times = [self.seconds(cell) for cell in self.left]
        known = sum(t for t in times if t is not None) / processes
        unknown = sum(t is None for t in times)
        if not times:
            return "nothing is left"
        if unknown == len(times):
            return f"{unknown} left; how long a run takes is known after the first"
        return f"{len(times)} left, some {duration(known)}" + (f" and {unknown} of unknown length" if unknown else "")

    def _time(self, cells: Sequence[Cell]) -> str:
        times = [self.seconds(cell) for cell in cells]
        if not cells:
            return "done"
        return "?" if None in times else duration(sum(t for t in times if t is not None))


def _epochs(cell: Cell) -> str:
    """Its length, beside that of the protocol where the suite has another one, as for its teacher."""
    length, usual = cell.recipe.trainer.max_epochs, cell.protocol_epochs
    return str(length) if length == usual else f"{length} of {usual}"
