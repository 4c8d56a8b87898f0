"""The cascade of synergistic information distillation: small modules that refine a belief over one shared feature.

Ye, Tang. Learning without Global Backpropagation via Synergistic Information Distillation. arXiv 2510.03273.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.registry import KdkitError, nearest

KINDS = ("linear", "mlp")


class Beliefs(nn.Module):
    """All modules of a cascade: module i turns the belief p_{i−1} and the feature z into logits, p_i is their softmax.

    Formula: logits_i = V_i·relu(U_i·p_{i−1} + W_i·z + b_i) + c_i (`mlp`), or U_i·p_{i−1} + W_i·z + b_i (`linear`), with
    p_0 uniform. U and W are the two parts of one matrix over the concatenation [p, z], drawn as `nn.Linear` draws it.

    The weights of all modules are stacked, so that the feature's part of all of them is one matrix product. Phase 1
    walks the cascade without gradient, phase 2 computes all modules at once on those beliefs: what a loss says about
    module i reaches module i and the feature, and no other module.

    Args:
        features: width D of the feature.
        num_classes: N.
        modules: how many, L.
        kind: `linear` or `mlp`.
        hidden: width H of the hidden layer of `mlp`.

    Raises:
        ValueError: a number below 1 or an unknown kind.
    """

    def __init__(self, features: int, num_classes: int, modules: int, kind: str, hidden: int) -> None:
        super().__init__()
        for name, value in {"features": features, "modules": modules, "hidden": hidden}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"sid: {name} must be a whole number of at least 1, got {value!r}")
        if kind not in KINDS:
            raise ValueError(f"sid: kind must be linear or mlp, got {kind!r}{nearest(str(kind), list(KINDS))}")
        width = hidden if kind == "mlp" else num_classes
        self.num_classes = num_classes
        joint = features + num_classes
        self.belief_weight = _uniform(joint, modules, width, num_classes)  # U
        self.feature_weight = _uniform(joint, modules, width, features)  # W
        self.bias = _uniform(joint, modules, width)
        self.out_weight = _uniform(width, modules, num_classes, width) if kind == "mlp" else None  # V
        self.out_bias = _uniform(width, modules, num_classes) if kind == "mlp" else None

    def forward(self, z: Tensor) -> Tensor:
        """Features (B, D) → logits (B, L, N) of all modules."""
        if z.ndim != 2:
            raise ValueError(f"sid: features must be (B, D), got {tuple(z.shape)}; pool the backbone's output")
        of_feature = F.linear(z, self.feature_weight.flatten(0, 1), self.bias.flatten())
        of_feature = of_feature.view(len(z), *self.bias.shape)  # (B, L, H)
        with torch.no_grad():
            before, logits = self._walk(of_feature)
        if not torch.is_grad_enabled():
            return logits  # phase 2 would compute the same numbers again
        hidden = of_feature + torch.einsum("bln,lhn->blh", before.to(of_feature.dtype), self.belief_weight)
        return self._out(hidden)

    def _walk(self, of_feature: Tensor) -> tuple[Tensor, Tensor]:
        """Phase 1: (B, L, N) beliefs before each module, and (B, L, N) logits of each."""
        p = of_feature.new_full((len(of_feature), self.num_classes), 1 / self.num_classes)
        before, logits = [], []
        for i in range(len(self.bias)):
            before.append(p)
            hidden = of_feature[:, i] + p.to(of_feature.dtype) @ self.belief_weight[i].T
            if self.out_weight is not None and self.out_bias is not None:
                hidden = hidden.relu() @ self.out_weight[i].T + self.out_bias[i]
            logits.append(hidden)
            p = hidden.softmax(-1)
        return torch.stack(before, 1), torch.stack(logits, 1)

    def _out(self, hidden: Tensor) -> Tensor:
        if self.out_weight is None or self.out_bias is None:
            return hidden
        return torch.einsum("blh,lnh->bln", hidden.relu(), self.out_weight) + self.out_bias


def _uniform(inputs: int, *shape: int) -> nn.Parameter:
    """As `nn.Linear` draws its weights and biases for so many inputs."""
    return nn.Parameter(torch.empty(shape).uniform_(-(inputs**-0.5), inputs**-0.5))


class SIDCascade(nn.Module):
    """A feature extractor and a cascade of modules over its feature; the logits are those of the last module.

    The tap `beliefs` reads the logits (B, L, N) of all modules, which the loss `sid` trains; the backbone receives the
    sum of their gradients. Features are computed once a step.

    Args:
        backbone: images → features (B, D); its stages are the cascade's.
        num_classes: N.
        features: D.
        modules: how many modules, L.
        kind: `linear` (the paper's Concat → Linear → Softmax) or `mlp` (the released code's, with a hidden layer).
        hidden: width of the hidden layer of `mlp`.

    Raises:
        ValueError: a number below 1 or an unknown kind.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        features: int,
        modules: int = 8,
        kind: str = "linear",
        hidden: int = 256,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.beliefs = Beliefs(features, num_classes, modules, kind, hidden)
        stages = getattr(backbone, "stages", None)
        if isinstance(stages, Mapping):
            self.stages = {name: f"backbone.{path}" for name, path in stages.items()}
        for word in ("normalisation", "pretrained_cfg"):  # what the backbone's published weights expect of the input
            if (stated := getattr(backbone, word, None)) is not None:
                setattr(self, word, stated)

    def forward(self, x: Tensor) -> Tensor:
        """Images → logits (B, N) of the last module."""
        logits: Tensor = self.beliefs(self.backbone(x))
        return logits[:, -1]


def sid(
    num_classes: int,
    backbone: nn.Module,
    modules: int = 8,
    kind: str = "linear",
    hidden: int = 256,
    classifier: str | None = None,
) -> SIDCascade:
    """`arch: sid`: a cascade over any net with `num_classes` outputs, whose linear classifier is taken out.

    Args:
        num_classes: N.
        backbone: a net by its name in a recipe, by `{arch: NAME}` with its options, or itself.
        modules: how many modules, L.
        kind: `linear` or `mlp`.
        hidden: width of the hidden layer of `mlp`.
        classifier: module path of the backbone's classifier where it cannot be told.

    Raises:
        KdkitError: the backbone has no linear classifier, or several.
    """
    features = take_out_classifier(backbone, num_classes, classifier)
    return SIDCascade(backbone, num_classes, features, modules, kind, hidden)


def take_out_classifier(net: nn.Module, num_classes: int, path: str | None = None) -> int:
    """Put an identity in the place of a net's linear classifier, so that it gives features; returns their width.

    Without a path it is what timm's `get_classifier()` says, or the only linear layer with `num_classes` outputs.

    Raises:
        KdkitError: there is no such layer, or there are several.
    """
    modules = dict(net.named_modules())
    if path is not None:
        if path not in modules or not path:
            near = nearest(path, list(modules))
            raise KdkitError(f"sid: classifier must be the path of a module in the backbone, got {path!r}{near}")
        found = [path]
    elif callable(getter := getattr(net, "get_classifier", None)):
        found = [name for name, module in modules.items() if module is getter() and name]
    else:
        found = [n for n, m in modules.items() if n and isinstance(m, nn.Linear) and m.out_features == num_classes]
    linear = [module for name in found if isinstance(module := modules[name], nn.Linear)]
    if len(linear) != 1:
        raise KdkitError(
            f"sid: the backbone must have one linear classifier of {num_classes} outputs, "
            f"found {', '.join(found) or 'none'}; name it as `classifier:`, or take another backbone"
        )
    net.set_submodule(found[0], nn.Identity())
    return linear[0].in_features
