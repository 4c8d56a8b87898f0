"""Belief modules: a cascade of small classifiers over one feature, each of which refines the belief of the one before.

Ye, Tang. Learning without Global Backpropagation via Synergistic Information Distillation. arXiv 2510.03273.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kdkit.registry import nearest

KINDS = ("linear", "mlp")
MODES = ("parallel", "joint", "lean")
CHAINS = ("detached", "through", "uniform")

Weights = nn.Parameter | nn.ParameterList


class Beliefs(nn.Module):
    """All modules of a cascade: module i turns the belief p_{i−1} and the feature z into logits, p_i is their softmax.

    Formula: logits_i = V_i·relu(U_i·p_{i−1} + W_i·z + b_i) + c_i (`mlp`), or U_i·p_{i−1} + W_i·z + b_i (`linear`), with
    p_0 uniform. U and W are the two parts of one matrix over the concatenation [p, z], drawn as `nn.Linear` draws it.

    What a loss says about module i reaches module i and the feature, and no other module. There are three ways to get
    there, with the same values and gradients:

    - `parallel`: phase 1 walks the cascade without gradient, phase 2 computes all modules at once on those beliefs; the
      weights of all modules are stacked, and the feature's part of all of them is one matrix product;
    - `joint`: module after module, as in the released code; a module's own output is the next one's belief, so that
      the two phases are one pass;
    - `lean`: as `joint`, and a module's inside is computed again when its gradient is, so that one is held at a time.

    Args:
        features: width D of the feature.
        num_classes: N.
        modules: how many, L.
        kind: `linear` or `mlp`.
        hidden: width H of the hidden layer of `mlp`.
        mode: `parallel`, `joint` or `lean`.
        chain: what a module hears of the one before: its `detached` belief (SID); its belief with gradient, `through`
            which all are one net (back-propagation, `joint` or `lean`); or nothing, p_0 being `uniform` for all.
        separate: keep every module's weights as parameters of their own, for optimisers that look at norms.

    Raises:
        ValueError: a number below 1, an unknown word, or words that exclude each other.
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        modules: int,
        kind: str = "linear",
        hidden: int = 256,
        mode: str = "parallel",
        chain: str = "detached",
        separate: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"features": features, "modules": modules, "hidden": hidden}.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"sid: {name} must be a whole number of at least 1, got {value!r}")
        for name, word, known in (("kind", kind, KINDS), ("mode", mode, MODES), ("chain", chain, CHAINS)):
            if word not in known:
                said = f"{', '.join(known[:-1])} or {known[-1]}"
                raise ValueError(f"sid: {name} must be {said}, got {word!r}{nearest(str(word), list(known))}")
        if chain == "through" and mode == "parallel":
            raise ValueError(
                "sid: mode must be joint or lean with chain 'through', got 'parallel'; each module then waits for the "
                "one before"
            )
        width = hidden if kind == "mlp" else num_classes
        self.num_classes, self.mode, self.chain, self.separate = num_classes, mode, chain, separate
        joint = features + num_classes
        self.belief_weight = _uniform(separate, joint, modules, width, num_classes)  # U
        self.feature_weight = _uniform(separate, joint, modules, width, features)  # W
        self.bias = _uniform(separate, joint, modules, width)
        self.out_weight = _uniform(separate, width, modules, num_classes, width) if kind == "mlp" else None  # V
        self.out_bias = _uniform(separate, width, modules, num_classes) if kind == "mlp" else None

    @property
    def count(self) -> int:
        """L."""
        return len(self.bias)

    def forward(self, z: Tensor, start: Tensor | None = None) -> Tensor:
        """Features (B, D), and the belief (B, N) to start from, else uniform → logits (B, L, N) of all modules."""
        if z.ndim != 2:
            raise ValueError(f"sid: features must be (B, D), got {tuple(z.shape)}; pool the backbone's output")
        if start is None or self.chain == "uniform":
            start = z.new_full((z.shape[0], self.num_classes), 1 / self.num_classes)
        if torch.is_grad_enabled() and self.mode != "parallel":
            return self._one_by_one(z, start)
        of_feature = F.linear(z, _all(self.feature_weight).flatten(0, 1), _all(self.bias).flatten())
        of_feature = of_feature.view(z.shape[0], self.count, -1)  # (B, L, H)
        with torch.no_grad():
            before, logits = self._walk(of_feature, start)
        if not torch.is_grad_enabled():
            return logits  # phase 2 would compute the same numbers again
        of_belief = torch.einsum("bln,lhn->blh", before.to(of_feature.dtype), _all(self.belief_weight))
        return self._out(of_feature + of_belief)

    def module(self, i: int, z: Tensor, p: Tensor) -> Tensor:
        """Logits (B, N) of module i, from the feature (B, D) and the belief (B, N) before it."""
        hidden = F.linear(z, self.feature_weight[i], self.bias[i])
        hidden = hidden + F.linear(p.to(hidden.dtype), self.belief_weight[i])
        if self.out_weight is None or self.out_bias is None:
            return hidden
        return F.linear(hidden.relu(), self.out_weight[i], self.out_bias[i])

    def _one_by_one(self, z: Tensor, start: Tensor) -> Tensor:
        """Modes `joint` and `lean`."""
        p, found = start, []
        for i in range(self.count):
            if self.mode == "lean":
                logits = checkpoint(self.module, i, z, p, use_reentrant=False, preserve_rng_state=False)
            else:
                logits = self.module(i, z, p)
            found.append(logits)
            if self.chain != "uniform":
                p = (logits if self.chain == "through" else logits.detach()).softmax(-1)
        return torch.stack(found, 1)

    def _walk(self, of_feature: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Phase 1: (B, L, N) beliefs before each module, and (B, L, N) logits of each."""
        p, before, logits = start, [], []
        for i in range(self.count):
            before.append(p)
            hidden = of_feature[:, i] + p.to(of_feature.dtype) @ self.belief_weight[i].T
            if self.out_weight is not None and self.out_bias is not None:
                hidden = hidden.relu() @ self.out_weight[i].T + self.out_bias[i]
            logits.append(hidden)
            p = p if self.chain == "uniform" else hidden.softmax(-1)
        return torch.stack(before, 1), torch.stack(logits, 1)

    def _out(self, hidden: Tensor) -> Tensor:
        if self.out_weight is None or self.out_bias is None:
            return hidden
        return torch.einsum("blh,lnh->bln", hidden.relu(), _all(self.out_weight)) + _all(self.out_bias)

    def groups(self) -> list[list[nn.Parameter]]:
        """The parameters of each module, where they are its own."""
        if not self.separate:
            return []
        kept = [list(several) for several in self.children() if isinstance(several, nn.ParameterList)]
        return [list(module) for module in zip(*kept, strict=True)]


def _all(weights: Weights) -> Tensor:
    """The weights of all modules in one tensor."""
    return weights if isinstance(weights, nn.Parameter) else torch.stack(list(weights))


def _uniform(separate: bool, inputs: int, *shape: int) -> Weights:
    """As `nn.Linear` draws its weights and biases for so many inputs."""
    drawn = torch.empty(shape).uniform_(-(inputs**-0.5), inputs**-0.5)
    return nn.ParameterList(nn.Parameter(part.clone()) for part in drawn) if separate else nn.Parameter(drawn)
