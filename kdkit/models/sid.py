"""Synergistic information distillation: a cascade of belief modules in the place of any net's classifier.

Ye, Tang. Learning without Global Backpropagation via Synergistic Information Distillation. arXiv 2510.03273.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from kdkit.models.beliefs import Beliefs
from kdkit.models.classifier import take_out_classifier
from kdkit.models.recompute import blocks, recomputed
from kdkit.models.sid_isolated import IsolatedCascade
from kdkit.registry import KdkitError


class SIDCascade(nn.Module):
    """A feature extractor and a cascade of modules over its feature; the logits are those of the last module.

    The tap `beliefs` reads the logits (B, L, N) of all modules, which the loss `sid` trains; the backbone receives the
    sum of their gradients. Features are computed once a step.

    Args:
        backbone: images → features (B, D); its stages are the cascade's.
        num_classes: N.
        features: D.
        modules: how many modules, L.
        recompute: compute the backbone's blocks again in the backward pass instead of keeping what is inside them.
        words: of `kdkit.models.beliefs.Beliefs`.

    Raises:
        ValueError: a word that the modules refuse.
        KdkitError: `recompute` with a backbone that has no blocks.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        features: int,
        modules: int = 8,
        recompute: bool = False,
        **words: Any,
    ) -> None:
        super().__init__()
        self.backbone, self.recompute = backbone, recompute
        self.beliefs = Beliefs(features, num_classes, modules, **words)
        self.eager = ""
        if recompute:
            blocks(backbone)
            self.eager = "parts of it run twice, which cannot be compiled; leave `recompute` or `compile` out"
        state(self, backbone)

    def forward(self, x: Tensor) -> Tensor:
        """Images → logits (B, N) of the last module."""
        with recomputed(blocks(self.backbone)) if self.recompute else nullcontext():
            z = self.backbone(x)
        logits: Tensor = self.beliefs(z)
        return logits[:, -1]

    def get_classifier(self) -> nn.Module:
        """What reads the embedding."""
        return self.beliefs

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """The parameters of each module, where they are its own."""
        return self.beliefs.groups()


def state(net: nn.Module, backbone: nn.Module) -> None:
    """Let a net around a backbone say what the backbone says of itself."""
    stages = getattr(backbone, "stages", None)
    if isinstance(stages, Mapping):
        net.stages = {name: f"backbone.{path}" for name, path in stages.items()}  # type: ignore[assignment]
    for word in ("normalisation", "pretrained_cfg"):  # what the backbone's published weights expect of the input
        if (stated := getattr(backbone, word, None)) is not None:
            setattr(net, word, stated)


def sid(
    num_classes: int,
    backbone: nn.Module,
    modules: int = 8,
    kind: str = "linear",
    hidden: int = 256,
    mode: str = "parallel",
    chain: str = "detached",
    separate: bool = False,
    recompute: bool = False,
    isolate: Sequence[str] = (),
    classifier: str | None = None,
) -> nn.Module:
    """`arch: sid`: a cascade over any net with `num_classes` outputs, whose linear classifier is taken out.

    Args:
        num_classes: N.
        backbone: a net by its name in a recipe, by `{arch: NAME}` with its options, or itself.
        modules: how many modules, L; of each stage, where stages are isolated.
        kind: `linear` (the paper's Concat → Linear → Softmax) or `mlp` (the released code's, with a hidden layer).
        hidden: width of the hidden layer of `mlp`.
        mode: how the modules' gradients are computed, `parallel`, `joint` or `lean`; they are the same.
        chain: what a module hears of the one before: its `detached` belief; or one that gradients go `through`
            (back-propagation); or nothing, every module starting from the `uniform` one (independent heads).
        separate: keep every module's weights as parameters of their own: each has then an optimiser's group, and
            clipping, of its own.
        recompute: compute the backbone's blocks again in the backward pass instead of keeping what is inside them.
        isolate: module paths in the backbone at which it is cut into stages. Each has modules of its own, which alone
            train it, and its activations are gone before the next one runs.
        classifier: module path of the backbone's classifier where it cannot be told.

    Raises:
        KdkitError: the backbone has no linear classifier, or several, or cannot be cut there.
    """
    features = take_out_classifier(backbone, num_classes, classifier)
    words: dict[str, Any] = {"kind": kind, "hidden": hidden, "mode": mode, "chain": chain, "separate": separate}
    if not isolate:
        return SIDCascade(backbone, num_classes, features, modules, recompute, **words)
    if recompute:
        raise KdkitError("sid: recompute and isolate both save the backbone's memory; leave out one of them")
    net = IsolatedCascade(backbone, isolate, num_classes, features, modules, **words)
    state(net, backbone)
    return net
