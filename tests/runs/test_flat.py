"""What long runs, and many runs in one process, leave behind: no memory, files, threads or processes."""

import gc
import multiprocessing
import os
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from kdkit.data.device_loader import DeviceLoader
from kdkit.recipe import loads
from kdkit.runs import fit as fitting
from kdkit.runs.fit import fit
from tests.data.test_folder import make
from tests.runs.killing import CONTEXT, finish

NIGHTLY = os.environ.get("KDKIT_NIGHTLY") == "1"
STEPS = 10_000 if NIGHTLY else 300
TURNS = 20 if NIGHTLY else 1
BOUND = 256 if NIGHTLY else 20_000  # bytes a step: 2.5 MB in 10,000; a batch of images kept would be 100,000
EPOCH = 25  # steps
LONG = f"""\
data: {{name: digits, image_size: 8, subset: 400, batch_size: 16, eval_batch_size: 60, padding: 1}}
models:
  teacher: {{arch: resnet8, weights: random, options: {{widths: [4, 4, 8, 8]}}}}
  student: {{arch: resnet8, options: {{widths: [4, 4, 8, 8]}}}}
losses: [ce, kd, crd: {{num_negatives: 32, embed_dim: 16}}]
optimizer: {{name: sgd, momentum: 0.9}}
lr: {{cosine: [0.05, 0]}}
trainer: {{max_epochs: {STEPS // EPOCH}, accelerator: cpu}}
"""
FOLDER = """\
data: {name: folder, root: PHOTOS, holdout: 0.2, image_size: 16, batch_size: 16, num_workers: 2}
models: {teacher: {arch: resnet8, weights: random, cache: CACHE}, student: {arch: resnet8}}
losses: [ce, kd]
optimizer: {name: sgd}
lr: 0.05
trainer: {max_epochs: 2, accelerator: cpu}
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="what a process holds is read in /proc")


def resident():
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tensors():
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


class Watch(pl.Callback):
    """Memory every 10 steps, and tensors, at the end of two epochs."""

    def __init__(self):
        self.memory, self.alive = [], {}

    def on_train_batch_end(self, trainer, *_):
        if trainer.fit_loop.epoch_loop.total_batch_idx % 10 == 0:
            self.memory.append(resident())

    def on_train_epoch_start(self, trainer, *_):
        if trainer.current_epoch in (STEPS // EPOCH // 3, STEPS // EPOCH - 1):
            self.alive[trainer.current_epoch] = tensors()


def long_run(out, told):
    """What a process of its own does: as a test's has more memory that comes and goes."""
    torch.set_num_threads(1)
    watch, assemble = Watch(), fitting.assemble

    def watched(experiment, folder, rows):
        distiller, trainer = assemble(experiment, folder, rows)
        trainer.callbacks.append(watch)
        return distiller, trainer

    fitting.assemble = watched
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        fit(loads(LONG, name="long"), out=out)
    torch.save({"memory": watch.memory, "alive": watch.alive}, told)


def test_the_memory_of_a_long_run_is_flat(tmp_path):
    process = CONTEXT.Process(target=long_run, args=(tmp_path / "run", tmp_path / "told.pt"))
    process.start()
    assert finish(process) == 0
    told = torch.load(tmp_path / "told.pt")
    memory = torch.tensor(told["memory"], dtype=torch.float64)[len(told["memory"]) // 3 :]
    steps = 10 * torch.arange(len(memory), dtype=torch.float64)
    slope = float(((steps - steps.mean()) * (memory - memory.mean())).sum() / (steps - steps.mean()).square().sum())
    grown = (memory[-10:].mean() - memory[:10].mean()) / 1e6
    figure = f"{memory[-1] / 1e6:.0f} MB, {grown:+.2f} MB from the first third to the end, {slope:+.0f} bytes a step"
    print(f"\nfigure: {STEPS} steps with kd and crd: {figure}")
    first, last = told["alive"].values()
    assert last <= first
    assert slope < BOUND


def held():
    """Open files, threads and children of this process, as Linux tells them."""
    gc.collect()
    tasks = list(Path("/proc/self/task").iterdir())
    children = [Path(f"/proc/{pid}/cmdline") for task in tasks for pid in (task / "children").read_text().split()]
    return len(os.listdir("/proc/self/fd")), len(tasks), [path.read_text().replace("\0", " ") for path in children]


def many_runs(folder, told):
    """Runs one after another, of each kind one before it is counted: what is made once stays."""
    multiprocessing.set_start_method(None, force=True)  # as where no server forked this process
    torch.set_num_threads(1)
    os.environ["KDKIT_HOME"] = str(folder / "home")
    make(folder / "photos", {"ant": 24, "bee": 24})
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    text = FOLDER.replace("PHOTOS", str(folder / "photos"))
    kinds = [text.replace("CACHE", "{by: epochs}"), LONG]
    if NIGHTLY:
        kinds.append(text.replace("CACHE", "false"))
    words, found, loaders = ["trainer.max_epochs=2"], [], []
    for turn in range(1 + TURNS):
        for i, kind in enumerate(kinds):
            fit(loads(kind, name=f"kind{i}", overrides=words), out=folder / f"{turn}-{i}")
            loaders.append(sum(isinstance(it, DeviceLoader) for it in gc.get_objects()))
        found.append(held())
    torch.save({"held": found, "loaders": loaders}, told)


def test_many_runs_leave_nothing_open(tmp_path):
    process = CONTEXT.Process(target=many_runs, args=(tmp_path, tmp_path / "told.pt"))
    process.start()
    assert finish(process) == 0
    told = torch.load(tmp_path / "told.pt")
    (files, threads, children), *others = told["held"]
    more = others[-1][0] - files, others[-1][1] - threads, len(others[-1][2]) - len(children)
    left = f"{more[0]} files, {more[1]} threads and {more[2]} processes"
    runs = len(told["loaders"]) * len(others) // len(told["held"])
    print(f"\nfigure: {runs} runs one after another leave {left} behind")
    assert max(more) <= 0, others[-1]
    assert not any(told["loaders"]), "a run's images are there still"
    assert len(children) <= 1, children  # Python's own tracker of resources
