"""What a piece of code writes, runs or connects to, told by Python itself."""

import os
import sys
from contextlib import contextmanager

_seen = None
DEEDS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "webbrowser.open")


def _listen(event, args):
    if _seen is None:
        return
    if event == "open" and isinstance(args[0], (str, bytes)) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _seen.append(f"open {os.fsdecode(args[0])}")
    elif event in DEEDS or event in RUNS:
        _seen.append(f"{event} {args[0] if args else ''}")


sys.addaudithook(_listen)


@contextmanager
def deeds():
    """The list of what is written, run or connected to inside."""
    global _seen
    before, _seen = _seen, (found := [])
    try:
        yield found
    finally:
        _seen = before
