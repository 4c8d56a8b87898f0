"""The generators that other people's code draws from: Python's, NumPy's and torch's."""

from __future__ import annotations

import pickle
import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np
import torch


def states() -> bytes:
    """Where they stand, to be compared."""
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()))


def seed(key: int, device: torch.device) -> None:
    """Let all of them begin anew from a key of `draws`, with the device's.

    Not by `torch.manual_seed`: it notes a whole traceback for each kind of device that is not in use.
    """
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key & 0x7FFFFFFF)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(key & 0x7FFFFFFF)


@contextmanager
def kept(devices: Collection[torch.device] = ()) -> Iterator[None]:
    """Afterwards they stand where they stood; of accelerators, those of `devices` alone."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
