"""Weights files: safetensors and PyTorch's own, read without running code, compared key by key, written in one move."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kdkit.models.whole import CHECKSUM, check_stamp, check_zip, of_the_disk, stamped, unusable
from kdkit.registry import KdkitError
from kdkit.storage import whole

# Where checkpoints keep the state dict, and what wrappers put before its keys.
NESTS = ("model", "state_dict", "model_state", "model_state_dict", "net")
PREFIXES = ("module.", "model.", "_orig_mod.", "nodes.student.")
SHOWN = 8


def load_weights(module: nn.Module, path: str | Path, *, strict: bool = True, arch: str = "") -> None:
    """Load a file's weights into `module`, all or nothing.

    Args:
        module: the model; its device and dtype stay.
        path: `.safetensors`, or anything `torch.save` wrote. A state dict may lie under `model`, `state_dict`,
            `model_state`, `model_state_dict` or `net`; a prefix that a wrapper put before every key is taken off.
        strict: whether the keys must be the same. Otherwise what is there is loaded, at least one key; a shape that
            differs is an error all the same.
        arch: what the module is, for the error's sake; a file that kdkit wrote says what it is of.

    Raises:
        KdkitError: no such file, not a weights file, one that could run code, or one that does not fit, key by key.
    """
    state = without_prefix(read_weights(path), module)
    own = module.state_dict()
    # BatchNorm counts batches since torch 0.4.1; older files lack the counters and nothing depends on them.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    if shapes or (strict and (missing or unexpected)) or not own.keys() & state.keys():
        told = read_metadata(path).get("arch", "")
        theirs = f": its weights are of {told}, the model is {arch}" if told and arch and told != arch else ""
        lines = [f"{path} does not fit {arch or type(module).__name__}{theirs}"]
        lines += _listed("missing in the file", missing)
        lines += _listed("unknown to the model", unexpected)
        lines += _listed(
            "shapes", [f"{k} is {_size(state[k])} in the file, {_size(own[k])} in the model" for k in shapes]
        )
        if not missing and not unexpected:
            lines += _advice({k: (state[k], own[k]) for k in shapes})
        raise KdkitError("\n  ".join(lines))
    if bad := unusable(state, module):
        lines = [f"{path} cannot be the weights of {arch or type(module).__name__}", *_listed("wrong values", bad)]
        raise KdkitError("\n  ".join(lines))
    module.load_state_dict(state, strict=False)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU, its keys as they were written. No code in the file is ever run."""
    path = Path(path)
    if not os.path.isfile(path):
        raise KdkitError(
            f"{path}: {'is a folder, not a weights file' if os.path.isdir(path) else 'no such weights file'}"
        )
    if path.stat().st_size == 0:
        raise KdkitError(f"{path}: the weights file is empty; it was probably not written to its end")
    with _readable(path):
        if path.suffix == ".safetensors":
            state = load_file(path)
            check_stamp(path)
            return state
        check_zip(path)
        return _unpacked(_read_pickle(path), path)


def save_weights(module: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write `module`'s weights as safetensors; a reader sees the old file or the new one, never half of one.

    Args:
        module: the model; the wrapper that `torch.compile` puts around it leaves no trace in the keys.
        path: where to; its folder is made.
        metadata: texts that travel in the file's header.
    """
    path = Path(path)
    module = getattr(module, "_orig_mod", module)
    check_saved(module)
    state = module.state_dict()
    copies = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state.items()}  # tied weights part here
    try:
        with whole(path) as file:
            file.write(stamped(save(copies, dict(metadata or {}))))
    except (OSError, SafetensorError) as error:
        raise KdkitError(f"{path}: could not be written ({error})") from error


def check_saved(module: nn.Module) -> None:
    """Whether its weights can be written as safetensors.

    Raises:
        KdkitError: it has more than tensors in its state.
    """
    if odd := [k for k, v in module.state_dict().items() if not isinstance(v, Tensor)]:
        raise KdkitError(
            f"{type(module).__name__}: safetensors hold tensors only, its state also has {', '.join(odd)}; keep that "
            "in a buffer, not in get_extra_state"
        )


def read_metadata(path: str | Path) -> dict[str, str]:
    """The texts in a safetensors file's header; empty for other kinds of files, which have none."""
    path = Path(path)
    if not os.path.isfile(path):
        raise KdkitError(f"{path}: no such weights file")
    if path.suffix != ".safetensors":
        return {}
    with _readable(path), safe_open(path, framework="pt") as file:
        return {word: text for word, text in (file.metadata() or {}).items() if word != CHECKSUM}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A file that is no weights file is told from a disk that does not give it."""
    try:
        with path.open("rb"):  # which readers tell in words of their own, or not at all
            pass
        yield
    except SafetensorError as error:
        raise KdkitError(f"{path}: is not a whole safetensors file ({error})") from error
    except OSError as error:
        raise KdkitError(
            f"{path}: cannot be read ({error.strerror or error}); whether it is whole is not known"
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can fail in any way
        if of_the_disk(error):
            raise
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise KdkitError(
                f"{path}: refused, for it holds Python objects ({code[1]}) and reading those can run code"
                "\n  kdkit reads tensors, numbers and texts only. RepDistiller's `*_last.pth` holds its options:"
                "\n  take the `ckpt_epoch_*.pth` beside it, or save `model.state_dict()` alone"
            ) from None
        # torch's own text advises to switch the safety off; only the first sentence of other errors is worth showing.
        told = isinstance(error, pickle.UnpicklingError) or not str(error)
        reason = "what it holds is something else" if told else str(error).split(". ")[0]
        raise KdkitError(f"{path}: is not a whole PyTorch weights file ({reason})") from error


def _unpacked(content: Any, path: Path) -> dict[str, Tensor]:
    """The mapping from key to tensor inside a checkpoint."""
    inner = content
    while isinstance(inner, Mapping):
        if inner and all(isinstance(value, Tensor) for value in inner.values()):
            return {str(key): value for key, value in inner.items()}
        inner = next((inner[nest] for nest in NESTS if isinstance(inner.get(nest), Mapping)), None)
    found = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        found = f"a dictionary of {', '.join(map(str, list(content)[:SHOWN])) or 'nothing'}"
    raise KdkitError(f"{path}: must hold a state dict, by itself or under {', '.join(NESTS)}; got {found}")


def without_prefix(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Take off what wrappers put before the keys, as often as all keys begin with it and the module's own do not."""
    own = module.state_dict().keys()
    if inside := {k: v for k, v in state.items() if k.startswith("nodes.student.")}:
        state = inside  # a checkpoint of a whole graph: its heads and banks are not the model's
    for prefix in PREFIXES * 2:
        if all(k.startswith(prefix) for k in state) and not any(k.startswith(prefix) for k in own):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _listed(title: str, keys: list[str]) -> list[str]:
    more = [f"… and {len(keys) - SHOWN} more"] if len(keys) > SHOWN else []
    return [f"{title} ({len(keys)}): {', '.join(keys[:SHOWN] + more)}"] if keys else []


def _size(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _advice(pairs: dict[str, tuple[Tensor, Tensor]]) -> list[str]:
    """What to do where only the classifier's number of classes differs: one layer whose first size alone is another."""
    layers = {key.rpartition(".")[0] for key in pairs}
    if len(layers) != 1 or any(a.dim() != b.dim() or a.shape[1:] != b.shape[1:] for a, b in pairs.values()):
        return []
    there, here = next(iter(pairs.values()))
    return [
        f"`{layers.pop()}` has {there.shape[0]} classes in the file, {here.shape[0]} in the model: `tune:` fits a model"
        " with other classes to the data; or take weights trained on these classes"
    ]
