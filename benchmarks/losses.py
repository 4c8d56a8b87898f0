r"""Every registered loss, forward and backward: time, memory, how far above what it needs, and the peers beside it.

    python -m benchmarks.losses --out benchmarks/results/speed_losses.jsonl \
        --torchdistill SITE --repdistiller CLONE --mdistiller CLONE

SITE is a folder that `pip install --no-deps --target SITE torchdistill` made; a CLONE is a checkout of that project.
What is not given is left out. Tensors are those of ResNet-56 → ResNet-20 on CIFAR-100: 100 classes, embeddings of 64,
maps of 16×32², 32×16² and 64×8², fp32. CRD has n = 50,000, K = 16384 and 100 labels, in all its variants.

Before anything is timed, every contender's value and gradient are compared with kdkit's; the row has the `difference`.
CRD's peers are given kdkit's negatives ready-made, while kdkit draws them within its time. Its `shared` and `all` see
other negatives than `sampled`: equal on average, their value alone is compared, to 5 %.

`bound_ms` is how long the machine takes at least to read the inputs and write the gradients once, or to do the
products, by rates measured in the same process, which the first row tells. `dispatch_ms` is how long as many operations
as it makes (`ops`) take on a single number each: small losses are bound by that.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import cudnn

import kdkit.losses  # noqa: F401  fills the registry
from benchmarks import peers, plain, timing
from benchmarks.peers import Contender, Makers
from kdkit.registry import LOSSES, KdkitError, constructor

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "logits": [(100,)],
    "embedding": [(64,)],
    "stem": [(16, 32, 32)],
    "stages": [(16, 32, 32), (32, 16, 16), (64, 8, 8)],
    "stages:preact": [(16, 32, 32), (32, 16, 16), (64, 8, 8)],
    "stage2": [(32, 16, 16)],
    "stage-1": [(64, 8, 8)],
    "beliefs": [(8, 100)],
}
EXTRA: list[tuple[str, str, dict[str, Any]]] = [
    ("ce", "ce smoothed", {"label_smoothing": 0.1}),
    ("cc", "cc of neighbours", {"mode": "code"}),
]
CRD = [(kind, dtype) for kind in ("sampled", "shared", "all") for dtype in ("float32", "bfloat16")]


class Case:
    """One loss on one batch.

    Args:
        name: the registered loss.
        batch: B.
        shapes: of one sample at each tap.
        device: where.
        label: what it is called, and what peers are found by; the name unless given.
        samples: n, for losses with banks.
        negatives: K.
        options: of the loss.
    """

    def __init__(
        self,
        name: str,
        batch: int,
        shapes: Sequence[tuple[int, ...]],
        device: torch.device,
        *,
        label: str | None = None,
        samples: int = 50_000,
        negatives: int = 16_384,
        **options: Any,
    ) -> None:
        self.name, self.batch, self.device, self.label = name, batch, device, label or name
        self.samples, self.negatives, self.options, self.shapes = samples, negatives, options, list(shapes)
        torch.manual_seed(0)
        self.students = [_tensor(batch, shape, device).requires_grad_() for shape in shapes]
        self.teachers = [_tensor(batch, shape, device) for shape in shapes]
        self.sample_labels = torch.arange(samples) % 100
        self.index = torch.randperm(samples)[:batch].to(device)
        self.labels = self.sample_labels[self.index.cpu()].to(device)

    @property
    def lists(self) -> bool:
        """Whether one loss reads all taps."""
        return "students" in LOSSES[self.name].reads

    @cached_property
    def modules(self) -> list[nn.Module]:
        """Kdkit's loss in its first state, which peers start from."""
        return self.build()

    def build(self, **options: Any) -> list[nn.Module]:
        """The loss, once for each tap or for all that it reads as a list, as the graph would build it."""
        found, dims = [], [64 if len(shape) == 1 else shape[0] for shape in self.shapes]
        for width, shape in (
            [next(zip(dims, self.shapes, strict=True))] if self.lists else zip(dims, self.shapes, strict=True)
        ):
            known = {"student_dim": width, "teacher_dim": width, "student_shape": shape, "teacher_shape": shape}
            known |= {"student_dims": dims, "teacher_dims": dims}
            known |= {"num_samples": self.samples, "num_classes": 100, "sample_labels": self.sample_labels, "seed": 0}
            known |= {"num_negatives": self.negatives}
            asked = {word: known[word] for word in constructor(LOSSES[self.name].cls) if word in known}
            torch.manual_seed(0)
            found.append(LOSSES[self.name].cls(**asked | self.options | options).to(self.device))
        return found

    def ours(self, **options: Any) -> Contender:
        """Kdkit's loss with these options, from its first state."""
        modules = self.build(**options)
        words = [self._words(s, t) for _, s, t in zip(modules, self.students, self.teachers, strict=False)]
        parameters = [p for module in modules for p in module.parameters()]
        if len(modules) == 1:  # a sum of one would be one operation more than the loss has
            return Contender(lambda: modules[0](**words[0]), parameters)
        return Contender(lambda: sum(loss(**w) for loss, w in zip(modules, words, strict=True)), parameters)

    def _words(self, student: Tensor, teacher: Tensor) -> dict[str, Any]:
        logits = torch.randn(self.batch, 100, device=self.device)
        known = {"student": student, "teacher": teacher, "students": self.students, "teachers": self.teachers}
        known |= {"labels": self.labels, "index": self.index, "progress": torch.tensor(0.5, device=self.device)}
        known |= {"student_logits": logits.clone().requires_grad_(), "teacher_logits": logits}
        known |= {"teacher_classifier": nn.Linear(64, 100, device=self.device)}
        return {word: known[word] for word in LOSSES[self.name].reads}

    @cached_property
    def contrast(self) -> Tensor:
        """CRD's first positives and negatives (B, 1 + K), drawn by kdkit."""
        crd: Any = self.modules[0]
        drawn = crd.pairs.sampled(crd.step, self.index, self.labels).index
        return torch.cat([self.index[:, None], drawn], 1)

    def bound(self, limits: timing.Limits, **options: Any) -> float:
        """Seconds that reading all inputs and writing all gradients once would take, or the fewest products."""
        tensors = [*self.students, *self.teachers]
        touched = sum(_bytes(t) for t in tensors) + sum(_bytes(s) for s in self.students)
        touched += sum(2 * _bytes(p) for module in self.modules for p in module.parameters())
        half = options.get("bank_dtype") == "bfloat16"
        if self.name == "crd":
            rows = self.samples if options["negatives"] == "all" else self.negatives
            if options["negatives"] == "sampled":
                rows = int(self.contrast.unique().numel())
            touched += 2 * rows * 128 * (2 if half else 4)
        return limits.bound(touched, self.flop(**options), "bfloat16" if half else "float32")

    def flop(self, negatives: str = "sampled", **_: Any) -> float:
        """Additions and multiplications that forward and backward need at the least; 0 where bytes are what counts."""
        B, shape = self.batch, self.shapes[0]
        gram = B * B * shape[0]  # a symmetric product: half of it is enough
        distances, angles = 4 * gram, 10 * B**3
        counts: dict[str, float] = {
            "pkt": 4 * gram,
            "cc": 0 if self.options.get("mode") == "code" else 4 * gram,
            "sp": 4 * B * B * math.prod(shape),
            "rkd_distance": distances,
            "rkd_angle": distances + angles,
            "rkd": distances + angles,
            "crd_inbatch": 6 * B * B * 128,
            "nt_xent": 8 * B * B * 128,
            "crd": 8 * B * (self.samples if negatives == "all" else self.negatives) * 128,
        }
        if self.name == "vid":  # three layers, each forward and twice backward
            return float(sum(18 * B * channels**2 * height * width for channels, height, width in self.shapes))
        if self.name == "ft":  # nine convolutions, each forward and twice backward
            (channels, height, width), k = shape, shape[0] // 2
            return float(3 * 54 * B * (channels**2 + channels * k + k**2) * height * width)
        if self.name == "reviewkd":  # 1 × 1 and 3 × 3, each forward and twice backward
            hidden = self.shapes[-1][0]
            return float(sum(60 * B * hidden * math.prod(shape) for shape in self.shapes))
        if self.name == "fsp":  # a product of two layers, forward on both sides and backward to both layers
            pairs = pairwise(self.shapes)
            return float(sum(8 * B * first[0] * last[0] * math.prod(last[1:]) for first, last in pairs))
        if self.name == "nst":
            return float(sum(8 * B * channels**2 * height * width for channels, height, width in self.shapes))
        return counts.get(self.name, 0)


def _tensor(batch: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    x = torch.randn(batch, *shape, device=device)
    return x.relu_() if len(shape) == 3 else x


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def cases(args: argparse.Namespace) -> list[Case]:
    """Every registered loss at every batch, then the two large cases."""
    sizes = {"samples": 2_000, "negatives": 256} if args.quick else {}
    shapes = {tap: [(*s[:1], *(n // 4 for n in s[1:])) for s in several] for tap, several in SHAPES.items()}
    shapes = (shapes if args.quick else SHAPES) | {"beliefs": SHAPES["beliefs"]}
    wanted = [(name, name, {}) for name in sorted(LOSSES)] + EXTRA
    found = []
    for batch in args.batch:
        for name, label, options in wanted:
            if name in args.losses:
                taps = LOSSES[name].taps
                if unknown := [tap for tap in taps if tap not in shapes]:
                    raise KdkitError(f"{name} reads {unknown[0]!r}; say in SHAPES how large that is")
                options = options | sizes
                read = [shape for tap in taps for shape in shapes[tap]]
                found.append(Case(name, batch, read, args.device, label=label, **options))
    B, D, C, H = (8, 16, 8, 8) if args.quick else (128, 512, 64, 32)
    large = [("rkd_angle", B, (D,)), ("nst", B // 2, (C, H, H))]
    return found + [Case(name, b, [shape], args.device) for name, b, shape in large if name in args.losses]


def contenders(case: Case, libraries: dict[str, Makers]) -> dict[str, Contender]:
    """Kdkit first, in all variants, then whoever has this loss."""
    found = {"kdkit": case.ours()}
    if case.name == "crd":
        found = {f"kdkit {kind} {dtype}": case.ours(negatives=kind, bank_dtype=dtype) for kind, dtype in CRD}
    for library, makers in libraries.items():
        if case.label in makers:
            found[library] = makers[case.label](case)
    return found


def compare(case: Case, found: dict[str, Contender]) -> dict[str, float]:
    """How far each contender's first value and gradient are from kdkit's; raises where that is too far."""
    results: dict[str, tuple[Tensor, ...]] = {}
    for name, contender in found.items():
        # Else a GPU's convolutions would round to TF32, and products that say the same would not.
        with peers.quiet(), cudnn.flags(enabled=True, allow_tf32=False):
            value = contender.value() * contender.factor
            results[name] = value, *torch.autograd.grad(value, case.students)
    first, differences = next(iter(results.values())), {}
    for name, result in results.items():
        average = name.startswith(("kdkit shared", "kdkit all"))
        parts = [(result[:1], first[:1])] if average else [(result[:1], first[:1]), (result[1:], first[1:])]
        differences[name] = float(torch.tensor([timing.difference(*part) for part in parts]).max())  # NaN, if one is
        allowed = 0.05 if average else 0.02 if "bfloat16" in name else found[name].tolerance
        if not differences[name] <= allowed:
            raise KdkitError(
                f"{case.label} at B = {case.batch}: {name} is {differences[name]:.2g} from kdkit, not timed"
            )
    return differences


def measure(case: Case, libraries: dict[str, Makers], limits: timing.Limits, rounds: int, rows: timing.Rows) -> None:
    """A row for each contender of a case."""
    found = contenders(case, libraries)
    differences = compare(case, found)
    calls = {name: step(contender, case) for name, contender in found.items()}
    with peers.quiet():
        times = timing.summary(timing.in_turns(calls, rounds))
        peaks = {name: timing.peak_bytes(call, case.device) for name, call in calls.items()}
    shape = (
        "x".join(map(str, case.shapes[0]))
        if len(case.shapes) == 1
        else f"{len(case.shapes)} levels"
        if case.lists
        else f"{len(case.shapes)} stages"
    )
    for name, contender in found.items():
        row: dict[str, Any] = {"loss": case.label, "batch": case.batch, "shape": shape, "contender": name}
        row |= times[name] | {"peak_mb": timing.megabytes(peaks[name]), "difference": float(f"{differences[name]:.2g}")}
        if name.startswith("kdkit"):
            variant = dict(zip(("negatives", "bank_dtype"), name.split()[1:], strict=False))
            row["bound_ms"] = float(f"{1e3 * case.bound(limits, **variant):.3g}")
            row["ops"] = timing.count_ops(calls[name])
            row["dispatch_ms"] = float(f"{1e3 * (limits.empty + row['ops'] * limits.op):.3g}")
        rows.add(**row | {"note": contender.note})


def step(contender: Contender, case: Case) -> Callable[[], object]:
    """Forward and backward to the student and to what the loss itself learns."""
    leaves = [*case.students, *contender.parameters]
    return lambda: torch.autograd.grad(contender.value(), leaves)


def main(words: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = timing.arguments(__doc__, rounds=15)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256], help="batch sizes (default: 64 256)")
    parser.add_argument("--losses", nargs="+", default=sorted(LOSSES), choices=sorted(LOSSES), help="default: all")
    parser.add_argument("--torchdistill", type=Path, metavar="SITE", help="folder that it is installed in")
    parser.add_argument("--repdistiller", type=Path, metavar="CLONE", help="a clone of HobbitLong/RepDistiller")
    parser.add_argument("--mdistiller", type=Path, metavar="CLONE", help="a clone of megvii-research/mdistiller")
    args = timing.begin(parser, words)
    libraries: dict[str, Makers] = {"plain torch": plain.makers(), "timm": peers.timm()}
    for name in ("torchdistill", "repdistiller", "mdistiller"):
        if (place := getattr(args, name)) is not None:
            libraries[name] = getattr(peers, name)(place)
    limits = timing.limits(args.device, args.quick)
    rows = timing.Rows(args, "losses")
    rows.add(**limits.row())
    for case in cases(args):
        measure(case, libraries, limits, args.rounds, rows)


if __name__ == "__main__":
    main()
