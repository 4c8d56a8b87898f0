"""Short runs on small nets, for the tests of training."""

import pytorch_lightning as pl
import torch

import kdkit
from tests.nets import loader, net


def trainer(epochs=2, **options):
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=options.pop("enable_checkpointing", False),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def fit(distiller, data=None, val=None, **options):
    run = trainer(**options)
    run.fit(distiller, data or loader(), val)
    return run


def compiled_by(monkeypatch, backend, **options):
    """What is compiled from now on; Inductor alone takes half a minute to begin."""
    made, real = [], torch.compile

    def compiled(function, **others):
        made.append(function)
        return real(function, backend=backend, **{**others, **options})

    monkeypatch.setattr(torch, "compile", compiled)
    return made


def pair():
    return {"teacher": kdkit.frozen(net(12, seed=1)), "student": net(8, seed=2)}
