"""Each loss in plain torch as one would write it by hand, on the tensors of a case (see `benchmarks.peers`)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers import Contender, Makers, T, simple, staged


def makers() -> Makers:
    """The formula, with nothing but torch."""

    def cross_entropy(case: Any) -> Contender:
        smoothing = case.options.get("label_smoothing", 0.0)
        return Contender(lambda: F.cross_entropy(case.students[0], case.labels, label_smoothing=smoothing))

    return {
        "ce": cross_entropy,
        "ce smoothed": cross_entropy,
        "kd": simple(lambda s, t: kl(s, t, T)),
        "dkd": lambda case: Contender(lambda: plain_dkd(case.students[0], case.teachers[0], case.labels)),
        "dist": simple(plain_dist),
        "dml": simple(lambda s, t: kl(s, t, 1.0)),
        "mse": simple(F.mse_loss),
        "hint": simple(F.mse_loss),
        "sp": simple(plain_sp),
        "cc": simple(plain_cc),
        "cc of neighbours": simple(lambda s, t: plain_neighbours((s - t).abs())),
        "fsp": lambda case: Contender(lambda: plain_fsp(case.students, case.teachers)),
        "ab": lambda case: Contender(lambda: plain_ab(case.students, case.teachers)),
        "ft": plain_ft,
        "cosine": simple(lambda s, t: 1 - F.cosine_similarity(s, t).mean()),
        "at": staged(plain_at),
        "nst": staged(broadcast_nst),
        "rkd_angle": simple(broadcast_angle),
        "crd_inbatch": plain_infonce,
        "nt_xent": plain_nt_xent,
        "sid": lambda case: Contender(lambda: plain_sid(case.students[0], case.labels)),
    }


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    targets, log_p = (teacher / temperature).softmax(1), (student / temperature).log_softmax(1)
    return F.kl_div(log_p, targets, reduction="batchmean") * temperature**2


def plain_dkd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """With a table of the others' logits."""
    others = torch.arange(student.shape[1] - 1, device=labels.device).expand(len(labels), -1)
    others = others + (others >= labels[:, None])
    p, q = (F.softmax(x / T, 1).gather(1, labels[:, None]) for x in (student, teacher))
    own = F.kl_div(torch.cat([p, 1 - p], 1).log(), torch.cat([q, 1 - q], 1), reduction="batchmean") * T**2
    return own + 8 * kl(student.gather(1, others), teacher.gather(1, others), T)


def plain_dist(student: Tensor, teacher: Tensor) -> Tensor:
    def apart(a: Tensor, b: Tensor, dim: int) -> Tensor:
        return 1 - F.cosine_similarity(a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True), dim).mean()

    p, q = F.softmax(student / T, 1), F.softmax(teacher / T, 1)
    return T**2 * (apart(p, q, 0) + apart(p, q, 1))


def plain_sp(student: Tensor, teacher: Tensor) -> Tensor:
    a, b = (F.normalize(x.flatten(1) @ x.flatten(1).T) for x in (student, teacher))
    return (a - b).square().sum() / len(a)


def plain_cc(student: Tensor, teacher: Tensor) -> Tensor:
    def kernel(x: Tensor) -> Tensor:
        products = F.normalize(x) @ F.normalize(x).T
        return sum(math.exp(-0.8) * 0.8**p / math.factorial(p) * products**p for p in range(3))  # type: ignore[return-value]

    return F.mse_loss(kernel(student), kernel(teacher))


def plain_neighbours(apart: Tensor) -> Tensor:
    return (apart[:-1] * apart[1:]).sum(1).mean()


def plain_fsp(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    def flows(layers: Sequence[Tensor]) -> list[Tensor]:
        pairs = [(F.adaptive_avg_pool2d(one, other.shape[2:]), other) for one, other in pairwise(layers)]
        return [torch.einsum("bchw,bdhw->bcd", *pair) / pair[1][0, 0].numel() for pair in pairs]

    return torch.stack([F.mse_loss(s, t) for s, t in zip(flows(students), flows(teachers), strict=True)]).sum()


def plain_ab(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    total = students[0].new_zeros(())
    for s, t in zip(students, teachers, strict=True):
        total = total / 2 + torch.where(t > 0, F.relu(1 - s), F.relu(1 + s)).square().sum() / len(s)
    return total


def plain_ft(case: Any) -> Contender:
    """Of torch's own modules, from kdkit's weights."""
    (loss,) = copy.deepcopy(case.modules)
    sides = loss.translator, loss.paraphraser.encoder, loss.paraphraser.decoder
    translator, encoder, decoder = (nn.Sequential(*(p for c in s.convs for p in (c, nn.LeakyReLU(0.1)))) for s in sides)

    def value() -> Tensor:
        student, teacher = case.students[0], case.teachers[0]
        factor = encoder(teacher)
        ours, theirs = (F.normalize(f.flatten(1)) for f in (translator(student), factor.detach()))
        return 500 * F.l1_loss(ours, theirs) + F.l1_loss(decoder(factor), teacher)

    return Contender(value, list(loss.parameters()))


def plain_at(student: Tensor, teacher: Tensor) -> Tensor:
    a, b = (F.normalize(x.square().mean(1).flatten(1)) for x in (student, teacher))
    return (a - b).square().mean()


def broadcast_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """All B × B × D differences, as in every peer."""

    def angles(x: Tensor) -> Tensor:
        e = F.normalize(x[None] - x[:, None], dim=2)
        return torch.bmm(e, e.transpose(1, 2))

    with torch.no_grad():
        target = angles(teacher)
    return F.smooth_l1_loss(angles(student), target)


def broadcast_nst(student: Tensor, teacher: Tensor) -> Tensor:
    """All B × C × C × HW products, as in every peer."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, None] * b[:, :, None]).sum(-1).square().mean()

    s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))
    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def plain_infonce(case: Any) -> Contender:
    embed_s, embed_t = (copy.deepcopy(e.linear) for e in (case.modules[0].embed_student, case.modules[0].embed_teacher))
    own = torch.arange(case.batch, device=case.device)

    def value() -> Tensor:
        logits = F.normalize(embed_s(case.students[0])) @ F.normalize(embed_t(case.teachers[0])).T / 0.07
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    return Contender(value, [*embed_s.parameters(), *embed_t.parameters()])


def plain_nt_xent(case: Any) -> Contender:
    embed_s, embed_t = (copy.deepcopy(e.linear) for e in (case.modules[0].embed_student, case.modules[0].embed_teacher))
    other = torch.arange(2 * case.batch, device=case.device).roll(case.batch)
    diagonal = torch.eye(2 * case.batch, dtype=torch.bool, device=case.device)

    def value() -> Tensor:
        views = F.normalize(torch.cat([embed_s(case.students[0]), embed_t(case.teachers[0])]))
        return F.cross_entropy((views @ views.T / 0.1).masked_fill(diagonal, -torch.inf), other)

    return Contender(value, [*embed_s.parameters(), *embed_t.parameters()])


def plain_sid(logits: Tensor, labels: Tensor) -> Tensor:
    """Module by module, as in the authors' code."""
    total = logits.new_zeros(())
    before = torch.full_like(logits[:, 0], 1 / logits.shape[-1])
    for i in range(logits.shape[1]):
        log_p = logits[:, i].log_softmax(1)
        total = total + 0.5 * F.nll_loss(log_p, labels) + 0.5 * F.kl_div(log_p, before, reduction="batchmean")
        before = log_p.detach().exp()
    return total
