"""A comparison as a folder: `compare.json` and its figures."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from kdkit.console import table, tell
from kdkit.registry import KdkitError
from kdkit.runs.evaluate import results_table
from kdkit.runs.folder import RunFolder, write_json
from kdkit.runs.teacher import own_run
from kdkit.study import figures
from kdkit.study.compare import Comparison
from kdkit.study.embeddings import EXTRA, planar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = ("top1", "top5", "nll", "brier", "ece", "ece_adaptive", "entropy")


def run_of(student: str) -> RunFolder | None:
    """The run that a comparison is kept in, if the word is one of a run or of its weights file."""
    path = Path(student)
    return own_run(path if path.is_dir() else path.parent) if path.exists() else None


def write_comparison(found: Comparison, folder: Path) -> Path:
    """Write everything; returns the folder.

    Raises:
        KdkitError: it cannot be written.
    """
    numbers = found.numbers
    teacher = numbers["teacher"]
    numbers["embeddings"] = planar(found.sample, numbers["classes"])
    made = {
        "cka": figures.cka(numbers),
        "calibration": figures.calibration(numbers),
        "entropy": figures.entropy(numbers),
        "who_is_right": figures.who_is_right(numbers),
        "logit_correlation": figures.logit_correlation(numbers, found.correlations),
        **{
            f"cases_{_plain(name)}": figures.cases(teacher, name, cases.found)
            for name, cases in found.cases.items()
            if any(cases.found.values())
        },
    }
    if numbers["embeddings"] is None:
        tell(EXTRA, sys.stderr, "warning:", "bold yellow")
    else:
        made["embeddings"] = figures.embeddings(numbers)
    numbers["figures"] = [f"{name}.png" for name in made]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in made.items():
            _save(figure, folder / f"{name}.png")
        write_json(folder / "compare.json", numbers)
    except OSError as error:
        raise KdkitError(f"{folder} could not be written ({error}); give another place with --out FOLDER") from None
    return folder


def shown(found: Comparison) -> Group:
    """Tables of models by themselves and of students beside their teacher."""
    numbers = found.numbers
    models = {name: {k: its[k] for k in SHOWN if k in its} for name, its in numbers["models"].items()}
    columns = ["student", ">agreement %", ">teacher in top-5 %", ">KL", ">JS", ">mean |Δ|", ">Frobenius", ">transfer"]
    rows, reasons = [], []
    for name, its in numbers["students"].items():
        correlation, transfer = its["logit_correlation"], its.get("transfer")
        cells = [f"{100 * its[key]:.2f}" if key in its else "" for key in ("agreement", "teacher_in_top5")]
        cells += [
            f"{its['kl']:.3f}",
            f"{its['js']:.3f}",
            f"{correlation['mean']:.3f}",
            f"{correlation['frobenius']:.2f}",
        ]
        told = ""
        if transfer:
            low, high = transfer["low"], transfer["high"]
            told = "–" if transfer["reason"] else f"{transfer['ratio']:.2f} [{low:.2f}, {high:.2f}]"
            reasons += [f"transfer of {name}: {transfer['reason']}"] if transfer["reason"] else []
        rows.append((name, *cells, told))
    title = f"{numbers['images']} {numbers['split']} images of {numbers['data']}"
    beside = table(columns, rows, f"beside {numbers['teacher']}")
    return Group(results_table(models, title), Text(), beside, *map(Text, reasons))


def _save(figure: Figure, path: Path) -> None:
    # Layouts know nothing of what a fixed aspect leaves over: without "tight" titles are cut at the edge.
    figure.savefig(path, dpi=130, bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})


def _plain(name: str) -> str:
    """As part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", name)
