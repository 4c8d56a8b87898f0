"""A teacher that is read from disk teaches what it would teach live."""

from itertools import product

import pytest
import torch
from torch import nn

import kdkit
from kdkit import data
from kdkit.registry import KdkitError
from tests.nets import net
from tests.train.running import fit, loader


def digits(**options):
    return data.build("digits", image_size=8, subset=200, batch_size=50, padding=1, **options)


class Scaled(nn.Module):
    """Its answers follow from a buffer that no checkpoint keeps, and from a number that nobody sees."""

    def __init__(self, net, scale=1.0, factor=1.0):
        super().__init__()
        self.net, self.factor = net, factor
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, x):
        return self.net(x) * self.scale * self.factor


def distiller(cache, seed=0, losses=("ce", "kd", "cosine"), teacher=1, scale=1.0, factor=1.0, **options):
    nodes = {
        "teacher": kdkit.frozen(Scaled(net(8, seed=teacher, classes=10), scale, factor), cache=cache),
        "student": net(8, seed=2, classes=10),
    }
    return kdkit.Distiller(nodes, list(losses), lr=0.05, seed=seed, **options)


def trained(cache, epochs=2, datamodule=None, **options):
    made = distiller(cache, **options)
    fit(made, datamodule or digits(), epochs=epochs)
    return made


def lessons(made):
    """Sizes of the batches that the teacher is asked for; those of training hold 50 images."""
    sizes = []
    made.teacher.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    return sizes


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.student.parameters()])


def assert_alike(one, other):
    """But for rounding: some processors' kernels give a row other last bits at another place of its batch."""
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by", ["views", "epochs"])
def test_the_student_is_the_live_teachers(tmp_path, by):
    """Whether a row was just computed or read."""
    cache = {"by": by, "dtype": "float32", "folder": str(tmp_path)}
    live = trained(False)
    assert_alike(trained(cache), live)
    assert_alike(trained(cache), live)


def test_where_a_function_lies_in_memory_is_nothing_that_a_model_says(tmp_path, monkeypatch):
    cache, made = {"folder": str(tmp_path)}, []  # held, so that no two lie at one place
    monkeypatch.setattr(
        Scaled, "extra_repr", lambda self: made.append(lambda: None) or f"act={made[-1]}", raising=False
    )
    for _ in range(2):
        trained(cache, epochs=1)
    assert len({str(f) for f in made}) > 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_second_run_asks_the_teacher_nothing(tmp_path):
    cache = {"by": "epochs", "folder": str(tmp_path)}
    first = trained(cache)
    second = distiller(cache)
    asked = lessons(second)
    fit(second, digits(), epochs=2)
    assert torch.equal(weights(first), weights(second))
    assert asked.count(50) == 1  # whether it still says what was kept
    assert 256 in asked  # in validation
    assert len(list(tmp_path.iterdir())) == 1


def test_views_serve_another_seed_and_more_epochs(tmp_path):
    cache = {"by": "views", "dtype": "float32", "folder": str(tmp_path)}
    trained(cache, datamodule=digits(seed=1))
    assert_alike(trained(cache, 3, seed=5), trained(False, 3, seed=5))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("other", ["teacher", "buffer", "data", "views", "seed of epochs"])
def test_nothing_is_read_that_belongs_to_something_else(tmp_path, other):
    cache = {"by": "epochs" if other == "seed of epochs" else "views", "dtype": "float32", "folder": str(tmp_path)}
    trained(cache)
    options = {
        "teacher": {"teacher": 7},
        "buffer": {"scale": 3.0},
        "data": {"datamodule": digits(split_seed=3)},
        "views": {"datamodule": digits(augment=False)},
        "seed of epochs": {"datamodule": digits(seed=3)},
    }[other]
    assert_alike(trained(cache, **options), trained(False, **options))
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_kept_is_of_one_precision_and_one_normalisation(tmp_path):
    own = {"mean": (0.1,) * 3, "std": (0.5,) * 3}
    for words, options in (({}, {}), (own, {}), ({}, {"precision": "bf16-mixed"})):
        teacher = kdkit.frozen(Scaled(net(8, seed=1, classes=10)), cache={"folder": str(tmp_path)}, **words)
        nodes = {"teacher": teacher, "student": net(8, seed=2, classes=10)}
        fit(kdkit.Distiller(nodes, ["ce", "kd"], lr=0.05), digits(), epochs=1, **options)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("by", ["views", "epochs"])
def test_a_model_whose_code_says_something_else_is_found_out(tmp_path, by):
    cache = {"by": by, "folder": str(tmp_path)}
    trained(cache)
    with pytest.raises(KdkitError, match=r"does not hold what this model says now \(logits is 9\.1% off\)"):
        trained(cache, factor=1.1)
    other = distiller(cache, factor=1.1)
    other.on_train_start = lambda: list(other.memories["teacher"].fill())
    with pytest.raises(KdkitError, match="remove the folder"):
        fit(other, digits(), epochs=1)


def test_mass_is_spread_at_temperature_one_alone(tmp_path):
    cache = {"top_k": 3, "folder": str(tmp_path)}
    moving = {"linear": [1.0, 2.0]}
    for losses in (["kd"], [kdkit.Edge("kd", temperature=moving)], ["cosine", kdkit.Edge("kd", temperature=2)]):
        with pytest.raises(KdkitError, match=r"say losses\.kd\.temperature=1, or leave top_k out"):
            trained(cache, losses=losses)
    trained(cache, losses=[kdkit.Edge("kd", temperature=1)])
    trained(cache, losses=[kdkit.Edge("kd", temperature=1)])


class OfEmbeddings(nn.Module):
    """Reads logits, though its taps are others."""

    tap = "embedding"

    def forward(self, student, teacher, teacher_logits):
        return (student - teacher).square().mean() * teacher_logits.square().mean()


class OfTheirSoftmax(OfEmbeddings):
    of_probabilities = True


OF_LOGITS = {
    "mse": kdkit.Edge("mse", taps="logits"),
    "pkt": kdkit.Edge("pkt", taps="logits"),
    "kd": kdkit.Edge("kd", temperature=1, standardise=True),
    "dkd": kdkit.Edge("dkd", temperature=1, standardise=True),
    "OfEmbeddings": kdkit.Edge(OfEmbeddings),
}


@pytest.mark.parametrize("name", OF_LOGITS)
def test_probabilities_do_not_serve_who_reads_logits(tmp_path, name):
    with pytest.raises(KdkitError, match=f"top_k keeps probabilities, and {name} reads the logits themselves"):
        trained({"top_k": 3, "folder": str(tmp_path)}, losses=["ce", OF_LOGITS[name]])


def test_a_loss_of_ones_own_says_that_probabilities_serve_it(tmp_path):
    with pytest.raises(KdkitError, match="leave top_k out, or say `of_probabilities = True` in OfEmbeddings where it"):
        trained({"top_k": 3, "folder": str(tmp_path)}, losses=["ce", kdkit.Edge(OfEmbeddings)])
    trained({"top_k": 3, "folder": str(tmp_path)}, epochs=1, losses=["ce", kdkit.Edge(OfTheirSoftmax)])


@pytest.mark.parametrize("name", ["dist", "dkd", "dml", "hard"])
def test_probabilities_serve_who_reads_them(tmp_path, name):
    words = {} if name == "hard" else {"temperature": 1}
    trained({"top_k": 3, "folder": str(tmp_path)}, epochs=1, losses=["ce", kdkit.Edge(name, **words)])


def test_top_k_without_logits(tmp_path):
    with pytest.raises(KdkitError, match="top_k is of logits, and no loss reads this model's; leave it out"):
        trained({"top_k": 3, "folder": str(tmp_path)}, losses=["ce", "cosine"])


@pytest.mark.parametrize("workers", [0, 2])
def test_files_without_views(tmp_path, workers):
    from PIL import Image

    for i in range(12):
        (folder := tmp_path / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 99, 0)).save(folder / f"{i}.png")

    def images():
        words = {"root": tmp_path / "images", "holdout": 2, "image_size": 8, "augment": False, "batch_size": 5}
        return data.build("folder", **words, num_workers=workers)

    made = distiller({"folder": str(tmp_path / "cache")}, losses=["cosine"])
    made.on_train_start = lambda: list(made.memories["teacher"].fill())
    fit(made, images(), epochs=1)
    assert made.memories["teacher"].verify() == (10, 10, pytest.approx(0, abs=1e-2))


def test_fill_and_verify(tmp_path):
    made = distiller({"folder": str(tmp_path)})
    fit(made, digits(), epochs=1)
    memory = made.memories["teacher"]
    rows = 200 * 9
    assert memory.verify()[:2] == (rows, 200)
    assert sum(memory.fill()) == rows
    seen, there, difference = memory.verify()
    assert (seen, there) == (rows, rows)
    assert difference < 2**-8
    memory.cache.file.words[5, 0] ^= 1
    assert memory.verify()[1] == rows - 1
    made.teacher.net.load_state_dict(net(8, seed=9, classes=10).state_dict())
    assert memory.verify()[2] > 0.1


def test_held_on_the_device_it_teaches_the_same(tmp_path):
    cache = {"dtype": "float32", "folder": str(tmp_path)}
    first = distiller(cache)
    first.on_train_start = lambda: [*first.memories["teacher"].fill(), first.memories["teacher"].cache.live_on("cpu")]
    asked = lessons(first)
    fit(first, digits(), epochs=2)
    assert 50 not in asked
    assert {1024, 200 * 9 - 1024} < set(asked)
    torch.testing.assert_close(weights(first), weights(trained(False)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("word", ["by", "dtype", "top_k", "folders"])
def test_wrong_words(word):
    with pytest.raises(KdkitError, match="cache: "):
        trained({word: "nope" if word != "top_k" else 10})


def test_data_that_draw_by_themselves_are_refused():
    with pytest.raises(KdkitError, match="take one of them, or leave `cache` out"):
        fit(distiller(True), loader())


def test_what_changes_is_not_cached():
    for kind, word in product(("trained",), (True, {"by": "epochs"})):
        with pytest.raises(KdkitError, match="a trained node changes"):
            kdkit.Node(net(8, seed=1), kind, cache=word)


def test_a_model_that_says_no_number_any_more_is_not_believed(tmp_path):
    cache = {"folder": str(tmp_path)}
    trained(cache)
    with pytest.raises(KdkitError, match="does not hold what this model says now"):
        trained(cache, factor=float("nan"))
