"""Verbs about what students learned: compare, probe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from kdkit.cli.app import NoCustomCode, app
from kdkit.registry import KdkitError

What = "A run's folder, a weights file, a packaged recipe that was run, or timm/NAME with its published weights."
Data = Annotated[str | None, typer.Option(help="A folder of class folders; left out: the data of the runs.")]


@app.command(epilog="Example: kdkit compare teacher runs/kd-seed0 runs/crd-seed0 --alone runs/student-seed0")
def compare(
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help=f"What a student's run calls it, such as teacher. {What}")
    ],
    students: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STUDENT…", help="Likewise, and KEY=VALUE words about data; left out: TEACHER is a student's run."
        ),
    ] = None,
    alone: Annotated[
        str | None, typer.Option(help="The same student without its teacher: what transfer is measured from.")
    ] = None,
    data: Data = None,
    split: Annotated[str, typer.Option(help="test, or train: the training images without augmentation.")] = "test",
    taps: Annotated[
        str | None, typer.Option(help="Layers whose CKA is taken; left out: stem,stages,embedding,logits.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for figures and compare.json; left out: compare in the first student's run, or else here."
        ),
    ] = None,
    no_custom_code: NoCustomCode = False,
) -> None:
    """Compare students with their teacher.

    Agreement, divergences, similarity of layers (CKA), correlations of logits, calibration, who is right where they
    differ, and embeddings side by side: a table, figures, and compare.json. One run alone is compared with the teacher
    that it learned from.
    """
    from kdkit.console import show
    from kdkit.runs.afterwards import log_found
    from kdkit.study.compare import compare as look
    from kdkit.study.subjects import teacher_of
    from kdkit.study.write import run_of, shown, write_comparison

    models, words = _parted(students or ())
    words += [f"data.root={data}"] if data else []
    if not models:
        teacher, models = teacher_of(teacher), [teacher]
    layers = [tap.strip() for tap in taps.split(",")] if taps else None
    found = look(teacher, models, words, alone=alone, split=split, taps=layers)
    show(shown(found), sys.stdout)
    run = run_of(models[0])
    place = out or (run.comparison if run else Path("compare"))
    typer.echo(f"figures and compare.json are in {write_comparison(found, place)}")
    if run is None and out is None:
        typer.echo(f"{models[0]}, the first student, is no run of yours to keep them in; --out names another folder")
    if run is not None:
        log_found(run, "compare", found.told, [place / name for name in found.numbers["figures"]])


@app.command(epilog="Example: kdkit probe runs/kd-seed0 runs/crd-seed0 --data stl10")
def probe(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Runs' folders or weights files; KEY=VALUE words.")],
    data: Annotated[str, typer.Option(help="stl10, tinyimagenet, another data set's name, or a folder of classes.")],
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images; left out: as in the run's training.")
    ] = None,
    tap: Annotated[str, typer.Option(help="Where features are read.")] = "embedding",
    out: Annotated[Path | None, typer.Option(help="The JSON file to write; left out: probe.json in each run.")] = None,
    no_custom_code: NoCustomCode = False,
) -> None:
    """Measure what frozen features are worth on other data.

    A linear classifier on them, its regularisation chosen on held-out training images, and their nearest neighbours.
    """
    from kdkit.console import show, table
    from kdkit.runs.afterwards import log_found, short
    from kdkit.runs.evaluate import keep
    from kdkit.runs.teacher import own_run
    from kdkit.study.probe import probe as measure

    models, words = _parted(runs)
    if not models:
        raise KdkitError("name a run, or a weights file, whose features are to be looked at")
    ways = [f"tap={tap}"] if tap != "embedding" else []
    ways += [f"image_size={image_size}"] if image_size else []
    rows, wrong = [], []
    for run in models:
        try:
            found = measure(run, data, words, image_size=image_size, tap=tap)
            for name, its in found.items():
                model = name if Path(run).is_file() else f"{Path(run).name}/{name}"
                cells = [f"{100 * its['linear']:.2f}", f"{100 * its['knn']:.2f}", f"{100 * its['held_out']:.2f}"]
                rows.append((model, *cells, f"{its['decay']:g}", str(its["features"])))
            own = own_run(Path(run))
            if path := out or (own and own.probes):
                keep(path, " ".join([data, *words, *ways, *([run] if out else [])]), found)
            else:
                typer.echo(f"nothing is kept: {run} is no folder of a run of yours; --out names a file")
            if own is not None:
                log_found(own, "probe", {short([data, *words, *ways]): found})
        except KdkitError as error:  # the others are looked at all the same
            wrong.append(error)
    if rows:
        columns = ("model", ">linear %", ">kNN %", ">held out %", ">λ", ">features")
        show(table(columns, rows, f"frozen features on {data}"), sys.stdout)
    if wrong:
        raise wrong[0] if len(wrong) == 1 else KdkitError("\n".join(map(str, wrong)))


def _parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What names a run or a model, and KEY=VALUE; what lies there is no override, whatever it is called."""
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    return [word for word in words if word not in overrides], overrides
