"""Tensors of any shape as data: what becomes of inputs and targets, their splits, and batches out of them."""

import numpy as np
import pytest
import torch

from optuna_nas.data import CHOICES, REPORT, SPLITS, TEST, TRAIN, WEIGHTS, TensorData

DRAW = np.random.default_rng(0)
X = DRAW.normal(3.0, 5.0, size=(200, 4))
Y = X @ np.array([1.0, -2.0, 0.5, 0.0])
LABELS = np.arange(200) % 3


def equal(one, other):
    return len(one) == len(other) > 0 and all(
        torch.equal(a, b) for ours, theirs in zip(one, other, strict=True) for a, b in zip(ours, theirs, strict=True)
    )


# -- inputs and targets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "outputs", "dtype", "shape"),
    [
        (Y, 1, torch.float32, ()),
        (Y[:, None], 1, torch.float32, (1,)),
        (np.stack([Y, -Y], axis=1), 2, torch.float32, (2,)),
        (np.zeros((200, 3, 5)), 15, torch.float32, (3, 5)),
        (LABELS, 3, torch.int64, ()),
        (LABELS.astype(np.uint8), 3, torch.int64, ()),
    ],
)
def test_targets_are_labels_or_numbers_to_predict(targets, outputs, dtype, shape):
    data = TensorData.from_arrays(X, targets)
    assert data.outputs == outputs
    assert data.targets.dtype == dtype
    inputs, batch_targets = next(data.batches(TRAIN, 8, epoch=0))
    assert (inputs.shape, batch_targets.shape) == ((8, 4), (8, *shape))
    np.testing.assert_allclose(data.targets, targets, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4,), (7, 2), (1, 6, 6)])
def test_inputs_have_any_shape(shape):
    data = TensorData.from_arrays(DRAW.normal(size=(60, *shape)), np.zeros(60))
    assert data.input_shape == shape
    assert next(data.batches([REPORT], 5)).inputs.shape == (5, *shape)


def test_columns_are_normalised_by_the_training_splits_alone():
    data = TensorData.from_arrays(X, Y)
    train = torch.cat([data.splits[split] for split in TRAIN])
    torch.testing.assert_close(data.inputs[train].mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(data.inputs[train].std(0), torch.ones(4), rtol=0, atol=1e-5)
    outliers = X.copy()
    outliers[torch.cat([data.splits[REPORT], data.splits[TEST]])] += 1e4
    assert torch.equal(TensorData.from_arrays(outliers, Y).inputs[train], data.inputs[train])
    assert torch.equal(TensorData.from_arrays(X, Y, normalize=False).inputs, torch.from_numpy(X).float())


def test_a_column_that_never_changes_becomes_zero():
    constant = np.concatenate([X, np.full((200, 1), 7.0)], axis=1)
    assert torch.equal(TensorData.from_arrays(constant, Y).inputs[:, 4], torch.zeros(200))


def test_tokens_stay_integers():
    tokens = DRAW.integers(0, 50, size=(100, 6))
    data = TensorData.from_arrays(tokens, tokens[:, 1:])
    assert data.inputs.dtype == data.targets.dtype == torch.int64
    np.testing.assert_array_equal(data.inputs, tokens)
    assert data.outputs == 5


def test_writing_into_the_arrays_afterwards_changes_nothing():
    x, y = X.astype(np.float32), Y.astype(np.float32)
    data = TensorData.from_arrays(x, y, normalize=False)
    x[:], y[:] = 0, 0
    assert data.inputs.abs().min() > 0
    assert data.targets.abs().max() > 0


# -- splits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [Y, LABELS], ids=["numbers", "labels"])
def test_splits_are_disjoint_and_cover_every_example(targets):
    data = TensorData.from_arrays(X, targets)
    positions = torch.cat([data.splits[split] for split in SPLITS])
    assert sorted(positions.tolist()) == list(range(200))
    assert [data.size([split]) for split in SPLITS] == [80, 40, 40, 40]
    assert data.size(TRAIN) == 120


def test_labels_are_split_by_class():
    data = TensorData.from_arrays(X[:198], LABELS[:198])
    counts = [np.bincount(data.targets[data.splits[split]], minlength=3) for split in SPLITS]
    assert all(count.max() - count.min() <= 1 for count in counts)


def test_a_given_test_split_is_the_test_split():
    data = TensorData.from_arrays(X[:150], Y[:150], X[150:], Y[150:], normalize=False)
    assert data.splits[TEST].tolist() == list(range(150, 200))
    np.testing.assert_allclose(data.targets[data.splits[TEST]], Y[150:], rtol=1e-6)


def test_whole_numbers_of_a_test_split_are_taken_in_the_type_of_the_others():
    tokens = np.arange(400).reshape(200, 2)
    data = TensorData.from_arrays(tokens, LABELS, tokens[:3].astype(float), LABELS[:3].astype(float))
    assert data.inputs.dtype == data.targets.dtype == torch.int64
    assert data.inputs[data.splits[TEST]].tolist() == tokens[:3].tolist()
    data = TensorData.from_arrays(X, Y, X[:3].astype(int), [1, 2, 3])
    assert data.targets[data.splits[TEST]].tolist() == [1.0, 2.0, 3.0]


def test_a_seed_draws_the_splits_and_fractions_set_their_shares():
    one, other = (TensorData.from_arrays(X, Y, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.splits[REPORT], other.splits[REPORT])
    assert torch.equal(one.splits[REPORT], TensorData.from_arrays(X, Y).splits[REPORT])
    data = TensorData.from_arrays(X, Y, fractions={CHOICES: 0.0, REPORT: 0.1, TEST: 0.5})
    assert [data.size([split]) for split in SPLITS] == [90, 0, 10, 100]


# -- batches ------------------------------------------------------------------------------------------------------


def test_without_epoch_every_example_comes_once_in_order():
    data = TensorData.from_arrays(X, Y)
    batches = list(data.batches([REPORT, WEIGHTS], 7))
    order = torch.cat([data.splits[REPORT], data.splits[WEIGHTS]])
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), data.inputs[order])
    assert torch.equal(torch.cat([batch.targets for batch in batches]), data.targets[order])
    assert [len(batch.targets) for batch in batches] == [7] * 17 + [1]


def test_an_epoch_shows_every_example_at_most_once_and_drops_the_incomplete_batch():
    data = TensorData.from_arrays(X, Y)
    shown = torch.cat([batch.targets for batch in data.batches(TRAIN, 7, epoch=3)])
    assert len(shown) == 7 * (120 // 7)
    assert len(set(shown.tolist())) == len(shown)
    assert set(shown.tolist()) <= set(data.targets[torch.cat([data.splits[split] for split in TRAIN])].tolist())
    assert [len(batch.inputs) for batch in data.batches(TRAIN, 1000, epoch=0)] == [120]


@pytest.mark.parametrize("epoch", [None, 0, 3])
def test_a_late_start_gives_exactly_the_tail(epoch):
    data = TensorData.from_arrays(X, Y)
    batches = list(data.batches(TRAIN, 16, seed=2, epoch=epoch))
    assert equal(list(data.batches(TRAIN, 16, seed=2, epoch=epoch, start=3)), batches[3:])


def test_batches_depend_on_seed_and_epoch_and_on_nothing_else():
    data = TensorData.from_arrays(X, Y)

    def batches(**keys):
        torch.rand(3)
        return list(data.batches(TRAIN, 16, **keys))

    assert equal(batches(seed=1, epoch=1), batches(seed=1, epoch=1))
    assert not equal(batches(seed=1, epoch=1), batches(seed=1, epoch=2))
    assert not equal(batches(seed=1, epoch=1), batches(seed=2, epoch=1))
    assert equal(batches(seed=1), batches(seed=2))
    before = torch.get_rng_state()
    list(data.batches(TRAIN, 16, epoch=0))
    assert torch.equal(before, torch.get_rng_state())


# -- what makes a result repeatable -------------------------------------------------------------------------------


def test_the_description_changes_with_whatever_changes_a_result():
    described = [
        TensorData.from_arrays(X, Y),
        TensorData.from_arrays(X, Y, name="mine"),
        TensorData.from_arrays(X, Y, normalize=False),
        TensorData.from_arrays(X, -Y),
        TensorData.from_arrays(X, Y, seed=1),
        TensorData.from_arrays(X, Y, fractions={REPORT: 0.3}),
        TensorData.from_arrays(X, LABELS),
        TensorData.from_arrays(X, LABELS, class_names=["cat", "dog", "cow"]),
        TensorData.from_arrays(X, LABELS, class_names=["dog", "cat", "cow"]),
    ]
    assert len({repr(data.describe()) for data in described}) == len(described)
    assert TensorData.from_arrays(X, Y).describe() == described[0].describe()


def test_data_stay_where_they_are_or_move_as_a_whole():
    data = TensorData.from_arrays(X, Y)
    assert data.to("cpu") is data
    moved = data.to("meta")
    assert {tensor.device.type for tensor in (moved.inputs, moved.targets, *moved.splits.values())} == {"meta"}
    assert moved.device == torch.device("meta")
    assert (moved.outputs, moved.input_shape) == (data.outputs, data.input_shape)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TensorData.from_arrays(X, Y, X), "`x_test` and `y_test` must be given together but one is None"),
        (lambda: TensorData.from_arrays(X, Y[:-1]), "`y` must have one target for each of 200 inputs but has 199"),
        (lambda: TensorData.from_arrays(X, Y, X[:9], Y[:8]), "`y_test` must have one target for each of 9 .* has 8"),
        # Lengths that are wrong twice would agree as a whole.
        (lambda: TensorData.from_arrays(X, Y[:-9], X[:10], Y[:19]), "`y` must have one target for each of 200 inputs"),
        (
            lambda: TensorData.from_arrays(X, Y, X[:9, :3], Y[:9]),
            r"`x_test` must have examples like `x`, \(4,\), but has \(3,\)",
        ),
        # To cut off fractions would test on other data.
        (
            lambda: TensorData.from_arrays(LABELS[:, None], LABELS, np.full((3, 1), 1.9), LABELS[:3]),
            "`x_test` must hold integers like `x` but has 1.9; give both",
        ),
        (lambda: TensorData.from_arrays(X, LABELS, X[:2], [0, 0.9]), "`y_test` must hold integers .* but has 0.9"),
        (lambda: TensorData.from_arrays(X, Y, name=3), "`name` must be a text but got 3"),
        (lambda: TensorData.from_arrays(X[:0], Y[:0]), r"`x` must hold at least one example but has shape \(0, 4\)"),
        (lambda: TensorData.from_arrays(3.0, Y), r"`x` must hold at least one example but has shape \(\)"),
        (lambda: TensorData.from_arrays(np.array(["a", "b"]), Y[:2]), "`x` must be real numbers but has dtype <U1"),
        (lambda: TensorData.from_arrays(X * 1j, Y), "`x` must be real numbers but has dtype complex128"),
        (
            lambda: TensorData.from_arrays(np.where(np.arange(200)[:, None] == 5, np.nan, X), Y),
            r"`x` must be finite but example 5 \(and 0 more\) holds NaN",
        ),
        (lambda: TensorData.from_arrays(X, LABELS - 1), "`y` must hold labels from 0 but got -1; renumber"),
        (lambda: TensorData.from_arrays(X[:4], [0, 0, 0, 1]), "`y` must have enough .* of every class"),
        (lambda: list(TensorData.from_arrays(X, Y).batches(["moon"], 4)), "`split` must be one of .* but got 'moon'"),
        (lambda: list(TensorData.from_arrays(X, Y).batches(TRAIN, 0)), "`batch_size` must be at least 1 but got 0"),
    ],
)  # fmt: skip
def test_refuses_with_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
