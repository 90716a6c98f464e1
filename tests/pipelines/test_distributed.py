"""Every parameter of a built module learns, so that plain DistributedDataParallel trains any architecture."""

from dataclasses import asdict

import declared
import numpy as np
import pytest
import torch
from strategies import SPACES, counted_parameters, small_skeleton
from torch import distributed, nn

from optuna_nas import HMNAS, NetworkSpace, load_network, nasbench201_skeleton, nasbench201_space
from optuna_nas.networks import save_network
from optuna_nas.training.checkpoints import load_tensors, save_tensors
from optuna_nas.training.task import call

PLACED = {name: NetworkSpace(cells, small_skeleton(cells)) for name, cells in SPACES.items()}
EVERY = {**PLACED, **declared.SPACES}
SLOW = ("darts", "hmnas", "transformer")
DEAD_END = {"cell_0_3": "nor_conv_1x1", "cell_0_2": "nor_conv_3x3", "cell_1_3": "nor_conv_3x3"}
"""A cell of NAS-Bench-201 with an op that nothing reads and one that reads nothing."""
NASBENCH201 = NetworkSpace(nasbench201_space(), nasbench201_skeleton(repeats=1, channels=4, input_shape=(3, 8, 8)))
UNREAD = {"reads": "0"}


def inputs_of(space, batch_size=4):
    return torch.randn(batch_size, 3, 8, 8) if space in PLACED.values() else declared.inputs_of(space, batch_size)


def drawn(space, number, seed=0):
    random, found = np.random.default_rng(seed), []
    while len(found) < number:
        architecture = space.sample(random)
        found += [architecture] if architecture.connected else []
    return found


def total(outputs):
    return sum(output.sum() for output in outputs) if isinstance(outputs, tuple) else outputs.sum()


@pytest.mark.parametrize("name", EVERY)
def test_every_parameter_that_may_learn_gets_a_gradient(name):
    space = EVERY[name]
    for architecture in drawn(space, 15 if name in SLOW else 60):
        module = architecture.build(seed=0).train()
        total(call(module, inputs_of(space))).backward()
        without = [path for path, p in module.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, architecture
        if name != "anytime":
            assert architecture.cost().params == counted_parameters(module), architecture


def test_what_a_choice_leaves_out_is_frozen_and_nothing_else():
    frozen = {
        reads: {path.partition(".")[0] for path, p in module.named_parameters() if not p.requires_grad}
        for reads in ("0", "1", "2", "0+2")
        for module in [declared.PERCEPTRON.decode({**declared.PERCEPTRON.encode(default()), "reads": reads}).build()]
    }
    assert frozen == {"0": {"block", "deep"}, "1": {"deep"}, "2": set(), "0+2": set()}


def default():
    return declared.PERCEPTRON.architecture({})


def steps(rank, folder, spaces_and_params):
    """Train a few architectures by two processes; both must end with the same weights."""
    address = f"file://{folder / 'rendezvous'}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.manual_seed(rank)
    try:
        for name, params in spaces_and_params:
            space = EVERY.get(name, NASBENCH201)
            module = space.decode(params).build(seed=0).train()
            parallel = nn.parallel.DistributedDataParallel(module)
            optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.01)
            for _ in range(3):  # what is missing is found at the second step
                optimizer.zero_grad()
                total(call(parallel, inputs_of(space) if name in EVERY else torch.randn(4, 3, 8, 8))).backward()
                optimizer.step()
            ours = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
            both = [torch.empty_like(ours), torch.empty_like(ours)]
            distributed.all_gather(both, ours)
            assert torch.equal(*both), (name, params)
    finally:
        distributed.destroy_process_group()


@pytest.mark.process
def test_two_processes_train_by_plain_distributed_data_parallel(tmp_path):
    quick = {name: space for name, space in EVERY.items() if name not in SLOW}
    samples = [(name, space.encode(a)) for name, space in quick.items() for a in drawn(space, 1, seed=1)]
    samples.append(("dead end", NASBENCH201.encode(NASBENCH201.architecture(DEAD_END))))
    samples.append(("perceptron", declared.PERCEPTRON.encode(declared.PERCEPTRON.architecture(UNREAD))))
    torch.multiprocessing.spawn(steps, (tmp_path, samples), nprocs=2)


# -- what else knows of ops that lead nowhere ---------------------------------------------------------------------


def whole_network():
    """A network with the modules of ops that lead nowhere, as earlier versions built it: their tensors by name."""
    full = NASBENCH201.full_architecture().build(seed=1)
    wanted = NASBENCH201.cells.network_graph(NASBENCH201.architecture(DEAD_END), NASBENCH201.skeleton, whole=True)
    names = {node.name for node in wanted}
    return {name: tensor for name, tensor in full.state_dict().items() if name.split(".")[1] in names}


def test_a_file_with_tensors_of_ops_that_lead_nowhere_is_read(tmp_path):
    architecture, path = NASBENCH201.architecture(DEAD_END), tmp_path / "network.safetensors"
    save_network(path, architecture.build(seed=0))
    own, description = load_tensors(path)
    del description["masks"]  # as before, when files had more tensors and did not name their masks
    before = whole_network()
    assert len(before) > len(own)
    masks = {f"masks/{name}": torch.ones_like(t) for name, t in before.items() if t.ndim == 4}
    save_tensors(path, {**before, **masks}, description)
    network = load_network(path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items() if name in before)
    strange = {**before, "parts.cell0/9<-0/nor_conv_3x3.0.weight": torch.zeros(4, 4, 3, 3)}
    save_tensors(path, strange, description)
    with pytest.raises(ValueError, match="must not be there"):
        load_network(path)


def test_weights_are_inherited_by_name_where_ops_lead_nowhere():
    supernet, architecture = NASBENCH201.supernet(seed=0), NASBENCH201.architecture(DEAD_END)
    network = architecture.build(supernet.weights_of(architecture))
    assert set(network.state_dict()) == set(supernet.weights_of(architecture))
    kept = HMNAS(NASBENCH201.with_skeleton(affine=False)).supernet.weights_of(architecture)
    assert "parts.cell0/2<-0/nor_conv_3x3.0.weight" not in kept


def test_ops_that_lead_nowhere_cost_nothing_and_stay_in_the_whole_graph():
    architecture = NASBENCH201.architecture(DEAD_END)
    alone = NASBENCH201.architecture({"cell_0_3": "nor_conv_1x1"})
    assert architecture.cost() == alone.cost()
    whole = NASBENCH201.cells.network_graph(architecture, NASBENCH201.skeleton, whole=True)
    assert all(asdict(whole.cost)[name] > cost for name, cost in asdict(alone.cost()).items())
