"""Classifiers on frozen features: a linear one whose regularisation is chosen on held-out samples, and neighbours."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit import draws
from kdkit.data.splits import stratified

log = logging.getLogger(__name__)

GRID = tuple(10.0**k for k in range(1, -7, -1))  # from strong to weak: each fit begins where the last one ended
HELD_OUT = 0.1
NEIGHBOURS, TEMPERATURE = 20, 0.07


@dataclass(frozen=True)
class Linear:
    """A linear probe's accuracy on the test features, and how it came about.

    Attributes:
        top1: on the test set, fitted on all training features.
        held_out: of the chosen regularisation, on a tenth of the training features that the fit did not see.
        decay: the λ of mean cross-entropy + λ/2 ‖W‖².
    """

    top1: float
    held_out: float
    decay: float


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, classes: int, seed: int = 0) -> Linear:
    """Multinomial logistic regression by L-BFGS on features standardised as the training ones.

    Args:
        train: (n, D).
        labels: (n,).
        test: (m, D).
        truth: (m,).
        classes: how many there are.
        seed: of what is held out.
    """
    spread, centre = torch.std_mean(train, 0, correction=0)
    spread = torch.where(spread > 1e-6 * spread.max(), spread, torch.inf)  # what never moves says nothing
    train, test = (train - centre) / spread, (test - centre) / spread
    keys = draws.bits(draws.key(seed, "probe"), torch.arange(len(labels)))
    out, rest = stratified(labels.cpu(), max(1, round(HELD_OUT * len(labels))), keys)
    weights = torch.zeros(train.shape[1] + 1, classes, device=train.device)
    tried = []
    for decay in GRID:
        weights = _fit(train[rest], labels[rest], weights, decay)
        tried.append((_accuracy(weights, train[out], labels[out]), decay))
    best = max(tried)  # of equals the stronger
    place = tried.index(best)
    if place in (0, len(GRID) - 1) and tried[abs(place - 1)][0] < best[0]:
        log.warning("warning: the best λ, %g, is at an end of those that were tried: another may be better", best[1])
    whole = _fit(train, labels, torch.zeros_like(weights), best[1])
    return Linear(_accuracy(whole, test, truth), *best)


def neighbours(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, classes: int) -> float:
    """Top-1 by the 20 nearest in angle, each voting with e^(cosine / 0.07) (Wu et al., CVPR 2018, arXiv 1805.01978)."""
    known, right = F.normalize(train, dim=1), 0
    for x, y in zip(F.normalize(test, dim=1).split(512), truth.split(512), strict=True):
        near = (x @ known.T).topk(min(NEIGHBOURS, len(known)), dim=1)
        votes = torch.zeros(len(x), classes, device=x.device)
        votes.scatter_add_(1, labels[near.indices], (near.values / TEMPERATURE).exp())
        right += int((votes.argmax(1) == y).sum())
    return right / len(truth)


def _fit(x: Tensor, y: Tensor, start: Tensor, decay: float) -> Tensor:
    weights = start.clone().requires_grad_()
    solver = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(_logits(weights, x), y) + decay / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    return weights.detach()


def _logits(weights: Tensor, x: Tensor) -> Tensor:
    return x @ weights[:-1] + weights[-1]


def _accuracy(weights: Tensor, x: Tensor, y: Tensor) -> float:
    return float((_logits(weights, x).argmax(1) == y).float().mean())
