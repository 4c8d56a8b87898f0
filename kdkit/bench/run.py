"""Running a suite: processes side by side, rows as they come, a budget, and whatever fails told at the end."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import Any

from kdkit.bench.expand import Cell, expand
from kdkit.bench.job import Job, work
from kdkit.bench.plan import Plan
from kdkit.bench.rows import append, read_rows
from kdkit.bench.suite import Read

LOOK = 1.0  # seconds between two looks at the clock
GRACE = 60.0  # seconds that a stopped process has to save what it holds


@dataclass
class Outcome:
    """What became of a suite.

    Attributes:
        done: runs that came to their end now.
        failed: sentences about those that did not, by run.
        left: runs that the budget left.
    """

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left: int = 0


def results_of(out: Path, results: Path | None) -> Path:
    """The file of rows; left out: in the suite's folder."""
    return results or out / "results.jsonl"


def make_plan(suite: Read, out: Path, results: Path) -> Plan:
    """Every run of a suite beside the rows that there are."""
    return Plan.of(expand(suite, out / "teachers"), read_rows(results) if results.exists() else [])


def run_suite(
    suite: Read, out: Path, results: Path, *, hours: float | None, processes: int, tell: Callable[[str], None]
) -> Outcome:
    """Run what has no row yet: `run_plan` of the whole suite."""
    plan = make_plan(suite, out, results)
    return run_plan(plan, suite, out, results, hours=hours, processes=processes, tell=tell)


def run_plan(
    plan: Plan,
    suite: Read,
    out: Path,
    results: Path,
    *,
    hours: float | None,
    processes: int,
    tell: Callable[[str], None],
) -> Outcome:
    """Run what a plan has no row of.

    Args:
        plan: what is wanted, and the rows of `results`.
        suite: the suite.
        out: folder of its runs.
        results: file of rows.
        hours: after which nothing begins and what trains is stopped; the same call goes on with it later.
        processes: side by side.
        tell: called with a line whenever something happens.

    Raises:
        RecipeError: the suite or one of its recipes is wrong.
        KeyboardInterrupt: Ctrl-C; every process has saved what it had.
    """
    return _Pool(plan, suite, out, results, processes, tell).run(None if hours is None else monotonic() + 3600 * hours)


class _Pool:
    def __init__(
        self, plan: Plan, suite: Read, out: Path, results: Path, processes: int, tell: Callable[[str], None]
    ) -> None:
        import torch

        self.suite, self.out, self.results, self.processes, self.tell = suite, out, results, processes, tell
        self.threads = max(1, torch.get_num_threads() // processes)
        self.plan = plan
        self.waiting = self.plan.left
        self.total = len(self.waiting)
        self.busy: dict[Connection, tuple[BaseProcess, Cell]] = {}
        self.outcome = Outcome()
        self.stopping = False
        self.context = _context()

    def run(self, deadline: float | None) -> Outcome:
        try:
            while self.waiting or self.busy:
                if deadline is not None and monotonic() >= deadline:
                    self._stop()
                    self.outcome.left = len(self.plan.left) - len(self.outcome.failed)
                    break
                while len(self.busy) < self.processes and (cell := self._next()):
                    self._begin(cell)
                if self.busy:
                    for answer in wait(list(self.busy), timeout=None if deadline is None else LOOK):
                        self._end(answer)  # type: ignore[arg-type]
        except BaseException:
            self._stop()
            raise
        return self.outcome

    def _next(self) -> Cell | None:
        """The first run whose teacher is there; one whose teacher failed fails with it."""
        coming = {c.content for c in self.waiting} | {c.content for _, c in self.busy.values()}
        for cell in list(self.waiting):
            if (row := self.plan.elsewhere(cell)) is not None:
                self.waiting.remove(cell)
                same = {"pair": cell.pair, "method": cell.method, "fingerprint": cell.column, "suite": self.suite.name}
                plain = {word: value for word, value in row.items() if word != "tuned"}
                self._keep(cell, {**plain, **same, **cell.told}, "the same run as " + row["pair"])
            elif cell.needs is None or any(c == cell.needs for c, _ in self.plan.rows):
                self.waiting.remove(cell)
                return cell
            elif cell.needs not in coming:
                self.waiting.remove(cell)
                self._fail(cell, "its teacher failed")
        return None

    def _begin(self, cell: Cell) -> None:
        ours, theirs = self.context.Pipe(duplex=False)
        job = Job(cell, self.suite.name, self.suite.folder, self.out, self.threads)
        words = (job, dict(os.environ), str(Path.cwd()), theirs)
        process: BaseProcess = self.context.Process(target=work, args=words)  # type: ignore[attr-defined]
        process.start()
        theirs.close()
        self.busy[ours] = (process, cell)
        goes_on = " goes on" if job.folder.begun else ""
        self.tell(f"{_name(cell)}{goes_on}: {cell.recipe.trainer.max_epochs} epochs, log {job.log}")

    def _end(self, answer: Connection) -> None:
        process, cell = self.busy.pop(answer)
        try:
            word, what = answer.recv()
        except EOFError:
            process.join()
            word, what = "failed", f"its process died ({_why(process.exitcode)})"
        process.join()
        if word == "done":
            self._keep(cell, what)
        elif word == "failed" or not self.stopping:
            self._fail(cell, what)
        else:
            self.tell(f"{_name(cell)} stopped: {what}")

    def _keep(self, cell: Cell, row: dict[str, Any], note: str = "") -> None:
        append(self.results, row)
        self.plan = Plan(self.plan.cells, {**self.plan.rows, cell.key: row})
        self.outcome.done += 1
        top1 = 100 * row["last"][row["node"]]["top1"]
        minutes = note or (f"{row['minutes']:.1f} m" if row.get("minutes") is not None else "resumed")
        left = self.plan.estimate(self.processes)
        self.tell(f"{_name(cell)}: {top1:.2f} %, {minutes} ({self.outcome.done} of {self.total}; {left})")

    def _fail(self, cell: Cell, why: str) -> None:
        self.outcome.failed[_name(cell)] = why
        self.tell(f"{_name(cell)} FAILED: {why}")

    def _stop(self) -> None:
        """Ctrl-C for every process; each keeps the checkpoint of its last whole epoch."""
        self.stopping = True
        for process, _ in self.busy.values():
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGINT)
        end = monotonic() + GRACE
        while self.busy and (ready := wait(list(self.busy), timeout=max(0.0, end - monotonic()))):
            for answer in ready:
                self._end(answer)  # type: ignore[arg-type]
        for process, _ in self.busy.values():
            process.kill()


def _context() -> BaseContext:
    """Processes forked from one that has imported everything, where there are such."""
    if "forkserver" not in mp.get_all_start_methods():
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["kdkit.bench.job", "kdkit.runs.fit", "kdkit.runs.evaluate"])
    return context


def _name(cell: Cell) -> str:
    return f"{cell.pair} {cell.method} seed {cell.seed}"


def _why(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}; out of memory?" if code == -9 else signal.Signals(-code).name
    return f"exit code {code}"
