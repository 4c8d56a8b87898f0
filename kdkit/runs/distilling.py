"""The Lightning module of an experiment."""

from __future__ import annotations

from kdkit.recipe import Experiment
from kdkit.train.distiller import Distiller

DISTILLERS = ("update", "place", "pcgrad", "channels_last", "compile", "on_nonfinite")
"""What a recipe says under `trainer` that is the module's and not Lightning's Trainer's."""


def make_distiller(experiment: Experiment) -> Distiller:
    """As the recipe says; bound to data by who has some.

    Raises:
        KdkitError: words of the recipe do not go together.
    """
    return Distiller(
        experiment.nodes,
        experiment.edges,
        optimizer=experiment.optimizer,
        lr=experiment.lr,
        seed=experiment.seed,
        balance=experiment.balance,
        stages=experiment.stages,
        **{word: value for word, value in experiment.trainer.items() if word in DISTILLERS},
    )
