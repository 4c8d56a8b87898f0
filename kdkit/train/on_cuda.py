"""Work on a CUDA stream of its own: as it is at first, then as a CUDA graph."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch

Found = TypeVar("Found")

_streams: dict[int, Any] = {}


class OnCuda:
    """Runs work, and records it, on the one stream that a device has for that.

    The steps before a recording run there too: autograd keeps with a weight the stream on which it was first read for
    as long as anything holds that step's graph, cuBLAS a workspace for each stream, and neither may come from outside.
    What is recorded by one of these shares one pool of memory, for it never runs at the same time. The pool ends with
    the last of its graphs and cannot be taken up again, so that each of these has its own.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def run(self, work: Callable[[], Found]) -> Found:
        """Do it, after what was begun before and before what is begun after."""
        here, mine = torch.cuda.current_stream(), _stream()
        mine.wait_stream(here)
        with torch.cuda.stream(mine):
            found = work()
        here.wait_stream(mine)
        return found

    def record(self, work: Callable[[], Found]) -> tuple[Callable[[], None], Found]:
        """A CUDA graph of all that it launches: (what starts it, where its results then stand).

        Raises:
            RuntimeError: it waits for the device, or has no room, or cannot be recorded for another reason.
        """
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        here, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        reasons: list[Exception] = []
        found: list[Found] = []
        torch.clear_autocast_cache()  # casts of weights made before would be read for ever
        try:
            # Another thread may pin the memory of the next batch meanwhile: only this one's calls are looked at.
            with (
                _nothing_collected(),
                torch.cuda.graph(graph, pool=self._pool, stream=_stream(), capture_error_mode="thread_local"),
            ):
                try:
                    found.append(work())
                except Exception as error:
                    reasons.append(error)
                    raise
        except RuntimeError as error:  # after a failure the end fails, too, and says no more than that
            _unwind(here, self._pool)
            if reasons and not isinstance(reasons[0], RuntimeError):
                raise reasons[0] from None
            reasons[:] = [RuntimeError(str(reasons[0] if reasons else error))]  # which holds no step's tensors
        finally:
            torch.clear_autocast_cache()
        if reasons:
            gc.collect()  # its traceback, where Python made a cycle of it
            raise reasons.pop()
        return graph.replay, found[0]


def _unwind(here: Any, pool: Any) -> None:
    """Put back what a torch before 2.15 leaves behind of a recording that failed.

    Its stream would stay the current one, the allocator refuse `empty_cache`, and the generator refuse every draw.
    """
    torch.cuda.set_stream(here)
    with suppress(RuntimeError):  # it has ended already
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())


def _stream() -> Any:
    """Always the same one of a device: a weight may remember it from another run."""
    device = torch.cuda.current_device()
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """An old graph, or a Triton kernel, that is destroyed meanwhile spoils a recording."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
