"""The one face of all engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from kdkit.bench.job import Job

LOOK = 1.0  # seconds between two looks at the clock
GRACE = 60.0  # seconds that a stopped run has to save what it holds


@dataclass(frozen=True)
class Answer:
    """How a run ended.

    Attributes:
        job: the run.
        word: `done`, `failed`, or `stopped` on demand.
        what: its row, or a sentence.
    """

    job: Job
    word: str
    what: Any


class Engine(ABC):
    """Takes jobs and gives answers; which job comes next is not its business.

    Attributes:
        width: how many runs it has room for side by side.
        threads: of the CPU, for each of them.
        elsewhere: whether runs may see other disks and devices than who asks, who cannot try them then.
    """

    elsewhere: bool = False
    width: int = 1
    threads: int = 1

    @abstractmethod
    def room(self) -> int:
        """How many more may begin now."""

    @abstractmethod
    def begin(self, job: Job) -> None:
        """Begin a run, or go on with it."""

    @abstractmethod
    def answers(self, until: float | None) -> list[Answer]:
        """What has ended since; back after `LOOK` seconds, or at `until` (monotonic) where this process runs it."""

    @abstractmethod
    def stop(self) -> list[Answer]:
        """Ctrl-C for every run: each keeps the checkpoint of its last whole epoch."""

    def close(self) -> None:  # noqa: B027
        """Give back what it holds."""
