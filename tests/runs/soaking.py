"""Runs of a cohort that is drawn from a seed: who comes, who goes and what befalls whom, in processes of their own."""

import os
import random
import sys
from dataclasses import dataclass

import pytorch_lightning as pl
import torch

from kdkit.runs import fit as fitting

NAMES, EPOCHS, STEPS = "abcd", 8, 10
WRONG = """\
from torch import nn
from torch.nn.functional import cross_entropy


class Scrambled(nn.Module):
    \"\"\"Cross-entropy with the labels of other samples.\"\"\"

    def forward(self, student, labels):
        return cross_entropy(student, labels.roll(1))
"""
RECIPE = """\
data: {{name: digits, image_size: 8, subset: 400, batch_size: 40, val_split: 0.2, padding: 1}}
models: {{a: {{arch: resnet8}}, b: {{arch: resnet8}}, c: {{arch: resnet8}}, d: {{arch: resnet14}}}}
losses: [ce, dml: {{among: [a, b, c, d]}}{wrong}]
optimizer: {{name: sgd, momentum: 0.9}}
lr: {{cosine: [0.05, 0.002]}}
seed: {seed}
trainer: {{max_epochs: 8, accelerator: cpu, update: {update}}}
cohort: {{join: {join}, leave: {leave}, ramp: {ramp}, health: {{warmup: 1, patience: 1, mute: 1, probe: 64}}}}
"""


@dataclass
class Life:
    """What a seed says.

    Attributes:
        recipe: of the run.
        faults: models by what befalls them, and from when to when.
        well: who is there from the first to the last step, and nothing befalls.
    """

    recipe: str
    faults: dict[str, tuple[str, int, int]]
    well: list[str]


def draw(seed):
    """A cohort of which at least one stays and is well."""
    made = random.Random(seed)
    others = made.sample(NAMES, 4)[1:]
    come, go = ([name for name in others if made.random() < share] for share in (0.5, 0.4))
    join = {name: {"epoch": made.randint(10, 60) / 10, "warmup": made.choice([0, 1])} for name in come}
    after = {name: int(10 * words["epoch"]) + 5 for name, words in join.items()}  # who comes goes later
    leave = {name: {"epoch": made.randint(after.get(name, 10), 70) / 10} for name in go}
    faults = {}
    for name in others[: made.randint(0, 2)]:
        begin = made.randrange(STEPS, (EPOCHS - 2) * STEPS)
        faults[name] = made.choice(["nan", "frozen", "scrambled"]), begin, begin + made.randrange(5, 3 * STEPS)
    wrong = ""
    for name, (kind, begin, end) in faults.items():
        if kind == "scrambled":
            when = f"{{from: {begin / STEPS}, to: {end / STEPS}}}"
            wrong += f", wrong.py:Scrambled: {{name: wrong_{name}, to: {name}, weight: 5, when: {when}}}"
    words = {"seed": seed, "wrong": wrong, "update": made.choice(["simultaneous", "sequential"])}
    plan = {"join": join, "leave": leave, "ramp": made.choice([0, 1, 2])}
    text = RECIPE.format(**words, **{word: str(value).replace("'", "") for word, value in plan.items()})
    return Life(text, faults, [name for name in NAMES if not {name} & {*join, *leave, *faults}])


def befall(faults):
    """The callback that has it happen: by the time alone, so that a run that goes on sees the same."""

    def happen(trainer, distiller, batch):
        now = trainer.current_epoch * STEPS + batch
        for name, (kind, begin, end) in faults.items():
            if kind == "nan" and now == begin and name in distiller.graph.cohort.here:
                next(distiller.graph.model(name).parameters()).data[0] = float("nan")
            elif kind == "frozen":
                optimizer = vars(distiller.optimizers().optimizer.of[name])
                if begin <= now < end:
                    optimizer["step"] = lambda: None
                else:
                    optimizer.pop("step", None)

    return Before(happen)


class Before(pl.Callback):
    """Calls a function before each step."""

    def __init__(self, call):
        self.call = call

    def on_train_batch_start(self, trainer, distiller, batch, i):
        self.call(trainer, distiller, i)


def work(faults, words, said):
    """What a process does: the command line, with faults; what it says goes into a file."""
    handle = os.open(said, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    torch.set_num_threads(1)
    assemble = fitting.assemble

    def with_faults(experiment, folder, rows):
        distiller, trainer = assemble(experiment, folder, rows)
        trainer.callbacks.insert(0, befall(faults))
        return distiller, trainer

    fitting.assemble = with_faults
    sys.argv = ["kdkit", *words]
    from kdkit.cli import main

    main()
