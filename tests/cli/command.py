"""The command line, called in this process: importing torch anew costs seconds."""

from dataclasses import dataclass
from functools import cache

from typer import testing

from kdkit.cli import app

testing._get_command = cache(testing._get_command)  # all verbs and their words, once

RECIPE = """\
data: {name: fake, samples: 32, classes: 5, shape: [3, 8, 8], batch_size: 16}
models:
  teacher: {arch: resnet14, weights: random}
  student: {arch: resnet8}
losses:
  - ce
  - kd: {weight: 0.9, temperature: 4}
optimizer: {name: sgd}
lr: 0.1
trainer: {max_epochs: 2, accelerator: cpu}
"""


@dataclass
class Said:
    code: int
    out: str
    err: str


def kdkit(*words):
    """Run a verb; whatever it raises beyond an exit code is a bug and fails the test."""
    result = testing.CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    return Said(result.exit_code, result.stdout, result.stderr)


def refused(*words):
    """The error of a verb that must fail as the user's mistake: exit code 2, one message, no traceback."""
    said = kdkit(*words)
    assert said.code == 2, said
    assert said.err.count("error:") == 1
    assert "Traceback" not in said.out + said.err
    return said.err
