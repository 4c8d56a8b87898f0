"""The losses of other libraries on the tensors of a case, and each loss in plain torch as one would write it by hand.

Every maker takes a `Case` (see `benchmarks.losses`) and gives a `Contender`. `factor` is what its value is multiplied
with to be kdkit's, where the two define the same loss in other units; `note` says so in the row.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.parity import import_repdistiller

T = 4.0  # KD's temperature in all cases


@dataclass
class Contender:
    """A loss on the tensors of a case.

    Attributes:
        value: computes it.
        parameters: what learns beside the student.
        factor: its unit in kdkit's.
        tolerance: how far value and gradient may be from kdkit's, relative.
        note: what a reader has to know about the comparison.
    """

    value: Callable[[], Tensor]
    parameters: list[Tensor] = field(default_factory=list)
    factor: float = 1.0
    tolerance: float = 1e-3
    note: str | None = None


Makers = dict[str, Callable[[Any], Contender]]


def simple(loss: Callable[[Tensor, Tensor], Any], **words: Any) -> Callable[[Any], Contender]:
    """A peer that takes (student, teacher)."""
    return lambda case: Contender(lambda: loss(case.students[0], case.teachers[0]), **words)


def staged(loss: Callable[[Tensor, Tensor], Any]) -> Callable[[Any], Contender]:
    """A peer of one stage, summed over all."""
    return lambda case: Contender(lambda: sum(map(loss, case.students, case.teachers)))


# -- plain torch ---------------------------------------------------------------------------------------------------


def plain() -> Makers:
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


# -- libraries -----------------------------------------------------------------------------------------------------


def timm() -> Makers:
    """Timm has label smoothing; its distillation lives inside a training task and is no loss by itself."""
    from timm.loss import LabelSmoothingCrossEntropy

    def smooth(case: Any) -> Contender:
        loss = LabelSmoothingCrossEntropy(case.options["label_smoothing"])
        return Contender(lambda: loss(case.students[0], case.labels))

    return {"ce smoothed": smooth}


def torchdistill(site: Path) -> Makers:
    """Its middle-level losses, which find their tensors in dictionaries by a module's path."""
    sys.path.append(str(site))  # at the end: everything but torchdistill itself is this environment's
    losses = importlib.import_module("torchdistill.losses.mid_level")

    def at(case: Any) -> Contender:
        places = [{"io": "output", "path": str(i)} for i in range(len(case.students))]
        loss = losses.ATLoss({str(i): {"student": p, "teacher": p} for i, p in enumerate(places)})
        s, t = ({str(i): {"output": x} for i, x in enumerate(side)} for side in (case.students, case.teachers))
        return Contender(lambda: loss(s, t))

    def named(loss: nn.Module, **words: Any) -> Callable[[Any], Contender]:
        return simple(lambda s, t: loss({"x": {"output": s}}, {"x": {"output": t}}), **words)

    def rkd(distance: float, angle: float) -> nn.Module:
        loss: nn.Module = losses.RKDLoss("x", "x", distance, angle, "mean")
        return loss

    def pkt(case: Any) -> Contender:
        return named(losses.PKTLoss(*["x", "output", "x", "output"]), factor=case.batch, note=PAIRS)(case)

    def crd(case: Any) -> Contender:
        with quiet():
            loss = losses.CRDLoss("s", "i", "t", 128, case.samples, case.negatives, case.samples)
        s, t, parameters = start(loss, case)
        where = {"pos_idx": case.index, "contrast_idx": case.contrast}

        def value() -> Tensor:
            learnt = {"s": {"output": s(case.students[0])}, "i": {"input": where}}
            return loss(learnt, {"t": {"output": t(case.teachers[0])}})

        return Contender(value, parameters, note=GIVEN)

    kd = losses.KDLoss(*["x", "output", "x", "output"], temperature=T, alpha=0.0, beta=1.0)
    return {
        "at": at,
        "kd": named(kd, factor=T**2, note="alpha=0 gives KL without T²"),
        "pkt": pkt,
        "rkd": named(rkd(25, 50)),
        "rkd_distance": named(rkd(1, 0)),
        "rkd_angle": named(rkd(0, 1)),
        "crd": crd,
    }


def repdistiller(clone: Path) -> Makers:
    """Its criteria, called as its training loop does."""
    found = import_repdistiller(clone)
    zoo = found.zoo

    def crd(case: Any) -> Contender:
        options = {"s_dim": 64, "t_dim": 64, "feat_dim": 128, "n_data": case.samples, "nce_k": case.negatives}
        loss = found.criterion.CRDLoss(SimpleNamespace(**options, nce_t=0.07, nce_m=0.5)).to(case.device)
        loss.embed_s, loss.embed_t, parameters = start(loss.contrast, case)
        return Contender(
            lambda: loss(case.students[0], case.teachers[0], case.index, case.contrast).squeeze(),
            parameters,
            note=GIVEN,
        )

    def vid(case: Any) -> Contender:
        peers = []
        for ours in case.modules:
            theirs = zoo.VIDLoss(ours.student_dim, len(ours.alpha), len(ours.alpha)).to(case.device)
            for layer, mine in zip(theirs.regressor[::2], ours.layers, strict=True):
                layer.load_state_dict({"weight": mine.weight[:, :, None, None]})
            peers.append(theirs)
        stages = list(zip(peers, case.students, case.teachers, strict=True))
        return Contender(
            lambda: sum(loss(s, t) for loss, s, t in stages), [p for loss in peers for p in loss.parameters()]
        )

    def fsp(case: Any) -> Contender:
        loss = zoo.FSP([s.shape for s in case.students], [t.shape for t in case.teachers])
        return Contender(lambda: sum(loss(case.students, case.teachers)))

    return {
        "at": lambda case: Contender(lambda: sum(zoo.Attention()(case.students, case.teachers))),
        "nst": lambda case: Contender(lambda: sum(zoo.NSTLoss()(case.students, case.teachers))),
        "kd": simple(zoo.DistillKL(T)),
        "hint": simple(zoo.HintLoss()),
        "sp": lambda case: similarity(zoo.Similarity().similarity_loss, case),
        "vid": vid,
        "cc of neighbours": simple(zoo.Correlation()),
        "fsp": fsp,
        "ab": lambda case: Contender(
            lambda: sum(zoo.ABLoss(len(case.students))(case.students, case.teachers)), factor=1000 / 3, note=SCALED
        ),
        "pkt": lambda case: simple(zoo.PKT(), factor=case.batch, note=PAIRS)(case),
        "rkd": simple(zoo.RKDLoss()),
        "crd": crd,
    }


def mdistiller(clone: Path) -> Makers:
    """The functions in its distillers."""
    sys.path.append(str(clone))
    names = "KD", "DKD", "AT", "NST", "SP", "PKT", "RKD", "CRD", "ReviewKD"
    found = SimpleNamespace(**{name: importlib.import_module(f"mdistiller.distillers.{name}") for name in names})
    found.CRD.AliasMethod.__init__ = lambda self, probs: None  # its own sampler is not used here and wants CUDA
    found.CRD.AliasMethod.cuda = lambda self: None

    def crd(case: Any) -> Contender:
        loss = found.CRD.CRD.__new__(found.CRD.CRD)
        nn.Module.__init__(loss)  # its constructor wants the nets, which the loss does not
        loss.init_crd_modules(64, 64, 128, case.samples, case.negatives)
        loss.to(case.device)
        loss.embed_s, loss.embed_t, parameters = start(loss.contrast, case)
        return Contender(
            lambda: loss.crd_loss(case.students[0], case.teachers[0], case.index, case.contrast).squeeze(),
            parameters,
            note=GIVEN,
        )

    def reviewkd(case: Any) -> Contender:
        abfs = []
        for ours in case.modules[0].fusions:
            fuses = ours.attention is not None
            theirs = found.ReviewKD.ABF(ours.conv1.in_channels, ours.conv1.out_channels, ours.conv2.out_channels, fuses)
            theirs.conv1.load_state_dict({**under("0", ours.conv1), **under("1", ours.bn1)})
            theirs.conv2.load_state_dict({**under("0", ours.conv2), **under("1", ours.bn2)})
            if fuses:
                theirs.att_conv.load_state_dict(under("0", ours.attention))
            abfs.append(theirs.to(case.device))

        def value() -> Tensor:
            told: list[Tensor] = []
            deeper, maps = None, [s if s.ndim == 4 else s[:, :, None, None] for s in case.students]
            for abf, s in zip(reversed(abfs), reversed(maps), strict=True):
                out, deeper = abf(s, deeper, s.shape[2], s.shape[2])
                told.insert(0, out)
            return found.ReviewKD.hcl_loss(told, [t if t.ndim == 4 else t[:, :, None, None] for t in case.teachers])

        return Contender(value, [p for abf in abfs for p in abf.parameters()])

    return {
        "at": lambda case: Contender(lambda: found.AT.at_loss(case.students, case.teachers, 2)),
        "nst": lambda case: Contender(lambda: found.NST.nst_loss(case.students, case.teachers)),
        "sp": lambda case: similarity(found.SP.similarity_loss, case),
        "kd": simple(lambda s, t: found.KD.kd_loss(s, t, T)),
        "dkd": lambda case: simple(lambda s, t: found.DKD.dkd_loss(s, t, case.labels, 1.0, 8.0, T))(case),
        "pkt": lambda case: simple(found.PKT.pkt_loss, factor=case.batch, note=PAIRS)(case),
        "rkd": simple(found.RKD.rkd_loss),
        "crd": crd,
        "reviewkd": reviewkd,
    }


SCALED = "it multiplies by 3/1000, kdkit's recipe does"
PAIRS = "it averages over B², kdkit over B"
GIVEN = "negatives given, not drawn; 1e-7 inside its logarithms"


def similarity(loss: Callable[[Tensor, Tensor], Tensor], case: Any) -> Contender:
    """Both write SP with a vector of one number."""
    return simple(lambda s, t: loss(s, t).squeeze(), factor=case.batch, note=PAIRS)(case)


def start(memory: nn.Module, case: Any) -> tuple[nn.Module, nn.Module, list[Tensor]]:
    """Kdkit's banks into a peer's memory; copies of its heads, and their parameters."""
    ours = case.modules[0]
    memory.to(case.device)
    memory.memory_v1.copy_(ours.student_bank)
    memory.memory_v2.copy_(ours.teacher_bank)
    heads = copy.deepcopy(ours.embed_student), copy.deepcopy(ours.embed_teacher)
    return *heads, [p for head in heads for p in head.parameters()]


def under(name: str, module: nn.Module) -> dict[str, Any]:
    """Its state as that of a part."""
    return {f"{name}.{word}": value for word, value in module.state_dict().items()}


@contextlib.contextmanager
def quiet():  # type: ignore[no-untyped-def]
    """Peers print when they set Z."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
