"""A GPU on paper, for machines that have none: the CPU computes, and what would lie on `cuda:0` is noted.

Mixing devices fails. Waiting for the GPU is counted, and refused while a graph is being recorded, as is work on the
host's own tensors, which no replay would repeat. So is a weight whose gradient is added up on a stream that is not
recorded (autograd keeps that of the first step whose graph somebody still holds), a graph that is destroyed meanwhile,
and a pool of memory all of whose graphs are gone. A recording that was refused fails at its end with no reason, as it
does there, and leaves behind what torch 2.11 does: its stream, an allocator that cannot empty its cache, and a
generator that cannot draw. A replay does the recorded operations again. Seen is what Python calls; what torch does
within one call counts as one.
"""

import contextlib
import traceback
from weakref import WeakSet

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from tests.tape import Tape

CUDA = torch.device("cuda", 0)
WAITS = """
item tolist nonzero argwhere unique unique_consecutive masked_select bincount repeat_interleave equal allclose
is_nonzero __bool__ __float__ __int__ __index__ __contains__ __format__ __repr__
"""
FREE = """
size dim ndimension numel nelement stride storage_offset data_ptr element_size untyped_storage is_contiguous is_complex
is_floating_point is_inference is_same_size get_device register_hook register_post_accumulate_grad_hook retain_grad
__len__ __hash__ __reduce_ex__ _has_compatible_shallow_copy_type
"""
LIKE = "zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full"
MOVES = {"to", "cuda", "cpu", "type_as"}


class Gpu(TorchFunctionMode):
    """Notes who lies where.

    Attributes:
        waits: what the host waited for, and the line of kdkit that made it wait.
        recorded: how many graphs were recorded.
        started: how often one of them ran.
    """

    def __init__(self):
        super().__init__()
        self.there = WeakTensorKeyDictionary()
        self.waits, self.capturing, self.recorded, self.started = [], False, 0, 0
        self.streams, self.joined, self.broken = [Stream()], set(), False
        self.underway, self.drawing = [], False

    def on(self, tensor):
        """Whether a tensor lies on the GPU; None of what torch made by itself, such as a gradient in a hook."""
        return self.there.get(tensor)

    def refuse(self, why):
        """What a recording cannot hold."""
        self.broken = True
        raise RuntimeError(why)

    def wait(self, what):
        if self.capturing:
            self.refuse(f"operation not permitted when stream is capturing: {what}")
        lines = [f for f in traceback.extract_stack() if "/kdkit/" in f.filename]
        self.waits.append((what, f"{lines[-1].filename.split('/kdkit/')[-1]}:{lines[-1].lineno}" if lines else "torch"))

    def note(self, found, there):
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self.there[leaf] = there
        return found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        where = [self.on(tensor) for tensor in tensors]
        if name == "__get__":
            return self.looked(function, args, where[0])
        if name == "__set__":
            if function == torch.Tensor.data.__set__:
                self.there[args[0]] = where[1]
            return function(*args, **kwargs)
        if name in FREE.split():
            return function(*args, **kwargs)
        if name in MOVES and tensors:
            return self.moved(name, function, args, kwargs, where)
        if name == "copy_":
            return self.copied(function, args, kwargs, where)
        there = True in where
        if there and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if (asked := kwargs.get("device")) is not None:
            there = torch.device(asked).type == "cuda"
            kwargs["device"] = "cpu" if there else asked
            if there and name in ("tensor", "as_tensor"):
                self.wait(f"{name} of numbers")
        elif there:
            self.check(name, args, tensors, where)
        elif self.capturing and tensors and None not in where:
            self.refuse(f"{name}: work on the host, which no replay repeats")
        if kwargs.pop("pin_memory", False):
            there = False
        found = self.note(function(*args, **kwargs), there)
        if torch.is_grad_enabled():
            for tensor, its in zip(tensors, where, strict=True):
                if its and tensor.requires_grad and tensor.is_leaf:
                    self.gathered(tensor, name)
        return found

    def gathered(self, weight, name):
        """Its gradient is added up on the stream on which it was read while no other step's graph was held."""
        with _disable_current_modes():
            node = weight.view_as(weight).grad_fn.next_functions[0][0]
        stream = node.metadata.setdefault("stream", self.streams[-1])
        if self.capturing and stream not in self.joined:
            self.refuse(f"{name}: dependency created on uncaptured work in another stream")

    def check(self, name, args, tensors, where):
        """Refuse two devices in one call, but for single numbers; count a wait."""
        far = [t for t, w in zip(tensors, where, strict=True) if w is False and (t.ndim or name in ("stack", "cat"))]
        picks = name in ("__getitem__", "__setitem__")
        if far and picks and self.on(args[0]):
            self.wait("index from the host")
        elif far and name not in LIKE.split():
            raise RuntimeError(f"{name}: {[tuple(t.shape) for t in far]} on the CPU, others on cuda:0")
        masks = picks and [t for t in tree_leaves(args[1]) if isinstance(t, torch.Tensor) and t.dtype == torch.bool]
        filled = name == "__setitem__" and not (isinstance(args[2], torch.Tensor) and args[2].ndim)
        if name in WAITS.split() or (masks and not filled) or (name == "where" and len(tensors) == 1):
            self.wait(name)  # a mask's sum is the size of what is picked

    def looked(self, function, args, there):
        if function == torch.Tensor.device.__get__ and there:
            return CUDA
        if function == torch.Tensor.is_cuda.__get__:
            return bool(there)
        return self.note(function(*args), there)

    def copied(self, function, args, kwargs, where):
        found = function(*args, **kwargs)
        if len(where) == 2 and None not in where and where[0] != where[1]:
            if self.capturing:
                self.refuse("copy_: a replay would copy the same again")
            if not (kwargs.get("non_blocking") or args[2:] == (True,)) and (args[1].ndim or where[1]):
                self.wait("copy to the device" if where[0] else "copy to the host")
        return found

    def moved(self, name, function, args, kwargs, where):
        asked = next((a for a in (*args[1:2], kwargs.get("device")) if isinstance(a, (str, torch.device))), None)
        if len(where) > 1:
            target = where[1]
        elif name in ("cuda", "cpu"):
            target = name == "cuda"
        else:
            target = where[0] if asked is None else torch.device(asked).type == "cuda"
        args, kwargs = tree_map(_on_paper, (args, kwargs))
        found = args[0] if name == "cuda" else function(*args, **kwargs)
        if bool(target) != bool(where[0]):
            if found is args[0]:
                found = found.clone()
            if self.capturing:
                self.refuse(f"{name}: a replay would copy the same again")
            if not (kwargs.get("non_blocking") or args[2:3] == (True,)):
                self.wait("copy to the host" if where[0] else "copy to the device")
        return self.note(found, target)


def _on_paper(word):
    cuda = isinstance(word, (str, torch.device)) and str(word).startswith("cuda")
    return torch.device("cpu") if cuda else word


class Stream:
    """Of streams and events nothing is kept but who waits for a recorded one."""

    cuda_stream = 0
    mode = None

    def __init__(self, *_, **__):
        pass

    def nothing(self, *_):
        return None

    def elapsed_time(self, _):
        return 1.0

    def wait_stream(self, other):
        if other in self.mode.joined:
            self.mode.joined.add(self)

    def is_capturing(self):
        return self.mode.capturing and self in self.mode.joined

    synchronize = record = nothing


@contextlib.contextmanager
def gpu(monkeypatch):
    """Within it `cuda:0` is there; gives its `Gpu`."""
    mode, group = Gpu(), torch._C._group_tensors_by_device_and_dtype
    pools = {}
    monkeypatch.setattr(Stream, "mode", mode)

    class CUDAGraph:
        ran = 0

        def replay(self):
            mode.started += 1
            self.ran += 1
            if self.ran > 1:  # the recording itself was the first run
                with torch._C.DisableTorchFunction():
                    self.tape.again()

        def __del__(self):
            mode.broken |= mode.capturing

    @contextlib.contextmanager
    def on(stream):
        mode.streams.append(stream or mode.streams[-1])
        try:
            yield
        finally:
            mode.streams.pop()

    @contextlib.contextmanager
    def graph(made, pool=None, stream=None, **_):
        if pool in pools and not pools[pool]:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        pools.setdefault(pool or object(), WeakSet()).add(made)
        stream = stream or Stream()
        mode.capturing, mode.joined, mode.broken = True, {stream}, False
        before = list(mode.streams)
        empty_cache()
        mode.streams.append(stream)
        mode.underway.append(pool)
        mode.drawing = True
        try:
            with Tape() as made.tape:
                yield
        finally:
            mode.capturing, mode.joined = False, set()
            if mode.broken:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            mode.underway.remove(pool)
            mode.streams, mode.drawing = before, False
        mode.recorded += 1

    def empty_cache():
        if mode.underway:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    def end_pool(_, pool):
        if pool not in mode.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        mode.underway.remove(pool)

    class Generator:
        def clone_state(self):
            return self

        def graphsafe_set_state(self, _):
            mode.drawing = False

    def grouped(lists, with_indices=False):
        found = group(lists, with_indices)
        return {(CUDA if mode.on(of[0][0][0]) else device, dtype): of for (device, dtype), of in found.items()}

    def put(place, **values):
        for name, value in values.items():
            monkeypatch.setattr(place, name, value)

    def always(value):
        return lambda *_, **__: value

    copied = torch.nn.Parameter.__deepcopy__
    put(torch.nn.Parameter, __deepcopy__=lambda self, memo: mode.note(copied(self, memo), mode.on(self)))
    nothing, stream = always(None), lambda *_: mode.streams[-1]
    put(torch._C, _group_tensors_by_device_and_dtype=grouped, _cuda_endAllocateToPool=end_pool)
    put(torch.Tensor, pin_memory=lambda self, *_: self)
    put(torch.accelerator, is_available=always(True), current_stream=stream, current_device_index=always(0))
    put(torch.accelerator, set_device_index=nothing, synchronize=lambda *_: mode.wait("synchronize"))
    put(torch.cuda, is_available=always(True), is_initialized=always(True), _lazy_init=nothing)
    put(torch.cuda, device_count=always(1), current_device=always(0), set_device=nothing)
    put(torch.cuda, get_device_capability=always((9, 0)), get_device_name=always("a GPU on paper"))
    put(torch.cuda, is_bf16_supported=always(True), is_current_stream_capturing=lambda: mode.capturing)
    put(torch.cuda, synchronize=lambda *_: mode.wait("synchronize"), empty_cache=empty_cache)
    put(torch.cuda, default_generators=(Generator(),), set_stream=lambda its: mode.streams.__setitem__(-1, its))
    put(torch.cuda, memory_allocated=always(0), max_memory_allocated=always(0), reset_peak_memory_stats=nothing)
    put(torch.cuda, Stream=Stream, Event=Stream, current_stream=stream, stream=on)
    put(
        torch.cuda,
        device=lambda *_: contextlib.nullcontext(),
        graph=graph,
        CUDAGraph=CUDAGraph,
        graph_pool_handle=object,
    )
    put(torch.cuda, get_rng_state=always(torch.zeros(16, dtype=torch.uint8)), set_rng_state=nothing)
    put(torch.cuda, get_rng_state_all=always([]), set_rng_state_all=nothing, manual_seed_all=nothing)
    with mode:
        yield mode
