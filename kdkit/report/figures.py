"""The pictures of a run's page: those of its training and of its comparison."""

from __future__ import annotations

from html import escape

from kdkit.report.gather import Told

FIGURES = {
    "beliefs": ("Beliefs by depth", "How the modules' predictions sharpen from the first to the last."),
    "cka": ("Similarity of layers", "Linear CKA (unbiased) between layers of teacher and student."),
    "calibration": ("Calibration", "Accuracy against confidence; the nearer to the diagonal, the better."),
    "entropy": ("How sure they are", "Entropy of the predictions."),
    "who_is_right": ("Who is right", "Where the two agree, and who is right where they do not."),
    "logit_correlation": ("Correlations of logits", "Between classes: teacher minus student."),
    "embeddings": ("Embeddings", "In two dimensions, coloured by class."),
}
BROAD = 1050  # pixels; a wider picture gets a line of its own
HINT = "<p>A click on a picture shows it whole, to be moved sideways.</p>"


def figures(told: Told) -> str:
    """What stands in their section; nothing where there are none."""
    parts = []
    for name, picture in told.figures.items():
        title, caption = FIGURES.get(name, (name.replace("_", " "), ""))
        if name.startswith("cases_"):
            title, caption = f"Where they differ: {name.removeprefix('cases_')}", "Images, by who is right."
        broad = ' class="broad"' if picture.width > BROAD else ""
        size = f'width="{picture.width}" height="{picture.height}"'
        image = f'<div class="scroll"><img src="{picture.uri}" {size} alt="{escape(title)}"></div>'
        parts.append(
            f"<figure{broad}><h3>{escape(title)}</h3>{image}<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return f'<div class="figures">{"".join(parts)}</div>{HINT}' if parts else ""
