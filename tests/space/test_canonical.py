"""Two architectures are one exactly when they compute the same function, by a brute-force definition and by running."""

import csv
import gzip
import random
from collections import Counter, defaultdict
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SPACES, TINY, architectures, placed

from optuna_nas.networks import DiscreteNetwork
from optuna_nas.space import (
    BlockSpace,
    ComputationGraph,
    darts_space,
    ghn_space,
    nasbench201_skeleton,
    nasbench201_space,
)

NASBENCH201 = nasbench201_space()
EDGES = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
CONVOLUTIONS = ("nor_conv_1x1", "nor_conv_3x3")

# -- the definition, the slow way ---------------------------------------------------------------------------------


def expressions(ops):
    """Return the value of node 3 and, for every convolution that is fed, (its op, the value it reads).

    A value is a multiset of terms, as a sorted tuple: the input ("x",), a pool ("pool", value), a convolution
    ("convolution", edge). `none`, and whatever reads the empty sum, is no term; a skip hands on the terms it reads.
    """
    value = {0: (("x",),)}
    convolutions = {}
    for target in (1, 2, 3):
        terms = []
        for source in range(target):
            op, read = ops[target, source], value[source]
            if op == "none" or not read:
                continue
            if op == "skip_connect":
                terms += read
            elif op == "avg_pool_3x3":
                terms.append(("pool", read))
            else:
                convolutions[target, source] = (op, read)
                terms.append(("convolution", (target, source)))
        value[target] = tuple(sorted(terms))
    return value[3], convolutions


def renamed(value, names):
    """Return a value with its convolutions renamed, sorted again."""
    terms = []
    for term in value:
        if term[0] == "convolution":
            term = ("convolution", names[term[1]])
        elif term[0] == "pool":
            term = ("pool", renamed(term[1], names))
        terms.append(term)
    return tuple(sorted(terms))


def convolutions_in(value):
    """Yield the convolutions that a value names."""
    for term in value:
        if term[0] == "convolution":
            yield term[1]
        elif term[0] == "pool":
            yield from convolutions_in(term[1])


def brute_force(ops):
    """Return the smallest description over all orders of the live convolutions, and the order that gives it."""
    output, convolutions = expressions(ops)
    live, stack = set(), list(convolutions_in(output))
    while stack:
        edge = stack.pop()
        if edge not in live:
            live.add(edge)
            stack.extend(convolutions_in(convolutions[edge][1]))
    candidates = []
    for order in permutations(sorted(live)):
        names = {edge: number for number, edge in enumerate(order)}
        described = tuple((convolutions[edge][0], renamed(convolutions[edge][1], names)) for edge in order)
        candidates.append(((renamed(output, names), described), order))
    return min(candidates)


@pytest.fixture(scope="module")
def rows(data_folder):
    with gzip.open(data_folder / "nasbench201" / "nb201_accuracy.csv.gz", "rt") as lines:
        return list(csv.DictReader(lines))


def ops_of(row):
    return {(t, s): row[f"op_{t}_{s}"] for t, s in EDGES}


def architecture_of(ops):
    return NASBENCH201.architecture({f"cell_{s}_{t}": op for (t, s), op in ops.items()})


@pytest.fixture(scope="module")
def classes(rows):
    """Cells by brute-force class: {description: [(row, order of its convolutions)]}."""
    found = defaultdict(list)
    for row in rows:
        description, order = brute_force(ops_of(row))
        found[description].append((row, order))
    return found


def test_brute_force_finds_5260_classes(classes):
    assert sum(map(len, classes.values())) == 15_625
    assert len(classes) == 5_260


def test_canonical_parts_the_15625_cells_as_brute_force_does(classes, capsys):
    digests, ours = {}, {}
    for description, members in classes.items():
        found = {architecture_of(ops_of(row)).canonical().digest for row, _ in members}
        assert len(found) == 1, members
        digests[description] = found.pop()
        ours.update({row["index"]: (digests[description], row["unique_id"]) for row, _ in members})
    assert len(set(digests.values())) == 5_260

    # The table's `unique_id` are classes of strings: equal sums fall apart, shared and separate ops fall together.
    theirs_in_ours, ours_in_theirs = defaultdict(set), defaultdict(set)
    for digest, unique_id in set(ours.values()):
        theirs_in_ours[digest].add(unique_id)
        ours_in_theirs[unique_id].add(digest)
    split = sum(len(ids) > 1 for ids in theirs_in_ours.values())
    merged = sum(len(ours_) > 1 for ours_ in ours_in_theirs.values())
    same = sum(len(ids) == 1 and len(ours_in_theirs[next(iter(ids))]) == 1 for ids in theirs_in_ours.values())
    with capsys.disabled():
        sizes = Counter(len(ids) for ids in theirs_in_ours.values())
        print(
            f"\n  canonical classes {len(theirs_in_ours)}, table's unique_id {len(ours_in_theirs)}: "
            f"{same} agree, {split} of ours hold several of theirs, {merged} of theirs hold several of ours; "
            f"theirs in one of ours: {dict(sorted(sizes.items()))}"
        )
    assert len(ours_in_theirs) == 6_466


# -- the same function, by running --------------------------------------------------------------------------------

FRAME = nasbench201_skeleton(repeats=1, channels=3, input_shape=(3, 8, 8), classes=4)


def randomised(ops, seed):
    network = DiscreteNetwork(placed(architecture_of(ops), FRAME), seed=seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if "running" in name or tensor.dim() == 1:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return network


def scores(network, images):
    with torch.no_grad():
        return network(images)


def copy_convolutions(source, source_ops, target, target_ops, source_order, target_order):
    """Copy the frame and, in every cell, the convolutions, edge after edge in the given orders."""
    for name, part in source.parts.items():
        if "<-" not in name:
            target.parts[name].load_state_dict(part.state_dict())
    for number, cell in enumerate(FRAME.cells):
        if cell != "cell":
            continue
        for one, other in zip(source_order, target_order, strict=True):
            from_part = source.parts[f"cell{number}/{one[0]}<-{one[1]}/{source_ops[one]}"]
            to_part = target.parts[f"cell{number}/{other[0]}<-{other[1]}/{target_ops[other]}"]
            to_part.load_state_dict(from_part.state_dict())


def test_cells_of_one_class_compute_the_same_with_copied_weights(classes):
    choice = random.Random(0)
    several = [members for members in classes.values() if len(members) > 1]
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for members in choice.sample(several, 40):
        (one, one_order), (other, other_order) = choice.sample(members, 2)
        one_ops, other_ops = ops_of(one), ops_of(other)
        if not architecture_of(one_ops).connected:
            continue  # the one class that computes nothing
        source, target = randomised(one_ops, 1), randomised(other_ops, 2)
        copy_convolutions(source, one_ops, target, other_ops, one_order, other_order)
        torch.testing.assert_close(scores(source, images), scores(target, images), rtol=1e-9, atol=1e-9)


def test_cells_of_different_classes_differ_however_weights_are_copied(classes):
    # Without pools, which are linear: pool(a) + pool(b) and pool(a + b) are told apart and yet are equal.
    alike = defaultdict(list)
    for (output, convolutions), members in classes.items():
        if output and "pool" not in repr((output, convolutions)) and 1 <= len(convolutions) <= 3:
            alike[tuple(sorted(op for op, _ in convolutions))].append(members[0])
    choice = random.Random(0)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    pairs = [choice.sample(members, 2) for members in alike.values() if len(members) > 1 for _ in range(4)]
    assert len(pairs) >= 30
    for (one, one_order), (other, other_order) in pairs:
        one_ops, other_ops = ops_of(one), ops_of(other)
        source, target = randomised(one_ops, 1), randomised(other_ops, 2)
        expected = scores(source, images)
        for order in permutations(other_order):
            if [one_ops[edge] for edge in one_order] == [other_ops[edge] for edge in order]:
                copy_convolutions(source, one_ops, target, other_ops, one_order, order)
                assert (scores(target, images) - expected).abs().max() > 1e-6, (one["arch"], other["arch"])


# -- any space ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=8)
@given(data=st.data())
def test_canonical_of_canonical_is_itself(name, data):
    once = data.draw(architectures(SPACES[name], connected=False)).canonical()
    assert once.canonical() == once
    assert once.canonical().digest == once.digest


@given(data=st.data(), kind=st.sampled_from(["normal", "reduction"]), first=st.integers(2, 4))
def test_exchanging_two_nodes_of_a_darts_cell_changes_nothing(data, kind, first):
    drawn, second = data.draw(architectures(darts_space())), first + 1
    choices = {**dict(drawn.choices), f"{kind}_{first}_{second}": ()}
    exchanged = dict(choices)
    incoming = [(f"{kind}_{source}_{first}", f"{kind}_{source}_{second}") for source in range(first)]
    outgoing = [(f"{kind}_{first}_{target}", f"{kind}_{second}_{target}") for target in range(second + 1, 6)]
    for one, other in incoming + outgoing:
        exchanged[one], exchanged[other] = choices[other], choices[one]
    one, other = drawn.space.architecture(choices), drawn.space.architecture(exchanged)
    assert one.canonical() == other.canonical()
    assert one.canonical().digest == other.canonical().digest


@given(data=st.data(), first=st.integers(1, 8))
def test_exchanging_two_nodes_of_a_block_changes_nothing(data, first):
    space = ghn_space(9)
    drawn, second = data.draw(architectures(space)), first + 1
    choices = dict(drawn.choices)
    if str(first) in choices[f"block_{second}_inputs"]:
        choices[f"block_{second}_inputs"] = ("0",)
    swap = {first: second, second: first}
    exchanged = {}
    for node in range(1, 10):
        there = f"block_{swap.get(node, node)}"
        exchanged[there] = choices[f"block_{node}"]
        inputs = choices[f"block_{node}_inputs"]
        exchanged[f"{there}_inputs"] = tuple(str(swap.get(int(i), int(i))) for i in inputs)
    assert space.architecture(choices).canonical() == space.architecture(exchanged).canonical()


@given(data=st.data())
def test_another_op_with_weights_is_another_function(data):
    drawn = data.draw(architectures(TINY))
    weighted = [path for path in drawn if drawn[path] == ("nor_conv_3x3",)]
    live = {drawn.cells.nodes[position].path for position in drawn.cells.live}
    for path in (path for path in weighted if path in live):
        other = TINY.architecture({**dict(drawn.choices), path: ("avg_pool_3x3",)})
        assert other.canonical() != drawn.canonical()


def test_which_input_is_read_matters():
    def reading(source):
        return TINY.architecture({f"normal_{source}_2": "nor_conv_3x3", f"reduction_{source}_2": "nor_conv_3x3"})

    assert reading(0).canonical() != reading(1).canonical()


def test_a_strided_skip_has_weights_and_stays():
    # In a reduction cell a skip from an input is a factorized reduction, so two of them are two functions added.
    one = TINY.architecture({"normal_0_2": "skip_connect", "reduction_0_2": "skip_connect"})
    ops = Counter(node.op for node in one.canonical())
    assert ops["skip_connect"] == 1  # that of the reduction cell; the normal cell's is inlined


def block(**inputs):
    space = BlockSpace(("nor_conv_1x1", "max_pool_3x3"), nodes=3)
    choices = {f"block_{node}": "nor_conv_1x1" for node in (1, 2, 3)}
    return space.architecture({**choices, **{f"block_{node[1]}_inputs": value for node, value in inputs.items()}})


def test_sharing_a_node_is_not_having_two_alike():
    shared = block(n1="0", n2="1", n3="1")
    separate = block(n1="0", n2="0", n3=("1", "2"))
    assert shared.canonical() != separate.canonical()
    assert block(n1="0", n2="0", n3="2").canonical() == block(n1="0", n2="0", n3="1").canonical()


def test_a_canonical_graph_holds_no_dead_op_and_no_skip():
    cell = architecture_of(
        {
            (1, 0): "none",
            (2, 0): "skip_connect",
            (2, 1): "nor_conv_3x3",  # fed by nothing
            (3, 0): "avg_pool_3x3",
            (3, 1): "avg_pool_3x3",  # fed by nothing
            (3, 2): "avg_pool_3x3",
        }
    )
    canonical = cell.canonical()
    assert [(node.op, node.inputs) for node in canonical] == [("input", ()), ("avg_pool_3x3", (0,)), ("sum", (1, 1))]
    assert isinstance(canonical, ComputationGraph)


def rings(lengths, seed=0):
    """A block whose nodes 1 to 6 read its input and whose nodes 7 to 12 read two of those each, in closed rings."""
    choice, pairs, first = random.Random(seed), [], 0
    for length in lengths:
        pairs += [(first + i, first + (i + 1) % length) for i in range(length)]
        first += length
    places = choice.sample(range(1, 7), 6)
    choice.shuffle(pairs)
    choices = dict.fromkeys((f"block_{node:02}" for node in range(1, 13)), "sep_conv_3x3")
    choices |= {f"block_{node:02}_inputs": "0" for node in range(1, 7)}
    choices |= {f"block_{7 + i:02}_inputs": (str(places[a]), str(places[b])) for i, (a, b) in enumerate(pairs)}
    return ghn_space(12).architecture(choices)


def test_nodes_that_look_alike_from_nearby_are_told_apart():
    # Every node has the same neighbours' neighbours: only the lengths of the rings tell one block from another.
    digests = {
        lengths: {rings(lengths, seed).canonical().digest for seed in range(6)} for lengths in [(6,), (3, 3), (2, 4)]
    }
    assert [len(found) for found in digests.values()] == [1, 1, 1]
    assert len(set.union(*digests.values())) == 3


@pytest.mark.timeout(20)
def test_many_equal_branches_do_not_take_for_ever():
    space, branches = ghn_space(16), 8
    choices = dict.fromkeys((f"block_{node:02}" for node in range(1, 17)), "sep_conv_3x3")
    inputs = {f"block_{node:02}_inputs": str(max(0, node - branches)) for node in range(1, 17)}
    straight = space.architecture({**choices, **inputs})
    crossed = space.architecture({**choices, **inputs, "block_09_inputs": "2", "block_10_inputs": "1"})
    assert straight.canonical() == crossed.canonical()
