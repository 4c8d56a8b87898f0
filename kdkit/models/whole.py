"""Whether a weights file is as it was written: checksums over all of it, and tensors that a model can take."""

from __future__ import annotations

import errno
import json
import zipfile
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.registry import KdkitError

CHECKSUM = "checksum"


def stamped(file: bytes) -> bytes:
    """A safetensors file with its texts sorted, for their order in it is chance, and a checksum among them."""
    end = _end(file)
    header = json.loads(file[8:end])
    texts = {**header.get("__metadata__", {}), CHECKSUM: _checksum(header, file[end:])}
    header["__metadata__"] = dict(sorted(texts.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[end:]


def check_stamp(path: Path) -> None:
    """Compare a safetensors file that kdkit wrote with its checksum; others have none.

    Raises:
        KdkitError: it is another file than was written.
    """
    file = path.read_bytes()
    header = json.loads(file[8 : _end(file)])
    said = header.get("__metadata__", {}).get(CHECKSUM)
    if said is not None and said != _checksum(header, file[_end(file) :]):
        raise KdkitError(f"{path}: is damaged: its checksum does not fit; copy or train it anew")


def check_zip(path: Path) -> None:
    """Read every record of what `torch.save` wrote, whose checksums `torch.load` does not look at.

    Raises:
        KdkitError: a record is not what was written, or is packed: a few bytes could stand for a whole disk.
        OSError: the disk cannot be read, which says nothing of the file.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as records:
            listed = records.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in listed):
                raise KdkitError(f"{path}: is a compressed archive, and no weights file of PyTorch's is; save it anew")
            bad = records.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, OSError) as error:
        # All that zipfile makes of wrong bytes: lists that lie, records that end early, names that are no text, places
        # before the file, flags of another version or of a password.
        if of_the_disk(error):
            raise
        raise KdkitError(f"{path}: is not a whole PyTorch weights file ({error})") from error
    if bad is not None:
        raise KdkitError(
            f"{path}: is damaged: the checksum of its record {bad} does not fit; copy it anew"
            " (or save it anew, where it was written without checksums)"
        )


def of_the_disk(error: Exception) -> bool:
    """Whether a file could not be read, whatever is in it; EINVAL is a place that only wrong bytes name."""
    return isinstance(error, OSError) and error.errno != errno.EINVAL


def unusable(state: Mapping[str, Tensor], module: nn.Module) -> list[str]:
    """What a model cannot take, or could only take as other numbers than were meant: `conv1.weight is int8`."""
    own, learnt = module.state_dict(), dict(module.named_parameters())
    found = []
    for name in state.keys() & own.keys():
        value, wanted = state[name], own[name]
        if value.layout is not torch.strided or value.is_quantized or value.is_nested:
            found.append(f"{name} is {'quantised' if value.is_quantized else 'sparse'}")
        elif value.is_meta:
            found.append(f"{name} has a shape and no numbers")
        elif wanted.is_floating_point() and not value.is_floating_point():
            found.append(f"{name} is {str(value.dtype).removeprefix('torch.')}")
        elif name in learnt and wanted.is_floating_point() and not bool(value.to(wanted.dtype).isfinite().all()):
            found.append(f"{name} has values that are infinite or no number")
    return sorted(found)


def _end(file: bytes) -> int:
    """Where the header of a safetensors file ends."""
    return 8 + int.from_bytes(file[:8], "little")


def _checksum(header: Mapping[str, Any], numbers: bytes) -> str:
    texts = {word: text for word, text in header.get("__metadata__", {}).items() if word != CHECKSUM}
    plain = json.dumps({**header, "__metadata__": texts}, sort_keys=True).encode()
    return blake2b(plain + blake2b(numbers).digest(), digest_size=16).hexdigest()
