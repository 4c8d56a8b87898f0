"""Whether Python that is not kdkit's own may run: a recipe's losses and models, a suite's, a run's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

WORD = "KDKIT_NO_CUSTOM_CODE"  # in the environment, which a suite's processes inherit
REFUSED = "brings its own code ({}), which is not allowed here"


def own_code_runs() -> bool:
    """Whether nobody has forbidden it."""
    return os.environ.get(WORD, "0") in ("", "0")


def forbid_own_code(really: bool) -> None:
    """Forbid it to this process and to those that it starts."""
    if really:
        os.environ[WORD] = "1"


@contextmanager
def as_before() -> Iterator[None]:
    """What is forbidden inside is so no longer afterwards."""
    before = os.environ.get(WORD)
    try:
        yield
    finally:
        os.environ.pop(WORD, None)
        if before is not None:
            os.environ[WORD] = before
