"""A student made to read as its teacher's classifier does.

Chen, Mei, Zhang, Wang, Feng, Chen. Knowledge Distillation with the Reused Teacher Classifier. CVPR 2022,
arXiv 2203.14001.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.models.classifier import find_classifier
from kdkit.models.cuts import examples
from kdkit.models.layers import conv, he_normal
from kdkit.registry import KdkitError, nearest


def simkd(
    num_classes: int,
    backbone: nn.Module,
    width: int,
    factor: int = 2,
    after: str | None = None,
    classifier: str | None = None,
) -> nn.Module:
    """`arch: simkd`: any net whose last maps pass a projector to a teacher's width, where a classifier reads them.

    It is trained by the teacher's maps alone (`mse: {taps: stage-1}`) and predicts by the teacher's classifier
    (`classifier: teacher`). The tap of its last stage reads behind the projector. What is exported has both, for
    inference needs them: with `factor` 2, ResNet-20 for a teacher of width 64 grows by 14,000 weights.

    Args:
        num_classes: N.
        backbone: a net by its name in a recipe, by `{arch: NAME}` with its options, or itself.
        width: of the teacher's embedding, which its classifier reads.
        factor: how much narrower than that the projector is inside.
        after: module path of the layer whose maps the classifier reads, pooled; left out: the last one that can be.
        classifier: module path of the backbone's classifier where it cannot be told.

    Raises:
        KdkitError: the backbone has no such layer, or its classifier does not read the pooled maps of it.
    """
    for word, value in (("width", width), ("factor", factor)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise KdkitError(f"simkd: {word} must be a whole number of at least 1, got {value!r}")
    if width // factor < 1:
        raise KdkitError(f"simkd: factor must be at most the width, {width}, got {factor}")
    last = find_classifier(backbone, num_classes, classifier, "simkd")
    read = int(backbone.get_submodule(last).in_features)  # type: ignore[arg-type]
    paths = [path for path, _ in backbone.named_modules() if path]
    if after is not None and after not in paths:
        near = nearest(after, paths)
        raise KdkitError(f"simkd: after must be the path of a layer in the backbone, got {after!r}{near}")
    place, overwritten = _place(backbone, last, read, after)
    ahead = [Copy()] if overwritten else []
    backbone.set_submodule(place, nn.Sequential(backbone.get_submodule(place), projector(read, width, factor), *ahead))
    backbone.set_submodule(last, nn.Linear(width, num_classes))
    if isinstance(getattr(backbone, "stages", None), nn.Module):
        return backbone  # a part of it, not their names; the place is within the last one
    stages = getattr(backbone, "stages", None)
    stages = dict(stages) if isinstance(stages, Mapping) else {"stage1": place}
    backbone.stages = {**stages, list(stages)[-1]: place}  # type: ignore[assignment]
    return backbone


class Copy(nn.Module):
    """For a net that goes on in place, as DenseNet does: what a ReLU gave is what its gradient is computed from."""

    def forward(self, x: Tensor) -> Tensor:
        """The same numbers elsewhere."""
        return x.clone()


def _place(backbone: nn.Module, last: str, read: int, after: str | None) -> tuple[str, bool]:
    """The layer whose maps the classifier reads, pooled: where those are wider by one, so is what it reads.

    And whether the net overwrites what it gives.
    """
    given: dict[str, int] = {}
    place = ""
    for x in examples(backbone):
        given = {path: channels for path, (channels, _) in _maps(backbone, x).items() if after in (None, path)}
        if not (fitting := [path for path, channels in given.items() if channels == read]):
            continue
        place = fitting[-1]
        own, classifier = backbone.get_submodule(place), backbone.get_submodule(last)
        backbone.set_submodule(place, nn.Sequential(own, nn.Conv2d(read, read + 1, 1, dtype=x.dtype)))
        backbone.set_submodule(last, nn.Linear(read + 1, 1, dtype=x.dtype))
        found = _maps(backbone, x)
        backbone.set_submodule(place, own)
        backbone.set_submodule(last, classifier)
        if found:
            return place, found[place][1]
    if place:
        raise KdkitError(
            f"simkd: the classifier does not read the maps of {place}, pooled; name another layer as `after:`"
        )
    told = f"gives {given[after]} channels" if after in given else "gives none"
    raise KdkitError(
        f"simkd: after must be the layer whose maps the classifier reads, pooled, as {read} numbers; "
        f"{after or 'every layer'} {told}"
    )


def projector(inputs: int, outputs: int, factor: int) -> nn.Sequential:
    """The authors': 1×1, 3×3 and 1×1 convolutions, each with BatchNorm and ReLU, `factor` times narrower inside."""
    inside = outputs // factor
    layers: list[nn.Module] = []
    for a, b, kernel in ((inputs, inside, 1), (inside, inside, 3), (inside, outputs, 1)):
        layers += [conv(a, b, kernel), nn.BatchNorm2d(b), nn.ReLU()]
    net = nn.Sequential(*layers)
    he_normal(net)
    return net


def _maps(net: nn.Module, x: Tensor) -> dict[str, tuple[int, bool]]:
    """Layers that give maps once in a forward, as they end: how many channels, and whether they are overwritten later.

    None where the net fails.
    """
    ended: list[tuple[str, Any, int]] = []

    def note(path: str, module: nn.Module, args: object, output: Any) -> None:
        ended.append((path, output, output._version if isinstance(output, Tensor) else 0))

    modes = [(module, module.training) for module in net.modules()]
    handles = [module.register_forward_hook(partial(note, path)) for path, module in net.named_modules() if path]
    try:
        with torch.no_grad():
            net.eval()(x)
    except Exception:  # anybody's code fails in any way
        return {}
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    times = Counter(path for path, *_ in ended)
    once = [entry for entry in ended if times[entry[0]] == 1 and _wide(entry[1])]
    return {path: (output.shape[1], output._version != version) for path, output, version in once}


def _wide(output: Any) -> bool:
    """Whether it is maps that have not been pooled."""
    return isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] > 1
