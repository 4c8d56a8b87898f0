"""How long, how much memory, and how little of both would do: what the speed benchmarks share.

Contenders are timed in turns (A B C, A B C, …) in one process, so that whatever else the machine does falls on all of
them; a ratio is taken within each round, and its median and quartiles over the rounds are what a row tells.
`torch.utils.benchmark` gives the clock, which waits for the accelerator; its `Timer` measures one contender after the
other, and its `Measurement` knows no pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import timer

from kdkit.runs.provenance import provenance

Call = Callable[[], object]
Times = dict[str, list[float]]  # seconds a call in each round, by contender

MIN_BLOCK = 2e-3
"""Seconds that one contender's turn lasts at least: shorter calls are repeated, so that the clock does not show."""


def in_turns(calls: Mapping[str, Call], rounds: int) -> Times:
    """Time every contender in every round, after two calls each to warm up."""
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = max(1, math.ceil(MIN_BLOCK / seconds(call)))
    times: Times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, repeats[name]))
    return times


def seconds(call: Call, repeats: int = 1) -> float:
    """Seconds of one call, the mean of several in a row."""
    start = timer()
    for _ in range(repeats):
        call()
    return (timer() - start) / repeats


def summary(times: Times) -> dict[str, dict[str, Any]]:
    """For each contender `ms`; for kdkit's also `faster`, the others' times to its own; all as `quartiles`."""
    ours = [name for name in times if name.startswith("kdkit")]
    found: dict[str, dict[str, Any]] = {
        name: {"ms": quartiles([1e3 * t for t in mine])} for name, mine in times.items()
    }
    for name in ours if len(ours) < len(times) else ():
        found[name]["faster"] = {
            other: quartiles([b / a for a, b in zip(times[name], theirs, strict=True)])
            for other, theirs in times.items()
            if other not in ours
        }
    return found


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile, at four digits."""
    cuts = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return [float(f"{cut:.4g}") for cut in cuts]


def peak_bytes(call: Call, device: torch.device) -> int:
    """Most memory that one call holds at a time beyond what was there before it."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        call()
    held = peak = 0
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class _Count(TorchDispatchMode):
    """How many operations reach the backend."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += 1
        return func(*args, **(kwargs or {}))


def count_ops(call: Call) -> int:
    """Operations that a call hands to the backend, forward and backward; each costs about a microsecond."""
    with _Count() as count:
        call()
    return count.total


@dataclass(frozen=True)
class Limits:
    """What the machine can do, measured in the process that compares with it.

    Attributes:
        copy: bytes per second, read and written, of copying a tensor, by the bytes that it touches.
        product: FLOP/s of a square matrix product, by dtype.
        empty: seconds that autograd takes forward and backward through one operation on one number.
        op: seconds that one operation on one number takes, without autograd.
    """

    copy: dict[int, float]
    product: dict[str, float]
    empty: float
    op: float

    def bound(self, touched: float, flop: float, dtype: str = "float32") -> float:
        """Seconds below which nothing can be that reads or writes so many bytes and multiplies and adds so often.

        Bytes go at the best rate measured for as much or more, since what is small stays in the cache.
        """
        rates = [rate for size, rate in self.copy.items() if size >= touched] or [self.copy[max(self.copy)]]
        return max(touched / max(rates), flop / self.product[dtype])

    def row(self) -> dict[str, Any]:
        """As part of a row: GB/s by MB, GFLOP/s, µs."""
        return {
            "copy_gb_s": {f"{size / 2**20:g}": round(rate / 1e9, 1) for size, rate in self.copy.items()},
            "product_gflop_s": {name: round(rate / 1e9, 1) for name, rate in self.product.items()},
            "empty_us": round(1e6 * self.empty, 2),
            "op_us": round(1e6 * self.op, 2),
        }


def limits(device: torch.device, quick: bool = False) -> Limits:
    """Measure the machine: the best of several tries each."""
    copy, product = {}, {}
    for power in range(14, 23 if quick else 29, 2):
        source = torch.ones(2**power // 8, device=device)
        target = torch.empty_like(source)
        copy[2**power] = 2**power / best(lambda source=source, target=target: target.copy_(source))
    side = 256 if quick else 4096 if device.type == "cuda" else 1536
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(side, side, device=device, dtype=dtype)
        product[str(dtype).removeprefix("torch.")] = 2 * side**3 / best(lambda a=a: a @ a)
    fixed = torch.ones((), device=device)
    number = fixed.clone().requires_grad_()
    empty = best(lambda: torch.autograd.grad(number.view(()), number))
    return Limits(copy, product, empty, best(lambda: fixed + fixed))


def best(call: Call, tries: int = 7) -> float:
    """Seconds of a call, the least of several tries."""
    call()
    repeats = max(1, math.ceil(MIN_BLOCK / seconds(call)))
    return min(seconds(call, repeats) for _ in range(tries))


def difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """‖a − b‖ / ‖b‖ over several tensors, taken as one vector."""
    a, b = (torch.cat([t.detach().double().flatten() for t in side]) for side in (found, wanted))
    return float((a - b).norm() / b.norm())


def megabytes(count: float) -> float:
    """Of 2²⁰ bytes."""
    return round(count / 2**20, 3)


class Rows:
    """A file of JSON lines; every row that goes in is told where it comes from."""

    def __init__(self, args: argparse.Namespace, bench: str) -> None:
        self.path, self.device, self.where = args.out, args.device, origin(args.device)
        self.head = {"bench": bench, "device": args.device.type} | ({"quick": True} if args.quick else {})

    def add(self, **row: Any) -> None:
        """Append one row and show it."""
        row = {key: value for key, value in row.items() if value is not None}
        print(" ".join(f"{key}={_short(value)}" for key, value in row.items()), flush=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.head | row | self.where) + "\n")


def _short(value: Any) -> str:
    middle = value[1] if isinstance(value, list) and len(value) == 3 else value
    return f"{middle:.4g}" if isinstance(middle, float) else str(middle)


def origin(device: torch.device) -> dict[str, Any]:
    """Commit, torch, machine and day of a row."""
    known = provenance()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else known["machine"]["processor"]
    return {
        "commit": known["commit"],
        "torch": torch.__version__,
        "machine": name,
        "threads": torch.get_num_threads(),
        "date": known["started"][:10],
    }


def arguments(doc: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The options that all speed benchmarks have; `doc` is the help's text."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="rows are added to this file as JSON lines; without it only shown")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each contender (default: {rounds})")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, two rounds: does it run? The figures say nothing"
    )
    return parser


def begin(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line and set what holds for the whole process."""
    args = parser.parse_args(words)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.rounds = 2
    warnings.filterwarnings("ignore", message="size_average")  # RepDistiller's way to say it
    torch.manual_seed(0)
    return args
