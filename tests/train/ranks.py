"""Two processes that already run, as a Trainer's ranks."""

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy


class Here(LightningEnvironment):
    """Processes that somebody else has started."""

    creates_processes_externally = property(lambda self: True)


def join(rank, store):
    """Become one of two ranks over gloo; returns what makes a Trainer's words."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    env = Here()
    env.set_global_rank(rank)
    env.set_world_size(2)
    env._local_rank = rank
    env.local_rank = lambda: rank
    return lambda: {"devices": 2, "strategy": DDPStrategy(process_group_backend="gloo", cluster_environment=env)}
