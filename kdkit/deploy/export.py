"""A trained model leaves alone: a folder with its file, its configuration and its card, each checked on real images."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit.deploy.card import card
from kdkit.deploy.formats import WRITERS
from kdkit.deploy.int8 import METHODS, Int8, quantise
from kdkit.deploy.leaving import Leaving
from kdkit.registry import KdkitError, nearest
from kdkit.runs.eval_recipe import eval_recipe
from kdkit.runs.evaluate import batches, weights_files
from kdkit.runs.folder import RunFolder, write_text
from kdkit.runs.told import read
from kdkit.runs.trained import trained

FORMATS = tuple(WRITERS)
CHECKED = 64  # images that the file's logits are compared on, in batches of 1, of 7 and of all
TOLERANCE = 1e-4

OURS = ("model.onnx", "model.int8.onnx", "model.onnx.data", "model.pt2", "model.safetensors")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where it lies.
        file: the model's.
        images: how many it was compared on.
        noise: whether these were none.
        difference: largest difference between its logits and those of the run's model.
        int8: the quantised file beside it.
    """

    folder: Path
    file: Path
    images: int
    noise: bool
    difference: float
    int8: Int8 | None = None


def export(
    run: Path,
    form: str,
    *,
    out: Path | None = None,
    model: str | None = None,
    overrides: Sequence[str] = (),
    int8: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write one trained model, without teachers, heads and losses.

    Args:
        run: a run's folder, or one of its weights files.
        form: `onnx`, `torch` (torch.export), `safetensors` or `timm`.
        out: the folder; left out: `exports/RUN-FORMAT`.
        model: which of several models; left out: the only one, or `student`.
        overrides: `data.…` words, for the images that it is checked on; `data.fake=true` takes noise.
        int8: `dynamic` or `static`: a quantised ONNX file beside the other, and the accuracy that it costs.
        overwrite: replace what a former export wrote there.

    Raises:
        KdkitError: nothing to export, no images, a model that the format cannot hold, or a file that says something
            else than the model.
    """
    if form not in FORMATS:
        raise KdkitError(f"--format must be one of {', '.join(FORMATS)}, got {form!r}{nearest(form, list(FORMATS))}")
    if int8 is not None and int8 not in METHODS:
        raise KdkitError(f"--int8 must be {' or '.join(METHODS)}, got {int8!r}")
    if int8 is not None and form != "onnx":
        raise KdkitError("--int8 goes with --format onnx: onnxruntime quantises ONNX files")
    files = weights_files(run)
    name = _chosen(files, model, run)
    several = "" if len(files) == 1 else f"-{name}"
    out = out or Path("exports") / f"{run.resolve().name.removesuffix('.safetensors')}{several}-{form}"
    _check_free(out, overwrite)
    leaving = _leaving(name, files[name], overrides)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".kdkit.") as place:
        part = Path(place)
        written = WRITERS[form](leaving, part)
        difference = _compared(leaving, written.answers, form)
        made = None
        if int8 is not None:
            made = quantise(leaving, written.file, part / "model.int8.onnx", int8)
        found = Exported(out, out / written.file.name, len(leaving.images), leaving.noise, difference, made)
        write_text(part / "README.md", card(leaving, form, found, written.lines))
        _move(part, out)
    return found


def _chosen(files: dict[str, Path], model: str | None, run: Path) -> str:
    wanted = model or (next(iter(files)) if len(files) == 1 else "student")
    if wanted not in files:
        given = f"no model {model!r}" if model else "several models"
        raise KdkitError(f"{run} has {given}; choose one with --model: {', '.join(files)}")
    return wanted


def _leaving(name: str, file: Path, overrides: Sequence[str]) -> Leaving:
    told = read(file)
    words = [*overrides, "trainer.accelerator=cpu"]
    recipe = eval_recipe({name: file}, {name: told}, words, "test")
    data, nets = trained(recipe, {name: file}, {name: told})
    net, spec = nets[name], recipe.models[name]
    first, _ = next(batches(data, "test", recipe.data.name))
    with torch.no_grad():
        images, logits = net.adapter(first[:CHECKED]).contiguous(), net.logits(first[:CHECKED])
    return Leaving(
        name=name,
        arch=str(spec.arch),
        options=dict(spec.options),
        net=net,
        data=data,
        images=images,
        logits=logits,
        mean=tuple(told.get("mean") or data.mean),
        std=tuple(told.get("std") or data.std),
        noise=recipe.data.fake or recipe.data.name == "fake",
        run=RunFolder(file.parent) if RunFolder(file.parent).recipe.is_file() else None,
        recipe=lambda split: eval_recipe({name: file}, {name: told}, words, split),
    )


def _compared(leaving: Leaving, answers: Callable[[Tensor], Tensor], form: str) -> float:
    """Largest difference of logits over batches of several sizes.

    Raises:
        KdkitError: it is too large, or no number.
    """
    largest = 0.0
    scale = max(1.0, float(leaving.logits.abs().max()))
    for size in dict.fromkeys((1, min(7, len(leaving.images)), len(leaving.images))):
        with torch.no_grad():
            found = answers(leaving.images[:size])
        difference = float((found.cpu() - leaving.logits[:size]).abs().max())
        if not difference <= TOLERANCE * scale:
            raise KdkitError(
                f"{form}: the file's logits differ from the model's by {difference:.3g} on {size} images (allowed: "
                f"{TOLERANCE * scale:.1g}); nothing was written. A model that is not the same twice cannot be exported"
            )
        largest = max(largest, difference)
    return largest


def _check_free(out: Path, overwrite: bool) -> None:
    if out.is_file():
        raise KdkitError(f"{out} is a file; give a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise KdkitError(f"{out} is not empty; --overwrite replaces what an export wrote there, --out names another")


def _move(part: Path, out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for old in OURS:  # of a former export, whose card goes too
            (out / old).unlink(missing_ok=True)
        shutil.copytree(part, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        raise KdkitError(f"{out} cannot be written: {error.strerror or error}") from None


def exported_cells(found: Exported) -> list[tuple[Any, ...]]:
    """As lines of a table."""
    on = f"{found.images} {'pictures of noise' if found.noise else 'test images'}"
    cells = [(found.file.name, f"{found.file.stat().st_size / 1e6:.2f}", f"{found.difference:.1e}", on, "", "")]
    if found.int8 is not None:
        i = found.int8
        size = f"{(found.folder / i.name).stat().st_size / 1e6:.2f}"
        cells[0] = (*cells[0][:4], f"{100 * i.before:.2f}", "")
        cells.append(
            (i.name, size, "", f"{i.images:,} test images", f"{100 * i.after:.2f}", f"{100 * i.agreement:.2f}")
        )
    return cells
