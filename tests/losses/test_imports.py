"""The losses alone need torch and nothing else."""

import subprocess
import sys
from pathlib import Path

import kdkit.losses

BLOCKED = ("lightning", "pytorch_lightning", "timm", "torchvision", "torchmetrics", "pydantic", "yaml", "typer", "rich")

SCRIPT = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Block())
import torch
from kdkit.losses import *
from kdkit.losses import ATLoss, KDLoss, RKDLoss

student, teacher = torch.randn(4, 10), torch.randn(4, 10)
assert KDLoss(temperature=4.0)(student, teacher) > 0
assert RKDLoss()(student, teacher) > 0
loaded = sorted(m for m in sys.modules if m.startswith("kdkit."))
assert all(m.startswith(("kdkit.losses", "kdkit.registry", "kdkit.draws", "kdkit.ranks")) for m in loaded), loaded
"""


def test_losses_import_torch_alone(tmp_path):
    """From another folder, with all of kdkit's other dependencies missing."""
    root = Path(kdkit.losses.__file__).parents[2]
    environment = {"PYTHONPATH": str(root), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
