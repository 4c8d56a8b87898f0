"""Weights between peers that follow how well each does on held-out training samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.registry import KdkitError, nearest


@dataclass(frozen=True)
class Coordination:
    """`coordinate: true` or `{scale: 0.25, ema: 0.5}`: those who do well teach more, those who do not listen more.

    With r the held-out NLL of each peer over the mean of all, smoothed over epochs, peer l teaches peer k with the
    weight λ_k · w_{l→k}: w_{l→k} = softmax over l ≠ k of −r_l / scale, which sums to one over its teachers, and
    λ_k = K · softmax over k of r_k / scale, which is 1 on average. Set at the end of every epoch; all equal before.

    Attributes:
        scale: the difference, as a share of the mean NLL, that makes a peer count e times as much.
        ema: share of the past in the smoothed NLL; 0: this epoch's alone.

    Raises:
        KdkitError: a word is unknown or out of range.
    """

    scale: float = 0.25
    ema: float = 0.5

    def __post_init__(self) -> None:
        for word in ("scale", "ema"):
            value = getattr(self, word)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise KdkitError(f"coordinate: {word} must be a number, got {value!r}")
        if self.scale <= 0 or not 0 <= self.ema < 1:
            raise KdkitError(f"coordinate: scale must be above 0 and ema in [0, 1), got {self.scale!r}, {self.ema!r}")

    @classmethod
    def parse(cls, spec: Coordination | Mapping[str, Any] | bool | None) -> Coordination | None:
        """Read the words of a recipe."""
        if spec is None or isinstance(spec, (bool, Coordination)):
            return cls() if spec is True else (spec or None)
        if not isinstance(spec, Mapping):
            raise KdkitError(f"coordinate must be true or {{scale: 0.25, ema: 0.5}}, got {spec!r}")
        known = [f.name for f in fields(cls)]
        for word in spec:
            if word not in known:
                raise KdkitError(f"coordinate: unknown word {word!r}{nearest(str(word), known)}")
        return cls(**spec)


class Standing(nn.Module):
    """The smoothed held-out NLL of each peer; a checkpoint keeps it.

    Attributes:
        nll: NaN for whom nothing finite was seen of.
    """

    nll: Tensor

    def __init__(self, spec: Coordination, peers: list[str]) -> None:
        super().__init__()
        self.spec, self.peers = spec, peers
        self.register_buffer("nll", torch.full((len(peers),), math.nan, dtype=torch.float64))

    def add(self, seen: Mapping[str, float]) -> None:
        """Take in an epoch's NLL; one that is not finite makes the peer one of whom nothing is known."""
        for i, name in enumerate(self.peers):
            if name in seen:
                before, now = float(self.nll[i]), seen[name]
                kept = self.spec.ema if math.isfinite(before) else 0.0
                self.nll[i] = (kept * before if kept else 0.0) + (1 - kept) * now if math.isfinite(now) else math.nan

    def weights(self, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], float]:
        """λ_k · w_{l→k} for every (l, k) that is taught now; 0 where nothing is known of one of them."""
        nll = {name: float(value) for name, value in zip(self.peers, self.nll, strict=True)}
        here = [name for name in nll if any(name in pair for pair in pairs) and math.isfinite(nll[name])]
        if not here:
            return dict.fromkeys(pairs, 0.0)
        mean = sum(nll[name] for name in here) / len(here) or 1.0
        r = {name: nll[name] / mean / self.spec.scale for name in here}
        listens = _softmax(r)
        found = dict.fromkeys(pairs, 0.0)
        for k in here:
            teachers = [name for name, learner in pairs if learner == k and name in r]
            for name, share in _softmax({name: -r[name] for name in teachers}).items():
                found[name, k] = len(here) * listens[k] * share
        return found


def _softmax(of: Mapping[str, float]) -> dict[str, float]:
    top = max(of.values(), default=0.0)
    exps = {name: math.exp(value - top) for name, value in of.items()}
    return {name: value / sum(exps.values()) for name, value in exps.items()}
