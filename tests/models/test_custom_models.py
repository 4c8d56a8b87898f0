"""Anybody's own model, from a file beside the recipe or from a package."""

import copy
import pickle
import sys

import pytest
import torch
from torch import nn

from kdkit.graph.batch import Batch, Facts
from kdkit.graph.graph import Graph
from kdkit.models import build
from kdkit.models.custom import load_factory
from kdkit.registry import KdkitError, UnknownNameError

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)
        self.width = width

    def forward(self, x):
        return self.fc(x.mean((2, 3)))

def make_net(num_classes, pretrained=False):
    return Net(num_classes, width=9 if pretrained else 1)

def ten(scale=1):
    return Net(10)

class Around(nn.Module):
    def __init__(self, backbone, num_classes):
        super().__init__()
        self.backbone, self.num_classes = backbone, num_classes

def knows_better(num_classes):
    from kdkit.registry import KdkitError
    raise KdkitError("knows_better: take another net")

built = Net(3)
number = 5

def not_a_module(num_classes):
    return "net"

def fails(num_classes):
    width = num_classes // 0
    return Net(width)

def fails_in_torch(num_classes):
    return nn.Conv2d(3, 8, 3, groups=2)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_net.py").write_text(NET)
    return tmp_path


def test_a_class_and_a_function_from_a_file_beside_the_recipe(folder):
    net = build("my_net.py:Net", num_classes=7, base=folder, width=6)
    assert net(torch.rand(2, 3, 4, 4)).shape == (2, 7)
    assert net.width == 6
    assert build("my_net.py:make_net", num_classes=7, base=folder).width == 1
    assert build("my_net.py:make_net", num_classes=7, base=folder, pretrained=True).width == 9
    assert build(f"{folder}/my_net.py:Net", num_classes=7).width == 4


def test_a_backbone_is_built_by_name_first(folder):
    net = build("my_net.py:Around", num_classes=7, base=folder, backbone="resnet8")
    assert net.backbone.fc.out_features == net.num_classes == 7
    net = build("my_net.py:Around", num_classes=7, base=folder, backbone="my_net.py:make_net", pretrained=True)
    assert net.backbone.width == 9
    narrow = {"arch": "resnet8", "widths": [4, 4, 8, 16]}
    assert build("my_net.py:Around", num_classes=7, base=folder, backbone=narrow).backbone.fc.in_features == 16
    with pytest.raises(KdkitError, match=r"backbone must be a name, or \{arch: NAME\} with its options"):
        build("sid", num_classes=7, backbone={"widths": [4, 4, 8, 16]})


def test_its_instances_pickle_and_share_one_class(folder):
    net, other = (build("my_net.py:Net", num_classes=7, base=folder) for _ in range(2))
    assert type(net) is type(other)
    assert type(pickle.loads(pickle.dumps(net))) is type(net)
    assert torch.equal(copy.deepcopy(net).fc.weight, net.fc.weight)


def test_an_edited_file_is_read_anew_and_two_files_of_one_name_are_two(folder):
    before = load_factory("my_net.py:Net", folder)
    (folder / "my_net.py").write_text(NET.replace("width=4", "width=44"))
    assert build("my_net.py:Net", num_classes=7, base=folder).width == 44
    (folder / "sub").mkdir()
    (folder / "sub" / "my_net.py").write_text(NET)
    assert load_factory("sub/my_net.py:Net", folder) is not before


def test_a_package_beside_the_recipe_and_an_installed_one(folder):
    package = folder / "kdkit_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text("from .parts import Net\nmake = Net\n")
    (package / "parts.py").write_text(NET)
    assert build("kdkit_test_package.nets:make", num_classes=7, base=folder).fc.out_features == 7
    assert isinstance(build("torch.nn:Linear", num_classes=None, in_features=2, out_features=3), nn.Linear)


def test_a_file_may_import_its_neighbours(folder):
    (folder / "uses.py").write_text("from my_net import Net\n")
    assert build("uses.py:Net", num_classes=7, base=folder).fc.out_features == 7


def test_a_factory_without_num_classes_is_taken_at_its_word_and_said_so(folder):
    assert build("my_net.py:ten", num_classes=10, base=folder).fc.out_features == 10
    with pytest.warns(UserWarning, match="takes no num_classes and its last linear layer has 10 outputs; 7 classes"):
        build("my_net.py:ten", num_classes=7, base=folder)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("my_net.py", "name the class or function too, as in `my_net.py:Net`"),
        ("other.py:Net", r"other\.py: no such file"),
        ("my_net.py:", "must be package.module:callable or file.py:callable"),
        ("my_net.py:Nett", r"my_net\.py has no 'Nett'; did you mean 'Net'"),
        ("two_cases.py:NETT", "has no 'NETT'; did you mean 'NET' or 'Net' or 'net'"),
        ("my_net.py:zzz", r"has no 'zzz'; it has: Net, make_net, ten"),
        ("my_net.py:built", "must be a class or a function, got a Net already built"),
        ("my_net.py:number", "must be a class or a function of Python, got 5"),
        ("my_net.py:not_a_module", "must give an nn.Module, got str"),
        ("my_net.py:fails", r"my_net\.py:35: width = num_classes // 0\n  ZeroDivisionError"),
        ("my_net.py:fails_in_torch", r"my_net\.py:39: return nn\.Conv2d\(3, 8, 3, groups=2\)\n  ValueError"),
        ("my_net.py:knows_better", "^knows_better: take another net$"),
        ("no_such_package.nets:Net", "no_such_package.nets: no such module"),
        ("torch.no_such_module:Net", "torch.no_such_module: no such module"),
        ("torch.nn:Linaer", "torch.nn has no 'Linaer'; did you mean 'Linear'"),
        ("torch.nn:Linear", r"torch.nn:Linear: missing a required argument: 'in_features'; it takes: in_features"),
        ("syntax.py:Net", r"syntax\.py:2: class Net\(\n  SyntaxError: '\(' was never closed"),
        ("name_error.py:Net", r"name_error\.py:2: x = undefined\n  NameError: name 'undefined' is not defined"),
        ("missing_import.py:Net", r"missing_import\.py:1: import no_such_thing\n  ModuleNotFoundError"),
    ],
)
def test_errors_name_the_line(folder, arch, message):
    (folder / "syntax.py").write_text("\nclass Net(\n")
    (folder / "two_cases.py").write_text("class Net: ...\nclass NET: ...\ndef net(): ...\n")
    (folder / "name_error.py").write_text("import math\nx = undefined\n")
    (folder / "missing_import.py").write_text("import no_such_thing\n")
    path = list(sys.path)
    for _ in range(2):  # what failed is not kept half loaded
        with pytest.raises(KdkitError, match=message):
            build(arch, num_classes=3, base=folder)
    assert sys.path == path


def test_wrong_keywords_of_a_file_are_named(folder):
    with pytest.raises(KdkitError, match=r"unexpected keyword argument 'widht'; it takes: num_classes, width=4"):
        build("my_net.py:Net", num_classes=3, base=folder, widht=2)
    with pytest.raises(KdkitError, match="takes no `pretrained`; give a file"):
        build("my_net.py:Net", num_classes=3, base=folder, pretrained=True)


def test_code_is_not_run_where_it_is_not_allowed(folder):
    (folder / "evil.py").write_text("raise SystemError('ran')")
    with pytest.raises(KdkitError, match=r"evil\.py:Net: code beside a recipe is not run here"):
        build("evil.py:Net", num_classes=3, base=folder, allow_custom=False)


def test_a_missing_name_is_a_look_up_error(folder):
    with pytest.raises(UnknownNameError):
        load_factory("my_net.py:Nett", folder)


FORWARDS = """
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

class Attribute(Net):
    def forward(self, x):
        return self.classifier(x)

class Key(Net):
    def forward(self, x):
        return {}["logits"]

class Shape(Net):
    def forward(self, x):
        return self.fc(x)
"""


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "Attribute",
            r"AttributeError: .* has no attribute 'classifier'\n.*forwards\.py:12: return self\.classifier\(x\)",
        ),
        ("Key", r"KeyError: 'logits'\n.*forwards\.py:16: return {}\[\"logits\"\]"),
        ("Shape", r"RuntimeError: .*\n.*forwards\.py:20: return self\.fc\(x\)"),
    ],
)
def test_a_forward_that_fails_is_named_with_its_line_before_training(tmp_path, name, line):
    (tmp_path / "forwards.py").write_text(FORWARDS)
    net = build(f"forwards.py:{name}", num_classes=2, base=tmp_path)
    graph = Graph({"student": net}, ["ce"])
    batch = Batch(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
    with pytest.raises(KdkitError, match=rf"model 'student'.*: {name} must run .*\(2, 3, 8, 8\), got {line}$"):
        graph.bind(batch, Facts(num_classes=2), 1)
