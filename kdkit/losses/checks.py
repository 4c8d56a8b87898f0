"""What a loss refuses, and how it says so: `<loss>: <argument> must be <expected>, got <value>; <what to do>`.

Values are checked in constructors only: in training a hyper-parameter may be a scheduled tensor on the device, and
looking at it would wait for the device and break a compiled graph. Shapes are known without looking: `forward` checks
those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

HEAD = "give the edge a head (head: {}), or in a loop of your own one by `kdkit.models.heads.build_head`"


def positive(loss: str, **values: Any) -> None:
    """Raise `ValueError` unless every value is a finite number above 0: `positive("kd", temperature=temperature)`."""
    for name, value in values.items():
        if not (_is_number(value) and 0 < value < math.inf):
            remedy = _plain(value, f"choose a positive {name}")
            raise ValueError(f"{loss}: {name} must be a number above 0, got {value!r}; {remedy}")


def not_negative(loss: str, **values: Any) -> None:
    """Raise `ValueError` unless every value is a finite number of at least 0."""
    for name, value in values.items():
        if not (_is_number(value) and 0 <= value < math.inf):
            remedy = _plain(value, "0 switches it off")
            raise ValueError(f"{loss}: {name} must be a number of at least 0, got {value!r}; {remedy}")


def share(loss: str, **values: Any) -> None:
    """Raise `ValueError` unless every value lies in [0, 1]."""
    for name, value in values.items():
        if not (_is_number(value) and 0 <= value <= 1):
            remedy = _plain(value, "give it as a share, not in percent")
            raise ValueError(f"{loss}: {name} must lie in [0, 1], got {value!r}; {remedy}")


def count(loss: str, **values: Any) -> None:
    """Raise `ValueError` unless every value is a whole number of at least 1."""
    for name, value in values.items():
        if not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            remedy = _plain(value, "give a size")
            raise ValueError(f"{loss}: {name} must be a whole number of at least 1, got {value!r}; {remedy}")


def choice(loss: str, options: Sequence[str], **values: Any) -> None:
    """Raise `ValueError` unless every value is one of `options`."""
    for name, value in values.items():
        if value not in options:
            known = " or ".join(repr(o) for o in options)
            raise ValueError(f"{loss}: {name} must be {known}, got {value!r}; choose one of them")


def numbers(loss: str, **tensors: Tensor) -> None:
    """Raise `ValueError` unless every value is a tensor of a floating type, no model's whole output, and not empty.

    The mean over no samples is NaN.
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{loss}: {name} must be a tensor, got {type(value).__name__}; "
                "take it out of the model's output, as in `output.logits`"
            )
        if not value.is_floating_point():
            raise ValueError(f"{loss}: {name} must be of a floating type, got {value.dtype}; turn it with .float()")
        if value.ndim:
            several(loss, value, 1, "leave the loss out where there is none")


def layers(loss: str, **given: Sequence[Tensor]) -> None:
    """Raise `ValueError` for what is no list of layers, as one tensor is not, whose samples would be taken for them."""
    for name, value in given.items():
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{loss}: {name} must be a list of layers, got one {type(value).__name__}; say [layer, …]")


def same_shape(loss: str, student: Tensor, teacher: Tensor, remedy: str = "", head: str = "") -> None:
    """Raise `ValueError` unless both ends have one shape; `remedy` says what to do, else a head that fits is named.

    `head` is the one between two maps.
    """
    numbers(loss, student=student, teacher=teacher)
    if student.shape != teacher.shape:
        _as_many(loss, student, teacher)
        if student.ndim == 4 and student.shape[:2] == teacher.shape[:2] and not head:
            remedy = remedy or "the head `identity` pools the larger maps; `taps: embedding` compares them all pooled"
        remedy = remedy or HEAD.format(_head(student, teacher, head or "linear"))
        raise ValueError(
            f"{loss}: student must be shaped like teacher, {tuple(teacher.shape)}, got {tuple(student.shape)}; {remedy}"
        )


def same_batch(loss: str, student: Tensor, teacher: Tensor) -> None:
    """Raise `ValueError` unless both ends are (B, …) of the same number of samples."""
    numbers(loss, student=student, teacher=teacher)
    for name, tensor in (("student", student), ("teacher", teacher)):
        if tensor.ndim < 2:
            raise ValueError(
                f"{loss}: {name} must be (B, …), got shape {tuple(tensor.shape)}; give a row of numbers for each sample"
            )
    _as_many(loss, student, teacher)


def _as_many(loss: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape[:1] != teacher.shape[:1]:
        raise ValueError(
            f"{loss}: student must hold teacher's {teacher.shape[0]} samples, got {student.shape[0]}; "
            "give both the same batch"
        )


def several(loss: str, student: Tensor, least: int, remedy: str = "fewer have no relations") -> None:
    """Raise `ValueError` unless a batch has enough samples, to be compared with each other or as `remedy` says."""
    if len(student) < least:
        what = "sample" if least == 1 else "samples"
        raise ValueError(f"{loss}: batch must hold at least {least} {what}, got {len(student)}; {remedy}")


def logits(
    loss: str,
    student: Tensor,
    teacher: Tensor,
    *,
    least: int = 2,
    fewer: str = "choose `mse`",
    others: str = "fit the teacher to the student's classes first (`tune:`)",
) -> None:
    """Raise `ValueError` unless both ends are logits (B, C) of the same classes, and of enough of them.

    Of one class the softmax is 1 whatever the logit says: nothing would be learned, and nothing told. `fewer` and
    `others` say what to do about it.
    """
    dims(loss, "(B, C)", student=student, teacher=teacher)
    same_shape(loss, student, teacher, others)
    if student.shape[1] < least:
        raise ValueError(f"{loss}: student must tell at least {least} classes, got {student.shape[1]}; {fewer}")


def dims(loss: str, shape: str, **tensors: Tensor) -> None:
    """Raise `ValueError` unless every tensor has as many dimensions as `shape`, e.g. `"(B, C, H, W)"`, has letters."""
    numbers(loss, **tensors)
    for name, tensor in tensors.items():
        if tensor.ndim != shape.count(",") + 1:
            tokens = shape.count(",") == 3 and tensor.ndim == 3
            remedy = HEAD.format("tokens_to_map") if tokens else "choose another tap"
            if shape == "(B, C)" and tensor.ndim == 4:
                remedy += ", or make every position a sample: movedim(1, -1).flatten(0, 2)"
            if shape == "(B, C)" and tensor.ndim == 3:
                remedy += ", or make every token a sample: flatten(0, 1), or [mask] where some are padding"
            raise ValueError(f"{loss}: {name} must be {shape}, got shape {tuple(tensor.shape)}; {remedy}")


def channels(loss: str, **maps: tuple[Tensor, int]) -> None:
    """Raise `ValueError` unless each (B, C, …) has the channels that the loss was built with: `student=(maps, C)`."""
    for name, (tensor, count) in maps.items():
        if tensor.shape[1] != count:
            raise ValueError(
                f"{loss}: {name} must have {count} channels, got {tensor.shape[1]}; build the loss with this {name}_dim"
            )


def class_labels(loss: str, labels: Tensor, batch: int) -> None:
    """Raise `ValueError` unless `labels` are `batch` class numbers: an int64 tensor of shape (B,)."""
    whole_numbers(loss, "class", batch, "give one class number per sample", labels=labels)


def whole_numbers(loss: str, what: str, batch: int, remedy: str, **tensors: Tensor) -> None:
    """Raise `ValueError` unless every value is an int64 tensor of shape (B,)."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or value.shape != (batch,) or value.dtype != torch.int64:
            tensor = isinstance(value, Tensor)
            found = f"{value.dtype} of shape {tuple(value.shape)}" if tensor else type(value).__name__
            raise ValueError(f"{loss}: {name} must be int64 {what} numbers of shape ({batch},), got {found}; {remedy}")


def _head(student: Tensor, teacher: Tensor, maps: str) -> str:
    """A head by which a recipe brings the one to the shape of the other; `maps` is the one between two maps."""
    forms = {student.ndim, teacher.ndim}
    if forms == {4}:
        return maps
    unlike = forms == {3, 4} or (forms == {3} and student.shape[1] != teacher.shape[1])
    return "tokens_to_map" if unlike else "linear"


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0  # a scheduled one; others would make the loss more than a scalar
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(value: Any, remedy: str) -> str:
    """`remedy`, but for one of NumPy's numbers or a tensor of several, which are no plain number."""
    if not hasattr(value, "item") or _is_number(value):
        return remedy
    return "give a plain number, as `.item()` does of an array of one"
