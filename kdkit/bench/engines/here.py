"""Runs in this process, one after the other: what they print is seen, and a debugger finds them."""

from __future__ import annotations

import signal
import sys
from _thread import interrupt_main
from threading import Event, Timer
from time import monotonic

from kdkit.bench.engines.engine import Answer, Engine
from kdkit.bench.job import Job, run, sentence


class Here(Engine):
    """This process. A run that kills its process kills the suite; the same command goes on after it."""

    def __init__(self) -> None:
        import torch

        self.threads = torch.get_num_threads()
        self.job: Job | None = None

    def room(self) -> int:
        """One at a time."""
        return int(self.job is None)

    def begin(self, job: Job) -> None:
        """It runs when its answer is asked for."""
        self.job = job

    def answers(self, until: float | None) -> list[Answer]:
        """Run it; at `until` it is stopped as by Ctrl-C."""
        if self.job is None:
            return []
        job, over, handler = self.job, Event(), signal.getsignal(signal.SIGINT)

        def end() -> None:
            over.set()
            interrupt_main()

        clock = Timer(max(0.0, until - monotonic()) if until is not None else 0.0, end)
        clock.daemon = True
        try:
            if until is not None:
                signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
                clock.start()
            return [Answer(job, "done", run(job))]
        except KeyboardInterrupt as stop:
            if not over.is_set():
                raise
            return [Answer(job, "stopped", str(stop))]
        except Exception as error:
            return [Answer(job, "failed", sentence(error, sys.stdout))]
        finally:
            clock.cancel()
            self.job = None
            signal.signal(signal.SIGINT, handler)  # Lightning takes it away

    def stop(self) -> list[Answer]:
        """Nothing runs while somebody asks for it."""
        self.job = None
        return []
