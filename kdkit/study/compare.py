"""Students beside their teacher on one set of images, in one pass over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdkit.metrics import (
    Agreement,
    JSDivergence,
    KLDivergence,
    LinearCKA,
    LogitCorrelation,
    certainty,
    correlation_difference,
    reliability,
    transfer_ratio,
)
from kdkit.metrics.quality import quality
from kdkit.registry import KdkitError
from kdkit.runs.evaluate import batches, in_order
from kdkit.study.cases import Cases
from kdkit.study.embeddings import Sample
from kdkit.study.layers import Layers
from kdkit.study.subjects import subjects

WHO = ("both right", "only the teacher", "only the student", "both wrong alike", "both wrong apart")
BINS = 15
ENTROPY_BINS = 40


@dataclass
class Comparison:
    """What was found.

    Attributes:
        numbers: all of it that is numbers, as in `compare.json`.
        correlations: by model, (C, C).
        cases: by student, images on which it and the teacher differ most.
        sample: embeddings of some images of some classes, by model.
    """

    numbers: dict[str, Any]
    correlations: dict[str, Tensor]
    cases: dict[str, Cases]
    sample: Sample

    @property
    def told(self) -> dict[str, Any]:
        """What was found of each model and of each student beside the teacher, without what else `numbers` say."""
        return {"models": self.numbers["models"], "students": self.numbers["students"]}


@dataclass
class _Pair:
    """Metrics of one student beside its teacher."""

    agreement: dict[str, Any]
    cka: LinearCKA
    cases: Cases
    who: Tensor = field(default_factory=lambda: torch.zeros(len(WHO), dtype=torch.long))


@torch.no_grad()
def compare(
    teacher: str,
    students: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    alone: str | None = None,
    split: str = "test",
    taps: Sequence[str] | None = None,
) -> Comparison:
    """Compare students with a teacher; logits stand in the order of the data's classes, and of no others.

    Args:
        teacher: a run's folder, a weights file, a packaged recipe that was run, or a published model.
        students: likewise.
        overrides: `key=value` words about the data, which else are those of the first model that says what it saw.
        alone: the same student trained without its teacher; what the accuracy-transfer ratio is measured from.
        split: `test`, or `train`: the training images, without augmentation.
        taps: layers whose CKA is taken; left out: `stem`, `stages`, `embedding`, `logits`.

    Raises:
        KdkitError: a model or the data are not there, or do not go together.
    """
    if split not in ("train", "test"):
        raise KdkitError(f"split must be 'train' or 'test', got {split!r}")
    words = [teacher, *students, *([alone] if alone is not None else [])]
    data, models, recipe = subjects(words, overrides, split)
    classes = data.class_names or [str(i) for i in range(data.num_classes)]
    first, others = models[0], models[1:]
    sample, said = Sample(len(classes)), {m.name: _Said(len(classes), data.device) for m in models}
    layers: dict[str, Layers] = {}
    pairs: dict[str, _Pair] = {}
    for x, labels in batches(data, split, recipe.data.name):
        if not layers:
            layers = {m.name: Layers(m, taps, x) for m in models}
            pairs = {m.name: _pair(layers[first.name], layers[m.name], classes, data) for m in others}
        values = {m.name: layers[m.name](x) for m in models}
        logits = {m.name: values[m.name]["logits"].float()[:, m.places] for m in models}
        for name, z in logits.items():
            said[name].update(z, labels)
        sample.add(labels, {n: v["embedding"] for n, v in values.items() if layers[n].embedding})
        for name, pair in pairs.items():
            for metric in pair.agreement.values():
                metric.update(logits[name], logits[first.name])
            theirs, own = ([values[n][tap] for tap in layers[n].names] for n in (first.name, name))
            pair.cka.update(theirs, own)
            pair.who += _who(logits[first.name], logits[name], labels).cpu()
            pair.cases.add(x, labels, logits[first.name], logits[name])
    correlations = {name: its.correlation.compute().cpu() for name, its in said.items()}
    numbers: dict[str, Any] = {
        "data": recipe.data.name,
        "split": split,
        "images": len(next(iter(said.values())).rights),
        "classes": classes,
        "teacher": first.name,
        "models": {name: its.numbers() for name, its in said.items()},
        "students": {},
    }
    for name, pair in pairs.items():
        numbers["students"][name] = {
            **{key: float(metric.compute()) for key, metric in pair.agreement.items()},
            "logit_correlation": correlation_difference(correlations[first.name], correlations[name]),
            "who": dict(zip(WHO, pair.who.tolist(), strict=True)),
            "cka": {
                "teacher": layers[first.name].names,
                "student": layers[name].names,
                "values": pair.cka.compute().reshape(pair.cka.cross.shape).tolist(),
            },
        }
    if alone is not None:
        rights = {name: its.rights for name, its in said.items()}
        for m in others[:-1]:
            found = transfer_ratio(rights[m.name], rights[first.name], rights[others[-1].name])
            numbers["students"][m.name]["transfer"] = {**asdict(found), "alone": others[-1].name}
    return Comparison(numbers, correlations, {name: pair.cases for name, pair in pairs.items()}, sample)


class _Said:
    """What one model says of every image."""

    def __init__(self, classes: int, device: Any) -> None:
        self.quality = quality(classes).to(device)
        self.correlation = LogitCorrelation(classes).to(device)
        self.classes = classes
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.quality.update(logits, labels)
        self.correlation.update(logits)
        p = logits.softmax(-1)
        entropy = torch.special.entr(p).sum(-1)
        self._parts.append((*(part.cpu() for part in certainty(logits, labels)), entropy.cpu()))

    @property
    def rights(self) -> Tensor:
        """Whether it is right on each image."""
        return torch.cat([right for _, right, _ in self._parts])

    def numbers(self) -> dict[str, Any]:
        confidence, right, entropy = map(torch.cat, zip(*self._parts, strict=True))
        most = float(torch.tensor(float(self.classes)).log())
        share, edges = torch.histogram(entropy, bins=ENTROPY_BINS, range=(0.0, most))
        bins = {name: value.tolist() for name, value in reliability(confidence, right, BINS)._asdict().items()}
        return {
            **in_order(self.quality.compute()),
            "entropy": float(entropy.mean()),
            "reliability": bins,
            "entropies": {"edges": edges.tolist(), "share": (share / len(entropy)).tolist()},
        }


def _pair(teacher: Layers, student: Layers, classes: Sequence[str], data: Any) -> _Pair:
    agreement = {
        "agreement": Agreement(),
        **({"teacher_in_top5": Agreement(top_k=5)} if len(classes) > 5 else {}),
        "kl": KLDivergence(),
        "js": JSDivergence(),
    }
    cka = LinearCKA(len(teacher.names), len(student.names)).to(data.device)
    return _Pair({k: m.to(data.device) for k, m in agreement.items()}, cka, Cases(classes, data.mean, data.std))


def _who(teacher: Tensor, student: Tensor, labels: Tensor) -> Tensor:
    """Counts in the order of `WHO`."""
    t, s = teacher.argmax(-1), student.argmax(-1)
    right_t, right_s = t == labels, s == labels
    wrong = ~right_t & ~right_s
    parts = (right_t & right_s, right_t & ~right_s, ~right_t & right_s, wrong & (t == s), wrong & (t != s))
    return torch.stack([part.sum() for part in parts])
