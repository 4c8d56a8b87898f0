"""Fits in processes of their own that are killed with signal 9, and what their folders hold."""

import contextlib
import json
import os
import signal
import time

import torch

from kdkit.recipe import loads
from kdkit.runs.folder import RunFolder
from tests.processes import CONTEXT

RUN = """\
data: {name: digits, image_size: 8, subset: 96, batch_size: 32, eval_batch_size: 60}
optimizer: {name: sgd, momentum: 0.9, weight_decay: 5.0e-4}
lr: {cosine: [0.1, 0]}
trainer: {max_epochs: 3, accelerator: cpu, limit_val_batches: 1}
"""
TAUGHT = """\
models: {teacher: {arch: resnet8, weights: random%s}, student: {arch: resnet8, options: {widths: [4, 4, 8, 8]}}}
"""
STAGED = """\
stages:
  - {name: hints, epochs: 1.5, train: [student.layer1], losses: [hint: {taps: stage1, head: conv_bn_relu}]}
  - {name: whole, losses: [ce, at: {weight: {share: 0.3}}]}
"""
SEVERAL = """\
models:
  teacher_a: {arch: resnet8, weights: random}
  teacher_b: {arch: resnet14, weights: random, cache: true}
  student: {arch: resnet8}
  slow: {ema: student, decay: 0.9}
losses:
  - ce
  - kd: {from: [teacher_a, teacher_b], ensemble: arithmetic}
  - kd: {name: self, from: slow, to: student}
"""
PEERS = """\
models: {a: {arch: resnet8}, b: {arch: resnet14, lr: {step: {start: 0.1, every: 2}}}}
losses: [ce, dml: {among: [a, b]}]
"""
CASCADE = """\
models: {student: {arch: sid, options: {backbone: resnet8, modules: 2}}}
losses: [sid: {alpha: 0.5}]
"""
CRD = "losses: [ce, crd: {num_negatives: 16, embed_dim: 8}]\n"
RECIPES = {
    "kd": TAUGHT % "" + "losses: [ce, kd: {temperature: {linear: [4, 2]}}]\n",
    "kd cached": TAUGHT % ", cache: true" + "losses: [ce, kd]\n",
    "crd": TAUGHT % "" + CRD,
    "crd cached": TAUGHT % ", cache: {by: epochs}" + CRD,
    "dml": PEERS,
    "sid": CASCADE,
    "staged": TAUGHT % "" + STAGED,
    "several teachers": SEVERAL,
}


def recipe(name):
    text = RUN + RECIPES[name]
    if name == "dml":
        text = text.replace("accelerator: cpu", "accelerator: cpu, update: sequential")
    return loads(text, name=name.replace(" ", "_"))


def work(name, out, home, resume):
    """What a process does: fit a recipe, or go on with it."""
    from kdkit.runs.fit import fit

    os.environ["KDKIT_HOME"] = str(home)
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        fit(recipe(name), out=out, resume=resume)


def begin(name, out, home, resume=True):
    process = CONTEXT.Process(target=work, args=(name, out, home, resume))
    process.start()
    return process


def finish(process):
    """Wait for its end, whatever that is."""
    process.join()
    code = process.exitcode
    process.close()
    return code


def kill(process, seconds=None, until=None, number=signal.SIGKILL):
    """A signal after some seconds, or as soon as something is so; whether it came before the end."""
    end = time.monotonic() + (seconds if seconds is not None else 120)
    while process.is_alive() and time.monotonic() < end and not (until and until()):
        time.sleep(0.0005)
    if process.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
    return finish(process) != 0


def plain(content):
    """A checkpoint's content without times and folders."""
    if isinstance(content, dict):
        told = {key: plain(value) for key, value in content.items() if key not in ("minutes", "dirpath")}
        return {key: value for key, value in told.items() if not (isinstance(value, str) and "/" in value)}
    return [plain(part) for part in content] if isinstance(content, (list, tuple)) else content


def equal(a, b):
    """To the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(equal, a, b))
    return a == b or (a != a and b != b)  # two that are no numbers


def held(path):
    """All that a run came to: weights, rows, figures, and its checkpoint: banks, optimisers, schedules, peers."""
    folder = RunFolder(path)
    figures = json.loads(folder.result.read_text())
    del figures["minutes"], figures["crc32"]
    state = plain(torch.load(folder.checkpoint, weights_only=True))
    weights = {file.name: file.read_bytes() for file in sorted(folder.path.glob("*.safetensors"))}
    return weights, folder.metrics.read_text(), figures, state
