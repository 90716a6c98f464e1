"""GHN: fast propagation equals the slow one, generated tensors fit every op, its fit resumes to the same numbers."""

import logging
import math
import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau
from strategies import SPACES, TINY, TINY_BLOCK, few_digits, placed, small_skeleton

from optuna_nas import (
    GHN,
    CellKind,
    CellSpace,
    DiscreteNetwork,
    GHNRecipe,
    NetworkSpace,
    Skeleton,
    anytime_skeleton,
    anytime_space,
    darts_search_skeleton,
    darts_space,
    ghn_skeleton,
    ghn_space,
    nasbench201_skeleton,
    published_cell,
)
from optuna_nas.networks import build_op, use_batch_statistics
from optuna_nas.oneshot.discernment import discernment
from optuna_nas.oneshot.ghn.decoder import SCALE, SHIFT, Decoder, Slot, slots_of
from optuna_nas.oneshot.ghn.graph import batch_graphs, modules_of, schedule
from optuna_nas.oneshot.ghn.propagation import Propagation
from optuna_nas.space import Site
from optuna_nas.training import TrainingDiverged, TrainingStopped, evaluate

SPACE = CellSpace(
    ("none", "skip_connect", "nor_conv_3x3", "avg_pool_3x3"), 2, 1, (CellKind("cell"), CellKind("reduction", 2))
)
FRAME = Skeleton(("cell", "reduction", "cell"), 4, (1, 8, 8), 10)


@pytest.fixture(scope="module")
def data():
    return few_digits(128)


def some(space, number, seed=0):
    random = np.random.default_rng(seed)
    return [space.sample(random) for _ in range(number)]


# -- the graph ----------------------------------------------------------------------------------------------------


@st.composite
def topologies(draw, most=12):
    """A few inputs, then nodes that read at least one earlier node each."""
    n_inputs = draw(st.integers(1, 2))
    topology = [()] * n_inputs
    for node in range(n_inputs, draw(st.integers(n_inputs + 1, most))):
        topology.append(tuple(sorted(draw(st.sets(st.integers(0, node - 1), min_size=1, max_size=3)))))
    return tuple(topology)


def node_by_node(propagation, embeddings, topology, reach=1):
    """Sections 4.1 and 4.4 word by word: one node after another, there and back, the last node once."""
    n_nodes = len(topology)
    readers = [[v for v in range(n_nodes) if u in topology[v]] for u in range(n_nodes)]

    def distances(reads):
        """Length of the shortest path from every node to those it can be reached from, by breadth."""
        found = []
        for node in range(n_nodes):
            length, seen = {node: 0}, [node]
            for u in seen:
                for v in reads[u]:
                    if v not in length:
                        length[v] = length[u] + 1
                        seen.append(v)
            found.append(length)
        return found

    far = {True: distances(topology), False: distances(readers)}
    h = list(embeddings.unbind())
    visits = 0
    for _ in range(propagation.phases):
        for node, there in [(v, True) for v in range(n_nodes)] + [(v, False) for v in range(n_nodes - 2, -1, -1)]:
            message = torch.zeros_like(h[node])
            for u in (topology if there else readers)[node]:
                message = message + propagation.message(h[u])
            if propagation.far_message is not None:
                for u, length in far[there][node].items():
                    if 1 <= length <= reach:
                        message = message + propagation.far_message(h[u]) / length
            h[node] = propagation.update(message[None], h[node][None])[0]
            visits += 1
    assert visits == propagation.phases * (2 * n_nodes - 1)
    return torch.stack(h)


def module_of(topologies, reach=1):
    """What `batch_graphs` makes of graphs that are one module each."""
    from optuna_nas.space.graph import ComputationGraph, Node

    site = Site((4, 8, 8), (4, 8, 8))
    graphs = [
        ComputationGraph(
            tuple(Node(str(v), "sum" if reads else "input", reads, site=site) for v, reads in enumerate(topology)),
            tuple(range(len(topology))),
        )
        for topology in topologies
    ]
    batch = batch_graphs(graphs, {"input": 0, "sum": 1}, torch.device("cpu"), reach)
    assert len(batch.modules) == 1
    return batch.modules[0]


@settings(max_examples=40, deadline=None)
@given(st.lists(topologies(), min_size=1, max_size=4), st.sampled_from([1, 3, 50]), st.integers(1, 3))
def test_whole_levels_of_many_graphs_equal_node_by_node_in_each(drawn, reach, phases):
    torch.manual_seed(0)
    propagation = Propagation(8, phases, "forward_backward", virtual_edges=reach > 1)
    start = torch.randn(sum(map(len, drawn)), 8)
    ours = propagation(start, module_of(drawn, reach))
    position = 0
    for topology in drawn:
        part = slice(position, position + len(topology))
        slow = node_by_node(propagation, start[part], topology, reach)
        torch.testing.assert_close(ours[part], slow, atol=1e-6, rtol=0)
        position += len(topology)


@settings(max_examples=15, deadline=None)
@given(st.lists(topologies(), min_size=1, max_size=3), st.sampled_from([1, 3]), st.integers(1, 2), st.booleans())
def test_gradients_are_those_of_node_by_node(drawn, reach, phases, start_learns):
    torch.manual_seed(0)
    propagation = Propagation(5, phases, "forward_backward", virtual_edges=reach > 1).double()
    start = torch.randn(sum(map(len, drawn)), 5, dtype=torch.float64, requires_grad=start_learns)
    learning = [*propagation.parameters(), *([start] if start_learns else [])]
    parts = start.split([len(topology) for topology in drawn])
    slow = torch.cat([node_by_node(propagation, p, t, reach) for p, t in zip(parts, drawn, strict=True)])
    wanted = torch.randn_like(slow)
    expected = torch.autograd.grad((slow * wanted).sum(), learning, allow_unused=True)
    found = torch.autograd.grad((propagation(start, module_of(drawn, reach)) * wanted).sum(), learning)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("reach", [1, 3])
def test_the_gradient_of_a_synchronous_step_is_that_of_differences(reach):
    torch.manual_seed(0)
    topologies = [((), (), (0, 1), (2,), (0, 2, 3))]
    propagation = Propagation(3, 2, "synchronous", virtual_edges=reach > 1).double()
    module = module_of(topologies, reach)
    start = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def run(start, *values):
        names = [name for name, _ in propagation.named_parameters()]
        return torch.func.functional_call(propagation, dict(zip(names, values, strict=True)), (start, module))

    assert torch.autograd.gradcheck(run, (start, *propagation.parameters()), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(topologies(20))
def test_a_phase_updates_every_node_twice_but_the_last(topology):
    there, back = schedule(topology)
    assert sum(len(nodes) for nodes, _ in (*there, *back)) == 2 * len(topology) - 1
    seen = set()
    for nodes, edges in there:
        assert all(source in seen for source, _, _ in edges)
        seen |= set(nodes)
    assert seen == set(range(len(topology)))


@settings(max_examples=30, deadline=None)
@given(topologies(), st.randoms(use_true_random=False))
def test_the_order_of_the_nodes_changes_nothing(topology, random):
    torch.manual_seed(0)
    n_nodes = len(topology)
    # Another topological order: nodes are taken at random among those whose sources are there; the last stays last.
    order, left = [], set(range(n_nodes - 1))
    while left:
        ready = [v for v in left if all(u in order for u in topology[v])]
        order.append(random.choice(sorted(ready)))
        left.remove(order[-1])
    order.append(n_nodes - 1)
    place = {old: new for new, old in enumerate(order)}
    shuffled = tuple(tuple(sorted(place[u] for u in topology[old])) for old in order)
    start = torch.randn(n_nodes, 8)
    propagation = Propagation(8, 2, "forward_backward", virtual_edges=False)
    ours = propagation(start, module_of([topology]))
    theirs = propagation(start[order], module_of([shuffled]))
    torch.testing.assert_close(ours[order], theirs, atol=1e-6, rtol=0)


def test_synchronous_propagation_updates_all_nodes_from_what_was_before():
    torch.manual_seed(0)
    topology = ((), (0,), (0, 1), (2,))
    propagation = Propagation(8, 2, "synchronous", virtual_edges=False)
    h = start = torch.randn(4, 8)
    for _ in range(2):
        received = torch.stack([sum((propagation.message(h[u]) for u in reads), torch.zeros(8)) for reads in topology])
        h = propagation.update(received, h)
    torch.testing.assert_close(propagation(start, module_of([topology])), h, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SPACES)
def test_a_network_is_cut_into_stem_cells_and_head(name):
    space = SPACES[name]
    skeleton = small_skeleton(space)
    for architecture in some(space, 3):
        graph = placed(architecture, skeleton).graph()
        modules = modules_of(graph)
        assert set(modules) <= set(range(len(skeleton.cells) + 2))
        terms = {v: [u for u in graph.nodes[v].inputs if u in graph.live] for v in graph.live}
        computing = {v for v in graph.live if len(terms[v]) != 1 or graph.nodes[v].op not in ("sum", "concat")}
        assert sorted(v for module in modules.values() for v in module.nodes) == sorted(computing)
        for number, module in modules.items():
            assert all(source < number for source in module.sources)
            assert len(module.ops) == len(module.topology) == len(module.sources) + len(module.nodes)
            for v, position in enumerate(module.nodes, len(module.sources)):
                assert len(module.topology[v]) == len(terms[position])


def test_a_sum_of_one_term_is_read_as_its_term():
    space = SPACES["nasbench201"]
    chosen = {"cell_0_1": ["nor_conv_3x3"], "cell_1_3": ["nor_conv_1x1"]}
    graph = placed(space.architecture(chosen), small_skeleton(space)).graph()
    for module in modules_of(graph).values():
        assert not {"sum", "concat"} & set(module.ops)
    cell = modules_of(graph)[1]
    assert cell.ops == ("input", "nor_conv_3x3", "nor_conv_1x1")
    assert cell.topology == ((), (0,), (1,))


# -- the decoder --------------------------------------------------------------------------------------------------


def test_sums_of_one_term_take_no_part_in_the_network_of_the_paper(monkeypatch):
    space = NetworkSpace(ghn_space(17), ghn_skeleton(18, 32))
    graph = space.sample(np.random.default_rng(0)).graph()
    ops = {node.op: number for number, node in enumerate({node.op: node for node in graph.nodes}.values())}
    assert int(batch_graphs([graph], {**ops, "input": 30}, torch.device("cpu")).sizes[0]) == 350
    monkeypatch.setattr("optuna_nas.oneshot.ghn.graph.STRUCTURAL", frozenset())  # by which sums are known
    assert int(batch_graphs([graph], {**ops, "input": 30}, torch.device("cpu")).sizes[0]) == 656


def test_where_every_sum_has_terms_nothing_is_left_out(monkeypatch):
    ghn = GHN(NetworkSpace(darts_space(), darts_search_skeleton(3, 4)), GHNRecipe(phases=1))
    graph = placed(published_cell("DARTS_V1"), ghn.space.skeleton).graph()
    with torch.no_grad():
        embeddings, _ = ghn.network(ghn.batch([graph]))
        monkeypatch.setattr("optuna_nas.oneshot.ghn.graph.STRUCTURAL", frozenset())
        assert torch.equal(ghn.network(ghn.batch([graph]))[0], embeddings)


def test_a_tensor_is_its_chunks_joined_over_channels_and_cut_out_of_the_middle():
    torch.manual_seed(0)
    decoder = Decoder(8, 16, chunk=4, kernel=5, slots=3, rows=3, columns=2, fan_in_normalization=False)
    embeddings = torch.randn(2, 8)
    slot = Slot((10, 6, 3, 1), 2, "weight")
    (ours,) = decoder(embeddings, [1], [slot])
    whole = torch.zeros(12, 8, 5, 5)
    for row in range(3):
        for column in range(2):
            code = decoder.slot.weight[2] + decoder.row.weight[row] + decoder.column.weight[column]
            chunk = decoder.second(F.relu(decoder.first(embeddings[1])) * code).view(4, 4, 5, 5)
            whole[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = chunk
    torch.testing.assert_close(ours, whole[:10, :6, 1:4, 2:3])


def test_many_tensors_at_once_are_each_alone():
    torch.manual_seed(0)
    decoder = Decoder(8, 16, chunk=4, kernel=3, slots=3, rows=3, columns=3, fan_in_normalization=True)
    embeddings = torch.randn(5, 8)
    slots = [
        Slot((10, 6, 3, 3), 0, "weight"),
        Slot((10, 6, 3, 3), 1, "weight"),
        Slot((7, 1, 3, 3), 0, "weight"),
        Slot((10,), 0, SCALE),
        Slot((10,), 1, SHIFT),
        Slot((10,), 1, "weight"),
        Slot((10, 9), 0, "weight"),
    ]
    rows = [0, 4, 2, 2, 2, 3, 1]
    together = decoder(embeddings, rows, slots)
    for row, slot, tensor in zip(rows, slots, together, strict=True):
        assert tensor.shape == slot.shape
        torch.testing.assert_close(decoder(embeddings, [row], [slot])[0], tensor)
    assert (together[3] > 0).all()
    assert (together[4].abs() < 1).all()


def test_chunks_of_a_tensor_differ():
    torch.manual_seed(0)
    decoder = Decoder(8, 16, chunk=4, kernel=3, slots=1, rows=4, columns=2, fan_in_normalization=False)
    (tensor,) = decoder(torch.randn(1, 8), [0], [Slot((16, 8, 3, 3), 0, "weight")])
    chunks = [c.flatten() for rows in tensor.split(4) for c in rows.split(4, dim=1)]
    assert all((one - other).abs().max() > 1e-3 for one, other in pairwise(chunks))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("op", ["sep_conv_5x5", "nor_conv_3x3", "conv_7x1_1x7", "skip_connect", "max_pool_3x3"])
def test_slots_are_the_parameters_of_the_op(op, affine):
    module = build_op(op, Site((6, 8, 8), (6, 4, 4), 2, affine))
    slots = slots_of(module)
    assert {name: slot.shape for name, slot in slots.items()} == {
        n: tuple(p.shape) for n, p in module.named_parameters()
    }
    assert [slot.number for slot in slots.values()] == list(range(len(slots)))
    norms = [slot for slot in slots.values() if slot.role != "weight"]
    assert len(norms) == 2 * sum(isinstance(part, torch.nn.BatchNorm2d) and part.affine for part in module.modules())


# -- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", SPACES)
def test_generated_tensors_fit_every_live_op_of_every_space(name, affine):
    space = SPACES[name]
    skeleton = small_skeleton(space, affine=affine, auxiliary=name == "darts")
    ghn = GHN(NetworkSpace(space, skeleton), GHNRecipe(phases=1))
    architectures = some(space, 4)
    for architecture, weights in zip(architectures, ghn.generate(architectures), strict=True):
        network = DiscreteNetwork(placed(architecture, skeleton))
        live = {network.graph.nodes[position].name for position in network.graph.live}
        wanted = {n: p.shape for n, p in network.named_parameters() if n.split(".")[1] in live}
        assert {n: w.shape for n, w in weights.items()} == wanted


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("name", ["tiny", "block", "multi"])
def test_an_architecture_in_a_batch_gets_what_it_gets_alone(name, stacked):
    space = SPACES[name]
    ghn = GHN(NetworkSpace(space, small_skeleton(space)), GHNRecipe(phases=2, pass_embedding=stacked))
    architectures = some(space, 5)
    together = ghn.generate(architectures)
    for architecture, weights in zip(architectures, together, strict=True):
        (alone,) = ghn.generate([architecture])
        assert alone.keys() == weights.keys()
        for key in alone:
            torch.testing.assert_close(alone[key], weights[key], atol=1e-6, rtol=0)
    np.testing.assert_allclose(ghn.embed(architectures)[3], ghn.embed([architectures[3]])[0], atol=1e-6)


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"propagation": "synchronous"},
        {"pass_embedding": False},
        {"share_parameters": False},
        {"virtual_edges": True, "shape_embedding": True, "normalization": "node", "fan_in_normalization": True},
    ],
    ids=["paper", "synchronous", "no embedding passed", "unshared", "ghn2"],
)
def test_a_gradient_reaches_every_parameter(data, choice):
    ghn = GHN(NetworkSpace(SPACE, FRAME), GHNRecipe(phases=2, **choice))
    ghn.attach(data)
    images, labels = next(iter(data.batches(["weights"], 16)))
    everything = SPACE.architecture(dict.fromkeys(SPACE.paths, ("nor_conv_3x3",)))
    architectures = [everything, *some(SPACE, 20)]
    loss = 0
    for architecture, weights in zip(architectures, ghn.generate(architectures), strict=True):
        loss = loss + F.cross_entropy(ghn.outputs(architecture, weights, images)[-1], labels)
    loss.backward()
    for name, parameter in ghn.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def cells_of(weights, op):
    """The tensors of the same edge in every cell that holds it."""
    return [tensor for name, tensor in weights.items() if f"/{op}.0.weight" in name]


def test_copies_of_a_cell_get_weights_of_their_own_because_embeddings_are_passed():
    space = CellSpace(("nor_conv_3x3",), 1, 1, (CellKind("cell", outputs=(1,)),))
    skeleton = Skeleton(("cell",) * 3, 4, (1, 8, 8), 10)
    (architecture,) = some(space, 1)
    for passed in (True, False):
        ghn = GHN(NetworkSpace(space, skeleton), GHNRecipe(pass_embedding=passed))
        first, *others = cells_of(ghn.generate([architecture])[0], "nor_conv_3x3")
        assert len(others) == 2
        assert all(torch.equal(first, other) != passed for other in others)


def test_a_generated_network_is_the_discrete_network_with_those_weights(data):
    ghn = fitted(data, 1)
    images, _ = next(iter(data.batches(["report"], 32)))
    for architecture in some(SPACE, 3):
        (weights,) = ghn.generate([architecture])
        network = DiscreteNetwork(placed(architecture, FRAME))
        network.load_state_dict(weights, strict=False)
        use_batch_statistics(network)
        torch.testing.assert_close(ghn.outputs(architecture, weights, images)[-1], network.train()(images))
        # And nothing was written into any module.
        fixed = ghn.space.fixed_kernels()
        assert all((tensor.grad_fn is None) == (name in fixed) for name, tensor in weights.items())


def test_inherited_weights_make_a_network_that_does_what_was_scored(data):
    ghn = fitted(data, 2)
    for architecture in some(SPACE, 3):
        network = DiscreteNetwork(placed(architecture, FRAME), ghn.weights(architecture))
        loss = evaluate(network, data, "report").loss
        assert -loss == pytest.approx(float(ghn.score([architecture])[0]), rel=0.02)


def test_noise_moves_kernels_by_its_share_of_their_spread(data):
    ghn = fitted(data, 1)
    (architecture,) = some(SPACE, 1)
    plain, noisy = ghn.weights(architecture), ghn.weights(architecture, noise=0.1)
    again = ghn.weights(architecture, noise=0.1)
    live = set(ghn.generate([architecture])[0])
    for name, tensor in plain.items():
        assert torch.equal(noisy[name], again[name])
        if name in live and tensor.ndim > 1:
            moved = (noisy[name] - tensor).square().mean().sqrt()
            assert moved == pytest.approx(0.1 * float(tensor.std(correction=0)), rel=0.5)
        elif name in live:
            assert torch.equal(noisy[name], tensor)
    with pytest.raises(ValueError, match="`noise` must not be negative"):
        ghn.weights(architecture, noise=-1.0)


def test_without_sharing_a_module_keeps_its_propagation_where_another_is_dead():
    space = CellSpace(("none", "nor_conv_3x3"), 1, 2, (CellKind("cell", outputs=(2,)),))
    skeleton = Skeleton(("cell",) * 3, 4, (1, 8, 8), 10)
    ghn = GHN(NetworkSpace(space, skeleton), GHNRecipe(phases=1, share_parameters=False))
    skipping = space.architecture({"cell_0_2": "nor_conv_3x3"})  # cell 1 is read by nobody
    full = space.architecture({"cell_0_2": "nor_conv_3x3", "cell_1_2": "nor_conv_3x3"})
    np.testing.assert_allclose(ghn.embed([skipping, full])[0], ghn.embed([skipping])[0], atol=1e-6)
    with pytest.raises(ValueError, match="must reach their outputs"):
        ghn.embed([space.architecture({})])


def test_the_score_does_not_depend_on_what_it_is_scored_with(data, monkeypatch):
    ghn = fitted(data, 1)
    architectures = [SPACE.architecture({}), *some(SPACE, 7)]
    together = ghn.score(architectures)
    assert together[0] == -math.inf  # nothing reaches the classifier
    monkeypatch.setattr("optuna_nas.oneshot.ghn.model.GRAPHS_AT_ONCE", 3)
    np.testing.assert_allclose(ghn.score(architectures), together, rtol=1e-4)
    np.testing.assert_allclose(ghn.score(architectures[::-1])[::-1], together, rtol=1e-4)


# -- weights that depend on the graph ----------------------------------------------------------------------------------


def share_between(ghn, architectures):
    """The oracle: variances of each kernel, taken one element at a time."""
    generated = ghn.generate(architectures)
    shares = []
    for name in set().union(*generated) - ghn.space.fixed_kernels():
        several = [weights[name].detach().double().numpy() for weights in generated if name in weights]
        if len(several) > 1 and several[0].ndim > 1:
            values = np.stack([kernel.ravel() for kernel in several])
            between = np.mean([np.var(column) for column in values.T])
            shares.append(between / np.var(values))
    return float(np.mean(shares))


@pytest.mark.parametrize("seed", range(3))
def test_a_fresh_hypernetwork_generates_other_weights_for_other_architectures(seed):
    space = NetworkSpace(SPACES["nasbench201"], small_skeleton(SPACES["nasbench201"]))
    ghn = GHN(space, GHNRecipe(seed=seed))
    architectures = [one for one in some(space, 30, seed=5) if one.connected]
    assert ghn.variance_between(architectures) == pytest.approx(share_between(ghn, architectures), rel=1e-4)
    assert ghn.variance_between(architectures) >= 0.01
    levelling = GHN(space, GHNRecipe(seed=seed, normalization="none"))
    assert levelling.variance_between(architectures) < ghn.variance_between(architectures)


def test_a_trained_hypernetwork_still_does(data):
    space = NetworkSpace(SPACES["nasbench201"], nasbench201_skeleton(1, 4, (1, 8, 8), 10))
    ghn = GHN(space, GHNRecipe(batch_size=16, meta_batch=2))
    ghn.fit(data, 10, show_progress=False)
    assert ghn.variance_between([one for one in some(space, 30, seed=5) if one.connected]) >= 0.05


def test_embeddings_are_standardized_over_each_network_alone():
    ghn = GHN(NetworkSpace(SPACE, FRAME), GHNRecipe(phases=2))
    graphs = [placed(architecture, FRAME).graph() for architecture in some(SPACE, 4) if architecture.connected]
    batch = ghn.batch(graphs)
    together, _ = ghn.network(batch)
    owners = torch.cat([module.graphs for module in batch.modules])
    for number, graph in enumerate(graphs):
        own = together[owners == number]
        torch.testing.assert_close(own.mean(0), torch.zeros(own.shape[1]), atol=1e-4, rtol=0)
        varying = own.var(0, correction=0)
        assert ((varying - 1).abs() < 0.1).float().mean() > 0.9, "but for features that hardly vary"
        alone, _ = ghn.network(ghn.batch([graph]))
        torch.testing.assert_close(own, alone, atol=1e-4, rtol=1e-4)


def test_a_fit_says_whether_its_scores_rank(data, caplog):
    caplog.set_level(logging.INFO, "optuna_nas")
    ghn = fitted(data, 3)
    told = [record for record in caplog.records if "architectures" in record.getMessage()]
    assert len(told) == 1
    assert "of the weights' variance is between them" in told[0].getMessage()
    assert (told[0].levelname == "WARNING") == ghn.discern().levelled


def test_scores_that_differ_by_chance_are_levelled():
    random = np.random.default_rng(0)
    merits = random.normal(size=24)
    assert discernment(np.stack([merits, merits + 0.1 * random.normal(size=24)])).agreement > 0.7
    assert not discernment(np.stack([merits, merits + 0.1 * random.normal(size=24)])).levelled
    assert discernment(random.normal(size=(2, 24))).levelled
    assert discernment(np.zeros((2, 24))).levelled
    ties = np.round(random.normal(size=(2, 24)))
    assert discernment(ties).agreement == pytest.approx(kendalltau(*ties).statistic)
    assert str(discernment(np.zeros((2, 24)), between=0.0003)).endswith("0.0% of the weights' variance is between them")


# -- learning -----------------------------------------------------------------------------------------------------


def fitted(data, budget=3, **recipe):
    ghn = GHN(NetworkSpace(SPACE, FRAME), GHNRecipe(**{"batch_size": 16, "phases": 1, **recipe}))
    ghn.fit(data, budget, show_progress=False)
    return ghn


def assert_equal(one, other):
    first, second = one.network.state_dict(), other.network.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert one.records == other.records


@pytest.mark.parametrize(("freeze_fraction", "gain"), [(0, 0.2), (1, 0.1)])
def test_generated_weights_learn(data, freeze_fraction, gain):
    ghn = fitted(data, 10, learning_rate=3e-3, freeze_fraction=freeze_fraction)
    assert ghn.records[0].metrics["loss"] > math.log(10) - 0.5
    late = [record.metrics for record in ghn.records[-20:]]
    assert np.mean([metrics["loss"] for metrics in late]) < math.log(10) - gain
    assert np.mean([metrics["accuracy"] for metrics in late]) > 0.15  # by chance 0.1
    assert ghn.score(some(SPACE, 20, seed=3)).mean() > -math.log(10) + gain / 2


def test_a_fit_that_was_stopped_goes_on_to_the_same_numbers(data, tmp_path):
    straight = fitted(data, 1, meta_batch=2)
    path = tmp_path / "ghn.safetensors"
    for stop in (5, 11):
        ghn = GHN(NetworkSpace(SPACE, FRAME), straight.recipe)
        with pytest.raises(TrainingStopped):
            ghn.fit(data, 1, checkpoint=path, should_stop=lambda g=ghn, n=stop: g.step >= n)
    resumed = GHN(NetworkSpace(SPACE, FRAME), straight.recipe)
    resumed.fit(data, 1, checkpoint=path)
    assert_equal(straight, resumed)
    copied = GHN(NetworkSpace(SPACE, FRAME), straight.recipe)
    copied.fit(data, 1, until=0.4)
    copied = pickle.loads(pickle.dumps(copied))
    copied.fit(data, 1)
    assert_equal(straight, copied)


def test_it_may_learn_on_smaller_graphs_than_it_scores(data):
    small, large = replace(TINY_BLOCK, nodes=2), TINY_BLOCK
    skeleton = small_skeleton(large, input_shape=(1, 8, 8), classes=10)
    ghn = GHN(
        NetworkSpace(large, skeleton), GHNRecipe(batch_size=64, phases=1), training_space=NetworkSpace(small, skeleton)
    )
    ghn.fit(data, 1)
    assert ghn.score(some(large, 2)).shape == (2,)


def test_a_step_without_a_finite_loss_is_skipped_and_too_many_are_an_error(data):
    broken = replace(data, images=torch.full_like(data.images.float(), float("nan")))
    ghn = GHN(NetworkSpace(SPACE, FRAME), GHNRecipe(batch_size=16, phases=1))
    before = {name: tensor.clone() for name, tensor in ghn.network.state_dict().items()}
    with pytest.raises(TrainingDiverged, match=r"`learning_rate`.*of 20 steps"):
        ghn.fit(broken, 3)
    assert ghn.skipped == 20
    assert all(torch.equal(before[name], tensor) for name, tensor in ghn.network.state_dict().items())


# -- bad input ----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(data, tmp_path):
    ghn = GHN(NetworkSpace(SPACE, FRAME))
    with pytest.raises(ValueError, match="`data` with a report split"):
        ghn.score(some(SPACE, 1))
    with pytest.raises(ValueError, match="of the space of this GHN"):
        ghn.embed(some(TINY, 1))
    with pytest.raises(ValueError, match=r"fit the skeleton.*classes"):
        GHN(NetworkSpace(SPACE, replace(FRAME, classes=7))).attach(data)
    with pytest.raises(ValueError, match="`training_space` must use ops of `space`"):
        GHN(NetworkSpace(SPACE, FRAME), training_space=NetworkSpace(replace(SPACE, ops=("nor_conv_1x1",)), FRAME))
    with pytest.raises(ValueError, match="`hidden` must be at least"):
        GHN(NetworkSpace(darts_space(), darts_search_skeleton()), GHNRecipe(hidden=8))
    one = replace(data, splits={**data.splits, "report": data.splits["report"][:1]})
    ghn.attach(one)
    with pytest.raises(ValueError, match="at least 2 examples"):
        ghn.score(some(SPACE, 1))
    ghn.save(tmp_path / "ghn.safetensors")
    with pytest.raises(ValueError, match="space"):
        GHN(NetworkSpace(replace(SPACE, nodes=3), FRAME)).load(tmp_path / "ghn.safetensors")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden", 0),
        ("phases", 0),
        ("meta_batch", 1.5),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("clip_norm", -1.0),
        ("propagation", "backward"),
        ("share_parameters", 1),
        ("seed", -1),
    ],
)
def test_a_recipe_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        GHNRecipe(**{field: value})


def test_a_fit_on_smaller_anytime_networks_goes_on_from_a_file(tmp_path):
    data, file = few_digits(32), tmp_path / "ghn.safetensors"
    skeleton = anytime_skeleton(2, 4, data.input_shape, data.classes, budget=1e5)
    space, smaller = (NetworkSpace(anytime_space(nodes), skeleton) for nodes in ((2, 2), (1, 1)))
    for until in (0.5, 1.0):
        ghn = GHN(space, GHNRecipe(batch_size=16, phases=1), training_space=smaller)
        if file.exists():
            ghn.load(file)  # as a worker does with what another one has published
        ghn.fit(data, 1, until=until, checkpoint=file, show_progress=False)
    assert ghn.step == ghn.total_steps
