r"""One training step of ResNet-56 → ResNet-20 on images of CIFAR-100's shape, or with --epoch one epoch of them.

    python -m benchmarks.step --repdistiller CLONE --torchdistill SITE --out benchmarks/results/speed_step.jsonl

- `kdkit`: a Distiller under a Trainer with the packaged recipes' settings (SGD, channels_last) in bf16-mixed, or as
  --precision says; its time runs from batch to batch, with all that Lightning does in between.
- `by hand`: the least loop one would write for the same work: the same nets, loss modules, autocast and optimiser.
- `repdistiller`: its own training loop, called as it is, with its nets and criteria: fp32, and a look at the loss and
  the accuracy at every step. At a step it is given its negatives ready-made; in an epoch they are drawn for one image
  after the other, as its data set draws them.
- `torchdistill`: its box in the loop of its examples, fp32; not for crd, which wants data sets of its own.

They take turns in one process: what the Trainer reads is a loader that lets the others run their steps before it hands
out its own. All start from the same weights and see the same batches. `difference` is, for `by hand`, how far its first
update of the student is from kdkit's; for the peers, how far their first loss is from that of `by hand`. The
teacher is a trained one: the logits of a random ResNet-56 are thousands, and a rounding decides which class it names.

With --teacher cached kdkit reads what its teacher says from a cache that the warm-up has filled (an epoch: its first
round, so take three); all others run it, and so does `at`, whose maps are too many to keep.

An epoch is 50,000 images with random crops and flips, made by kdkit's loader for everybody, and where kdkit records its
steps within them; `ms` is still a step's. `--images` takes the first ones of an epoch, as a CPU may.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

import kdkit
from benchmarks import timing
from benchmarks.loops import Batch, Block, HandLoop, Loop, TheirLoop, TorchdistillLoop
from kdkit.data.device_loader import DeviceLoader
from kdkit.data.fake import FakeData
from kdkit.models import build, load_weights
from kdkit.registry import KdkitError

METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "kd": {"ce": {"weight": 0.1}, "kd": {"weight": 0.9}},
    "at": {"ce": {}, "at": {"taps": "stages"}},
    "rkd": {"ce": {}, "rkd": {}},
    "crd": {"ce": {}, "crd": {}},
    "crd+kd": {"ce": {}, "kd": {}, "crd": {}},
    "crd shared": {"ce": {}, "crd": {"negatives": "shared"}},
}
TEACHERS = ["live", "cached"]
TEACHER = Path(__file__).with_name("weights") / "resnet56_cifar100_30ep.safetensors"
MIXED = "bf16-mixed"


@dataclass(frozen=True)
class Size:
    """How much work.

    Attributes:
        batch: B.
        image: side of an image.
        samples: n.
        negatives: K.
        students: that learn from the one teacher.
        warm: steps before anything is timed.
        block: steps in one turn of a contender.
        rounds: turns of each.
        fresh: within the time, the loader makes the batches of a block anew.
    """

    batch: int = 64
    image: int = 32
    samples: int = 50_000
    negatives: int = 16_384
    students: int = 1
    warm: int = 3
    block: int = 1
    rounds: int = 15
    fresh: bool = False


class Turns(FakeData):
    """Data whose training loader gives other loops their turn before it hands the Trainer its own block.

    Args:
        size: how much work.
        device: where.

    Attributes:
        others: loops by name.
        stepped: called with the first batch when kdkit has done its step.
        times: seconds a step in each round.
    """

    def __init__(self, size: Size, device: torch.device) -> None:
        shape = (3, size.image, size.image)
        super().__init__(classes=100, samples=size.samples, shape=shape, batch_size=size.batch)
        self.device, self.size = device, size
        self.others: dict[str, Loop] = {}
        self.stepped: Callable[[Batch], None] = lambda batch: None
        self.times: timing.Times = {}

    def train_dataloader(self) -> Any:
        """A new one at each call."""
        return _TurnLoader(self, super().train_dataloader())


class _TurnLoader(DeviceLoader):
    def __init__(self, data: Turns, source: DeviceLoader) -> None:
        vars(self).update(vars(source))
        self.data, self.source = data, source  # which makes images at once, also where this one does not

    def __len__(self) -> int:
        size = self.data.size
        return size.warm + size.block * size.rounds + 1  # the last one only ends the time of the one before

    def __iter__(self) -> Iterator[Sequence[torch.Tensor]]:
        data, size = self.data, self.data.size
        batches: list[Any] = list(itertools.islice(self.source, size.warm))
        first = list(itertools.islice(super().__iter__(), size.warm)) if size.fresh else batches
        yield first[0]
        data.stepped(batches[0])
        yield from first[1:]
        prepared = {name: [loop.prepare(batch) for batch in batches] for name, loop in data.others.items()}
        for name, loop in data.others.items():
            loop.run(Block(prepared[name][1:], len(batches) - 1))
        data.times = {"kdkit": [], **{name: [] for name in data.others}}
        for _ in range(size.rounds):
            for name, loop in data.others.items():
                block = Block(self.block(prepared[name], map(loop.prepare, self.source)), size.block)
                data.times[name].append(timing.seconds(lambda loop=loop, block=block: loop.run(block)) / size.block)
            start = timing.timer()
            yield from self.block(batches, super().__iter__())
            data.times["kdkit"].append((timing.timer() - start) / size.block)
        yield batches[0]

    def block(self, prepared: Sequence[Any], fresh: Iterator[Any]) -> Iterator[Any]:
        """The batches of one turn."""
        if self.data.size.fresh:
            self.source.set_epoch(0)  # the same views for everybody
            return itertools.islice(fresh, self.data.size.block)
        return itertools.islice(itertools.cycle(prepared), self.data.size.block)


class Start(pl.Callback):
    """Builds the other loops from the bound distiller before its first step."""

    def __init__(self, others: Callable[[Any], dict[str, Loop]]) -> None:
        self.others = others
        self.differences: dict[str, float] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """See the class."""
        trainer.datamodule.others = self.others(pl_module)
        self.before = [p.detach().clone() for p in pl_module.student.parameters()]
        trainer.datamodule.stepped = lambda batch: self._compare(trainer.datamodule.others, pl_module, batch)

    def _compare(self, others: dict[str, Loop], distiller: Any, batch: Batch) -> None:
        """The others do the first step too; raises where they do not do the same."""
        first = {name: loop.run(Block([loop.prepare(batch)], 1)) for name, loop in others.items()}
        for name, loop in others.items():
            if isinstance(loop, HandLoop):
                updates = [
                    [p.detach() - old for p, old in zip(net.parameters(), self.before, strict=True)]
                    for net in (loop.student, distiller.student)
                ]
                self.differences[name] = timing.difference(*updates)
            else:
                self.differences[name] = abs(first[name] / first["by hand"] - 1)
            if not self.differences[name] <= 0.05:
                raise KdkitError(f"{name} does other work: it is {self.differences[name]:.2g} away; not timed")


def run(
    method: str,
    size: Size,
    device: torch.device,
    others: Callable[[Any], dict[str, Loop]] = lambda distiller: {},
    *,
    cache: str | None = None,
    precision: str = MIXED,
) -> tuple[timing.Times, dict[str, float]]:
    """Seconds a step of kdkit and of other loops, and how far those were from it at first; `cache` names a folder."""
    data, start = Turns(size, device), Start(others)
    torch.manual_seed(0)
    names = ["student", *(f"student{i}" for i in range(2, size.students + 1))]
    words: dict[str, Any] = {} if cache is None else {"cache": {"folder": cache}}
    teacher = build("resnet56", num_classes=100)
    load_weights(teacher, TEACHER)
    nodes: dict[str, Any] = {"teacher": kdkit.frozen(teacher, **words)}
    nodes |= {name: build("resnet20", num_classes=100) for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision=precision,
            max_epochs=1,
            limit_val_batches=0,
            callbacks=[start],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(kdkit.Distiller(nodes, edges(method, names, size.negatives), compile="auto"), datamodule=data)
    return data.times, start.differences


def edges(method: str, students: Sequence[str], negatives: int) -> list[kdkit.Edge]:
    """The losses of a method, for each student its own."""
    found = []
    for student in students:
        for loss, given in METHODS[method].items():
            source = None if loss == "ce" else "teacher"
            options = given | ({"num_negatives": negatives} if loss == "crd" else {})
            name = loss if student == "student" else f"{loss} of {student}"
            found.append(kdkit.Edge(loss, name=name, source=source, target=student, **options))
    return found


def main(words: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = timing.arguments(__doc__, rounds=15)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="default: all")
    parser.add_argument("--teacher", nargs="+", default=TEACHERS, choices=TEACHERS, help="default: both")
    parser.add_argument("--repdistiller", type=Path, metavar="CLONE", help="a clone of HobbitLong/RepDistiller")
    parser.add_argument("--torchdistill", type=Path, metavar="SITE", help="folder that it is installed in")
    parser.add_argument("--precision", default=MIXED, choices=[MIXED, "32-true"], help="kdkit's (default: bf16-mixed)")
    parser.add_argument("--block", type=int, help="steps in one turn (default: 1, on a GPU 20)")
    parser.add_argument("--epoch", action="store_true", help="a turn is an epoch of 50,000 images; try --rounds 1")
    parser.add_argument("--images", type=int, help="with --epoch: only so many of its images, the first ones")
    args = timing.begin(parser, words)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    size = Size(rounds=args.rounds, block=args.block or (20 if args.device.type == "cuda" else 1), fresh=args.epoch)
    if args.quick:
        size = replace(size, batch=4, samples=200, negatives=64, warm=2)
    if args.epoch:
        size = replace(size, block=-(-min(size.samples, args.images or size.samples) // size.batch))
    rows = timing.Rows(args, "epoch" if args.epoch else "step")

    precision = {} if args.precision == MIXED else {"precision": args.precision}

    def others(distiller: Any) -> dict[str, Loop]:
        hand = HandLoop(distiller, args.device, mixed=args.precision == MIXED)
        found: dict[str, Loop] = {"by hand": hand}
        if args.repdistiller is not None:
            labels = distiller.graph.facts.sample_labels
            found["repdistiller"] = TheirLoop(args.repdistiller, method, hand, labels, size.negatives)
        if args.torchdistill is not None and method in TorchdistillLoop.METHODS:
            found["torchdistill"] = TorchdistillLoop(args.torchdistill, method, hand)
        return found

    pairs = itertools.product(args.methods, args.teacher)
    with tempfile.TemporaryDirectory() as folder:  # of methods that read the same of their teacher, one fills it
        for method, teacher in (pair for pair in pairs if pair != ("at", "cached")):  # the maps of all views are 161 GB
            cache = folder if teacher == "cached" else None
            times, differences = run(method, size, args.device, others, cache=cache, precision=args.precision)
            for name, found in timing.summary(times).items():
                row = {"method": method, "teacher": teacher, "batch": size.batch, "steps": size.block}
                apart = float(f"{differences.get(name, 0.0):.2g}")
                rows.add(images=args.images, **precision, **row, contender=name, **found, difference=apart)


if __name__ == "__main__":
    main()
