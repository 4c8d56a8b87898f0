"""Do kdkit's losses train as RepDistiller's own code does? Both loss curves from one start, step by step.

    python -m benchmarks.parity --repdistiller PATH_OF_CLONE --data CIFAR_ROOT --weights TEACHER.pth --out FILE.jsonl

Two ResNet-20 with the same initial weights learn from one ResNet-56 on the same batches, views and negatives: one by
kdkit's loss and weight, one by RepDistiller's criterion and the weight of its script. SGD with learning rate 0.05,
momentum 0.9, weight decay 5e-4, batches of 64. The clone is imported as it is; what its code needs on a machine without
CUDA is put around it here.

A row tells, over the first so many steps, the largest relative difference

- `loss` and `gradient`: of the total loss and (by norm) of its gradient, where RepDistiller's side is given kdkit's
  weights before every step; CRD's banks and Z stay its own;
- `own_path`: of the total loss, where both train by themselves from the one start;
- `rounding`: the same for kdkit against kdkit, when one student's first convolution starts one bit away. At this
  learning rate rounding grows a hundredfold a step at first, so that nothing below this figure means anything.

`crd` is RepDistiller's code as it is. It adds 1e-7 inside its logarithms, a constant n·1e-7 on each side's value;
`crd_eps0` has that number set to zero from outside.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import CIFAR100

from kdkit import draws
from kdkit.losses import ATLoss, CRDLoss, CrossEntropyLoss, HintLoss, KDLoss, PKTLoss, RKDLoss
from kdkit.registry import LOSSES

BATCH = 64
METHODS = ("kd", "hint", "at", "pkt", "rkd", "crd", "crd_eps0")
CROSS_ENTROPY = {"kd": 0.1}  # 1 for all others
OUR_WEIGHTS = {
    "kd": 0.9,
    "hint": 100.0,
    "at": 1000.0,
    "pkt": LOSSES["pkt"].weight,
    "rkd": 1.0,
    "crd": 0.8,
    "crd_eps0": 0.8,
}
THEIR_WEIGHTS = OUR_WEIGHTS | {"pkt": 30000.0}  # of its scripts

Outputs = tuple[list[Tensor], Tensor]  # RepDistiller's `is_feat`: [stem, layer1, layer2, layer3, pooled] and logits
Term = Callable[[Outputs, Outputs, Tensor], Tensor]  # of student, teacher and sample numbers


def main() -> None:
    parser = argparse.ArgumentParser(description="kdkit's loss curves against RepDistiller's")
    parser.add_argument("--repdistiller", type=Path, required=True, help="a clone of HobbitLong/RepDistiller")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds cifar-100-python")
    parser.add_argument("--weights", type=Path, required=True, help="a ResNet-56 in RepDistiller's checkpoint format")
    parser.add_argument("--out", type=Path, required=True, help="rows are added to this file as JSON lines")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_default_dtype(getattr(torch, args.dtype))
    warnings.filterwarnings("ignore", message="size_average")
    repdistiller = import_repdistiller(args.repdistiller)
    teacher = repdistiller.nets["resnet56"](num_classes=100)
    teacher.load_state_dict(torch.load(args.weights, map_location="cpu", weights_only=True)["model"])
    teacher.eval()
    data = CIFAR100(args.data, train=True, download=False)
    labels = torch.tensor(data.targets)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for method in args.methods:
        torch.manual_seed(args.seed)
        runs = contestants(method, repdistiller, labels, args.lr)
        found = compare(runs, teacher, batches(data.data, labels, args.steps, args.seed))
        with args.out.open("a") as file:
            for steps in sorted({min(s, args.steps) for s in (1, 10, 50, 100, args.steps)}):
                worst = {name: float(f"{torch.tensor(values[:steps]).max():.3g}") for name, values in found.items()}
                row = {"method": method, "dtype": args.dtype, "lr": args.lr, "steps": steps} | worst
                file.write(json.dumps(row | {"seed": args.seed} | provenance(args.repdistiller)) + "\n")


def compare(runs: Runs, teacher: nn.Module, steps: Iterator[tuple[Tensor, Tensor, Tensor]]) -> dict[str, list[float]]:
    """The relative differences of every step, by what a row calls them."""
    ours, led = runs[:2]
    found: dict[str, list[float]] = {"loss": [], "gradient": [], "own_path": [], "rounding": []}
    for x, y, index in steps:
        with torch.no_grad():
            taught = teacher(x, is_feat=True)
        led.follow(ours)
        values = [run.step(x, taught, y, index) for run in runs]
        found["loss"].append(relative(values[0], values[1]))
        found["gradient"].append(float((ours.gradient() - led.gradient()).norm() / led.gradient().norm()))
        found["own_path"].append(relative(values[0], values[2]))
        found["rounding"].append(relative(values[0], values[3]))
        print(len(found["loss"]), *(f"{value:.9g}" for value in values), f"{found['gradient'][-1]:.1e}", flush=True)
    return found


def import_repdistiller(clone: Path) -> SimpleNamespace:
    """Its criteria, nets and regressor, without CRD's own sampler, which is not used here and wants CUDA."""
    sys.path.insert(0, str(clone))
    names = "distiller_zoo", "crd.criterion", "crd.memory", "models", "models.util"
    zoo, criterion, memory, models, util = (importlib.import_module(name) for name in names)
    memory.AliasMethod.__init__ = lambda self, probs: None  # type: ignore[attr-defined]
    memory.AliasMethod.cuda = lambda self: None  # type: ignore[attr-defined]
    return SimpleNamespace(zoo=zoo, criterion=criterion, ConvReg=util.ConvReg, nets=models.model_dict)


def batches(images: object, labels: Tensor, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Normalised crops of the zero-padded images, flipped half of the time; labels; sample numbers."""
    pixels = torch.as_tensor(images).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]))
    order = draws.permutation(draws.key(seed, "order"), len(labels))
    for step in range(steps):
        index = order[step * BATCH : (step + 1) * BATCH]
        top, left, flip = (draws.below(draws.key(seed, w, step), index, n) for w, n in (("y", 9), ("x", 9), ("f", 2)))
        views = []
        for image, y, x, mirrored in zip(F.pad(pixels[index], (4, 4, 4, 4)), top, left, flip, strict=True):
            crop = image[:, y : y + 32, x : x + 32]
            views.append(crop.flip(2) if mirrored else crop)
        yield (torch.stack(views) / 255 - mean) / std, labels[index], index


class Run:
    """A student in training by `weights` = (cross-entropy's, the term's), with the heads that the term has."""

    def __init__(
        self,
        student: nn.Module,
        heads: list[nn.Module],
        cross_entropy: nn.Module,
        term: Term,
        weights: tuple[float, float],
        lr: float,
    ) -> None:
        self.student, self.cross_entropy, self.term, self.weights = student, cross_entropy, term, weights
        self.parameters = [p for module in (student, *heads) for p in module.parameters()]
        self.optimizer = torch.optim.SGD(self.parameters, lr=lr, momentum=0.9, weight_decay=5e-4)

    def step(self, x: Tensor, taught: Outputs, y: Tensor, index: Tensor) -> float:
        learnt = self.student(x, is_feat=True)
        loss = self.weights[0] * self.cross_entropy(learnt[1], y) + self.weights[1] * self.term(learnt, taught, index)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def follow(self, other: Run) -> None:
        for mine, theirs in zip(self.parameters, other.parameters, strict=True):
            mine.copy_(theirs)

    def gradient(self) -> Tensor:
        return torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None])


Runs = tuple[Run, Run, Run, Run]


def contestants(method: str, repdistiller: SimpleNamespace, labels: Tensor, lr: float) -> Runs:
    """kdkit; RepDistiller led by it and by itself; and, to see what rounding does, kdkit from one bit away."""
    student = repdistiller.nets["resnet20"](num_classes=100)
    head: list[nn.Module] = []
    if method == "hint":
        head = [repdistiller.ConvReg((2, 32, 16, 16), (2, 32, 16, 16))]
    if method.startswith("crd"):
        head = [CRDLoss(64, 64, len(labels), sample_labels=labels).to(torch.get_default_dtype())]
        repdistiller.criterion.eps = 0.0 if method == "crd_eps0" else 1e-7

    def run(ours: bool) -> Run:
        heads = copy.deepcopy(head)
        term = our_term(method, heads) if ours else their_term(method, repdistiller, heads, labels)
        weights = CROSS_ENTROPY.get(method, 1.0), (OUR_WEIGHTS if ours else THEIR_WEIGHTS)[method]
        cross_entropy = CrossEntropyLoss() if ours else nn.CrossEntropyLoss()
        return Run(copy.deepcopy(student), heads, cross_entropy, term, weights, lr)

    runs = run(True), run(False), run(False), run(True)
    with torch.no_grad():
        first = runs[-1].parameters[0]
        first.copy_(first.nextafter(torch.tensor(torch.inf)))
    return runs


def our_term(method: str, heads: list[nn.Module]) -> Term:
    """Kdkit's loss on RepDistiller's features."""
    if method == "kd":
        kd = KDLoss(temperature=4.0)
        return lambda s, t, index: kd(s[1], t[1])
    if method == "hint":
        hint = HintLoss()
        return lambda s, t, index: hint(heads[0](s[0][2]), t[0][2])
    if method == "at":
        at = ATLoss()
        return lambda s, t, index: sum(at(a, b) for a, b in zip(s[0][1:-1], t[0][1:-1], strict=True))
    if method.startswith("crd"):
        return lambda s, t, index: heads[0](s[0][-1], t[0][-1], index=index)
    loss = PKTLoss() if method == "pkt" else RKDLoss()
    return lambda s, t, index: loss(s[0][-1], t[0][-1])


def their_term(method: str, repdistiller: SimpleNamespace, heads: list[nn.Module], labels: Tensor) -> Term:
    """RepDistiller's criterion, called as its training loop does."""
    zoo = repdistiller.zoo
    if method == "kd":
        kd = zoo.DistillKL(4.0)
        return lambda s, t, index: kd(s[1], t[1])
    if method == "hint":
        hint = zoo.HintLoss()
        return lambda s, t, index: hint(heads[0](s[0][2]), t[0][2])
    if method == "at":
        at = zoo.Attention()
        return lambda s, t, index: sum(at(s[0][1:-1], t[0][1:-1]))
    if method.startswith("crd"):
        return their_crd(repdistiller, heads, labels)
    loss = zoo.PKT() if method == "pkt" else zoo.RKDLoss()
    return lambda s, t, index: loss(s[0][-1], t[0][-1])


def their_crd(repdistiller: SimpleNamespace, heads: list[nn.Module], labels: Tensor) -> Term:
    """Its CRD with kdkit's first heads and banks, given kdkit's positives and negatives as `contrast_idx`."""
    pattern = heads.pop()
    K = pattern.pairs.num_negatives
    options = {
        "s_dim": 64,
        "t_dim": 64,
        "feat_dim": 128,
        "n_data": len(labels),
        "nce_k": K,
        "nce_t": 0.07,
        "nce_m": 0.5,
    }
    crd = repdistiller.criterion.CRDLoss(SimpleNamespace(**options))
    crd.embed_s.load_state_dict(pattern.embed_student.state_dict())
    crd.embed_t.load_state_dict(pattern.embed_teacher.state_dict())
    crd.contrast.memory_v1.copy_(pattern.student_bank)
    crd.contrast.memory_v2.copy_(pattern.teacher_bank)
    heads.extend([crd.embed_s, crd.embed_t])

    def term(s: Outputs, t: Outputs, index: Tensor) -> Tensor:
        negatives = pattern.pairs.sampled(pattern.step, index, labels[index]).index
        pattern.step.add_(1)
        return crd(s[0][-1], t[0][-1], index, torch.cat([index[:, None], negatives], 1)).squeeze()

    return term


def relative(a: float, b: float) -> float:
    return abs(a - b) / abs(b)


def provenance(clone: Path) -> dict[str, object]:
    return {
        "commit": git_commit(Path(__file__).parent),
        "repdistiller": git_commit(clone),
        "torch": torch.__version__,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs",
    }


def git_commit(folder: Path) -> str | None:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
    return found.stdout.strip() or None


if __name__ == "__main__":
    main()
