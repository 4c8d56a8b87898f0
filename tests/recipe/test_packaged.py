"""The packaged recipes: found, counted, short, headed, right, and at their published settings."""

import re

import pytest

from kdkit.recipe import content_key, fingerprint, load, loads, packaged, resolved
from kdkit.recipe.find import find, home, protocol_names

NAMES = [
    "teacher_resnet56_cifar100",
    "student_resnet20_cifar100",
    "kd_cifar100",
    "hint_cifar100",
    "at_cifar100",
    "nst_cifar100",
    "sp_cifar100",
    "vid_cifar100",
    "reviewkd_cifar100",
    "cc_cifar100",
    "fsp_cifar100",
    "ft_cifar100",
    "ab_cifar100",
    "dkd_cifar100",
    "dist_cifar100",
    "kd_standardised_cifar100",
    "simkd_cifar100",
    "pkt_cifar100",
    "rkd_cifar100",
    "crd_cifar100",
    "crd_kd_cifar100",
    "crd_inbatch_cifar100",
    "dml_cifar100",
    "dml_paper_cifar100",
    "dml_hetero_cifar100",
    "dml_elastic_cifar100",
    "dml_coordinated_cifar100",
    "dml_views_cifar100",
    "sid_cifar100",
    "sid_isolated_cifar100",
    "sid_control_head_cifar100",
    "sid_control_bp_cifar100",
    "sid_control_heads_cifar100",
    "sid_control_bp_deep_cifar100",
    "kd_imagenet",
    "at_imagenet",
    "crd_imagenet",
    "crd_kd_imagenet",
    "teacher_digits",
    "student_digits",
    "kd_digits",
    "vit_mobilenet_folder",
]
FILES = sorted(home().rglob("*.yaml"))


def test_all_of_them_are_found_by_name():
    assert sorted(info.name for info in packaged()) == sorted(NAMES)
    assert len(FILES) == len(NAMES) + len(protocol_names()) == 45
    assert {find(info.name) for info in packaged()} == {info.path for info in packaged()}
    assert protocol_names() == ["cifar100_240", "digits_20", "imagenet_100"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_is_short_and_says_what_it_is(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 25
    assert all(len(line) <= 140 for line in lines)
    assert lines[0].startswith("# ")
    if path.parent == home():
        assert lines[1].startswith(f"# kdkit fit {path.stem}")
        paper = re.search(r"\d\d\.\d\d|no published number", lines[0])
        assert paper, "the header names the published number"


@pytest.mark.parametrize("name", NAMES)
def test_each_is_right_and_loads_again_from_its_resolved_text(name):
    recipe = load(name)
    assert recipe.name == name
    assert loads(resolved(recipe), folder=recipe.origin.folder) == recipe
    short = load(name, ["trainer.max_epochs=3"])  # a short run is in proportion: no milestone gets lost
    assert short.lr == recipe.lr
    assert content_key(short) != content_key(recipe)


def test_methods_under_one_protocol_are_compared_fairly():
    students = [n for n in NAMES if n.endswith("_cifar100") and "teacher" in load(n).models]
    students.remove("simkd_cifar100")  # whose student has a projector, and another fingerprint
    assert len(students) == 19
    assert len({fingerprint(load(name)) for name in students}) == 1
    assert len({fingerprint(load(n)) for n in NAMES if n.endswith("_imagenet")}) == 1
    assert load("student_resnet20_cifar100").models["student"] == load("kd_cifar100").models["student"]


def test_sid_and_its_controls_differ_in_nothing_but_the_modules():
    """One extractor, one budget: what their fingerprints tell apart is how the modules hang together."""
    recipes = [load(name) for name in NAMES if name.startswith("sid_")]
    assert len(recipes) == 6
    assert {recipe.models["student"].options["backbone"] for recipe in recipes} == {"resnet20"}
    rest = [recipe.model_dump(exclude={"models", "losses"}) for recipe in recipes]
    assert all(other == rest[0] for other in rest)


@pytest.mark.parametrize(
    ("name", "edges"),
    [
        ("kd_cifar100", {"ce": 0.1, "kd": 0.9}),
        ("hint_cifar100", {"ce": 1, "hint": 100}),
        ("at_cifar100", {"ce": 1, "at": 1000}),
        ("nst_cifar100", {"ce": 1, "nst": 50}),
        ("pkt_cifar100", {"ce": 1, "pkt": 30000 / 64}),
        ("rkd_cifar100", {"ce": 1, "rkd": 1}),
        ("sp_cifar100", {"ce": 1, "sp": 3000 / 64}),
        ("vid_cifar100", {"ce": 1, "vid": 1}),
        ("cc_cifar100", {"ce": 1, "cc": 0.02}),
        ("fsp_cifar100", {"fsp": 1, "ce": 1}),
        ("ab_cifar100", {"ab": 0.003, "ce": 1}),
        ("ft_cifar100", {"ft": 1, "ce": 1}),
        ("dist_cifar100", {"ce": 1, "dist": 2}),
        ("kd_standardised_cifar100", {"ce": 0.1, "kd": 9}),
        ("crd_cifar100", {"ce": 1, "crd": 0.8}),
        ("crd_kd_cifar100", {"ce": 1, "kd": 1, "crd": 0.8}),
        ("kd_imagenet", {"ce": 0.5, "kd": 0.5}),
        ("at_imagenet", {"ce": 1, "at": 1000}),
        ("crd_imagenet", {"ce": 1, "crd": 0.8}),
        ("dml_paper_cifar100", {"ce": 1, "dml": 1}),
    ],
)
def test_the_published_weights(name, edges):
    assert {edge.title: edge.weight for edge in load(name).losses} == edges


def test_the_published_settings():
    cifar, imagenet, dml = load("crd_cifar100"), load("kd_imagenet"), load("dml_paper_cifar100")
    assert cifar.optimizer.arguments == {"momentum": 0.9, "weight_decay": 5e-4}
    assert (cifar.trainer.max_epochs, cifar.data.arguments["batch_size"]) == (240, 64)
    assert milestones(cifar) == [(0, 0.05), (150, 0.005), (180, 0.0005), (210, 0.00005)]
    assert imagenet.optimizer.arguments == {"momentum": 0.9, "weight_decay": 1e-4}
    assert (imagenet.trainer.max_epochs, imagenet.data.arguments["batch_size"]) == (100, 256)
    assert milestones(imagenet) == [(0, 0.1), (30, 0.01), (60, 0.001), (90, 0.0001)]
    assert imagenet.losses[1].arguments == {"temperature": 1.0}
    assert dml.optimizer.arguments["nesterov"] is True
    assert milestones(dml) == [(0, 0.1), (60, 0.01), (120, 0.001), (180, 0.0001)]
    crd = load("crd_cifar100").losses[1]
    defaults = crd.model_dump(by_alias=True)
    assert (defaults["num_negatives"], defaults["temperature"], defaults["momentum"]) == (16384, 0.07, 0.5)


def milestones(recipe) -> list[tuple[int, float]]:
    """The epochs at which the learning rate changes, and to what."""
    from kdkit.graph import Schedule

    curve = Schedule.parse(recipe.lr).bind(recipe.trainer.max_epochs)
    rates = [round(curve(epoch), 9) for epoch in range(recipe.trainer.max_epochs)]
    return [(epoch, rate) for epoch, rate in enumerate(rates) if epoch == 0 or rate != rates[epoch - 1]]
