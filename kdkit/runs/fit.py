"""Fitting a recipe: a folder with weights, metrics and their provenance comes out."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytorch_lightning as pl

from kdkit import models
from kdkit.console import tell
from kdkit.graph.links import who_teaches_whom
from kdkit.recipe import Experiment, Recipe, blaming, build, code_of, content_key, fingerprint, resolved
from kdkit.registry import KdkitError
from kdkit.runs.beginning import Beginning
from kdkit.runs.cohort import cohort_callbacks
from kdkit.runs.curves import draw_curves
from kdkit.runs.depth import draw_depth
from kdkit.runs.distilling import DISTILLERS, make_distiller
from kdkit.runs.dry_run import dry_run
from kdkit.runs.events import read_events, without_absent
from kdkit.runs.folder import RunFolder, first_rank, write_json, write_text, writing
from kdkit.runs.interrupt import interruptible
from kdkit.runs.lock import check_free, only_here
from kdkit.runs.loggers import pass_on, show_pictures
from kdkit.runs.moments import moments
from kdkit.runs.own_code import own_code
from kdkit.runs.profile import show_parts
from kdkit.runs.provenance import begun, provenance
from kdkit.runs.result import Result, figures, read_result, write_figures
from kdkit.runs.resume import Standing, check_same, drop_damaged, resuming, standing
from kdkit.runs.rows import MetricRows
from kdkit.runs.teacher import trained_weights
from kdkit.runs.teacher_check import TeacherCheck
from kdkit.runs.told import metadata, note_classes
from kdkit.runs.trainer import make_trainer, quiet, refusals
from kdkit.train.diagnosis import Diagnosis
from kdkit.train.distiller import Distiller
from kdkit.train.profile import StepProfiler


def fit(
    recipe: Recipe,
    *,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    profile: bool = False,
    diagnose: bool = False,
) -> Result:
    """Run a recipe to its end.

    Args:
        recipe: as `kdkit.recipe.load` gives it.
        out: the run's folder; left out, `runs/<recipe>-seed<seed>`.
        resume: go on from the folder's last checkpoint; a finished run is only read.
        overwrite: delete the run that the folder holds, once the new one takes its first step; files that are not
            kdkit's stay.
        profile: measure some steps, print where their time goes and write a Chrome trace into the folder.
        diagnose: tell each loss's share of the gradient, and the angles between them, by epoch; `gradients.csv`.

    Raises:
        KdkitError: the recipe, the data or the folder do not allow it, or a loss became non-finite.
        KeyboardInterrupt: Ctrl-C; its text says what is saved.
    """
    folder = RunFolder(out or Path("runs") / f"{recipe.name}-seed{recipe.seed}")
    if first_rank():  # the others are started in the middle of the first one's fit
        check_free(folder, resume=resume, overwrite=overwrite)
    only_read = resume and folder.complete
    found = _fit(recipe, folder, resume=resume, overwrite=overwrite, profile=profile, diagnose=diagnose)
    if not only_read:
        gc.collect()  # nets and images hang in circles with the Trainer, and the next run wants their memory
    return found


def fit_teacher(recipe: Recipe, folder: RunFolder) -> Result:
    """Train the recipe that another one's teacher is, or go on with it."""
    return _fit(recipe, folder, resume=True, overwrite=False)


def _teach(pupil: Recipe, recipe: Recipe, folder: RunFolder) -> Result:
    """Train a teacher, once it is sure that its pupil can begin."""
    dry_run(pupil, values=False)
    return fit_teacher(recipe, folder)


def _fit(
    recipe: Recipe, folder: RunFolder, *, resume: bool, overwrite: bool, profile: bool = False, diagnose: bool = False
) -> Result:
    if resume and folder.begun:
        check_same(recipe, folder)
    if resume and folder.complete:
        return read_result(folder)
    experiment = build(recipe, weights=partial(trained_weights, fit=partial(_teach, recipe)))
    rows = MetricRows(folder.metrics)
    with blaming(recipe):
        distiller, trainer = assemble(experiment, folder, rows)
    if profile:
        trainer.callbacks.append(StepProfiler(folder.trace, show_parts))  # type: ignore[attr-defined]
    if diagnose:
        line, log = partial(tell, file=sys.stdout), partial(pass_on, trainer)
        trainer.callbacks.append(Diagnosis(folder.gradients, line, write_text, log))  # type: ignore[attr-defined]
    held = nullcontext() if folder.teacher else only_here(folder)  # a teacher's is held by who asks for it
    with held, interruptible(folder):
        used = standing(folder) if resume and folder.begun else None
        if used:
            rows.restore(used.epochs, used.rows)
        if first_rank():
            folder.check(resume=resume, overwrite=overwrite)
            _announce(recipe, folder, used)
            if used:
                drop_damaged(folder, used)
        make_way = _make_way(experiment, folder, distiller, resume=resume, overwrite=overwrite)
        beginning = Beginning(make_way, resumed=used is not None)
        trainer.callbacks.append(beginning)  # type: ignore[attr-defined]
        if recipe.trainer.check_teachers and used is None:
            trainer.callbacks.append(TeacherCheck(recipe, experiment.datamodule))  # type: ignore[attr-defined]
        with own_code(folder), resuming(folder), blaming(recipe), refusals(recipe), quiet():
            path = used.checkpoint if used else None
            trainer.fit(distiller, datamodule=experiment.datamodule, ckpt_path=path, weights_only=True)
        if trainer.is_global_zero:
            for name in distiller.graph.models:
                models.save_weights(distiller.graph.model(name), folder.weights(name), metadata(experiment, name))
            with writing(folder):
                happened = read_events(folder.cohort)
                marks = moments(happened, [(s.name, s.when) for s in experiment.stages], trainer.max_epochs or 0)
                draw_curves(rows.rows, folder.curves, experiment.name, distiller.graph.frozen, happened, marks)
                cuts = {name: getattr(distiller.graph.model(name), "cuts", ()) for name in distiller.graph.models}
                draw_depth(rows.rows, folder.beliefs, experiment.name, cuts)
                show_pictures(trainer, folder)
                found = figures(without_absent(rows.rows, happened), experiment.nodes)
                note_classes(folder, experiment.datamodule)
                write_figures(folder, {**found, "epochs": len(rows.rows), "minutes": beginning.minutes})
        trainer.strategy.barrier()
        return read_result(folder)


def _announce(recipe: Recipe, folder: RunFolder, used: Standing | None) -> None:
    if used and used.note:
        tell(used.note, sys.stdout)
    done = used.epochs if used else 0
    name, epochs = f"{recipe.name}{' first' if folder.teacher else ''}", recipe.trainer.max_epochs
    begins = f"going on with {name} after epoch {done}" if used else f"training {name}"
    tell(f"{begins}: {epochs} epoch{'s' * (epochs > 1)}, into {folder.path}", sys.stdout)


def _make_way(
    experiment: Experiment, folder: RunFolder, distiller: Distiller, *, resume: bool, overwrite: bool
) -> Callable[[], None]:
    """What is done when the run begins: an old one goes, and it is written what this one is."""
    recipe = experiment.recipe
    keys = {
        "seed": recipe.seed,
        "fingerprint": fingerprint(recipe),
        "content": content_key(recipe),
        "code": code_of(recipe),
        "weights": {name: str(path.resolve()) for name, path in experiment.files.items()},
    }
    graph = distiller.graph
    papers, text = {**provenance(), **keys}, resolved(recipe)  # made now: the old run may hold files that it names

    if overwrite and (own := [name for name, spec in recipe.models.items() if _within(spec.weights, folder)]):
        told = f"models.{own[0]}.weights lie in {folder.path}, whose run would go; move them, or give another --out"
        raise KdkitError(told)

    def begin() -> None:
        with writing(folder):
            told = begun(papers, folder) if resume and folder.begun else papers
            folder.prepare(resume=resume, overwrite=overwrite)
            write_json(folder.provenance, {**told, "links": who_teaches_whom(graph.unbound, graph.nodes)})
            write_text(folder.recipe, text)

    return begin


def _within(weights: str | None, folder: RunFolder) -> bool:
    return weights is not None and folder.path.resolve() in Path(weights).resolve().parents


def assemble(experiment: Experiment, folder: RunFolder, rows: MetricRows) -> tuple[Distiller, pl.Trainer]:
    """The Lightning module and the Trainer of an experiment."""
    own = {*DISTILLERS, "check_teachers"}
    options = {word: value for word, value in experiment.trainer.items() if word not in own}
    distiller = make_distiller(experiment)
    distiller.watch.folder = folder.nonfinite
    trainer = make_trainer(experiment.recipe, options, folder, rows)
    trainer.callbacks += cohort_callbacks(experiment, folder)  # type: ignore[attr-defined]
    return distiller, trainer
