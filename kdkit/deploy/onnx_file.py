"""ONNX files: written by torch's exporter, run by onnxruntime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.fault import what, where
from kdkit.registry import KdkitError
from kdkit.taps.trace import logits_of

INPUT, OUTPUT = "images", "logits"


class Logits(nn.Module):
    """A model whose output is its logits and nothing else, whatever else it returns."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.eval()

    def forward(self, images: Tensor) -> Tensor:
        """The logits, (B, classes)."""
        return logits_of(self.net(images))


def program(net: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The model as torch.export sees it, for batches of any size.

    Args:
        net: on the CPU.
        example: images, (B, C, H, W) with B ≥ 2, for 1 would be taken as a constant.

    Raises:
        KdkitError: the model does something that cannot be written down without Python.
    """
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        with _silent():
            return torch.export.export(Logits(net), (example,), dynamic_shapes=shapes)
    except Exception as error:  # anybody's code fails in any way
        raise _refusal(net, error) from error


def write_onnx(net: nn.Module, example: Tensor, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write a model with input `images` (batch, C, H, W) and output `logits` (batch, classes).

    Args:
        net: on the CPU.
        example: as in `program`.
        path: the file.
        notes: texts that travel in it.

    Raises:
        KdkitError: the exporter is not installed, or ONNX has no word for something that the model does.
    """
    extra("onnx")
    extra("onnxscript")
    seen = program(net, example)
    try:
        with _silent():
            made = torch.onnx.export(seen, (), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
    except Exception as error:
        raise _refusal(net, error) from error
    assert made is not None
    made.model.metadata_props.update(notes or {})
    made.save(path)


class OnnxNet:
    """An ONNX file that answers tensors with tensors.

    Args:
        path: the file.
        device: the CPU, or a GPU where onnxruntime was built for it.

    Raises:
        KdkitError: onnxruntime is not installed, or has nothing for this device.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        runtime = extra("onnxruntime")
        place = torch.device(device)
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(place.type)
        if provider not in runtime.get_available_providers():
            remedy = "pip install onnxruntime-gpu brings one that does" if place.type == "cuda" else "take the CPU"
            raise KdkitError(f"the onnxruntime that is installed does not run on {device}; {remedy}")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        words = {"device_id": place.index or 0} if place.type == "cuda" else {}
        self.session = runtime.InferenceSession(str(path), options, providers=[(provider, words)])
        if self.session.get_providers()[0] != provider:  # it takes the CPU, and says so in its log
            why = "its CUDA or cuDNN is not the one it was built for"
            raise KdkitError(f"onnxruntime cannot start its {provider}: {why}; install those, or take the CPU")
        self.input, self.output = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name

    def __call__(self, images: Tensor) -> Tensor:
        """The logits."""
        fed = images.detach().cpu().contiguous().numpy()
        return torch.from_numpy(self.session.run([self.output], {self.input: fed})[0])

    def bound(self, images: Tensor) -> Any:
        """A function without arguments that runs these images where they lie: nothing is copied to be timed."""
        binding = self.session.io_binding()
        place, number = images.device.type, images.device.index or 0
        kind = extra("numpy").float32
        images = images.contiguous()
        binding.bind_input(self.input, place, number, kind, tuple(images.shape), images.data_ptr())
        binding.bind_output(self.output, place, number)

        def run(kept: Tensor = images) -> None:
            self.session.run_with_iobinding(binding)

        return run


def extra(package: str) -> Any:
    """A package of `kdkit[export]`.

    Raises:
        KdkitError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError:
        raise KdkitError(f"{package} is not installed; pip install 'kdkit[export]' brings it") from None


@contextmanager
def _silent() -> Iterator[None]:
    """Without the exporters' own talk; what fails is raised all the same."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch.fx", "torch._dynamo")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _refusal(net: nn.Module, error: Exception) -> KdkitError:
    told = what(error).strip().splitlines()[0]
    line = f"\n  {where(error)}".rstrip()
    short = told if len(told) < 300 else f"{told[:299]}…"
    return KdkitError(
        f"{type(net).__name__} cannot be exported: {short}{line}\n  "
        "`kdkit export --format safetensors` writes its weights, which need its Python to run"
    )
