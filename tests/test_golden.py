"""Numbers that were written down once: a change of how things are called or arranged must not change any of them.

A few steps of every one-shot model, a training, and searches with a sampler or pruner of each kind are compared with
`golden.json`. What is chosen must be the same everywhere; floats may differ by a thousandth, since processors and
versions of PyTorch round differently. Where nothing but the code has changed, ask for every bit:

    OPTUNA_NAS_GOLDEN=exact python -m pytest tests/test_golden.py

After a change that is meant to change numbers, write them down anew, and look at what has changed:

    python tests/test_golden.py && git diff --stat tests/golden.json

The file holds floats as `float.hex()`, and of an architecture the names kept at every place, in the order of the space.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from strategies import few_digits

from optuna_nas import (
    GHN,
    HMNAS,
    SNAS,
    Augmentation,
    CellKind,
    CellSpace,
    GHNRecipe,
    GHNSampler,
    HMNASPruner,
    HMNASRecipe,
    ImageClassification,
    NetworkSpace,
    Recipe,
    Search,
    Skeleton,
    SNASRecipe,
    SNASSampler,
    TrainObjective,
    run,
    train,
)

GOLDEN = Path(__file__).with_name("golden.json")
TOLERANCE = {"rel_tol": 1e-3, "abs_tol": 1e-5}
DATA = few_digits(48)

# -- what is searched, and how it is asked ----------------------------------------------------------------------------

KINDS = (CellKind("cell"), CellKind("reduction", 2))
AFFINE = Skeleton(("cell", "reduction"), 4, (1, 8, 8), 10)
ONE_OP = NetworkSpace(CellSpace(("none", "skip_connect", "nor_conv_3x3", "avg_pool_3x3"), 2, 1, KINDS), AFFINE)
"""Edges keep one op, or none; in the skeleton of trainings."""
SETS = NetworkSpace(CellSpace(("skip_connect", "nor_conv_3x3", "avg_pool_3x3"), 2, 1, KINDS, max_ops=3), AFFINE)
"""Edges keep any of three ops."""


def drawn(space: NetworkSpace, number: int) -> list[Any]:
    """Return random architectures."""
    random = np.random.default_rng(0)
    return [space.sample(random) for _ in range(number)]


def kept(architecture: Any) -> list[list[str]]:
    """Return the names kept at every place."""
    return [list(names) for _, names in architecture.choices]


def make_snas(**recipe: Any) -> SNAS:
    """Return an SNAS that has learned nothing."""
    return SNAS(ONE_OP.with_skeleton(affine=False), SNASRecipe(batch_size=16, learning_rate=0.1, **recipe))


def make_ghn() -> GHN:
    """Return a GHN that has learned nothing."""
    return GHN(ONE_OP, GHNRecipe(batch_size=16, phases=2))


def make_hmnas(**recipe: Any) -> HMNAS:
    """Return an HM-NAS that has learned nothing, whose masks fall fast."""
    how = HMNASRecipe(batch_size=16, mask_fraction=0.44, mask_learning_rate=3e-3, **recipe)
    return HMNAS(SETS.with_skeleton(affine=False), how)


def objective_of(space: NetworkSpace) -> TrainObjective:
    """Return an objective that trains for one epoch."""
    return TrainObjective(space, DATA, Recipe(epochs=1, batch_size=16, learning_rate=0.05))


def trials_of(space: NetworkSpace, folder: Path, objective: Any, **changes: Any) -> list[Any]:
    """Run a search and return what its trials chose and came to."""
    quiet: dict[str, Any] = {"tracking": None, "pictures": False, "cpu_threads": 1, "folder": folder}
    study = run(Search(name="golden", space=space, objective=objective, **quiet, **changes)).study
    return [
        [trial.state.name, kept(space.decode(trial.params)), trial.values, *sorted(trial.intermediate_values.items())]
        for trial in study.get_trials(deepcopy=False)
    ]


# -- what is written down ---------------------------------------------------------------------------------------------


def fitted(model: Any, budget: float, about: Callable[[Any], Any]) -> list[Any]:
    """Let a model learn; return its records, its scores and what it says."""
    model.fit(DATA, budget, show_progress=False)
    records = [list(astuple(one) if is_dataclass(one) else one) for one in model.records]
    asked = drawn(model.space, 5)
    return [records, [kept(one) for one in asked], model.score(asked), about(model)]


def snas(**recipe: Any) -> list[Any]:
    """Return what an SNAS learns."""

    def about(model: SNAS) -> list[Any]:
        return [kept(model.most_likely()), model.logits, weights(model.supernet)]

    return fitted(make_snas(**recipe), 1, about)


def ghn() -> list[Any]:
    """Return what a GHN learns."""
    return fitted(make_ghn(), 1, lambda model: weights(model.network))


def hmnas(**recipe: Any) -> list[Any]:
    """Return what an HM-NAS learns."""

    def about(model: HMNAS) -> list[Any]:
        derived = model.derive()
        said = [list(model.edge_weights.values()), model.endurance(drawn(SETS, 5))]
        return [kept(derived.architecture), derived.params, *said, weights(model.supernet)]

    return fitted(make_hmnas(**recipe), 25 / 6, about)


def training() -> list[Any]:
    """Return the epochs of a training with augmentation and label smoothing."""
    (architecture,) = drawn(ONE_OP, 1)
    network, epochs = ONE_OP.build(architecture, seed=0), []
    data = replace(DATA, augmentation=Augmentation(1, flip=True, cutout=3))
    recipe, task = Recipe(2, batch_size=16, learning_rate=0.05, warmup_fraction=0.2), ImageClassification(0.1)
    train(network, data, recipe, task, on_epoch=lambda one: epochs.append(replace(one, seconds=0.0)))
    return [[astuple(one) for one in epochs], weights(network)]


def search_by_snas(folder: Path) -> list[Any]:
    """Return the trials of a search while an SNAS learns in two rounds."""
    model = make_snas()
    sampler = SNASSampler(model.space, model, data=DATA, budget=1, trials_per_round=3, seed=0)
    return trials_of(ONE_OP, folder, objective_of(ONE_OP), sampler=sampler, trials=6)


def search_by_trials(folder: Path) -> list[Any]:
    """Return the trials of a search in which only trials teach the sampler; costs answer."""

    def objective(trial: optuna.Trial) -> float:
        return float(ONE_OP.suggest(trial).cost().params)

    return trials_of(ONE_OP, folder, objective, sampler=SNASSampler(ONE_OP, seed=0), trials=12)


def search_by_ghn(folder: Path) -> list[Any]:
    """Return the trials of a search among the best of two pools, scored by a GHN."""
    sampler = GHNSampler(ONE_OP, make_ghn(), data=DATA, budget=1, pool_size=12, trials_per_round=3, seed=0)
    return trials_of(ONE_OP, folder, objective_of(ONE_OP), sampler=sampler, trials=6)


def search_with_masks(folder: Path) -> list[Any]:
    """Return the trials of a search in which masks stop some; what they say is what comes of a trial."""
    model = make_hmnas()
    pruner = HMNASPruner(model, data=DATA, budget=25 / 6, trials_per_round=12, quantile=0.4, n_startup_trials=5)

    def objective(trial: optuna.Trial) -> float:
        architecture = SETS.suggest(trial)
        if trial.should_prune():
            raise optuna.TrialPruned
        return float(model.endurance([architecture])[0])

    return trials_of(SETS, folder, objective, sampler=optuna.samplers.RandomSampler(0), pruner=pruner, trials=12)


CASES: dict[str, Callable[[Path], Any]] = {
    "SNAS, concrete": lambda _: snas(warmup_fraction=0.3, resource="mild"),
    "SNAS, one path": lambda _: snas(relaxation="one_path", path_credit="first_order"),
    "SNAS, one path, by its loss": lambda _: snas(relaxation="one_path"),
    "SNAS, softmax": lambda _: snas(relaxation="softmax"),
    "GHN": lambda _: ghn(),
    "HMNAS, node": lambda _: hmnas(),
    "HMNAS, cell, second order": lambda _: hmnas(edge_softmax="cell", second_order=True),
    "training": lambda _: training(),
    "search by SNAS": search_by_snas,
    "search by trials": search_by_trials,
    "search by GHN": search_by_ghn,
    "search with masks": search_with_masks,
}


# -- writing and comparing --------------------------------------------------------------------------------------------


def weights(network: torch.nn.Module) -> list[Any]:
    """Return the sum of absolute values of all tensors and a digest of their bits, whatever their names and order."""
    arrays = [np.ascontiguousarray(tensor.detach().numpy()) for tensor in network.state_dict().values()]
    digests = sorted(hashlib.sha256(f"{one.dtype}{one.shape}".encode() + one.tobytes()).hexdigest() for one in arrays)
    total = math.fsum(float(np.abs(one.astype(np.float64)).sum()) for one in arrays)
    return [total, "sha256:" + hashlib.sha256("".join(digests).encode()).hexdigest()]


def plain(value: Any) -> Any:
    """Return a value for JSON, every float in hexadecimal."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one) for one in value]
    return value


def differences(known: Any, found: Any, place: str = "") -> Iterator[str]:
    """Yield what is not the same, floats within the tolerance and digests apart."""
    if isinstance(known, dict) and isinstance(found, dict) and known.keys() == found.keys():
        for name in known:
            yield from differences(known[name], found[name], f"{place}/{name}")
    elif isinstance(known, list) and isinstance(found, list) and len(known) == len(found):
        for number, (one, other) in enumerate(zip(known, found, strict=True)):
            yield from differences(one, other, f"{place}/{number}")
    elif not is_same(known, found):
        yield f"{place}: {known!r}, now {found!r}"


def is_same(known: Any, found: Any) -> bool:
    """Tell whether two plain values are the same, but for rounding."""
    if known == found:
        return True
    if not (isinstance(known, str) and isinstance(found, str)):
        return False
    if known.startswith("sha256:"):
        return found.startswith("sha256:")
    if not all(text.lstrip("-").startswith("0x") for text in (known, found)):
        return False
    return math.isclose(float.fromhex(known), float.fromhex(found), **TOLERANCE)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute in one thread: several add up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("one_thread", "closed_databases")
def test_numbers_are_those_written_down(case: str, tmp_path: Path) -> None:
    known, found = json.loads(GOLDEN.read_text())[case], plain(CASES[case](tmp_path))
    assert list(differences(known, found))[:10] == []
    if os.environ.get("OPTUNA_NAS_GOLDEN") == "exact":
        assert found == known


def test_every_case_is_written_down() -> None:
    assert json.loads(GOLDEN.read_text()).keys() == CASES.keys()


def record() -> None:
    """Write all numbers down anew."""
    torch.set_num_threads(1)
    found = {}
    for case, numbers in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            found[case] = plain(numbers(Path(folder)))
    lines = [f"{json.dumps(case)}: {json.dumps(value)}" for case, value in found.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    record()
