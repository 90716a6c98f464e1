"""Descriptions from files: the same architecture, or one sentence; never another error, never minutes."""

import copy
import json
import random
import time

import numpy as np
import pytest

from optuna_nas import (
    Architecture,
    NetworkSpace,
    Skeleton,
    Space,
    darts_search_skeleton,
    darts_space,
    ghn_skeleton,
    ghn_space,
    nasbench201_skeleton,
    nasbench201_space,
)

SPACES = (
    NetworkSpace(darts_space(), darts_search_skeleton(3, 4)),
    NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4)),
    NetworkSpace(ghn_space(nodes=5), ghn_skeleton(3, 8)),
)
ARCHITECTURES = [space.sample(np.random.default_rng(0)).to_dict() for space in SPACES]
SKELETONS = [space.skeleton.to_dict() for space in SPACES]
VALUES = (
    *(None, True, False, 0, -1, 4.5, 10**6, 10**30, float("nan"), "", "x", "../", "none"),
    *([], {}, [1, 2], {"a": 1}, [[]], [None], "y" * 20_000),
)


def places(value, at=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from places(item, (*at, key))


def mutated(description, draw):
    changed = copy.deepcopy(description)
    *way, last = draw.choice(list(places(changed)))
    holder = changed
    for step in way:
        holder = holder[step]
    if draw.random() < 0.2:
        del holder[last]
    else:
        holder[last] = draw.choice(VALUES)
    return changed


@pytest.mark.parametrize(
    ("read", "originals"), [(Architecture.from_dict, ARCHITECTURES), (Skeleton.from_dict, SKELETONS)]
)
def test_a_changed_description_is_read_or_refused_in_one_sentence(read, originals):
    draw, began, said = random.Random(0), time.process_time(), []
    for _ in range(400):
        description = mutated(draw.choice(originals), draw)
        try:
            found = read(description)
        except ValueError as refused:
            said.append(str(refused))
        else:
            assert read(json.loads(json.dumps(found.to_dict()))) == found
    assert all(10 < len(text) < 3000 and "\n" not in text for text in said)
    assert len(said) > 100
    assert time.process_time() - began < 60


@pytest.mark.parametrize("field", ["nodes", "inputs", "max_ops"])
@pytest.mark.parametrize("value", [True, 4.5, 10**6, "4", None])
def test_sizes_are_integers_within_limits(field, value):
    with pytest.raises(ValueError, match=f"{field}|`ops` must not hold .none."):
        Space.from_dict({**darts_space().to_dict(), field: value})


def test_a_skeleton_has_limits():
    for change in (
        {"channels": 4.5},
        {"channels": True},
        {"channels": 10**9},
        {"classes": 10**9},
        {"cells": ["cell"] * 5000},
    ):
        with pytest.raises(ValueError, match=next(iter(change))):
            Skeleton.from_dict({**SKELETONS[1], **change})


@pytest.mark.parametrize("description", [None, 3, "text", [], [1], {"type": {}}, {"space": {}, "choices": {}}])
def test_something_else_is_refused(description):
    for read in (Space.from_dict, Architecture.from_dict, Skeleton.from_dict):
        with pytest.raises(ValueError):  # noqa: PT011 - each has its own sentence
            read(description)


def test_a_deep_nest_is_refused():
    nest = []
    for _ in range(2000):
        nest = [nest]
    with pytest.raises(ValueError, match="too large or deep"):
        Architecture.from_dict({"space": nest, "choices": {}})
