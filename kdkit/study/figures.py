"""Figures of a comparison, each from the numbers of `compare.json`; colours that the colour-blind can tell apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito (2008); the teacher is black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
TEACHER = "#000000"
# Petroff (2021), arXiv 2107.02270: ten that the colour-blind can tell apart; shapes help further.
TEN = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"
)  # fmt: skip
SHAPES = "osD^vPX<>*"
WHO = ("#0072B2", "#E69F00", "#56B4E9", "#999999", "#404040")
PER_ROW = 4
NAMED = 20  # classes up to which each has its name beside it
ANNOTATED = 12  # layers up to which every square of a heat map says its number


def cka(found: Mapping[str, Any]) -> Figure:
    """Heat maps: the teacher's layers against each student's."""
    students = found["students"]
    most = max(len(its["cka"]["student"]) for its in students.values())
    figure, panels = _panels(len(students), max(3.6, 0.62 * most + 1.2), 0.5 * _layers(students) + 1.6)
    for axes, (name, its) in zip(panels, students.items(), strict=True):
        values = np.array([[math.nan if v is None else v for v in row] for row in its["cka"]["values"]], float)
        shown = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, origin="lower", aspect="auto")
        axes.set_xticks(range(values.shape[1]), its["cka"]["student"], rotation=45, ha="right")
        axes.set_yticks(range(values.shape[0]), its["cka"]["teacher"])
        axes.set(xlabel=name, ylabel=found["teacher"])
        if max(values.shape) <= ANNOTATED:
            for (row, column), value in np.ndenumerate(values):
                text = "–" if math.isnan(value) else f"{value:.2f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color="w" if value < 0.5 else "k")
    figure.colorbar(shown, ax=panels, label="linear CKA, unbiased", shrink=0.9)
    return figure


def _layers(students: Mapping[str, Any]) -> int:
    return max(len(its["cka"]["teacher"]) for its in students.values())


def calibration(found: Mapping[str, Any]) -> Figure:
    """Reliability diagrams: accuracy against confidence, and where predictions lie."""
    figure, panels = _panels(len(found["models"]), 3.2, 3.4)
    for i, (axes, (name, its)) in enumerate(zip(panels, found["models"].items(), strict=True)):
        number, accuracy = (np.array(its["reliability"][key]) for key in ("number", "accuracy"))
        edges = np.linspace(0, 1, len(number) + 1)
        width = 1 / len(number)
        axes.plot([0, 1], [0, 1], "--", color="0.4", linewidth=1)
        shade = {"facecolor": (colour(found, name, i), 0.35), "edgecolor": colour(found, name, i)}
        axes.bar(edges[:-1], accuracy, width, align="edge", label="accuracy", **shade)
        axes.stairs(number / number.sum(), edges, color="0.2", linewidth=1.6, label="share of images")
        axes.set(title=f"{name}\nECE {100 * its['ece']:.1f} %", xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
        axes.set_aspect("equal")
    panels[0].set_ylabel("accuracy")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    return figure


def entropy(found: Mapping[str, Any]) -> Figure:
    """How sure each model is: histograms of the entropy of its predictions."""
    figure, (axes,) = _panels(1, 7.0, 4.0)
    for i, (name, its) in enumerate(found["models"].items()):
        edges, share = its["entropies"]["edges"], its["entropies"]["share"]
        style = "--" if name == found["teacher"] else "-"
        label = f"{name} (mean {its['entropy']:.2f})"
        axes.stairs(share, edges, color=colour(found, name, i), linestyle=style, linewidth=1.8, label=label)
    axes.set(xlabel="entropy of a prediction (nats)", ylabel="share of images", xlim=(0, edges[-1]))
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    return figure


def who_is_right(found: Mapping[str, Any]) -> Figure:
    """Where teacher and student agree, and who is right where they do not."""
    students = found["students"]
    figure, (axes,) = _panels(1, 8.5, 0.55 * len(students) + 1.4)
    for row, its in enumerate(students.values()):
        left, whole = 0.0, sum(its["who"].values())
        for (kind, number), shade in zip(its["who"].items(), WHO, strict=True):
            share = 100 * number / whole
            axes.barh(row, share, left=left, color=shade, edgecolor="w", label=kind if row == 0 else None)
            if share >= 4:
                light = shade in (WHO[1], WHO[2])
                axes.text(left + share / 2, row, f"{share:.1f}", ha="center", va="center", color="k" if light else "w")
            left += share
    axes.set_yticks(range(len(students)), list(students))
    axes.invert_yaxis()
    axes.set(xlabel="% of images", xlim=(0, 100))
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=8)
    return figure


def embeddings(found: Mapping[str, Any]) -> Figure:
    """t-SNE of each model's embeddings, coloured by class."""
    told = found["embeddings"]
    labels = np.array(told["labels"])
    figure, panels = _panels(len(told["points"]), 3.7, 3.9)
    for axes, (name, points) in zip(panels, told["points"].items(), strict=True):
        at = np.array(points)
        for i, label in enumerate(told["classes"]):
            mine = at[labels == label]
            axes.scatter(*mine.T, s=14, color=TEN[i % 10], marker=SHAPES[i % 10], linewidths=0, label=label, alpha=0.9)
        axes.set(title=name, xticks=[], yticks=[])
        axes.set_box_aspect(1)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, markerscale=1.6)
    return figure


def logit_correlation(found: Mapping[str, Any], correlations: Mapping[str, Any]) -> Figure:
    """Difference of the correlations between classes' logits, teacher − student, on one scale for all."""
    teacher = correlations[found["teacher"]].numpy()
    gaps = {name: teacher - correlations[name].numpy() for name in found["students"]}
    most = max(float(np.nanquantile(np.abs(gap), 0.995)) for gap in gaps.values()) or 1.0
    figure, panels = _panels(len(gaps), 3.8, 3.9)
    for axes, (name, gap) in zip(panels, gaps.items(), strict=True):
        shown = axes.imshow(gap, cmap="PuOr", vmin=-most, vmax=most, interpolation="nearest")
        its = found["students"][name]["logit_correlation"]
        axes.set(title=f"{name}\nmean |Δ| {its['mean']:.3f}, Frobenius {its['frobenius']:.1f}", xlabel="class")
        if len(found["classes"]) <= NAMED:
            axes.set_xticks(range(len(gap)), found["classes"], rotation=45, ha="right")
            axes.set_yticks(range(len(gap)), found["classes"])
    panels[0].set_ylabel("class")
    figure.colorbar(shown, ax=panels, label=f"correlation: {found['teacher']} − student", shrink=0.85, extend="both")
    return figure


def cases(teacher: str, student: str, found: Mapping[str, Sequence[Any]]) -> Figure:
    """Images on which two models differ most, by who is right."""
    kinds = {kind: cases for kind, cases in found.items() if cases}
    across = max(map(len, kinds.values()), default=1)
    figure = _figure(1.75 * across, 2.75 * max(len(kinds), 1))
    parts = figure.subfigures(max(len(kinds), 1), 1, squeeze=False)[:, 0]
    for part, (kind, several) in zip(parts, kinds.items(), strict=False):
        part.suptitle(kind, fontsize=11, x=0.01, ha="left", weight="bold")
        for axes, case in zip(part.subplots(1, across, squeeze=False)[0], [*several, *[None] * across], strict=False):
            axes.set_axis_off()
            if case is not None:
                image = case.image.movedim(0, -1).numpy()
                axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", interpolation="nearest")
                said = (f"T {case.teacher[0]} {case.teacher[1]:.2f}", f"S {case.student[0]} {case.student[1]:.2f}")
                axes.set_title(f"{case.label}", fontsize=9)
                axes.text(0.5, -0.04, "\n".join(said), transform=axes.transAxes, ha="center", va="top", fontsize=7.5)
    figure.suptitle(
        f"true class above; T {teacher}, S {student} with their probabilities below", fontsize=9, color="0.3"
    )
    return figure


def colour(found: Mapping[str, Any], name: str, i: int) -> str:
    """Of the i-th model, the teacher being the first."""
    return TEACHER if name == found["teacher"] else COLOURS[(i - 1) % len(COLOURS)]


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """A row of axes, or several of four each."""
    across = min(count, PER_ROW)
    down = -(-count // PER_ROW)
    figure = _figure(width * across + 0.8, height * down)
    axes = figure.subplots(down, across, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
