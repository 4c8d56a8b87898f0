"""The losses of other libraries on the tensors of a case.

Every maker takes a `Case` (see `benchmarks.losses`) and gives a `Contender`. `factor` is what its value is multiplied
with to be kdkit's, where the two define the same loss in other units; `note` says so in the row.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

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
