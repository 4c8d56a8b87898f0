"""Runs as tasks of a Ray cluster, with shares of its GPUs; everything they write lies in folders that all nodes see."""

from __future__ import annotations

import logging
import os
import pickle
import socket
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from kdkit.bench.engines import engine
from kdkit.bench.engines.engine import GRACE, Answer, Engine
from kdkit.bench.job import Job, alone
from kdkit.data.home import home
from kdkit.registry import KdkitError
from kdkit.storage import OURS

RETRIES = 3  # of a run whose worker is lost; each goes on from the last checkpoint
HANDED_ON = ("KDKIT_", "HF_", "TORCH_", "OMP_")  # words of the environment that say where things are


class OnRay(Engine):
    """A Ray cluster. Its own retries take up the runs of a node that is lost.

    Args:
        address: of its head; `None`: what `RAY_ADDRESS` says, else one is started on this machine.
        gpus: share of a GPU that a run takes; `None`: a whole one where the cluster has GPUs.
        cpus: of a run.
        out: folder of the suite's runs, which all nodes must share.

    Raises:
        KdkitError: Ray is not installed, no such cluster, or none of its nodes is large enough.
    """

    elsewhere = True

    def __init__(self, address: str | None, gpus: float | None, cpus: int, out: Path) -> None:
        try:
            ray: Any = import_module("ray")
        except ImportError:
            raise KdkitError("--engine ray needs Ray; pip install 'kdkit[ray]'") from None
        self.ray, self.threads, self.begun = ray, cpus, not ray.is_initialized()
        if self.begun:
            try:
                _knock(address or os.environ.get("RAY_ADDRESS", ""))
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:  # Ray has many for this
                text = " ".join(str(error).split())
                where = f"at {address}" if address else "to be had"
                raise KdkitError(f"no Ray cluster {where}: {text}; `ray start --head` begins one") from None
        self.gpus = gpus if gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
        self.width = self._size()
        if not self.width:
            self.close()
            raise KdkitError(
                f"no node of the Ray cluster has {cpus} CPUs and {self.gpus:g} GPUs for a run; ask for less"
            )
        self.refs: dict[Any, Job] = {}
        self.marks = [folder.resolve() / f"{OURS}shared-{uuid4().hex}" for folder in (out, home())]
        for mark in self.marks:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        options = {"num_cpus": cpus, "num_gpus": self.gpus, "max_retries": RETRIES, "max_calls": 1}
        self.task = ray.remote(**options)(_task)

    def room(self) -> int:
        """What the living nodes hold: nothing is queued in Ray, for something more urgent may come up."""
        self.width = max(1, self._size())
        return self.width - len(self.refs)

    def begin(self, job: Job) -> None:
        """Hand it to Ray."""
        environment = {k: v for k, v in os.environ.items() if k.startswith(HANDED_ON)}
        environment["KDKIT_HOME"] = str(home().resolve())
        ref = self.task.remote(pickle.dumps(job), environment, str(Path.cwd()), [str(mark) for mark in self.marks])
        self.refs[ref] = job

    def answers(self, until: float | None) -> list[Answer]:
        """What Ray has results of."""
        if not self.refs:
            return []
        ready, _ = self.ray.wait(list(self.refs), timeout=engine.LOOK)
        return [self._end(ref) for ref in ready]

    def stop(self) -> list[Answer]:
        """Ray's cancelling is a Ctrl-C in the worker."""
        for ref in self.refs:
            self.ray.cancel(ref)
        ready, _ = self.ray.wait(list(self.refs), num_returns=len(self.refs), timeout=GRACE) if self.refs else ([], [])
        return [self._end(ref) for ref in ready]

    def close(self) -> None:
        """Leave the cluster."""
        for mark in getattr(self, "marks", []):
            with suppress(OSError):
                mark.unlink()
        if self.begun:
            self.ray.shutdown()

    def _end(self, ref: Any) -> Answer:
        job, errors = self.refs.pop(ref), self.ray.exceptions
        try:
            word, what = self.ray.get(ref)
        except errors.TaskCancelledError:
            word, what = "stopped", "it goes on from its last whole epoch"
        except errors.RayTaskError as error:  # raised before the run began
            word, what = "failed", " ".join(str(error.cause).split())
        except errors.RayError as error:
            text = str(error).strip().splitlines() or [type(error).__name__]
            word, what = "failed", f"its worker was lost {RETRIES + 1} times; {text[0]}"
        return Answer(job, word, what)

    def _size(self) -> int:
        """Runs that all living nodes hold together; none is spread over two."""
        total = 0
        for node in self.ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            gpus = has.get("GPU", 0) / self.gpus if self.gpus else float("inf")
            total += int(min(has.get("CPU", 0) / self.threads, gpus) + 1e-9)
        return total


def _knock(address: str) -> None:
    """Ray itself waits for minutes for a head that is not there."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _task(packed: bytes, environment: dict[str, str], here: str, marks: list[str]) -> tuple[str, Any]:
    """What a worker does. The job is unpacked here, for its recipe names files that must be there."""
    os.environ.update(environment)
    for mark in marks:
        if not Path(mark).exists():
            folder = Path(mark).parent
            return "failed", f"{socket.gethostname()} does not see {folder}; give a folder that all nodes share" + (
                " in KDKIT_HOME" if mark == marks[-1] else " with --out"
            )
    if Path(here).is_dir():
        os.chdir(here)
    job = pickle.loads(packed)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a", encoding="utf-8") as said:
        print(f"on {socket.gethostname()}, node {_node()}", file=said)
    return alone(job)


def _node() -> str:
    ray: Any = import_module("ray")
    return str(ray.get_runtime_context().get_node_id())
