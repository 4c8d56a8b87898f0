"""What every registered loss promises; registering one is enough to have it checked here."""

from __future__ import annotations

import ast
import copy
import inspect
import os
import pickle
import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import kdkit.losses
from kdkit.registry import LOSSES, constructor

NAMES = sorted(LOSSES)
STUDENT = ("student", "students", "student_logits")
TEACHER = ("teacher", "teachers", "teacher_logits")
MOST = {
    "reviewkd": 1e5,  # BatchNorm after BatchNorm, each 1e-5 ** -0.5 times where nothing varies
    "fsp": 1e7,  # the square of a product: at ±1000 a gradient is a mean of some 1000 ** 3
}

pytestmark = pytest.mark.parametrize("name", NAMES)


def build(name, dtype=torch.float64):
    """A fresh loss and its example inputs, equal at every call; the student's tensors ask for gradients."""
    torch.manual_seed(0)
    options, words = LOSSES[name].example()
    loss = LOSSES[name].cls(**options).to(dtype)
    words = {word: each(lambda t: t.to(dtype) if t.is_floating_point() else t, value) for word, value in words.items()}
    return loss, with_gradients(words)


def with_gradients(words, sides=STUDENT):
    return {w: each(lambda t: t.detach().clone().requires_grad_(), v) if w in sides else v for w, v in words.items()}


def each(change, value):
    if isinstance(value, (list, tuple)):
        return [each(change, v) for v in value]
    return change(value) if isinstance(value, Tensor) else value


def tensors(words, sides):
    found = []
    for side in sides:
        each(found.append, words.get(side))
    return found


def run(loss, words):
    """The value and the gradients of the student's tensors, of a copy: banks and step counters stay as they were."""
    value = copy.deepcopy(loss)(**words)
    return value, torch.autograd.grad(value, tensors(words, STUDENT))


def test_scalar_finite_and_differentiable(name):
    value, gradients = run(*build(name))
    assert value.shape == ()
    assert value.isfinite()
    assert gradients
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients)


def test_teacher_is_a_constant(name):
    loss, words = build(name)
    words = with_gradients(words, STUDENT + TEACHER)
    loss(**words).backward()
    assert all(t.grad is None for t in tensors(words, TEACHER))
    assert all(s.grad is not None for s in tensors(words, STUDENT))


def test_zero_exactly_where_declared(name):
    if not LOSSES[name].zero_at_match:
        pytest.skip("not zero at a match, as declared")
    loss, words = build(name)
    for student, teacher in zip(STUDENT, TEACHER, strict=True):
        if teacher in words:
            words[teacher] = each(Tensor.detach, words[student])
    value, gradients = run(loss, words)
    assert value.abs() < 1e-12
    assert all(g.abs().max() < 1e-6 for g in gradients)


def test_order_of_the_batch_is_irrelevant(name):
    loss, words = build(name)
    batch = len(tensors(words, STUDENT)[0])
    order = torch.randperm(batch)
    permuted = {w: each(lambda t: t[order] if t.ndim and len(t) == batch else t, v) for w, v in words.items()}
    value, gradients = run(loss, words)
    other, others = run(loss, with_gradients(permuted))
    torch.testing.assert_close(other, value)
    for g, o in zip(gradients, others, strict=True):
        torch.testing.assert_close(o, g[order])


def test_the_smallest_batch_teaches_and_a_smaller_one_is_refused(name):
    loss, words = build(name)
    whole, least = len(tensors(words, STUDENT)[0]), getattr(loss, "min_batch", 1)
    words |= {"labels": torch.arange(whole)} if "labels" in words and name == "crd_inbatch" else {}

    def first(count):
        cut = {w: each(lambda t: t[:count] if t.ndim and len(t) == whole else t, v) for w, v in words.items()}
        return with_gradients(cut)

    _, gradients = run(loss, first(least))
    assert all(g.abs().max() > 1e-9 for g in gradients)
    with pytest.raises(ValueError, match=rf"{name}: batch must hold at least {least} samples?, got {least - 1}"):
        run(loss, first(least - 1))
    with pytest.raises(ValueError, match=rf"{name}: batch must hold .*, got 0"):
        run(loss, first(0))


def test_gradient(name):
    if name == "sid":
        pytest.skip("each module is a constant to the next, which differences cannot see; test_sid.py has its gradient")
    if name == "crd":
        pytest.skip("Z follows from the first batch and counts as a constant; test_crd.py has its gradient")
    loss, words = build(name)
    sides = [side for side in STUDENT if side in words]
    flat = tensors(words, sides)

    def value(*moved):
        rest = iter(moved)
        return copy.deepcopy(loss)(**words | {side: each(lambda t: next(rest), words[side]) for side in sides})

    many = sum(t.numel() for t in flat) > 150  # then along random directions, instead of each by itself
    assert torch.autograd.gradcheck(value, flat, eps=1e-6, atol=1e-5, fast_mode=many)


def test_to_differentiate_again_is_exact_or_refused(name):
    if name == "sid":
        pytest.skip("each module is a constant to the next, which differences cannot see")
    loss, words = build(name)
    sides = [side for side in STUDENT if side in words]
    flat = tensors(words, sides)
    torch.manual_seed(1)
    along = [torch.randn_like(t) for t in flat]

    def slope(moved, **graph):
        rest = iter(moved)
        value = copy.deepcopy(loss)(**words | {side: each(lambda t: next(rest), words[side]) for side in sides})
        gradients = torch.autograd.grad(value, moved, **graph)
        return sum((g * a).sum() for g, a in zip(gradients, along, strict=True))

    once = slope(flat, create_graph=True)
    if "differentiate it again raises" in " ".join(inspect.getdoc(type(loss)).split()):
        with pytest.raises(RuntimeError, match="cannot be differentiated again"):
            torch.autograd.grad(once, flat)
        return
    gradients = torch.autograd.grad(once, flat)
    found = sum((g * a).sum() for g, a in zip(gradients, along, strict=True))
    ends = [
        slope([(t.detach() + s * a).requires_grad_() for t, a in zip(flat, along, strict=True)]) for s in (1e-6, -1e-6)
    ]
    torch.testing.assert_close(found, (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("sides", [STUDENT, TEACHER])
def test_what_is_not_finite_is_seen_in_the_value(name, sides, number):
    loss, words = build(name, torch.float32)
    if not tensors(words, sides):
        pytest.skip("no such side")
    for t in tensors(words, sides):
        t.data[0].view(-1)[0] = number
    assert not loss(**words).isfinite()


def test_one_tensor_is_no_list_of_layers(name):
    """Its samples would be taken for layers."""
    loss, words = build(name)
    sides = [side for side in STUDENT + TEACHER if isinstance(words.get(side), list)]
    if not sides:
        pytest.skip("reads no lists")
    for side in sides:
        with pytest.raises(ValueError, match=f"{name}: {side} must be a list of layers, got one Tensor; say"):
            loss(**{**words, side: words[side][0]})


@pytest.mark.parametrize("wide", [STUDENT, TEACHER])
def test_two_types_meet_in_the_wider(name, wide):
    loss, words = build(name, torch.float32)
    if not tensors(words, TEACHER):
        pytest.skip("one side alone")
    expected, _ = run(loss, words)
    value, gradients = run(loss, words | with_gradients({w: each(Tensor.double, words[w]) for w in wide if w in words}))
    torch.testing.assert_close(value, expected.double(), rtol=2e-4, atol=1e-5)
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda t: SimpleNamespace(logits=t), "a tensor, got SimpleNamespace; take it out of the model's output"),
        (lambda t: t.detach().numpy(), "a tensor, got ndarray"),
        (lambda t: (t.detach() * 10).long(), "of a floating type, got torch.int64"),
    ],
)
@pytest.mark.parametrize("sides", [STUDENT, TEACHER])
def test_what_is_no_tensor_of_numbers_is_told(name, sides, wrong, text):
    loss, words = build(name)
    for side in sides:
        if side in words:
            with pytest.raises(ValueError, match=f"{name}: {side} must be {text}"):
                loss(**words | {side: each(wrong, words[side])})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_promoted(name, dtype):
    loss, words = build(name, torch.float32)
    half = {w: each(lambda t: t.to(dtype) if t.is_floating_point() else t, v) for w, v in words.items()}
    rounded = {w: each(lambda t: t.float() if t.is_floating_point() else t, v) for w, v in half.items()}
    expected, _ = run(loss, with_gradients(rounded))
    value, gradients = run(loss, with_gradients(half))
    assert value.dtype == torch.float32
    assert all(g.dtype == dtype for g in gradients)
    torch.testing.assert_close(value, expected)
    with torch.autocast("cpu", dtype):
        value, _ = run(loss, with_gradients(half))
    torch.testing.assert_close(value, expected)


def test_float64_stays_and_agrees_with_float32(name):
    value, gradients = run(*build(name, torch.float64))
    assert value.dtype == torch.float64
    assert all(g.dtype == torch.float64 for g in gradients)
    loss, words = build(name, torch.float64)
    single = {w: each(lambda t: t.float() if t.is_floating_point() else t, v) for w, v in words.items()}
    torch.testing.assert_close(run(loss.float(), with_gradients(single))[0].double(), value, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["±1000", "duplicates", "a zero sample", "all zero", "all equal", "student zero"])
def test_extremes_stay_finite(name, case):
    def extreme(t, student):
        t = t.detach().clone()
        if case == "±1000":
            return t.sign() * 1000
        if case == "duplicates":
            t[1] = t[0]
        elif case == "a zero sample":
            t[0] = 0
        elif case == "all equal":
            t[:] = t[0].clone()
        elif case == "all zero" or student:
            t.zero_()
        return t

    loss, words = build(name, torch.float32)
    for side in STUDENT + TEACHER:
        if side in words:
            words[side] = each(lambda t, side=side: extreme(t, side in STUDENT), words[side])
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either, not even one that is masked later
        value, gradients = run(loss, with_gradients(words))
    assert value.isfinite()
    assert all(g.isfinite().all() and g.abs().max() < MOST.get(name, 1e4) for g in gradients)


def test_nothing_waits_for_the_device(name):
    """Meta tensors hold no values: whatever looks at one (`.item()`, `if tensor`, `nonzero`) raises."""
    loss, words = build(name)
    words = {w: each(lambda t: t.to("meta"), v) for w, v in words.items()}
    assert loss.to("meta")(**words).shape == ()


def numbers(loss):
    """Its float hyper-parameters, which a recipe may turn into schedules."""
    found = {w: p.default for w, p in constructor(type(loss)).items() if isinstance(p.default, float)}
    assert found.keys() <= vars(loss).keys(), "a float argument is stored under its own name"
    return [w for w in found if type(vars(loss)[w]) is float and w not in getattr(loss, "fixed", ())]


def schedule(loss, factor=1.0):
    """As the graph does it: the number becomes a 0-dim buffer."""
    for word in numbers(loss):
        value = getattr(loss, word)
        delattr(loss, word)
        loss.register_buffer(word, torch.tensor(value * factor), persistent=False)


def test_hyperparameters_may_be_tensors(name):
    loss, words = build(name, torch.float32)
    expected, _ = run(loss, words)
    schedule(loss)
    torch.testing.assert_close(run(loss, words)[0], expected)
    torch.testing.assert_close(run(loss.double(), build(name)[1])[0].float(), expected, rtol=2e-4, atol=1e-5)


def test_compiles_to_one_graph_that_follows_its_hyperparameters(name):
    loss, words = build(name, torch.float32)
    schedule(loss)
    moved = copy.deepcopy(loss)
    for word, buffer in moved.named_buffers():
        if word in constructor(type(moved)):
            buffer.mul_(0.9)
    expected = [run(loss, words), run(moved, words)]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    state = copy.deepcopy(list(loss.buffers()))
    for i, (value, gradients) in enumerate(expected):
        with torch.no_grad():
            for buffer, before, after in zip(loss.buffers(), state, moved.buffers(), strict=True):
                buffer.copy_(after if i else before)
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            found = compiled(**words)
        torch.testing.assert_close(found, value)
        torch.testing.assert_close(torch.autograd.grad(found, tensors(words, STUDENT)), gradients)


def test_compiles_with_plain_hyperparameters(name):
    loss, words = build(name, torch.float32)
    if not numbers(loss):
        pytest.skip("has none: it compiled above")
    expected, _ = run(loss, words)
    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="eager")(**words), expected)


@pytest.mark.skipif("KDKIT_NIGHTLY" not in os.environ, reason="minutes of Inductor: set KDKIT_NIGHTLY=1")
@pytest.mark.parametrize("moving", [False, True], ids=["plain", "scheduled"])
@pytest.mark.filterwarnings("ignore")  # Inductor's
def test_inductor_has_the_gradient(name, moving):
    """`aot_eager` runs torch's own operations; Inductor writes others, and in place, where saved tensors may lie."""
    loss, words = build(name, torch.float32)
    if moving:
        schedule(loss)
    value, gradients = run(copy.deepcopy(loss), words)
    torch.compiler.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        found = torch.compile(loss, fullgraph=True)(**words)
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(found, tensors(words, STUDENT)), gradients, rtol=1e-3, atol=1e-5)


def test_copies_pickles_and_restores(name):
    loss, words = build(name)
    expected, _ = run(loss, words)
    torch.testing.assert_close(pickle.loads(pickle.dumps(loss))(**words), expected, rtol=0, atol=0)
    torch.manual_seed(0)
    options, _ = LOSSES[name].example()
    torch.manual_seed(1)
    other = LOSSES[name].cls(**options).double()
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(**words), expected, rtol=0, atol=0)


def test_parameters_are_registered_saved_and_trained(name):
    loss, words = build(name)
    for module in loss.modules():
        for attribute, value in vars(module).items():
            if not attribute.startswith("_"):
                inside = value.values() if isinstance(value, dict) else value
                inside = list(inside) if isinstance(value, (list, tuple, dict)) else [value]
                assert not any(isinstance(v, nn.Parameter) for v in inside), f"{attribute} hides a parameter"
    assert dict(loss.named_parameters()).keys() <= loss.state_dict().keys()
    loss(**words).backward()
    for word, parameter in loss.named_parameters():
        assert parameter.grad is not None, word
        assert parameter.grad.abs().max() > 0, word


def test_documented(name):
    info = LOSSES[name]
    doc = inspect.getdoc(info.cls)
    for heading in ("Formula:", "Returns:", "Reference:"):
        assert heading in doc
    assert info.summary.endswith(".")
    arguments = [w for w, p in constructor(info.cls).items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert all(f"\n    {word}: " in doc for word in arguments)
    assert all(f"`forward({word}" in doc or f", {word}" in doc for word in info.reads)
    if set(TEACHER) & set(info.reads):
        assert "detached" in doc
    where = re.search(r"arXiv \d{4}\.\d{4,5}|pp\. \d+-\d+$", info.paper)[0]  # pages where a paper is not on arXiv
    assert where.removeprefix("arXiv ") in doc.split("Reference:")[1]
    assert info.weight > 0
    assert info.weight_source


def shown(loss):
    return {w: ast.literal_eval(v) for w, v in (pair.split("=") for pair in loss.extra_repr().split(", ") if pair)}


def test_shows_what_it_was_made_with(name):
    """As `print` shows modules; a number that a schedule moves is shown as it stands."""
    loss, _ = build(name)
    plain = {w: v for w, v in vars(loss).items() if w in constructor(type(loss)) and isinstance(v, (int, float, str))}
    assert plain.items() <= shown(loss).items()
    schedule(loss, factor=0.3)
    moved = {w: round(0.3 * v, 9) for w, v in plain.items() if w not in vars(loss)}
    assert moved.items() <= shown(loss).items()
    assert moved.items() <= shown(loss.double()).items()
    assert repr(loss.to("meta"))


def test_exported_under_its_class_name(name):
    cls = LOSSES[name].cls
    assert getattr(kdkit.losses, cls.__name__) is cls
    assert cls.__name__ in kdkit.losses.__all__
    assert kdkit.losses.__all__ == sorted(kdkit.losses.__all__)
    assert len(NAMES) >= 14


def test_never_waits_for_the_device(name):
    """Neither way, told without a GPU: on the meta device there is no number to look at, so that a look raises."""
    loss, words = build(name, torch.float32)
    words = {word: each(lambda t: t.detach().to("meta"), value) for word, value in words.items()}
    words = with_gradients(words)
    value = loss.to("meta")(**words)
    value.backward()
    assert value.device.type == "meta"
    assert all(t.grad is not None for t in tensors(words, STUDENT))
