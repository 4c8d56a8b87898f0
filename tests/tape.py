"""What a CUDA graph does, without a GPU: the operations of a piece of work, done again on the same tensors."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """The operations that ran, with what they took and gave."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def again(self):
        """Every operation once more, results put where they stood."""
        for function, args, kwargs, result in self.done:
            new = tree_leaves(function(*args, **kwargs))
            for old, value in zip(tree_leaves(result), new, strict=True):
                if isinstance(old, torch.Tensor) and old is not value and old.data_ptr() != value.data_ptr():
                    old.detach().copy_(value)
