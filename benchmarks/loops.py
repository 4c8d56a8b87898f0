"""Training loops that kdkit's is timed against: written by hand, RepDistiller's and torchdistill's own.

A loop prepares a batch, outside of a step's time, and then runs a block of prepared ones; `run` returns the mean loss.
"""

from __future__ import annotations

import copy
import importlib
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.parity import import_repdistiller
from kdkit import Distiller

SCRIPTS = {  # distill, gamma, alpha, beta of RepDistiller's scripts
    "kd": ("kd", 0.1, 0.9, 0.0),
    "at": ("attention", 1.0, 0.0, 1000.0),
    "rkd": ("rkd", 1.0, 0.0, 1.0),
    "crd": ("crd", 1.0, 0.0, 0.8),
    "crd+kd": ("crd", 1.0, 1.0, 0.8),
}

Batch = tuple[Tensor, Tensor, Tensor]  # images, labels, sample numbers


class Loop(Protocol):
    """One contender of a step."""

    def prepare(self, batch: Batch) -> Sequence[Tensor]:
        """A batch as this loop's data set would hand it out."""
        ...

    def run(self, block: Block) -> float:
        """Train on a block."""
        ...


class Block:
    """So many prepared batches."""

    def __init__(self, batches: Iterable[Sequence[Tensor]], length: int) -> None:
        self.batches, self.length = batches, length

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.batches)

    def __len__(self) -> int:
        return self.length


class HandLoop:
    """The least that does kdkit's work: its nets, loss modules, autocast, memory format and optimiser.

    Args:
        distiller: bound, before its first step.
        device: where.
        mixed: in bf16 where autocast says so, else in fp32.
    """

    def __init__(self, distiller: Distiller, device: torch.device, *, mixed: bool = True) -> None:
        self.device, self.mixed = device, mixed
        self.teacher, self.student = (copy.deepcopy(distiller.graph.model(name)) for name in ("teacher", "student"))
        edges = distiller.graph.bound
        self.terms = [(e.name, float(e.weight), copy.deepcopy(e.losses)) for e in edges]
        losses = [loss for _, _, several in self.terms for loss in several]
        self.parameters = [p for module in (self.student, *losses) for p in module.parameters()]
        raw: Any = distiller.optimizers()
        self.optimizer = torch.optim.SGD(self.parameters, **raw.optimizer.of["student"].defaults)

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def run(self, block: Block) -> float:
        total = torch.zeros((), device=self.device)
        for batch in block:
            total += self.step(*batch)
        return float(total) / len(block)

    def step(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            with torch.no_grad():
                taught = features(self.teacher, x)
            learnt = features(self.student, x)
            loss: Any = sum(w * term(name, losses, learnt, taught, y, index) for name, w, losses in self.terms)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        value: Tensor = loss.detach()
        return value


def term(name: str, losses: Any, s: Any, t: Any, y: Tensor, index: Tensor) -> Any:
    """One edge's loss."""
    if name == "ce":
        return losses[0](s.logits, y)
    if name == "kd":
        return losses[0](s.logits, t.logits)
    if name == "at":
        return sum(loss(a, b) for loss, a, b in zip(losses, s.maps, t.maps, strict=True))
    if name == "crd":
        return losses[0](s.embedding, t.embedding, y, index=index)
    return losses[0](s.embedding, t.embedding)


def features(net: Any, x: Tensor) -> SimpleNamespace:
    """What the losses read of a CIFAR ResNet."""
    x = net.relu(net.bn1(net.conv1(x)))
    maps = [x := layer(x) for layer in (net.layer1, net.layer2, net.layer3)]
    embedding = net.avgpool(x).flatten(1)
    return SimpleNamespace(maps=maps, embedding=embedding, logits=net.fc(embedding))


class TheirLoop:
    """RepDistiller's `train_distill`, with the options of its scripts.

    Args:
        clone: of the project.
        method: by kdkit's name.
        hand: whose weights, heads and banks it starts from.
        labels: of the training set.
        negatives: K.
    """

    def __init__(self, clone: Path, method: str, hand: HandLoop, labels: Tensor, negatives: int) -> None:
        found, self.device = import_repdistiller(clone), hand.device
        self.train = importlib.import_module("helper.loops").train_distill
        distill, gamma, alpha, beta = SCRIPTS[method.removesuffix(" shared")]
        self.options = SimpleNamespace(distill=distill, gamma=gamma, alpha=alpha, beta=beta, print_freq=10**9)
        nets = [found.nets[name](num_classes=100).to(self.device) for name in ("resnet20", "resnet56")]
        for net, ours in zip(nets, (hand.student, hand.teacher), strict=True):
            net.load_state_dict(ours.state_dict())
        self.modules, criterion = nn.ModuleList(nets), nn.Identity()
        if distill == "crd":
            ours = next(losses[0] for name, _, losses in hand.terms if name == "crd")
            options = {"s_dim": 64, "t_dim": 64, "feat_dim": 128, "n_data": len(labels), "nce_k": negatives}
            criterion = found.criterion.CRDLoss(SimpleNamespace(**options, nce_t=0.07, nce_m=0.5))
            criterion.embed_s.load_state_dict(ours.embed_student.state_dict())
            criterion.embed_t.load_state_dict(ours.embed_teacher.state_dict())
            criterion.contrast.memory_v1.copy_(ours.student_bank)
            criterion.contrast.memory_v2.copy_(ours.teacher_bank)
            self.modules = nn.ModuleList([nets[0], criterion.embed_s, criterion.embed_t, nets[1]])
            self.others = [(labels != c).nonzero()[:, 0].numpy() for c in range(100)]
        elif distill != "kd":
            criterion = {"attention": found.zoo.Attention, "rkd": found.zoo.RKDLoss}[distill]()
        self.criteria = nn.ModuleList([nn.CrossEntropyLoss(), found.zoo.DistillKL(4.0), criterion]).to(self.device)
        self.negatives = negatives
        self.optimizer = torch.optim.SGD(self.modules[:-1].parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    def prepare(self, batch: Batch) -> Sequence[Tensor]:
        """With CRD's positives and negatives, drawn for each image by NumPy as its data set does."""
        x, y, index = batch
        batch = x.contiguous(), y, index
        if self.options.distill != "crd":
            return batch
        drawn = [numpy_choice(self.others[int(label)], self.negatives) for label in y]
        return *batch, torch.cat([index[:, None].cpu(), torch.stack(drawn)], 1)

    def run(self, block: Block) -> float:
        with peers.quiet():
            _, loss = self.train(0, block, self.modules, self.criteria, self.optimizer, self.options)
        return float(loss)


def numpy_choice(pool: Any, count: int) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.random.choice(pool, count, replace=False))


class TorchdistillLoop:
    """Its `DistillationBox` in the loop of its examples: fp32, hooks, and a look at the loss at every step.

    CRD is not among its methods here: its negatives come from a data set of its own.

    Args:
        site: the folder that it is installed in.
        method: by kdkit's name.
        hand: whose weights it starts from.
    """

    METHODS = ("kd", "at", "rkd")

    def __init__(self, site: Path, method: str, hand: HandLoop) -> None:
        sys.path.append(str(site))
        core = importlib.import_module("torchdistill.core.distillation")
        logging.getLogger("torchdistill").setLevel(logging.ERROR)
        hooks = {"kd": [], "at": ["layer1", "layer2", "layer3"], "rkd": ["avgpool"]}[method]
        net = {"forward_hook": {"output": hooks}, "forward_proc": "forward_batch_only"}
        config = {
            "num_epochs": 1,
            "teacher": {**net, "requires_grad": False},
            "student": net,
            "optimizer": {"key": "SGD", "kwargs": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}},
            "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": torchdistill_terms(method, hooks)}},
        }
        nets = [copy.deepcopy(net).to(memory_format=torch.contiguous_format) for net in (hand.teacher, hand.student)]
        self.box = core.DistillationBox(*nets, {}, config, hand.device, None, False, 1)

    def prepare(self, batch: Batch) -> Sequence[Tensor]:
        return batch[0].contiguous(), batch[1]

    def run(self, block: Block) -> float:
        total = 0.0
        for x, y in block:
            loss = self.box.forward_process(x, y, None)
            self.box.post_forward_process(loss)
            total += loss.item()
        return total / len(block)


def torchdistill_terms(method: str, hooks: Sequence[str]) -> dict[str, Any]:
    """The losses of a method, as its recipes say them."""
    logits = {"module_path": ".", "io": "output"}
    if method == "kd":  # the cross-entropy is inside
        words = {f"{side}_{name}": value for side in ("student", "teacher") for name, value in logits.items()}
        words = {name.replace("_io", "_module_io"): value for name, value in words.items()}
        kd = {"key": "KDLoss", "kwargs": {**words, "temperature": 4.0, "alpha": 0.1, "beta": 0.9}}
        return {"kd": {"criterion": kd, "weight": 1.0}}
    wrapped = {"input": {**logits, "is_from_teacher": False}, "target": {"uses_label": True}}
    ce = {"criterion": {"key": "CrossEntropyLoss", "kwargs": {}}, "weight": 1.0}
    ce["criterion_wrapper"] = {"key": "SimpleLossWrapper", "kwargs": wrapped}
    if method == "at":
        pairs = {n: {side: {"io": "output", "path": n} for side in ("student", "teacher")} for n in hooks}
        at = {"key": "ATLoss", "kwargs": {"at_pairs": pairs}}
        return {"ce": ce, "at": {"criterion": at, "weight": 1000.0}}
    words = {"student_output_path": hooks[0], "teacher_output_path": hooks[0], "reduction": "mean"}
    rkd = {"key": "RKDLoss", "kwargs": {**words, "dist_factor": 25, "angle_factor": 50}}
    return {"ce": ce, "rkd": {"criterion": rkd, "weight": 1.0}}
