"""Choices in constructors: ordinary modules outside of a search, found, named and checked within a space."""

import copy
import logging

import pytest
import torch
from declared import PERCEPTRON, Perceptron, Transformer
from torch import nn

from optuna_nas import ModuleSpace, choose, choose_depth, choose_inputs, choose_op, choose_ops, choose_optional
from optuna_nas.networks.sums import Pick, Sum


def space_of(make, **arguments):
    return ModuleSpace(make, name=arguments.pop("name", "net"), **arguments)


def test_outside_of_a_search_every_choice_is_its_first_option():
    assert choose("width", [16, 32]) == 16
    assert isinstance(choose_op("op", {"a": nn.ReLU, "b": nn.GELU}), nn.ReLU)
    assert isinstance(choose_optional("norm", lambda: nn.LayerNorm(4)), nn.LayerNorm)
    assert len(choose_depth("depth", lambda number: nn.Linear(2, 2), 0, 3)) == 3
    total = choose_ops("sum", {"same": nn.Identity, "tanh": nn.Tanh})
    assert isinstance(total, Sum)
    assert torch.equal(total(torch.ones(3)), torch.ones(3))
    picked = choose_inputs("reads", 2, most=2)
    assert isinstance(picked, Pick)
    assert torch.equal(picked([torch.ones(2), torch.zeros(2)]), torch.ones(2))
    assert Perceptron()(torch.zeros(2, 6)).shape == (2, 3)
    assert Transformer().head.weight is not None


def test_an_option_is_only_made_where_it_is_chosen():
    made = []

    def make(name):
        made.append(name)
        return nn.Identity()

    choose_op("op", {"a": lambda: make("a"), "b": lambda: make("b")})
    assert made == ["a"]


def test_one_name_in_two_places_is_one_decision():
    def net():
        return nn.Sequential(nn.Linear(3, choose("width", [4, 8])), nn.Linear(choose("width", [4, 8]), 1))

    space = space_of(net, example=torch.zeros(1, 3))
    assert space.size == 2
    first, second = space.architecture({"width": 8}).build()
    assert first.out_features == second.in_features == 8


def test_nested_choices_are_found_with_what_they_are_nested_in():
    contexts = PERCEPTRON.declared.contexts
    assert contexts["block_hidden"] == ((("block", frozenset({"mlp"})),),)
    assert list(PERCEPTRON.choices)[:4] == ["width", "norm", "block", "block_hidden"]


def test_a_choice_that_only_another_value_leads_to_is_found():
    def net():
        if choose("kind", ["plain", "deep"]) == "deep":
            return nn.Sequential(nn.Linear(2, choose("inner", [3, 5])), nn.Linear(choose("inner", [3, 5]), 1))
        return nn.Linear(2, 1)

    space = space_of(net)
    assert list(space.choices) == ["kind", "inner"]
    plain = [space.architecture({"kind": "plain", "inner": inner}) for inner in (3, 5)]
    assert plain[0].canonical() == plain[1].canonical()
    assert space.architecture({"kind": "deep", "inner": 5}).cost().params == 2 * 5 + 5 + 5 + 1


def two_values_at_once():
    """A choice that no single change of another leads to."""
    if choose("a", [0, 1]) and choose("b", [0, 1]) == 1 and choose("d", [0, 1]):
        choose("c", [2, 3])
    return nn.Linear(1, 1)


def hidden_by_two():
    """The same, where both are always asked for."""
    a, b = choose("a", [0, 1]), choose("b", [0, 1])
    if a and b:
        choose("c", [2, 3])
    return nn.Linear(1, 1)


def test_a_choice_seen_for_the_first_time_in_a_build_is_refused():
    space_of(two_values_at_once)  # each was found by one more change
    space = space_of(hidden_by_two)
    with pytest.raises(ValueError, match=r"now asks for 'c', which no single change .* ask for it before the `if`"):
        space.architecture({"a": 1, "b": 1}).build()


def test_a_constructor_that_reads_numbers_is_built_on_the_cpu_and_says_so(caplog):
    def net():
        scale = torch.ones(3).sum().item()
        return nn.Sequential(nn.Linear(2, int(scale)), choose_op("act", {"a": nn.ReLU, "b": nn.GELU}))

    with caplog.at_level(logging.WARNING):
        space = space_of(net, example=torch.zeros(1, 2))
    assert "is built on the CPU to find its choices" in caplog.text
    assert space.architecture({"act": "b"}).cost().params == 9


def late():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = choose_op("op", {"a": nn.ReLU, "b": nn.GELU})

        def forward(self, x):
            return self.op(x) * choose("scale", [1, 2])

    return Late()


def different(state=[0]):  # noqa: B006 - the side effect is the point
    """A constructor with a side effect."""
    state[0] += 1
    return nn.Sequential(nn.Linear(1, state[0]), choose_op("op", {"a": nn.ReLU, "b": nn.GELU}))


ONE = nn.Sequential(choose_op("op", {"a": nn.ReLU, "b": nn.GELU}))


def one_and_the_same():
    """A constructor that makes nothing."""
    choose("width", [1, 2])
    return ONE


def with_ops(**arguments):
    return lambda: choose_ops("ops", {"a": nn.ReLU, "b": nn.GELU}, **arguments)


def two_meanings():
    """One name for two choices."""
    return nn.Linear(choose("width", [1, 2]), choose("width", [1, 3]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(1, 1), "`make` must choose something .* build all modules inside of `make`"),
        (lambda: choose("width", [1, 2]), "`make` must return a module but returns a int"),
        (lambda: nn.Linear(choose("a width", [1, 2]), 1), "`name` must be a Python identifier.* got 'a width'"),
        (lambda: nn.Linear(choose("width", [1]), 1), "`width` must leave a choice but has 1"),
        (lambda: nn.Linear(choose("width", [1, "1"]), 1), "`width` must differ in all options but '1' stands twice"),
        (lambda: nn.Linear(choose("width", [1, True]), 1), "`width` must differ in all options but '1' stands twice"),
        (lambda: choose("act", [nn.ReLU, nn.GELU])(), "`values` must be numbers, texts.* 'act' has a type"),
        (lambda: choose_op("op", {"a.b": nn.ReLU, "c": nn.GELU}), r"`ops` of 'op' must have names .* 'a\.b'"),
        (lambda: choose_op("op", {"forward": nn.ReLU, "c": nn.GELU}), "`ops` of 'op' must have names .* 'forward'"),
        (lambda: choose_op("op", {"a": lambda: 3, "b": nn.GELU}), "`ops` must be modules .* 'a' of 'op' returns a int"),
        (with_ops(least=3), "`least` and `most` of 'ops' must be in order and at most 2"),
        (lambda: choose_ops("ops", {"none": nn.ReLU, "b": nn.GELU}, least=0), "must not be named 'none'"),
        (lambda: choose_inputs("reads", 12, most=6), "`most` of 'reads' must leave at most 256 sets"),
        (lambda: choose_depth("depth", lambda number: nn.ReLU(), 2, 2), "`least` must be from 0 and below `most`"),
        (two_meanings, r"`name` must stand for one choice but 'width' is asked for as value of \[1, 2\] and"),
        (different, "`make` must make the same module at every call but '0.bias' differs"),
        (one_and_the_same, "`make` must return a new module at every call"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        space_of(make)


def test_a_part_kept_from_a_call_without_weights_is_refused():
    kept = {}

    def net():
        base = kept.setdefault("base", nn.Linear(2, 2))  # made by the first call, which is without weights
        return nn.Sequential(copy.deepcopy(base), choose_op("act", {"a": nn.ReLU, "b": nn.GELU}))

    space = space_of(net, example=torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"`make` must make all parts anew .* '0.weight' was kept from an earlier"):
        space.full_architecture().build()


def test_a_choice_in_forward_is_refused():
    with pytest.raises(ValueError, match="`scale` must be chosen in the constructor"):
        space_of(late, example=torch.zeros(1, 2))


def test_options_that_do_not_fit_are_named_before_the_first_trial():
    def net():
        op = choose_op("op", {"fits": nn.ReLU, "wide": lambda: nn.Linear(4, choose("inner", [4, 5]))})
        return nn.Sequential(nn.Linear(2, 4), op, nn.Linear(4, 1))

    with pytest.raises(ValueError, match="`example` must fit the module but 5 of 'inner' fails: RuntimeError"):
        space_of(net, example=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="`example` must fit the module but the first option of every choice fails"):
        space_of(lambda: nn.Sequential(nn.Linear(2, choose("width", [4, 8]))), example=torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"make": nn.Linear(1, 1)}, "`make` must be a class or a function .* is a Linear"),
        ({"make": lambda: nn.Linear(choose("width", [1, 2]), 1)}, "`name` must be given where `make` has no name"),
    ],
)
def test_arguments_of_a_space_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        ModuleSpace(**arguments)


def needs(n_classes, width=4):
    return nn.Linear(choose("width", [width, 8]), n_classes)


def lazy():
    return nn.Sequential(nn.LazyLinear(choose("width", [4, 8])))


def no_blocks():
    return choose_depth("depth", lambda number: None, 1, 2)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (needs, r"`make` must be called without arguments but needs 'n_classes'; pass `functools.partial\("),
        (lazy, r"`make` must make layers of known sizes but '0.weight' is one that finds its size later"),
        (no_blocks, r"`make` of 'depth' must return a module but returns a NoneType"),
    ],
)
def test_constructors_that_cannot_be_searched_are_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        ModuleSpace(make)


def test_a_chosen_op_says_why_it_has_no_attributes():
    def net():
        widths = {"narrow": lambda: nn.Linear(2, 4), "wide": lambda: nn.Linear(2, 4)}
        body = choose_op("body", widths)
        return nn.Sequential(body, nn.Linear(body.out_features, 1))

    wrong = "'body' has no attribute 'out_features' where all of its ops are computed"
    with pytest.raises(AttributeError, match=wrong):
        ModuleSpace(net, example=torch.zeros(1, 2)).supernet(0)
