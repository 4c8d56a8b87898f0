"""The formats: each writes a model's file into a folder, and opens it again to answer images."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit import models
from kdkit.deploy.leaving import Leaving
from kdkit.deploy.onnx_file import OnnxNet, extra, program, write_onnx
from kdkit.recipe.code_text import files_of_code
from kdkit.registry import KdkitError
from kdkit.runs.folder import read_json, write_json
from kdkit.taps.trace import logits_of


@dataclass(frozen=True)
class Written:
    """One model's file.

    Attributes:
        file: where it lies for now.
        answers: opens it and gives its logits.
        lines: Python that loads it, run in its folder; it leaves `logits` for `images`.
    """

    file: Path
    answers: Callable[[Tensor], Tensor]
    lines: str


def _onnx(leaving: Leaving, folder: Path) -> Written:
    extra("onnxruntime")
    file = folder / "model.onnx"
    write_onnx(leaving.net.module, _example(leaving), file, {k: json.dumps(v) for k, v in config(leaving).items()})
    write_json(folder / "config.json", config(leaving))
    lines = (
        'import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\n'
        '(logits,) = session.run(["logits"], {"images": images})'
    )
    return Written(file, OnnxNet(file), lines)


def _torch(leaving: Leaving, folder: Path) -> Written:
    file = folder / "model.pt2"
    torch.export.save(program(leaving.net.module, _example(leaving)), file)
    write_json(folder / "config.json", config(leaving))
    opened = torch.export.load(file).module()
    lines = (
        'import torch\n\nnet = torch.export.load("model.pt2").module()\n'
        "with torch.inference_mode():\n    logits = net(torch.from_numpy(images))"
    )
    return Written(file, opened, lines)


def _safetensors(leaving: Leaving, folder: Path) -> Written:
    file = folder / "model.safetensors"
    told = config(leaving)
    with_code = not leaving.code or _brings_its_code(leaving, folder)
    known = {**told, "image_size": leaving.shape[-1]}  # of the images that it is scored on one day
    header = {word: value if isinstance(value, str) else json.dumps(value) for word, value in known.items()}
    models.save_weights(leaving.net.module, file, header)
    write_json(folder / "config.json", told)

    def answers(images: Tensor) -> Tensor:
        arch, options, base = leaving.arch, leaving.options, None
        if with_code:
            arch, options, base = leaving.public_arch, leaving.public_options, folder
        opened = models.build(arch, num_classes=leaving.num_classes, base=base, **options).eval()
        models.load_weights(opened, file, arch=leaving.arch)
        return logits_of(opened(images))

    return Written(file, answers, _loading(leaving) if with_code else _without_code(leaving))


def _timm(leaving: Leaving, folder: Path) -> Written:
    if leaving.source != "timm":
        raise KdkitError(
            f"{leaving.public_arch} is no model of timm's, so timm cannot build it; --format safetensors writes a "
            "folder whose card says how it is loaded"
        )
    import timm
    from timm.models import save_for_hf

    net: Any = leaving.net.module
    side = leaving.shape[-1]
    cropped = math.floor(1e6 * side / (leaving.shorter_side or side)) / 1e6  # timm resizes to ⌊side / it⌋
    fed = {"mean": leaving.mean, "std": leaving.std, "input_size": leaving.shape, "crop_pct": cropped}
    fed |= {"interpolation": "bilinear", "crop_mode": "center"}
    own = {"license": None, "tag": None}  # those of published weights are not these weights'
    told = {"pretrained_cfg": {**fed, **own}, **({"label_names": leaving.classes} if leaving.classes else {})}
    save_for_hf(net, str(folder), model_config=told, model_args=leaving.options or None, safe_serialization=True)
    words = read_json(folder / "config.json")
    words.get("model_args", {}).pop("num_classes", None)  # said above it; transformers takes it from there, and once
    write_json(folder / "config.json", words)

    def answers(images: Tensor) -> Tensor:
        opened = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        return logits_of(opened(images))

    lines = (
        "import timm\nimport torch\n\n"
        'net = timm.create_model("local-dir:.", pretrained=True).eval()   # or hf-hub:NAME, where it was uploaded\n'
        f"with torch.inference_mode():\n    logits = net(torch.from_numpy(images)){_picked(leaving)}"
    )
    return Written(folder / "model.safetensors", answers, lines)


WRITERS: Mapping[str, Callable[[Leaving, Path], Written]] = {
    "onnx": _onnx,
    "torch": _torch,
    "safetensors": _safetensors,
    "timm": _timm,
}


def config(leaving: Leaving) -> dict[str, Any]:
    """What whoever feeds the model has to know."""
    return {
        "arch": leaving.public_arch,
        "options": leaving.public_options,
        "num_classes": leaving.num_classes,
        "input_shape": list(leaving.shape),
        "mean": list(leaving.mean),
        "std": list(leaving.std),
        "classes": leaving.classes,
    }


def _example(leaving: Leaving) -> Tensor:
    """Images for the exporter, which would take one alone as a constant."""
    two = leaving.images[:2] if len(leaving.images) > 1 else leaving.images.repeat(2, 1, 1, 1)
    return two.clone()  # a file that keeps them would else keep all that they are a part of


def _brings_its_code(leaving: Leaving, folder: Path) -> bool:
    """Whether the model's own files and what they import from beside them, copied, build it."""
    copies: dict[Path, bytes] = {}
    for file in leaving.code:
        for path, text in files_of_code(file, file.parent).items():
            if not path.is_relative_to(file.parent):
                return False
            place = path.relative_to(file.parent)
            if copies.setdefault(place, text) != text:  # two of one name
                return False
    for place, text in copies.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(text)
    if _builds_alone(leaving, folder):
        return True
    for place in copies:
        (folder / place).unlink()
    return False


def _builds_alone(leaving: Leaving, folder: Path) -> bool:
    """Whether a process that knows nothing of this one builds the model in the folder."""
    asked = json.dumps([leaving.public_arch, leaving.num_classes, leaving.public_options])
    home = Path(models.__file__).parents[2]  # of kdkit itself
    code = (
        f"import sys, json; sys.path.append({str(home)!r}); from kdkit import models; "
        "arch, classes, options = json.loads(sys.argv[1]); models.build(arch, num_classes=classes, **options)"
    )
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return (
        subprocess.run(
            [sys.executable, "-B", "-c", code, asked], cwd=folder, env=known, capture_output=True, check=False
        ).returncode
        == 0
    )


def _loading(leaving: Leaving) -> str:
    name = leaving.arch.partition("/")[2].partition(".")[0]
    words = f"num_classes={leaving.num_classes}" + "".join(f", {w}={v!r}" for w, v in leaving.public_options.items())
    made = {
        "timm": f'import timm\n\nnet = timm.create_model("{name}", {words})\n',
        "torchvision": f'from torchvision import models\n\nnet = models.get_model("{name}", {words})\n',
    }.get(leaving.source, f'from kdkit import models\n\nnet = models.build("{leaving.public_arch}", {words})\n')
    return (
        f"import torch\nfrom safetensors.torch import load_model\n{made}"
        'load_model(net.eval(), "model.safetensors")\n'
        f"with torch.inference_mode():\n    logits = net(torch.from_numpy(images)){_picked(leaving)}"
    )


@torch.no_grad()
def _picked(leaving: Leaving) -> str:
    """How the logits are taken out of what the model returns."""
    output: Any = leaving.net.module(leaving.images[:1])
    if isinstance(output, Tensor):
        return ""
    if isinstance(output, Mapping):
        return '["logits"]' if "logits" in output else f"[{next(iter(output))!r}]"
    return ".logits" if hasattr(output, "logits") else "[0]"


def _without_code(leaving: Leaving) -> str:
    return (
        f"# The code of {leaving.public_arch} needs more than lies beside it and is not in this folder.\n"
        "from safetensors.torch import load_model\n\n"
        'net = ...\nload_model(net.eval(), "model.safetensors")'
    )
