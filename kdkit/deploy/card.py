"""The card of an exported model: what it is, how it is fed and loaded, how it came about, how good it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import kdkit
from kdkit.deploy.leaving import Leaving
from kdkit.recipe.write import dump
from kdkit.runs.folder import read_json
from kdkit.runs.papers import MEND, read_recipe, reading
from kdkit.runs.portable import portable
from kdkit.runs.result import read_result

if TYPE_CHECKING:
    from kdkit.deploy.export import Exported

LIBRARY = {"timm": "timm", "onnx": "onnx"}


def card(leaving: Leaving, form: str, found: Exported, lines: str) -> str:
    """The card as Markdown, with the front matter that model hubs read.

    Args:
        leaving: the model.
        form: the format's name.
        found: what was written and checked.
        lines: Python that loads it.
    """
    title = leaving.run.path.resolve().name if leaving.run else leaving.name
    front = {
        "library_name": LIBRARY.get(form, "pytorch"),
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "knowledge-distillation", "kdkit"],
    }
    parts = [f"---\n{dump(front)}---\n\n# {title}: {leaving.name}\n", _what(leaving, found), _use(leaving, lines)]
    if leaving.run is not None:
        parts += [*_numbers(leaving), _recipe(leaving), _provenance(leaving)]
    return "\n".join(parts) + f"\nWritten by kdkit {kdkit.__version__}.\n"


def _what(leaving: Leaving, found: Exported) -> str:
    c, h, w = (*leaving.shape, 1, 1)[:3]
    parameters = sum(p.numel() for p in leaving.net.module.parameters())
    numbers = " ".join(f"{v:.4g}" for v in leaving.mean), " ".join(f"{v:.4g}" for v in leaving.std)
    images = f"{found.images} {'pictures of noise' if found.noise else 'test images'}"
    lines = [
        f"- **Model** `{leaving.public_arch}`, {parameters:,} parameters, {leaving.num_classes} classes",
        f"- **Input** `images`, float32 (batch, {c}, {h}, {w}): pixels in [0, 1], minus mean {numbers[0]}, over std "
        f"{numbers[1]}",
        f"- **Output** `logits`, float32 (batch, {leaving.num_classes}); the classes by number are in `config.json`",
        f"- **Checked** on {images}: its logits differ from the trained model's by at most {found.difference:.1e}",
    ]
    if found.int8 is not None:
        i = found.int8
        lines.append(
            f"- **`{i.name}`** ({i.method} quantisation by onnxruntime): top-1 {100 * i.after:.2f} % instead of "
            f"{100 * i.before:.2f} % on {i.images:,} test images, the same class for {100 * i.agreement:.2f} % of them"
        )
    return "\n".join(lines) + "\n"


def _use(leaving: Leaving, lines: str) -> str:
    channels, height, width = (*leaving.shape, 1, 1)[:3]
    mode = "L" if channels == 1 else "RGB"
    sized = f"picture = picture.resize(({width}, {height}))"
    if short := leaving.shorter_side:
        sized = f"""sides = [side * {short} // min(picture.size) for side in picture.size]  # as in evaluation
picture = picture.resize(sides, Image.Resampling.BILINEAR)
left, top = round((sides[0] - {width}) / 2), round((sides[1] - {height}) / 2)
picture = picture.crop((left, top, left + {width}, top + {height}))"""
    mean, std = [round(v, 6) for v in leaving.mean], [round(v, 6) for v in leaving.std]
    return f"""## Use

```python
import numpy as np
from PIL import Image

picture = Image.open("photo.png").convert("{mode}")
{sized}
pixels = np.asarray(picture, np.float32).reshape({height}, {width}, {channels}) / 255
images = ((pixels - np.float32({mean})) / np.float32({std})).transpose(2, 0, 1)[None].copy()

{lines}
```
"""


def _numbers(leaving: Leaving) -> list[str]:
    assert leaving.run is not None
    if not leaving.run.complete:
        return []
    result = read_result(leaving.run)
    rows = []
    for which, found in (("last epoch", result.last), ("best epoch, chosen on the same images", result.best)):
        for node, metrics in found.items():
            told = {k: v for k, v in metrics.items() if k.startswith("top")}
            cells = " | ".join(f"{100 * told[k]:.2f}" if k in told else "" for k in ("top1", "top5"))
            rows.append(f"| {node} | {which} | {cells} |")
    if not rows:
        return []
    head = f"## Accuracy in training\n\n{_images(leaving)}\n\n"
    return [head + "| model | when | top-1 % | top-5 % |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"]


def _images(leaving: Leaving) -> str:
    """Which images the accuracy in training is about."""
    assert leaving.run is not None
    data = read_recipe(leaving.run.recipe, "data").plain["data"]
    of = "its folder of images" if data["name"] == "folder" else f"`{data['name']}`"
    if part := data.get("val_split"):
        several = len(read_recipe(leaving.run.recipe, "models").plain["models"]) > 1
        teachers = " A teacher may have been trained on them." * several
        return f"On images held out of the training set (`val_split: {part}` of {of}), not on the test set.{teachers}"
    return f"On the test set of {of}."


def _recipe(leaving: Leaving) -> str:
    assert leaving.run is not None
    words = read_recipe(leaving.run.recipe, "models", "losses", "data", "trainer").plain
    return f"## Recipe\n\n```yaml\n{dump(portable(words))}```\n"


def _provenance(leaving: Leaving) -> str:
    assert leaving.run is not None
    told = read_json(leaving.run.provenance, MEND) if leaving.run.provenance.is_file() else {}
    with reading(leaving.run.provenance):
        versions = ", ".join(f"{name} {version}" for name, version in told.get("versions", {}).items() if version)
    kept = {"seed": told.get("seed"), "fingerprint": told.get("fingerprint"), "commit": told.get("commit")}
    rest = ", ".join(f"{word} {json.dumps(value)}" for word, value in kept.items() if value is not None)
    return f"## Provenance\n\n{versions}\n\n{rest}\n"
