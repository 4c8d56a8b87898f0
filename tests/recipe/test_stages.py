"""`stages` in a recipe: losses of their own, one after the other on the same models."""

import pytest

from kdkit.recipe import content_key, fingerprint, json_schema, load, loads, resolved
from kdkit.recipe.build import build
from kdkit.recipe.errors import RecipeError
from kdkit.runs.check import check

BASE = """
protocol: digits_20
models: {teacher: {arch: resnet14, weights: random}, student: {arch: resnet8}}
"""
TWO_STEPS = (
    BASE
    + """
stages:
  - {name: hints, epochs: 0.4, losses: [hint: {taps: stage2, head: conv_bn_relu}]}
  - {name: learning, train: [student.layer3, student.fc], losses: [ce, kd: {weight: 0.9}]}
"""
)


def spans(recipe):
    return {edge.title: edge.when for edge in recipe.losses}


def test_each_loss_has_its_stages_time():
    recipe = loads(TWO_STEPS)
    assert spans(recipe) == {"hint": {"to": 0.4}, "ce": {"from": 0.4}, "kd": {"from": 0.4}}
    built = build(recipe, weights=None).stages
    assert [(stage.name, stage.train) for stage in built] == [
        ("hints", None),
        ("learning", ["student.layer3", "student.fc"]),
    ]


def test_overrides_reach_a_stages_loss_by_name():
    recipe = loads(TWO_STEPS, overrides=["losses.kd.weight=0.2", "trainer.max_epochs=5"])
    assert next(edge for edge in recipe.losses if edge.title == "kd").weight == 0.2


def test_losses_above_last_the_whole_run_and_a_name_that_comes_twice_gets_its_stages():
    text = BASE + "losses: [ce]\nstages: [{epochs: 3, losses: [kd]}, {epochs: 5, losses: [kd, at]}, {losses: [kd]}]"
    assert spans(loads(text)) == {
        "ce": None, "kd": {"to": 3}, "kd_stage2": {"from": 3, "to": 8}, "at": {"from": 3, "to": 8},
        "kd_stage3": {"from": 8},
    }  # fmt: skip


def test_shares_that_come_to_the_whole():
    text = BASE + "stages: [{epochs: 0.3, losses: [kd]}, {epochs: 0.3, losses: [at]}, {epochs: 0.4, losses: [ce]}]"
    assert spans(loads(text)) == {"kd": {"to": 0.3}, "at": {"from": 0.3, "to": 0.6}, "ce": {"from": 0.6}}


def test_sums_of_shares_are_rounded_and_one_epoch_is_no_share():
    text = BASE + "stages: [{epochs: 0.1, losses: [kd]}, {epochs: 0.2, losses: [at]}, {losses: [ce]}]"
    assert spans(loads(text)) == {"kd": {"to": 0.1}, "at": {"from": 0.1, "to": 0.3}, "ce": {"from": 0.3}}
    text = BASE + "stages: [{epochs: 1, losses: [kd]}, {losses: [ce]}]"
    assert spans(loads(text)) == {"kd": {"to": 1}, "ce": {"from": 1}}


def test_the_resolved_text_is_the_recipe():
    recipe = loads(TWO_STEPS)
    again = loads(resolved(recipe))
    assert again == recipe
    assert content_key(again) == content_key(recipe) != content_key(loads(TWO_STEPS.replace("0.4", "0.5")))
    assert fingerprint(recipe) == fingerprint(loads(BASE + "losses: [ce]"))


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        ("3", r"stages: must be a list, got 3"),
        ("[kd]", r"stages\.0: must be a mapping, got .kd."),
        ("[{losses: [kd]}, {losses: [ce]}]", "only the last stage may do without"),
        ("[{epochs: -1, losses: [kd]}, {losses: [ce]}]", "must be a number above 0"),
        ("[{epochs: 0, losses: [kd]}, {losses: [ce]}]", "must be a number above 0, got 0"),
        ("[{epochs: true, losses: [kd]}, {losses: [ce]}]", "must be a number above 0, got True"),
        ("[{epochs: 0.5, losses: [kd]}, {epochs: 0.5, losses: [at]}, {losses: [ce]}]", "that come to 1 at most"),
        ("[{epochs: 0.5, losses: [kd]}, {epochs: 7, losses: [ce]}]", "all be epochs, or all shares"),
        ("[{epochs: 0.5, losses: [kd]}, {epochs: 0.7, losses: [ce]}]", "all be epochs, or all shares"),
        ("[{epochs: 10, losses: [kd]}, {epochs: 0.5, losses: [ce]}]", "all be epochs, .* got 0.5 after 10"),
        ("[{losses: [kd: {when: {from: 3}}]}]", "leave out `when`"),
        ("[{losses: kd}]", "losses must be a list"),
        ("[{losses: [nope]}]", "nope"),
        ("[{losses: [kd], trian: student}]", "did you mean 'train'"),
        ("[{epcohs: 3, losses: [kd]}, {losses: [ce]}]", r"^recipe:\d+: stages\.0\.epcohs: .*did you mean 'epochs'"),
        ("[{weights: 3, losses: [kd]}]", "unknown key 'weights'; known: name, epochs, losses, train$"),
        ("[{epochs: 50, losses: [kd]}, {losses: [ce]}]", "never comes"),
        (
            "[{name: a, epochs: 2, losses: [kd]},\n{name: a, losses: [ce]}]",
            r"^recipe:5: stages: 'a' stands twice; give one of them another name$",
        ),
        ("[{name: stage2, epochs: 2, losses: [kd]}, {losses: [ce]}]", "'stage2' stands twice"),
        (
            "[{epochs: 50, losses: [kd]}, {name: b, losses: [ce, kd]}]",
            r"^recipe:\d+: stages\.b: epoch 50 never comes in a run of \d+ epochs; shorten the stages .*longer$",
        ),
    ],
)
def test_wrong_stages(stages, problem):
    with pytest.raises(RecipeError, match=problem):
        loads(f"{BASE}stages: {stages}")


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ("studnt", "no trained model or loss is called 'studnt'; did you mean 'student'"),
        ("teacher", "the model 'teacher' is trained at no time: it is frozen, or a slow copy of another one; leave"),
        ("kd", "the loss 'kd' has no weights that could learn"),
        ("[student, hint.haed]", "'hint' has no part 'haed' with weights; did you mean 'head'"),
    ],
)
def test_what_a_stage_trains_is_told_with_its_line(train, problem):
    first = "{name: a, epochs: 2, losses: [hint: {head: conv_bn_relu}]}"
    text = f"{BASE}stages: [{first},\n{{name: b, train: {train}, losses: [kd]}}]"
    with pytest.raises(RecipeError, match=rf"^recipe:5: stages\.b\.train: {problem}"):
        check(loads(text))


def test_without_losses_and_without_stages():
    with pytest.raises(RecipeError, match="losses"):
        loads(BASE)
    assert not load("kd_digits").stages


def test_editors_know_the_words():
    stage = json_schema()["$defs"]["StageSpec"]
    assert {"name", "epochs", "losses", "train"} <= stage["properties"].keys()
    assert not stage["required"]


def test_overrides_reach_a_stage_by_its_name_and_may_bring_all_of_them():
    text = BASE + "stages: [{name: hints, epochs: 3, losses: [kd]}, {name: rest, losses: [at]}]"
    recipe = loads(text, overrides=["stages.hints.epochs=2", "stages.rest.train=[student]"])
    assert spans(recipe) == {"kd": {"to": 2}, "at": {"from": 2}}
    assert recipe.stages[1].train == ["student"]
    whole = loads(
        BASE + "losses: [ce]", overrides=["stages=[{name: a, epochs: 2, losses: [kd]}, {name: b, losses: [at]}]"]
    )
    assert [edge.title for edge in whole.losses] == ["ce", "kd", "at"]
    with pytest.raises(RecipeError, match=r"stages\.hint: no stage has this name; it has: hints, rest"):
        loads(text, overrides=["stages.hint.epochs=2"])


def test_what_is_unfolded_already_takes_no_length():
    """A run's own recipe: its losses would keep the times that they have."""
    written = resolved(loads(TWO_STEPS))
    with pytest.raises(RecipeError, match=r"stages\.0: a stage has `epochs`, or the time that a run wrote"):
        loads(written, overrides=["stages.hints.epochs=0.2"])


def test_a_stages_loss_that_is_given_as_a_whole_keeps_its_time_and_name():
    text = TWO_STEPS.replace("losses: [ce, kd: {weight: 0.9}]", "losses: [ce, hint: {taps: stage1, head: linear}]")
    recipe = loads(text, overrides=["losses.hint={weight: 5, taps: stage2}", "losses.hint_learning={weight: 7}"])
    assert spans(recipe) == {"hint": {"to": 0.4}, "ce": {"from": 0.4}, "hint_learning": {"from": 0.4}}
    assert [edge.weight for edge in recipe.losses if "hint" in edge.title] == [5, 7]
    assert loads(text, overrides=["losses.hint={when: {from: 0.6}}"]).losses[0].when == {"from": 0.6}
