"""Files as disks, copies and strangers leave them."""

import os
import random

TRIED = {"damaged files": 0}
NIGHTLY = os.environ.get("KDKIT_NIGHTLY") == "1"


def spoilt(content, count, nightly):
    """Damaged versions of a file's bytes: cut, with a flipped bit, with a hole of zeros, with a doubled part."""
    made = random.Random(None if NIGHTLY else 0)
    for i in range(nightly if NIGHTLY else count):
        found, at = bytearray(content), made.randrange(len(content))
        if i % 4 == 0:
            del found[at:]
        elif i % 4 == 1:
            found[at] ^= 1 << made.randrange(8)
        elif i % 4 == 2:
            end = min(len(found), at + made.randrange(1, 600))
            found[at:end] = bytes(end - at)
        else:
            found[at:at] = content[at : at + made.randrange(1, 600)]
        TRIED["damaged files"] += 1
        yield bytes(found)
