"""Recipes that nobody would write: the packaged ones and some more, changed anywhere in the whole schema."""

import os
import signal
from contextlib import contextmanager
from functools import cache

import yaml
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kdkit.graph.schedule import WORDS as SCHEDULES
from kdkit.models.heads.kinds import HEADS
from kdkit.recipe import json_schema, packaged

NIGHTLY = os.environ.get("KDKIT_NIGHTLY") == "1"
CPU_SECONDS = 20  # of one example, which takes some hundredths

TEXT = """\
data: {name: digits, batch_size: 32}
models:
  teacher: {arch: resnet20, weights: random, tune: {epochs: 3, lr: 0.1}}
  student: {arch: resnet8, optimizer: {name: adamw}, lr: {cosine: [1e-3, 0]}, when: {from: 1}}
  peer: {arch: resnet8}
  slow: {ema: student, decay: 0.99}
losses:
  - ce
  - kd: {weight: {linear: [1, 0.5]}, temperature: 4, from: [teacher], to: student}
  - kd: {name: self, from: slow, when: {from: 0.5}, clip: 1, head: linear, taps: embedding, ensemble: null}
  - rkd: {distance_weight: {warmup: {to: {cosine: [1, 0]}, over: 2}}}
  - dml: {among: [student, peer]}
optimizer: {name: sgd, momentum: 0.9, nesterov: true}
lr: {multistep: {start: 0.1, at: [0.5, 8]}}
trainer: {max_epochs: 10, devices: [0, 1], precision: 32-true, limit_train_batches: 0.5}
seed: 3
"""
SMALL = """\
data: {name: fake, samples: 32, classes: 4, shape: [3, 8, 8], batch_size: 8}
models:
  teacher: {arch: resnet8, weights: random}
  student: {arch: resnet8, options: {widths: [4, 4, 4, 4]}}
  cascade: {arch: sid, options: {backbone: resnet8, modules: 2}}
  slow: {ema: student, decay: 0.9}
losses:
  - ce
  - kd: {weight: {share: 0.2}, temperature: {linear: [4, 2]}, from: teacher, to: student}
  - crd: {num_negatives: 8, from: teacher, to: student}
  - hint: {from: teacher.stage2, to: student.stage2, head: conv_bn_relu, when: {to: 0.5}}
  - sid: {to: cascade}
  - kd: {name: self, from: slow, to: student}
  - dml: {among: [student, cascade], clip: 1}
optimizer: {name: sgd, momentum: 0.9}
lr: {cosine: [0.1, 0]}
trainer: {max_epochs: 4, update: sequential, gradient_clip_val: 1}
"""
STAGED = """\
data: {name: fake, samples: 32, classes: 4, shape: [3, 8, 8], batch_size: 8}
models: {teacher: {arch: resnet8, weights: random}, student: {arch: resnet8}}
stages:
  - {name: first, epochs: 0.5, train: [student.layer1], losses: [hint: {from: teacher.stage1, to: student.stage1}]}
  - {name: second, losses: [ce, at: {weight: {share: 0.3}}, rkd_angle: {weight: 2}]}
optimizer: {name: adamw, weight_decay: 0.05}
lr: 1e-3
trainer: {max_epochs: 4}
"""


def tree_of(text):
    return yaml.safe_load(text.replace("1e-3", "0.001"))


@cache
def trees():
    """Every recipe that mutations begin with, its protocol written out beside its name."""
    return [tree_of(text) for text in (TEXT, SMALL, STAGED, *(info.path.read_text() for info in packaged()))]


@cache
def words():
    """Every key and every closed value that the schema has, and what stands in recipes."""
    keys, values = set(), set()

    def look(part):
        if isinstance(part, dict):
            keys.update(part.get("properties", ()))
            values.update(w for w in (*part.get("enum", ()), part.get("const")) if isinstance(w, str))
            for inner in part.values():
                look(inner)
        elif isinstance(part, list):
            for inner in part:
                look(inner)

    look(json_schema())
    for tree in trees():
        for path in places(tree):
            keys.update(step for step in path if isinstance(step, str))
            if isinstance(value := at(tree, path), str):
                values.add(value)
    values |= {
        "own.py:Net",
        "package.nets:make",
        "teacher_digits",
        "a.pth",
        "recipe.yaml",
        "timm/test_vit",
        "pretrained",
    }
    values |= {
        "../..",
        "/",
        "~",
        "nul\x00",
        "\ud7ff",
        "é\u0301",
        "\u202e",
        "𝟙",
        "a" * 300,
        "line\nbreak",
        "{}",
        "x.y:z",
    }
    return sorted(keys | {*SCHEDULES, *HEADS, "loss", "", "a.b", "é"}), sorted(values | {*SCHEDULES, *HEADS})


def scalars():
    keys, values = words()
    odd = [None, True, False, -1, 0, 1, 2, 1e-300, 1e300, 2**31, 2**63, 2**80, -(2**80), 0.5]
    return st.sampled_from([*odd, *keys, *values]) | st.floats() | st.integers(-10, 100) | st.text(max_size=6)


def values():
    keys, _ = words()
    return st.recursive(
        scalars(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(keys), inner, max_size=3),
        max_leaves=6,
    )


def places(tree, path=()):
    """Every path into a tree."""
    yield path
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield from places(value, (*path, key))


def at(tree, path):
    for step in path:
        tree = tree[step]
    return tree


@cache
def said():
    """What each key is said to be, in all recipes."""
    found = {}
    for tree in trees():
        for path in places(tree):
            if path and isinstance(path[-1], str) and at(tree, path) not in found.setdefault(path[-1], []):
                found[path[-1]].append(at(tree, path))
    return found


def alike(key, value):
    """Values that might stand there: of the same key elsewhere, or a number near by."""
    near = []
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        near = [value * 2, value / 2, value + 1, 1, 2, 0.3, {"linear": [value, 1]}, {"cosine": [value, 0]}]
    elif isinstance(value, bool):
        near = [not value]
    return [*near, *yaml.safe_load(yaml.safe_dump(said().get(key, []))), value]


def mutate(data, tree):
    """One change: something replaced, removed, renamed, added, wrapped, doubled, or taken from elsewhere."""
    keys, _ = words()
    paths = [path for path in places(tree) if path]
    if not paths:
        return
    path = data.draw(st.sampled_from(paths))
    inside, last = at(tree, path[:-1]), path[-1]
    how = data.draw(st.sampled_from([*["alike"] * 6, "replace", "remove", "rename", "add", "wrap", "nest", "copy"]))
    if how == "alike":
        inside[last] = data.draw(st.sampled_from(alike(last, inside[last])))
    elif how == "remove":
        del inside[last]
    elif how == "rename" and isinstance(inside, dict):
        inside[data.draw(st.sampled_from(keys))] = inside.pop(last)
    elif how == "add":
        into = inside[last] if isinstance(inside[last], (dict, list)) else inside
        value = data.draw(values())
        if isinstance(into, dict):
            into[data.draw(st.sampled_from(keys))] = value
        else:
            into.append(value)
    elif how == "wrap":
        inside[last] = [inside[last]]
    elif how == "nest":
        inside[last] = {data.draw(st.sampled_from(keys)): inside[last]}
    elif how == "copy":
        inside[last] = yaml.safe_load(yaml.safe_dump(at(tree, data.draw(st.sampled_from(paths)))))
    else:
        inside[last] = data.draw(values())


def overrides():
    keys, _ = words()
    path = st.lists(st.sampled_from(keys), min_size=1, max_size=4).map(".".join)
    return st.lists(
        st.tuples(path, st.sampled_from(["=", "", "==", " = "]), st.text(max_size=8) | values().map(str)).map("".join),
        max_size=2,
    )


def examples(ci, nightly):
    """Settings of a test: the same examples at every run, other ones every night."""
    return settings(
        max_examples=nightly if NIGHTLY else ci,
        derandomize=not NIGHTLY,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class HangError(BaseException):
    """An example took too long."""


@contextmanager
def in_time(seconds=CPU_SECONDS):
    """What is done inside takes little time of this process: not of the clock, which others may hold up."""

    def late(*_):
        raise HangError(f"more than {seconds} s of CPU time")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
