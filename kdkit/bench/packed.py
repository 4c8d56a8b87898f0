"""What a model said of every test image, in a line of text: some 10 kB for 10,000 images."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit.registry import KdkitError

Predicted = NDArray[np.int64]
Right = NDArray[np.bool_]


def pack(predicted: Predicted, right: Right) -> dict[str, Any]:
    """Classes and correctness as JSON has them; correctness apart, for that is all most statistics read."""
    top = int(predicted.max(initial=0))
    kind = np.uint8 if top < 256 else np.uint16 if top < 65536 else np.uint32
    return {
        "images": len(right),
        "right": _text(np.packbits(right).tobytes()),
        "bytes": np.dtype(kind).itemsize,
        "classes": _text(predicted.astype(f"<u{np.dtype(kind).itemsize}").tobytes()),
    }


def right(packed: dict[str, Any]) -> Right:
    """Which images were told rightly.

    Raises:
        KdkitError: damaged.
    """
    bits = np.unpackbits(np.frombuffer(_bytes(packed["right"]), np.uint8))
    if len(bits) != -(-packed["images"] // 8) * 8:
        raise KdkitError(f"predictions of {packed['images']} images have {len(bits)} bits; the row is damaged")
    return bits[: packed["images"]].astype(bool)


def predicted(packed: dict[str, Any]) -> Predicted:
    """The class that was told of each image.

    Raises:
        KdkitError: damaged.
    """
    found = np.frombuffer(_bytes(packed["classes"]), f"<u{packed['bytes']}").astype(np.int64)
    if len(found) != packed["images"]:
        raise KdkitError(f"predictions of {packed['images']} images have {len(found)} classes; the row is damaged")
    return found


def _text(raw: bytes) -> str:
    return base64.b85encode(zlib.compress(raw, 9)).decode("ascii")


def _bytes(text: str) -> bytes:
    try:
        return zlib.decompress(base64.b85decode(text))
    except (ValueError, zlib.error) as error:
        raise KdkitError(f"predictions cannot be unpacked ({error}); the row is damaged") from None
