"""A net's classifier: where it is, and handing one net's to another."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kdkit.registry import KdkitError, nearest


def find_classifier(net: nn.Module, num_classes: int, path: str | None = None, who: str = "sid") -> str:
    """The module path of a net's linear classifier.

    Without a path it is what timm's `get_classifier()` says, or the only linear layer with `num_classes` outputs.

    Raises:
        KdkitError: there is no such layer, or there are several; `who` asks for it.
    """
    modules = dict(net.named_modules())
    if path is not None:
        if path not in modules or not path:
            near = nearest(path, list(modules))
            raise KdkitError(f"{who}: classifier must be the path of a module in the backbone, got {path!r}{near}")
        found = [path]
    elif callable(getter := getattr(net, "get_classifier", None)):
        found = [name for name, module in modules.items() if module is getter() and name]
    else:
        found = [n for n, m in modules.items() if n and isinstance(m, nn.Linear) and m.out_features == num_classes]
    linear = [name for name in found if isinstance(modules[name], nn.Linear)]
    if len(linear) != 1:
        raise KdkitError(
            f"{who}: the backbone must have one linear classifier of {num_classes} outputs, "
            f"found {', '.join(found) or 'none'}; name it as `classifier:`, or take another backbone"
        )
    return linear[0]


def take_out_classifier(net: nn.Module, num_classes: int, path: str | None = None) -> int:
    """Put an identity in the place of a net's linear classifier, so that it gives features; returns their width."""
    found = find_classifier(net, num_classes, path)
    linear = net.get_submodule(found)
    net.set_submodule(found, nn.Identity())
    return int(linear.in_features)  # type: ignore[arg-type]


def reuse_classifier(student: nn.Module, teacher: nn.Module, num_classes: int, *, copy: bool = True) -> None:
    """Let a student predict by a teacher's classifier, which stays as it is from now on.

    Args:
        student: its classifier must read as many numbers as the teacher's.
        teacher: a trained one.
        num_classes: of both.
        copy: whether the weights are copied too; without, the student's are only frozen.

    Raises:
        KdkitError: the classifiers differ in size, the student's cannot hold the teacher's, or a net has none.
    """
    own, theirs = (_classifier(net, who, num_classes) for net, who in ((student, "student"), (teacher, "teacher")))
    sizes = [(net.in_features, net.out_features) for net in (own, theirs)]
    if sizes[0] != sizes[1]:
        raise KdkitError(
            f"classifier: the student's reads {sizes[0][0]} numbers and the teacher's {sizes[1][0]}, for "
            f"{sizes[0][1]} and {sizes[1][1]} classes; `arch: simkd` with `width: {sizes[1][0]}` fits one to the other"
        )
    computed = not isinstance(own.weight, nn.Parameter)
    if computed or (own.bias is None and theirs.bias is not None):
        lacks = "computes its weights from others" if computed else "has no bias, as the teacher's has"
        raise KdkitError(
            f"classifier: the student's {lacks}; `arch: simkd` with `width: {sizes[1][0]}` gives it a plain one"
        )
    if copy:
        with torch.no_grad():  # by value: the teacher's may be computed from others, or have no bias
            own.weight.copy_(theirs.weight)
            if own.bias is not None:
                own.bias.copy_(torch.zeros_like(own.bias) if theirs.bias is None else theirs.bias)
    own.requires_grad_(False)


def _classifier(net: nn.Module, whose: str, num_classes: int) -> Any:
    try:
        return net.get_submodule(find_classifier(net, num_classes))
    except KdkitError as error:
        raise KdkitError(
            f"classifier: the {whose} must have one linear layer of {num_classes} outputs, and it cannot be told in "
            f"{type(net).__name__}; take another {whose}, or one of as many classes as the data"
        ) from error
