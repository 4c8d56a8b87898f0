"""Processes of tests: forked from a server that has imported what they need, instead of importing it each.

They have the server's environment and working directory, not those that a test has set since.
"""

import multiprocessing

import torch.multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["kdkit.runs.fit", "kdkit.losses", "tests.nets"])


def run_ranks(work, *args, count=2):
    """Run `work(rank, *args)` in so many processes at once, and wait for them; an exception of one is raised here."""
    torch.multiprocessing.start_processes(work, args, nprocs=count, start_method="forkserver")
