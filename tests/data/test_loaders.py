"""PyTorch's own loaders as data: their batches as they are, the same after a restart where a generator allows it."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from optuna_nas.data import CHOICES, REPORT, SPLITS, TEST, TRAIN, WEIGHTS, LoaderData
from optuna_nas.training import Recipe, TrainingStopped, train


def loader(n_examples, first=0, generator=None, batch_size=8, **options):
    numbers = torch.arange(first, first + n_examples)
    examples = TensorDataset(torch.stack([numbers, -numbers], dim=1).float(), numbers % 3)
    return DataLoader(examples, batch_size, shuffle=True, generator=generator, **options)


def data_of(repeatable=True, **changes):
    """Return data of 70 and 20 training examples (11 steps of 8) and 21 to report."""

    def generator():
        return torch.Generator() if repeatable else None

    loaders = {
        WEIGHTS: loader(70, 0, generator()),
        CHOICES: loader(20, 100, generator()),
        REPORT: DataLoader(loader(21, 200).dataset, 8),
    }
    return LoaderData(loaders, outputs=3, **changes)


def numbers(batches):
    return [batch[0][:, 0].long().tolist() for batch in batches]


# -- batches ------------------------------------------------------------------------------------------------------


def test_batches_are_those_of_the_loader():
    data = data_of()
    assert numbers(data.batches([REPORT], 1000)) == [[*range(200, 208)], [*range(208, 216)], [*range(216, 221)]]
    inputs, labels = next(data.batches([WEIGHTS], 8, epoch=0))
    assert torch.equal(inputs[:, 0], -inputs[:, 1])
    assert torch.equal(inputs[:, 0].long() % 3, labels)


def test_a_generator_makes_batches_a_function_of_seed_and_epoch():
    data = data_of()

    def batches(seed, epoch, start=0, data=data):
        torch.rand(3)
        return numbers(data.batches(TRAIN, 8, seed=seed, epoch=epoch, start=start))

    expected = batches(1, 2)
    list(data.batches(TRAIN, 8, epoch=5))
    assert batches(1, 2) == batches(1, 2, data=data_of()) == expected
    assert batches(1, 2, start=4) == expected[4:]
    assert batches(1, 3) != expected
    assert batches(2, 2) != expected


@pytest.mark.process
def test_workers_load_the_same_batches():
    def batches(n_workers):
        shuffled = loader(40, generator=torch.Generator(), num_workers=n_workers)
        return numbers(LoaderData({WEIGHTS: shuffled, REPORT: shuffled}).batches([WEIGHTS], 8, seed=3, epoch=1))

    assert batches(2) == batches(0)


def test_without_a_generator_the_order_is_the_loaders_own_and_the_description_says_so():
    data = data_of(repeatable=False)
    assert numbers(data.batches([WEIGHTS], 8, epoch=0)) != numbers(data.batches([WEIGHTS], 8, epoch=0))
    assert data.describe()["resume"] == "may see other batches: a loader has no generator"
    assert data_of().describe()["resume"] == "same batches"  # the order of the report split does not matter


def test_an_epoch_has_as_many_batches_as_a_training_counts():
    # A training counts 90 // 8 steps; the two loaders together have nine full batches, and two that are not full.
    data = data_of()
    assert [len(batch) for batch in numbers(data.batches(TRAIN, 8, epoch=0))] == [8] * 8 + [6] + [8] * 2
    assert len(numbers(data.batches([WEIGHTS], 8, epoch=0))) == 70 // 8
    small = LoaderData({WEIGHTS: loader(3), REPORT: loader(3)})
    assert [len(batch) for batch in numbers(small.batches(TRAIN, 8, epoch=0))] == [3]


def test_a_training_of_two_loaders_ends_its_epochs_where_it_says():
    fractions, rates = [], []
    network = nn.Linear(2, 3)
    recipe = Recipe(epochs=2, batch_size=8)
    train(network, data_of(), recipe, on_step=fractions.append, on_epoch=lambda r: rates.append(r.learning_rate))
    assert fractions == pytest.approx([step / 22 for step in range(1, 23)])
    assert rates[-1] < rates[0]


def test_a_training_goes_on_to_the_same_numbers_where_loaders_have_generators(tmp_path):
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.001)

    def trained(seed=0, **options):
        torch.manual_seed(seed)
        network = nn.Linear(2, 3)
        if seed:
            network.weight.data.zero_()
        train(network, data_of(), recipe, **options)
        return network.state_dict()

    steps = []
    with pytest.raises(TrainingStopped):
        trained(on_step=steps.append, should_stop=lambda: len(steps) == 15, checkpoint=tmp_path / "training")
    resumed, expected = trained(seed=5, checkpoint=tmp_path / "training"), trained()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())


# -- sizes --------------------------------------------------------------------------------------------------------


def test_sizes_are_numbers_of_examples():
    data = data_of()
    assert [data.size([split]) for split in SPLITS] == [70, 20, 21, 0]
    assert data.size(TRAIN) == 90
    assert list(data.batches([TEST], 8)) == []


def test_examples_that_a_loader_drops_do_not_count():
    data = LoaderData({WEIGHTS: loader(70, drop_last=True), REPORT: loader(9)})
    assert data.size([WEIGHTS]) == 64
    assert len(list(data.batches([WEIGHTS], 8, epoch=0))) == 8


def test_batches_that_come_ready_made_are_counted_by_the_first():
    examples = loader(70).dataset
    sampler = BatchSampler(RandomSampler(examples, generator=torch.Generator()), 8, drop_last=True)
    data = LoaderData({WEIGHTS: DataLoader(examples, batch_sampler=sampler), REPORT: loader(9)})
    assert data.size([WEIGHTS]) == 64
    assert [len(batch) for batch in numbers(data.batches([WEIGHTS], 8, epoch=0))] == [8] * 8


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.rand(2), 0


class Counted(IterableDataset):
    """A stream that knows how long it is."""

    def __len__(self):
        return 20

    def __iter__(self):
        return ((torch.full((2,), float(number)), number % 3) for number in range(20))


def test_a_stream_of_known_length_is_data():
    data = LoaderData({WEIGHTS: DataLoader(Counted(), 8), REPORT: DataLoader(Counted(), 8)})
    assert data.size([WEIGHTS]) == 20
    assert numbers(data.batches([WEIGHTS], 8, epoch=0)) == [[*range(8)], [*range(8, 16)]]
    assert numbers(data.batches([REPORT], 8))[-1] == [16, 17, 18, 19]


# -- the rest of what a training needs ----------------------------------------------------------------------------


def test_the_description_changes_with_whatever_changes_a_result():
    loaders = data_of().loaders
    described = [data_of(), data_of(name="mine"), data_of(repeatable=False), LoaderData(loaders)]
    described.append(LoaderData({**loaders, REPORT: loader(9)}, outputs=3))
    assert len({repr(data.describe()) for data in described}) == len(described)
    assert data_of().describe() == data_of().describe()


class Marked(Dataset):
    """Examples with noise of the global generators, or of one of their own; where they were read is noted."""

    def __init__(self, sign=1.0, own=False, n=40):
        self.sign, self.n, self.read = sign, n, []
        self.random = np.random.default_rng() if own else np.random

    def __len__(self):
        return self.n

    def __getitem__(self, place):
        self.read.append(place)
        noise = self.random.random() + torch.rand(()).item() + random.random()
        return torch.tensor([self.sign * place, noise]), place % 3


def random_collate(examples):
    inputs, labels = default_collate(examples)
    return inputs * torch.rand(()), labels


def described(dataset, report=None, **options):
    generator = torch.Generator()
    report = DataLoader(TensorDataset(torch.arange(9.0)), 8) if report is None else report
    data = LoaderData({WEIGHTS: DataLoader(dataset, 8, shuffle=True, generator=generator, **options), REPORT: report})
    before = generator.get_state(), torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    found = data.describe()["examples"]
    after = generator.get_state(), torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert all(torch.equal(*pair) for pair in zip(before[:2], after[:2], strict=True))
    assert before[2:] == after[2:]
    return found


@pytest.mark.parametrize(
    "options", [{}, {"collate_fn": random_collate}, {"drop_last": True}], ids=["plain", "collate", "drop_last"]
)
def test_other_examples_are_described_whatever_shuffles_and_draws(options):
    one = described(Marked(), **options)
    assert one == described(Marked(), **options)
    other = described(Marked(sign=-1.0), **options)
    assert one[WEIGHTS] != other[WEIGHTS]
    assert one[REPORT] == other[REPORT]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # fork, Python 3.12
@pytest.mark.process
def test_examples_of_loaders_with_workers_are_read_in_a_worker():
    dataset = Marked()  # which may open files at its first example
    assert described(dataset, num_workers=2) == described(Marked())
    assert dataset.read == []


def test_batches_that_come_ready_made_are_described():
    def loader_of(dataset):
        sampler = BatchSampler(RandomSampler(dataset, generator=torch.Generator()), 8, drop_last=True)
        return DataLoader(dataset, batch_size=None, sampler=sampler)

    def found(sign):
        return described(Marked(), loader_of(TensorDataset(sign * torch.arange(40.0))))[REPORT]

    assert found(1) == found(1) != found(-1)


def test_another_part_of_a_dataset_is_described():
    def found(places):
        return described(Marked(), DataLoader(Marked(), 8, sampler=SubsetRandomSampler(places)))[REPORT]

    assert found([3, 1, 2]) == found([1, 2, 3]) != found([4, 5, 6])


class Named(Marked):
    """Examples by name."""

    def __getitem__(self, place):
        return super().__getitem__({"one": 1, "two": 2}[place])


def test_examples_that_nobody_knows_do_not_change_a_description():
    assert described(Marked(own=True)) == described(Marked(own=True))
    assert described(Marked(own=True))[WEIGHTS] is None
    assert described(Marked(), DataLoader(Named(), 8, sampler=["one", "two"]))[REPORT] is None

    class Begun(Counted):
        begun = 0

        def __iter__(self):
            self.begun += 1
            return super().__iter__()

    stream = Begun()
    assert described(Marked(), DataLoader(stream, 8))[REPORT] is None
    assert stream.begun == 0


def test_a_second_description_reads_no_example():
    dataset = Marked()
    data = LoaderData({WEIGHTS: DataLoader(dataset, 8), REPORT: loader(9)})
    first, reads = data.describe(), len(dataset.read)
    assert data.describe() == data.to("meta").describe() == first
    assert len(dataset.read) == reads < 40


def test_tensors_of_any_type_are_described():
    for tensor in (torch.zeros(40, dtype=torch.bfloat16), torch.zeros(40, requires_grad=True)):
        assert described(TensorDataset(tensor))[WEIGHTS] is not None
    one, other = (described(TensorDataset(torch.full((40,), value).bfloat16())) for value in (1.0, 2.0))
    assert one != other


def test_numbers_of_numpy_and_paths_are_numbers_and_texts():
    loaders = data_of().loaders
    described = LoaderData(loaders, outputs=np.int64(3), name=Path("pets")).describe()
    assert described == LoaderData(loaders, outputs=3, name="pets").describe()
    assert json.dumps(described)


def test_data_stay_where_they_are_or_move_as_a_whole():
    data = data_of(name="mine")
    assert data.to("cpu") is data
    moved = data.to("meta")
    assert all(tensor.is_meta for tensor in next(moved.batches([REPORT], 8)))
    assert (moved.name, moved.outputs, moved.device) == ("mine", 3, torch.device("meta"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoaderData({"moon": loader(9)}), "`loaders` must be of the splits .* but got 'moon'"),
        (lambda: LoaderData({WEIGHTS: loader(9)}), r"`loaders` must have one for 'report' but has \['weights'\]; add"),
        (lambda: LoaderData({REPORT: loader(9)}), r"`loaders` must have one for 'weights' but has \['report'\]"),
        (
            lambda: list(data_of().batches(TRAIN, 16, epoch=0)),
            r"`batch_size` must be that of the loader of 'weights', 8, but is 16; use Recipe\(batch_size=8\)",
        ),
        (
            lambda: LoaderData({WEIGHTS: DataLoader(Endless(), 8), REPORT: loader(9)}),
            r"`loaders\['weights'\]` must have a known length but is of a Endless; give that",
        ),
        (lambda: LoaderData(data_of().loaders, outputs=2.5), "`outputs` must be an integer of at least 1 but got 2.5"),
        (lambda: data_of(name=None), "`name` must be a text but got None"),
        (lambda: list(data_of().batches(["moon"], 8)), "`split` must be one of .* but got 'moon'"),
    ],
)  # fmt: skip
def test_refuses_with_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
