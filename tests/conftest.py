import gc
import os
import signal
import sys
from base64 import b64decode
from pathlib import Path

import pytest
import torch

from tests.damage import TRIED

os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a network
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads of a child do not spin for each other: on shared cores, for minutes
os.fsync = lambda file: None  # nobody pulls a plug here, and a disk takes 0.2 s of every run
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
DOT = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


IMPORTED = {"modules": 0}


@pytest.fixture(autouse=True)
def _frozen():
    """What has been imported stays: no collection, of which every run ends with one, looks at it again."""
    if len(sys.modules) > IMPORTED["modules"] + 100:
        IMPORTED["modules"] = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_sessionfinish(session):
    gc.unfreeze()  # else what libraries made is said to leak
    if TRIED["damaged files"] and not hasattr(session.config, "workerinput"):
        print(f"\nfigure: {TRIED['damaged files']} damaged files, {session.testsfailed} tracebacks or wrong numbers")


@pytest.fixture(autouse=True)
def _seeded():
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` notes a whole traceback for each kind of device


@pytest.fixture(autouse=True)
def _undrawn(request, monkeypatch):
    """Curves take a third of a short run; a test that looks at them says `@pytest.mark.drawn`."""
    if "kdkit.runs.fit" in sys.modules and request.node.get_closest_marker("drawn") is None:
        monkeypatch.setattr("kdkit.runs.fit.draw_curves", lambda rows, path, *_: path.write_bytes(DOT))
        monkeypatch.setattr("kdkit.runs.fit.draw_depth", lambda *_: None)


@pytest.fixture(autouse=True)
def _ctrl_c():
    """Lightning, once interrupted, is deaf to it for ever; the next test is not."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="session")
def data_root():
    """Folder with real data sets; what needs it is skipped where it is not set."""
    root = os.environ.get("KDKIT_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("KDKIT_DATA does not name a folder of data sets")
    return Path(root)
