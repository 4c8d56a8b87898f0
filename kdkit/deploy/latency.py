"""How long models take: median and 90th percentile of single forward passes, side by side."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from kdkit.console import tell
from kdkit.deploy.latency_report import LatencyReport, ModelRow, TimeRow
from kdkit.deploy.onnx_file import Logits, OnnxNet, write_onnx
from kdkit.deploy.subjects import Subject
from kdkit.fault import what, where
from kdkit.registry import KdkitError, nearest
from kdkit.runs.check import count_macs
from kdkit.runs.provenance import machine

MODES = ("eager", "compiled", "exported")
BATCHES = (1, 64, 256)
WORD = {"eager": "", "compiled": "torch.compile: ", "exported": "onnxruntime: "}  # who refuses
WARM_UP, FEWEST = 20, 5  # passes before any is timed; timed ones that there are even where time is short


def latency(
    models: Sequence[Subject],
    *,
    batches: Sequence[int] = BATCHES,
    modes: Sequence[str] = MODES,
    device: str = "auto",
    repeats: int = 100,
    seconds: float = 10.0,
) -> LatencyReport:
    """Time models against each other: one pass of each in turn, so that a machine that slows down slows all of them.

    Args:
        models: as `subjects` gives them.
        batches: images in a pass.
        modes: `eager`; `compiled`: `torch.compile`, on a GPU as a CUDA graph; `exported`: ONNX, run by onnxruntime.
        device: `cpu`, `cuda`, `cuda:1`, …; `auto`: the accelerator where there is one.
        repeats: timed passes, after 20 that are not.
        seconds: for the timed passes of one model in one mode at one batch; at least 5 are timed.

    Raises:
        KdkitError: an unknown mode or device, or a model that does not run on images of its size.
    """
    if strange := [mode for mode in modes if mode not in MODES]:
        raise KdkitError(
            f"mode must be one of {', '.join(MODES)}, got {strange[0]!r}{nearest(strange[0], list(MODES))}"
        )
    if bad := [batch for batch in batches if batch < 1]:
        raise KdkitError(f"batch must be at least 1, got {bad[0]}")
    where_to = _device(device)
    rows = tuple(_model_row(model) for model in models)
    report = LatencyReport(str(where_to), machine(), str(torch.__version__), rows, [], [])
    nets = {model.name: Logits(model.net).to(where_to) for model in models}
    compiling = _all_compiled(len(models)) if "compiled" in modes else nullcontext()
    with _current(where_to), compiling, TemporaryDirectory() as folder, torch.inference_mode():
        for mode in dict.fromkeys(modes):
            for batch in dict.fromkeys(batches):
                passes: dict[str, Callable[[], Any]] = {}
                if mode == "compiled":
                    torch.compiler.reset()  # before the first of them: it forgets whatever was compiled
                for i, model in enumerate(models):
                    images = torch.randn(batch, *model.shape, generator=torch.Generator().manual_seed(0)).to(where_to)
                    try:
                        passes[model.name] = _ready(mode, nets[model.name], images, Path(folder) / f"{i}.onnx")
                    except (KdkitError, torch.OutOfMemoryError) as error:
                        report.left_out.append((model.name, mode, batch, str(error).splitlines()[0]))
                memory = {name: _peak(nets[name], run, where_to) for name, run in passes.items() if mode == "eager"}
                found = _timed(passes, where_to, repeats, seconds, seen=mode != "exported")
                report.times.extend(TimeRow.of(name, mode, batch, found[name], memory.get(name)) for name in found)
                report.left_out.extend((name, mode, batch, "out of memory") for name in passes if name not in found)
    return report


def write_latency(report: LatencyReport, path: Path) -> None:
    """The report as JSON.

    Raises:
        KdkitError: the file cannot be written.
    """
    try:
        path.write_text(json.dumps(report.plain(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise KdkitError(f"{path} cannot be written: {error.strerror}") from None


def _device(word: str) -> torch.device:
    if word == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device("cuda" if word == "gpu" else word)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise KdkitError(f"device: this machine has no {word!r}; say cpu, or leave it out") from None
    return device


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Events, statistics and graphs of CUDA are those of the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _all_compiled(models: int) -> AbstractContextManager[Any]:
    """They share the code that is compiled, of which torch else compiles eight and runs the others as they are."""
    limits = {"recompile_limit": max(8, models), "accumulated_recompile_limit": max(256, 2 * models)}
    return torch._dynamo.config.patch(limits)  # type: ignore[no-any-return]


def _model_row(model: Subject) -> ModelRow:
    example = torch.zeros(1, *model.shape)
    try:
        with torch.inference_mode():
            classes = Logits(model.net)(example).shape[-1]
        macs = count_macs(model.net, example)
    except KdkitError:
        raise
    except Exception as error:  # anybody's code fails in any way
        line = f"\n  {where(error)}".rstrip()
        told = f"{model.name} does not run on images of shape {model.shape}: {what(error)}{line}"
        raise KdkitError(f"{told}\n  --image-size gives them another size") from error
    parameters = sum(p.numel() for p in model.net.parameters())
    return ModelRow(model.name, model.arch, parameters, macs, model.shape, classes)


def _ready(mode: str, net: nn.Module, images: Tensor, file: Path) -> Callable[[], Any]:
    """A pass over `images` without arguments; whatever is made once is made here."""
    run: Callable[[], Any]
    try:
        if mode == "exported":
            run = _exported(net, images, file)
        elif mode == "eager":
            run = lambda: net(images)  # noqa: E731
        else:
            kind = "reduce-overhead" if images.device.type == "cuda" else "default"
            made = torch.compile(net, dynamic=False, mode=kind)
            tell(f"compiling for batches of {len(images)} …", sys.stderr)
            run = lambda: made(images)  # noqa: E731
        run()
    except (KdkitError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # no C++ compiler, a model that the compiler cannot read or that has a tensor elsewhere
        told = what(error).strip().splitlines()
        raise KdkitError(f"{WORD[mode]}{told[0][:200]}") from error
    return run


def _exported(net: nn.Module, images: Tensor, file: Path) -> Any:
    if not file.exists():
        tell(f"exporting {type(net.net).__name__} …", sys.stderr)
        with torch.inference_mode(False), torch.no_grad():
            whole = torch.zeros(2, *images.shape[1:])
            try:
                write_onnx(net.to("cpu"), whole, file)
            finally:
                net.to(images.device)
    return OnnxNet(file, images.device).bound(images)


def _timed(
    passes: dict[str, Callable[[], Any]], device: torch.device, repeats: int, seconds: float, *, seen: bool
) -> dict[str, list[float]]:
    """Milliseconds of each pass that fits; `seen`: whether the device's own events see what it does."""
    clock = _clock(device, seen)
    found: dict[str, list[float]] = {}
    for name, run in list(passes.items()):
        began = time.perf_counter()
        with suppress(torch.OutOfMemoryError):
            for _ in range(WARM_UP):
                clock(run)
                if time.perf_counter() - began > max(seconds, 1.0) / 2:
                    break
            found[name] = []
    spent = dict.fromkeys(found, 0.0)
    while left := [n for n in found if len(found[n]) < repeats and (spent[n] < seconds or len(found[n]) < FEWEST)]:
        for name in left:
            began = time.perf_counter()
            try:
                found[name].append(clock(passes[name]))
            except torch.OutOfMemoryError:  # what the others keep is in its way
                del found[name]
            spent[name] += time.perf_counter() - began
    return found


def _clock(device: torch.device, seen: bool) -> Callable[[Callable[[], Any]], float]:
    """Times one pass in milliseconds, from an idle device to an idle device."""
    if device.type == "cuda" and seen:

        def by_events(run: Callable[[], Any]) -> float:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            run()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end))

        return by_events

    def by_clock(run: Callable[[], Any]) -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize()
        began = time.perf_counter()
        run()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return 1000 * (time.perf_counter() - began)

    return by_clock


def _peak(net: nn.Module, run: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes of weights and of what a pass holds at its fullest; `None` where the device does not tell."""
    own = sum(t.nbytes for t in (*net.parameters(), *net.buffers()))
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return own + torch.cuda.max_memory_allocated() - before
    if device.type != "cpu":
        return None
    run()  # what is made once, and kept, is not this pass's
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        run()
    results = seen.profiler.kineto_results if seen.profiler is not None else None
    events = [event for event in results.events() if event.name() == "[memory]"] if results else []
    if not events:
        return None
    events.sort(key=lambda event: event.start_ns())
    return own + max(0, int(np.cumsum([event.nbytes() for event in events]).max()))
