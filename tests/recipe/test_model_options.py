"""Options of a model that cannot be: one error with the file, the line, the model and the option."""

import pytest

from kdkit.recipe import RecipeError, build, loads

RECIPE = """\
data: {name: digits, image_size: 8}
models:
  student:
    arch: ARCH
    options: OPTIONS
losses: [ce]
optimizer: {name: sgd}
lr: 0.1
trainer: {max_epochs: 1}
"""
NET = """\
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, depth=2):
        super().__init__()
        if depth > 3:
            raise LookupError("too deep")
        self.fc = nn.Linear(3, num_classes)
"""


def refused(arch, options, folder=None):
    text = RECIPE.replace("ARCH", arch).replace("OPTIONS", options)
    with pytest.raises(RecipeError) as caught:
        build(loads(text, name="r.yaml", folder=folder), weights=None)
    assert len(caught.value.problems) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("resnet8", "{widths: 3}", "options.widths: must be a list, got 3"),
        ("resnet8", "{widths: [8, 8, 8, x]}", "options.widths.3: must be a whole number, got 'x'"),
        ("resnet8", "{widhts: [8, 8, 8, 8]}", "options.widhts: unknown key 'widhts'; did you mean 'widths'?"),
        ("resnet8", "{blocks: 20}", "options.blocks: unknown key 'blocks'; known: widths, in_channels"),
        ("wrn_16_1", "{width: 2}", "options.width: unknown key 'width'; known: in_channels"),
        ("mobilenetv2", "{width: wide}", "options.width: must be a number, got 'wide'"),
        ("sid", "{kind: linear}", "options.backbone: must be given"),
        ("sid", "{backbone: resnet8, modules: two}", "options.modules: must be a whole number, got 'two'"),
    ],
)
def test_of_a_built_in_net_are_known_before_it_is_built(arch, options, message):
    assert refused(arch, options).removeprefix("r.yaml:5: ").startswith(f"models.student.{message}")


def test_options_of_a_backbone_have_one_place():
    told = refused("sid", "{backbone: {arch: resnet8, options: {widths: [4, 4, 8, 8]}}, modules: 2}")
    assert told.endswith("beside its arch; say backbone: {arch: resnet8, widths: [4, 4, 8, 8]}")


def test_a_state_that_no_weights_file_holds_is_refused_before_training(tmp_path):
    (tmp_path / "extra.py").write_text(f"{NET}\n    def get_extra_state(self):\n        return {{'k': 1}}\n")
    assert "Net: safetensors hold tensors only, its state also has _extra_state" in refused(
        "extra.py:Net", "{}", tmp_path
    )


@pytest.mark.parametrize("arch", ["resnet8", "timm/test_resnet", "torchvision/resnet18", "my_net.py:Net"])
def test_num_classes_is_none_of_them(arch, tmp_path):
    (tmp_path / "my_net.py").write_text(NET)
    told = refused(arch, "{num_classes: 5}", tmp_path)
    assert told.startswith("r.yaml:5: models.student.options.num_classes: stands beside `arch`")


def test_what_a_recipe_says_elsewhere():
    assert "options.pretrained: is said beside `arch`, as `weights: pretrained`" in refused(
        "resnet8", "{pretrained: true}"
    )
    assert "options.weights: stands beside `arch`" in refused("torchvision/resnet18", "{weights: DEFAULT}")
    assert "options.checkpoint_path: is said beside" in refused("timm/test_resnet", "{checkpoint_path: x.pth}")
    assert "options.base: is a word that kdkit itself gives" in refused("resnet8", "{base: 3}")


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("resnet8", "{widths: [8, 8]}", "resnet8: could not be built with widths=[8, 8]: IndexError: "),
        ("timm/test_resnet", "{depht: 3}", "timm/test_resnet: could not be built with depht=3: TypeError: "),
        ("torchvision/resnet18", "{groups: 3}", "torchvision/resnet18: could not be built with groups=3: ValueError: "),
    ],
)
def test_what_only_building_shows_is_one_line(arch, options, message):
    told = refused(arch, options)
    assert told.startswith("r.yaml:5: models.student.options.")
    assert message in told
    assert "\n" not in told


def test_of_a_net_of_ones_own_with_the_line_of_its_file(tmp_path):
    (tmp_path / "my_net.py").write_text(NET)
    told = refused("my_net.py:Net", "{depth: 4}", tmp_path)
    assert told.startswith("r.yaml:5: models.student.options.depth: ")
    assert "my_net.py:Net: could not be built with depth=4\n" in told
    assert 'my_net.py:7: raise LookupError("too deep")\n  LookupError: too deep' in told
    assert "unexpected keyword argument 'deep'; it takes: num_classes, depth=2" in refused(
        "my_net.py:Net", "{deep: 4}", tmp_path
    )


def test_an_input_is_a_name_or_a_number():
    text = RECIPE.replace("    options: OPTIONS\n", "    input: WHICH\n").replace("ARCH", "resnet8")
    assert [loads(text.replace("WHICH", word)).models["student"].input for word in ("1", "view1")] == [1, "view1"]
    with pytest.raises(RecipeError, match=r"models\.student\.input: must be text or at least 0, got -1"):
        loads(text.replace("WHICH", "-1"))
