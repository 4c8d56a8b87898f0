"""An ONNX file in whole numbers of eight bits, by onnxruntime, and the accuracy that it costs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.deploy.leaving import Leaving
from kdkit.deploy.onnx_file import INPUT, OnnxNet, extra
from kdkit.recipe import build
from kdkit.registry import KdkitError
from kdkit.runs.evaluate import batches

METHODS = ("dynamic", "static")
CALIBRATION = 512  # training images that activations are measured on


@dataclass(frozen=True)
class Int8:
    """What a quantised file came to.

    Attributes:
        name: of the file.
        method: dynamic or static.
        images: test images that both files were scored on.
        before: top-1 of the plain file.
        after: of the quantised one.
        agreement: share of images of which both say the same class.
    """

    name: str
    method: str
    images: int
    before: float
    after: float
    agreement: float


def quantise(leaving: Leaving, plain: Path, path: Path, method: str) -> Int8:
    """Write the quantised file and score both on all test images.

    Args:
        leaving: the model and its data.
        plain: the file in fp32.
        path: the quantised one's.
        method: `dynamic`: weights alone, activations as they come; `static`: activations by ranges that are measured
            on training images without augmentation.

    Raises:
        KdkitError: onnxruntime is not installed or cannot quantise the model, or there are no images.
    """
    if leaving.noise:
        raise KdkitError("--int8 is measured on real test images; give them with --data FOLDER")
    quantization = extra("onnxruntime.quantization")
    shaped = path.with_suffix(".shaped")
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # onnxruntime tells the root logger how its own words would be better chosen
    try:
        quantization.shape_inference.quant_pre_process(str(plain), str(shaped), skip_symbolic_shape=True)
        _forget_shapes(shaped)
        if method == "dynamic":  # onnxruntime convolves unsigned weights only
            kind = quantization.QuantType.QUInt8
            quantization.quantize_dynamic(str(shaped), str(path), weight_type=kind)
        else:
            quantization.quantize_static(str(shaped), str(path), _reader(leaving, quantization), per_channel=True)
    except KdkitError:
        raise
    except Exception as error:  # onnxruntime's own
        raise KdkitError(f"onnxruntime cannot quantise this model: {str(error).strip().splitlines()[0]}") from error
    finally:
        logging.root.setLevel(level)
        shaped.unlink(missing_ok=True)
    return _scored(leaving, plain, path, method)


def _forget_shapes(path: Path) -> None:
    """Drop the shapes that the exporter noted inside: the quantiser turns weights around and trips over them."""
    onnx = extra("onnx")
    model = onnx.load(path)
    del model.graph.value_info[:]
    onnx.save(model, path)


def _reader(leaving: Leaving, quantization: Any) -> Any:
    """Training images, a batch at a time."""
    images = _training_images(leaving)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            found = next(images, None)
            return None if found is None else {INPUT: found.numpy()}

    return Reader()


def _training_images(leaving: Leaving) -> Iterator[Tensor]:
    recipe = leaving.recipe("train")
    data = build(recipe, weights=None).datamodule
    data.device = torch.device("cpu")
    data.prepare_data()
    left = CALIBRATION
    for x, _ in batches(data, "train", recipe.data.name):
        with torch.no_grad():
            yield leaving.net.adapter(x[:left]).contiguous()
        left -= len(x)
        if left <= 0:
            return


class _Module(nn.Module):
    """An ONNX file in a trained model's place."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.run = OnnxNet(path)

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images)


@torch.no_grad()
def _scored(leaving: Leaving, plain: Path, path: Path, method: str) -> Int8:
    nets = [replace(leaving.net, module=_Module(file)) for file in (plain, path)]
    count, same, right = 0, 0, [0, 0]
    for x, labels in batches(leaving.data, "test", "data"):
        said = [net.logits(x).argmax(-1) for net in nets]
        wanted = leaving.net.places[labels]
        count, same = count + len(labels), same + int((said[0] == said[1]).sum())
        right = [n + int((classes == wanted).sum()) for n, classes in zip(right, said, strict=True)]
    return Int8(path.name, method, count, right[0] / count, right[1] / count, same / count)
