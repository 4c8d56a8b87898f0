"""Ctrl-C in the middle of a run, and the signals by which a machine is taken away."""

from __future__ import annotations

import signal
import sys
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer, current_thread, main_thread

from kdkit.runs.folder import RunFolder

CTRL_C, SIGNAL = 130, 75  # exit codes; 75: nothing is wrong, start it again
SIGNALS = tuple(  # what a cluster sends before it takes the machine away; Windows has not all
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
)


class Asked(KeyboardInterrupt):
    """A signal, by its name, has been answered with a checkpoint."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a signal; its text says what is saved of the run that trained.

    Attributes:
        folder: of that run, which may be a teacher's.
        code: that the command line exits with.
    """

    def __init__(self, folder: RunFolder, asked: str = "", refused: BaseException | None = None) -> None:
        self.folder, self.code = folder, SIGNAL if asked else CTRL_C
        why = f"{asked}: " if asked else ""
        if folder.kept:
            super().__init__(f"{why}{folder.kept} holds the {'teacher' if folder.teacher else 'run'} so far")
        else:
            early = "" if refused else ", for its first epoch is not over"
            super().__init__(f"{why}{folder.path} has no checkpoint yet{early}")
        if refused is not None:
            self.args = (f"{self}; its last epoch could not be saved ({refused})",)


@contextmanager
def interruptible(folder: RunFolder) -> Iterator[None]:
    """What Lightning answers by leaving Python, Ctrl-C and `Asked`, becomes `Interrupted`."""
    # Lightning ignores the first from then on, and puts none of the others back where its own end fails.
    answers = {number: signal.getsignal(number) for number in (signal.SIGINT, *SIGNALS)}
    try:
        with _heard():
            yield
    except Interrupted:  # of a teacher, told already
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        first = stop.__context__ if isinstance(stop, SystemExit) else stop
        if not isinstance(first, KeyboardInterrupt):
            raise  # somebody means it
        refused = first.__context__ if isinstance(first.__context__, (OSError, RuntimeError)) else None
        raise Interrupted(folder, str(first) if isinstance(first, Asked) else "", refused) from None
    finally:
        if current_thread() is main_thread():
            for number, answer in answers.items():
                if answer is not None:  # of C, which Python cannot put back
                    signal.signal(number, answer)


@contextmanager
def _heard() -> Iterator[None]:
    """A Ctrl-C that falls into a destructor, where Python drops every exception, is pressed once more."""
    before = sys.unraisablehook

    def again(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)  # who answers the first one alone takes it as answered
        clock = Timer(0.1, interrupt_main)  # at once it would be dropped here, too
        clock.daemon = True
        clock.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before
