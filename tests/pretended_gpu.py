"""A GPU that is none: tensors that say `cuda:0`, hold numbers on the CPU, and refuse to be mixed as a GPU's do."""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

GPU = torch.device("cuda:0")
ATEN = torch.ops.aten
ACROSS = {ATEN.copy_.default, ATEN._to_copy.default}
INDEXING = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default}
PLAIN = {"getitem": Tensor.__getitem__, "tensor": torch.tensor}


class OnGpu(Tensor):
    """One such tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            dtype=inner.dtype,
            device=GPU,
            storage_offset=inner.storage_offset(),
        )

    def __init__(self, inner):
        self.inner = inner

    def __getitem__(self, index):
        listed = isinstance(index, list)
        return PLAIN["getitem"](self, PLAIN["tensor"](index, dtype=torch.long).to(GPU) if listed else index)

    def tolist(self):
        return self.inner.tolist()

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Machine(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    flat, shape = tree_flatten((args, kwargs))
    there = [x for x in flat if isinstance(x, OnGpu)]
    if there and func not in ACROSS:
        mixed = flat if func not in INDEXING else (args[0], *args[2:3])  # a GPU's tensor takes indices of the CPU
        if [x for x in mixed if isinstance(x, Tensor) and not isinstance(x, OnGpu) and x.dim()]:
            raise RuntimeError(f"Expected all tensors to be on the same device, found cuda:0 and cpu ({func})")
    wanted = kwargs.get("device")
    on_gpu = bool(there) if wanted is None else torch.device(wanted).type == "cuda"
    plain = [
        x.inner if isinstance(x, OnGpu) else torch.device("cpu") if isinstance(x, torch.device) else x for x in flat
    ]
    args_, kwargs_ = tree_unflatten(plain, shape)
    out = func(*args_, **kwargs_)
    if func is ATEN.copy_.default:
        return args[0]
    same = {id(x.inner): x for x in there}  # what is changed in place

    def wrapped(x):
        if not on_gpu or not isinstance(x, Tensor):
            return x
        return same[id(x)] if id(x) in same else OnGpu(x)

    return tree_map(wrapped, out)


@contextmanager
def pretended_gpu(monkeypatch):
    """Inside, `cuda` is there for forward passes; nothing can be trained on it, for autograd asks the driver."""

    def tensor(data, *, device=None, **words):
        made = PLAIN["tensor"](data, **words)
        return made if device is None else made.to(device)

    torch._C._ensureCUDADeviceGuardSet()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "get_rng_state", lambda device="cuda": torch.zeros(8, dtype=torch.uint8))
        patch.setattr(torch.cuda, "set_rng_state", lambda state, device="cuda": None)
        patch.setattr(torch.backends.cudnn, "enabled", False)
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with _Machine():
                yield
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)
