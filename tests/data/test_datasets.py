"""Any map-style data set: batches are a function of splits, seed, epoch and step, whatever transforms draw."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from optuna_nas.data import CHOICES, REPORT, SPLITS, TEST, TRAIN, WEIGHTS, DatasetData


class Noisy(Dataset):
    """Examples (number + noise, label) whose noise draws from all three global streams."""

    def __init__(self, n=60, noise=1.0, first=0):
        self.n, self.noise, self.first = n, noise, first

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        drawn = torch.tensor([torch.rand(()).item(), np.random.rand(), random.random()])
        return self.first + index + self.noise * drawn, (self.first + index) % 3


def data_of(n_workers=0, **changes):
    return DatasetData(Noisy(), **{"plain": Noisy(noise=0.0), "n_workers": n_workers, "outputs": 3, **changes})


def equal(one, other):
    return len(one) == len(other) > 0 and all(
        torch.equal(a, b) for ours, theirs in zip(one, other, strict=True) for a, b in zip(ours, theirs, strict=True)
    )


# -- batches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [None, 0, 1])
@pytest.mark.process
def test_workers_and_restarts_give_the_same_batches(epoch):
    expected = list(data_of().batches(TRAIN, 4, seed=3, epoch=epoch))
    for n_workers in (0, 2):
        assert equal(list(data_of(n_workers).batches(TRAIN, 4, seed=3, epoch=epoch)), expected)
        assert equal(list(data_of(n_workers).batches(TRAIN, 4, seed=3, epoch=epoch, start=5)), expected[5:])


def test_batches_depend_on_splits_seed_epoch_and_step_and_on_nothing_else():
    data = data_of()

    def batches(splits=TRAIN, **keys):
        torch.rand(3), np.random.rand(3), random.random()
        return list(data.batches(splits, 4, **keys))

    expected = batches(seed=1, epoch=1)
    assert equal(batches(seed=1, epoch=1), expected)
    assert not equal(batches(seed=1, epoch=2), expected)
    assert not equal(batches(seed=2, epoch=1), expected)
    assert not equal(batches([WEIGHTS], seed=1, epoch=1), expected)


def test_transforms_draw_anew_for_every_epoch_and_example():
    data = data_of()

    def noise(epoch):
        inputs = torch.cat([inputs for inputs, _ in data.batches([WEIGHTS], 1, epoch=epoch)])
        return {int(row.floor()[0]): tuple((row - row.floor()).tolist()) for row in inputs}

    first, second = noise(0), noise(1)
    assert first.keys() == second.keys()
    assert len({*first.values(), *second.values()}) == 2 * len(first)
    assert all(len(set(three)) == 3 for three in first.values())


def test_evaluation_reads_plain_examples_once_and_in_order():
    data = data_of()
    inputs, labels = (torch.cat(parts) for parts in zip(*data.batches([REPORT, TEST], 4), strict=True))
    order = torch.cat([data.splits[REPORT], data.splits[TEST]])
    assert torch.equal(inputs, order[:, None].float().expand(-1, 3))
    assert torch.equal(labels, order % 3)
    noisy = DatasetData(Noisy())  # without `plain` the transforms draw, and they draw the same
    assert equal(list(noisy.batches([REPORT], 4)), list(noisy.batches([REPORT], 4)))


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.process
def test_the_global_streams_stay_where_they_are(n_workers):
    def streams():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = streams()
    data = data_of(n_workers)
    assert data.input_shape == (3,)
    data.describe()
    list(data.batches(TRAIN, 4, epoch=0))
    list(data.batches([REPORT], 4))
    assert streams() == before


def test_the_incomplete_batch_of_an_epoch_is_dropped():
    data = data_of()
    assert [len(labels) for _, labels in data.batches(TRAIN, 7, epoch=0)] == [7] * (data.size(TRAIN) // 7)
    assert sum(len(labels) for _, labels in data.batches(TRAIN, 7)) == data.size(TRAIN)


def pair_up(examples):
    return {"inputs": torch.stack([example for example, _ in examples]), "extra": [label for _, label in examples]}


def test_a_batch_is_what_the_examples_collate_to():
    (batch,) = data_of(collate=pair_up).batches([REPORT], 100)
    assert set(batch) == {"inputs", "extra"}
    assert len(batch["inputs"]) == len(batch["extra"]) == data_of().size([REPORT])


# -- splits -------------------------------------------------------------------------------------------------------


def test_splits_are_disjoint_and_cover_every_example():
    data = data_of()
    assert sorted(torch.cat([data.splits[split] for split in SPLITS]).tolist()) == list(range(60))
    assert [data.size([split]) for split in SPLITS] == [24, 12, 12, 12]
    assert torch.equal(data_of(seed=0).splits[TEST], data.splits[TEST])
    assert not torch.equal(data_of(seed=1).splits[TEST], data.splits[TEST])


def test_given_labels_split_by_class():
    data = data_of(labels=[index % 3 for index in range(60)])
    assert all(torch.bincount(data.splits[split] % 3).tolist() == [data.size([split]) // 3] * 3 for split in SPLITS)


def test_a_given_test_set_is_the_test_split():
    data = DatasetData(Noisy(40, noise=0.0), Noisy(9, noise=0.0, first=1000), fractions={CHOICES: 0.0, REPORT: 0.25})
    assert [data.size([split]) for split in SPLITS] == [30, 0, 10, 9]
    (inputs, _), *_ = data.batches([TEST], 100)
    assert inputs[:, 0].tolist() == list(range(1000, 1009))


# -- what makes a result repeatable -------------------------------------------------------------------------------


@pytest.mark.process
def test_the_description_changes_with_whatever_changes_a_result():
    described = [
        data_of(),
        data_of(name="mine"),
        data_of(seed=1),
        data_of(fractions={REPORT: 0.4}),
        data_of(outputs=None),
        data_of(plain=Noisy(first=2)),
        DatasetData(TensorDataset(torch.rand(60, 3), torch.arange(60) % 3), outputs=3),
    ]
    assert len({repr(data.describe()) for data in described}) == len(described)
    assert data_of(2).describe() == data_of().describe()


def test_a_second_description_reads_no_example():
    class Counting(Noisy):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    data = DatasetData(dataset := Counting(), outputs=3)
    first, reads = data.describe(), dataset.reads
    assert first == data.describe()
    assert data.to("meta").describe() == first
    assert dataset.reads == reads < 60


class Own(Noisy):
    """Examples with noise of a generator of its own, which nobody seeds."""

    def __getitem__(self, index):
        return self.first + index + self.noise * np.random.default_rng().random(3), index % 3


def test_examples_in_the_middle_are_described():
    numbers = torch.arange(60.0)
    ends = [int(positions[place]) for positions in DatasetData(Noisy()).splits.values() for place in (0, -1)]
    changed = torch.where(torch.isin(torch.arange(60), torch.tensor(ends)), numbers, -numbers)
    one, other = (DatasetData(TensorDataset(values)).describe() for values in (numbers, changed))
    assert one.pop("sample") != other.pop("sample")
    assert one == other


def test_examples_that_are_never_alike_are_not_described():
    assert data_of(plain=Own())._sample is None
    one, other = (DatasetData(Own(), plain=Noisy(noise=0.0, first=first)).describe() for first in (0, 1))
    assert one["examples"] is other["examples"] is None  # nothing is known of trainings
    assert one["sample"] != other["sample"]  # but something of evaluations


def test_numbers_of_numpy_and_paths_are_numbers_and_texts():
    data = data_of(np.int64(0), outputs=np.int64(3), name=Path("pets"))
    assert data.describe() == data_of(name="pets").describe()
    assert json.dumps(data.describe())


def test_data_stay_where_they_are_or_move_as_a_whole():
    data = data_of(labels=[0, 1, 2] * 20, fractions={REPORT: 0.3}, collate=pair_up, seed=4, name="mine")
    assert data.to("cpu") is data
    moved = data.to("meta")
    assert next(moved.batches([REPORT], 4))["inputs"].is_meta
    assert (moved.name, moved.outputs, moved.device) == ("mine", 3, torch.device("meta"))
    assert all(torch.equal(moved.splits[split], data.splits[split]) for split in SPLITS)


@pytest.mark.parametrize(
    ("example", "shape"),
    [
        ((torch.zeros(3, 2), 1), (3, 2)),
        ([np.zeros((5, 2)), 1], (5, 2)),
        (torch.zeros(7), (7,)),
        ({"tokens": torch.zeros(7)}, None),
        (("words", 1), None),
    ],
)
def test_the_shape_of_an_input_is_that_of_the_first_tensor(example, shape):
    class Same(Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, index):
            return example

    assert DatasetData(Same()).input_shape == shape


class Stream(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(2)] * 9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DatasetData(Stream()), "`dataset` must be a map-style Dataset with a length but is a Stream; use"),
        (lambda: DatasetData(Noisy(), Stream()), "`test` must be a map-style Dataset with a length but is a Stream"),
        (lambda: DatasetData(Noisy(0)), "`dataset` must hold at least one example but is empty"),
        (lambda: DatasetData(Noisy(), Noisy(0)), "`test` must hold at least one example but is empty"),
        (lambda: data_of(plain=Noisy(9)), "`plain` must hold the examples of `dataset`, 60, but has 9"),
        (lambda: data_of(labels=[0]), "`labels` must have one for each of 60 examples but has 1"),
        (lambda: data_of(labels=[0] * 59 + [1]), "`y` must have enough .* of every class"),
        (lambda: data_of(outputs=2.5), "`outputs` must be an integer of at least 1 but got 2.5"),
        (lambda: data_of(-1), "`n_workers` must be an integer of at least 0 but got -1"),
        (lambda: data_of(name=3), "`name` must be a text but got 3"),
        (lambda: list(data_of().batches(["moon"], 4)), "`split` must be one of .* but got 'moon'"),
        (lambda: list(data_of().batches(TRAIN, 0)), "`batch_size` must be at least 1 but got 0"),
    ],
)  # fmt: skip
def test_refuses_with_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
