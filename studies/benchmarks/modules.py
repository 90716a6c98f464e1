"""Which strategy finds the best module at equal CPU seconds, and which score ranks modules?

Command:   python studies/benchmarks/modules.py --out modules.json            # goes on where it was stopped
           python studies/benchmarks/modules.py --out modules.json --show
Cost:      about seven minutes a study and seed on one core; two hours for three studies and five seeds
Expected:  a free score and SNAS ahead of random search on the transformer; no difference on 88 patients

Spaces are those of `studies/tabular_regression.py`, `sequence_transformer.py` and `segmentation_unet.py`. Every
strategy has the same CPU seconds for trials and one-shot models, and chooses by the validation loss. Its winner is
trained in full, three times as long as a trial, on all but the report and test splits, and judged on the test split.
Seeds draw splits, initial weights and proposals.
"""

import argparse
import importlib
import json
import math
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import torch
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from scipy.stats import spearmanr, wilcoxon

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from optuna_nas import (
    GHN,
    HMNAS,
    SNAS,
    Architecture,
    FreeScore,
    GHNRecipe,
    HMNASPruner,
    HMNASRecipe,
    Recipe,
    Search,
    SNASRecipe,
    run,
    train,
)
from optuna_nas.data import REPORT, TEST
from optuna_nas.search.results import architecture_of
from optuna_nas.training import evaluate

SECONDS = {"tabular_regression": 10.0, "sequence_transformer": 60.0, "segmentation_unet": 60.0}
LONGER = 3
ONE_SHOT = ("snas", "ghn", "hmnas and random")
RANKED, REPEATS = 30, 5
Row = dict[str, Any]


def base(study: str, seed: int) -> Search:
    """Return the search of a study, without tracking and pictures."""
    wanted: Search = importlib.import_module(study).search(seed=seed)
    return replace(wanted, tracking=None, pictures=False, storage=InMemoryStorage())


def recipe_of(search: Search, longer: int = 1) -> Recipe:
    """Return the recipe of a trial, or of a longer training."""
    return replace(search.recipe, epochs=longer * search.recipe.epochs)


def seconds_a_training(search: Search, seed: int) -> float:
    """Return the CPU seconds of a trial's training: the mean of three random architectures."""
    random = np.random.default_rng([seed, 11])
    begun = time.process_time()
    for _ in range(3):
        train(search.space.build(search.space.sample(random), seed=seed), search.data, search.recipe, task=search.task)
    return (time.process_time() - begun) / 3


def with_strategy(search: Search, name: str, trials: int, seed: int) -> Search:
    """Return a search by a strategy of the package, or by a pair of sampler and pruner."""
    if name == "hmnas and random":
        budget = max(1.0, trials * search.recipe.epochs * 11 / 24)  # two thirds of the examples are for weights
        model = HMNAS(
            search.space, HMNASRecipe(batch_size=32, mask_fraction=2 / 11, learning_rate=0.05, seed=seed), search.task
        )
        pruner = HMNASPruner(
            model, data=search.data, budget=budget, n_trials=trials, trials_per_round=5, n_startup_trials=5, seed=seed
        )
        plain = replace(search, strategy="random", trials=trials)
        return replace(
            plain, strategy=None, sampler=RandomSampler(seed), pruner=pruner, objective=plain.resolved_objective
        )
    if name == "random and halving":
        plain = replace(search, strategy="random", trials=trials)
        pruner = SuccessiveHalvingPruner(min_resource=max(1, search.recipe.epochs // 4), reduction_factor=3)
        return replace(
            plain, strategy=None, sampler=RandomSampler(seed), pruner=pruner, objective=plain.resolved_objective
        )
    return replace(search, strategy=name, trials=trials, seconds=SECONDS[search.name])


STRATEGIES = ("auto", "snas", "ghn", "hmnas and random", "tpe", "random", "random and halving")


def searched(study: str, seed: int, name: str) -> Row:
    """Search for the seconds of a study, and judge the winner."""
    search = base(study, seed)
    each = seconds_a_training(search, seed)
    planned = max(4, round(SECONDS[study] / each / (2 if name in ONE_SHOT else 1)))
    begun, longest, before = time.process_time(), 0.0, 0.0

    def enough(study: optuna.Study) -> bool:
        nonlocal longest, before
        spent = time.process_time() - begun
        if len(study.trials) > 1:
            longest = max(longest, spent - before)
        before = spent
        return spent + longest > SECONDS[wanted_study]

    wanted_study = study
    with TemporaryDirectory() as folder:
        wanted = with_strategy(search, name, planned if name in ONE_SHOT else 1000, seed)
        parts = {
            "sampler": wanted.resolved_sampler,
            "pruner": wanted.resolved_pruner,
            "objective": wanted.resolved_objective,
        }
        result = run(
            replace(wanted, strategy=None, seconds=None, trials=1000, folder=Path(folder), **parts), enough=enough
        )
    assert result.best is not None
    architecture = architecture_of(wanted, result.best)
    network = search.space.build(architecture, seed=seed)
    spent = time.process_time() - begun
    train(network, search.data, recipe_of(search, LONGER), task=search.task)
    found = evaluate(network, search.data, TEST, search.task)
    return {
        "study": study,
        "strategy": name,
        "seed": seed,
        "seconds": round(spent, 1),
        "trials": len(result.study.trials),
        "pruned": sum(trial.state.name == "PRUNED" for trial in result.study.trials),
        "architecture": architecture.summary,
        "validation": evaluate(network, search.data, REPORT, search.task).metric,
        "test": found.metric,
    }


def ranked(study: str, seed: int) -> Row:
    """Compare scores of random modules with their validation loss after a training in full."""
    search = base(study, seed)
    random = np.random.default_rng([seed, 12])
    architectures: dict[str, Architecture] = {}
    while len(architectures) < RANKED:
        architecture = search.space.sample(random)
        architectures.setdefault(architecture.canonical().digest, architecture)
    drawn = list(architectures.values())
    losses = []
    for architecture in drawn:
        network = search.space.build(architecture, seed=seed)
        done = train(network, search.data, recipe_of(search, LONGER), task=search.task)
        losses.append(done.last.validation_loss)
    epochs = max(1.0, SECONDS[study] / 2 / seconds_a_training(search, seed) * search.recipe.epochs / 6)
    snas = SNAS(search.space, SNASRecipe(learning_rate=0.1, warmup_fraction=0.3, seed=seed), search.task)
    ghn = GHN(search.space, GHNRecipe(meta_batch=4, seed=seed), search.task)
    hmnas = HMNAS(
        search.space, HMNASRecipe(batch_size=32, mask_fraction=2 / 11, learning_rate=0.05, seed=seed), search.task
    )
    scores: dict[str, Callable[[list[Architecture]], Any]] = {
        "parameters": lambda all_: [search.space.params(one) for one in all_],
        "free": FreeScore(search.space, search.data, search.task, seed=seed),
        "snas": snas.score,
        "ghn": ghn.score,
        "hmnas, endurance": hmnas.endurance,
        "hmnas, loss": hmnas.score,
    }
    row: Row = {"study": study, "strategy": "ranks", "seed": seed}
    for model in (snas, ghn, hmnas):
        model.fit(search.data, epochs * (11 / 8 if model is hmnas else 1), show_progress=False)
    for name, score in scores.items():
        row[name] = float(spearmanr(score(drawn), -np.array(losses)).statistic)
    return row


def noise(study: str, seed: int) -> Row:
    """Compare the spread of one module's test metric over seeds with that between the winners of strategies."""
    rows: list[Row] = json.loads(Path(__file__).with_name("modules.json").read_text())
    search = base(study, seed)
    assert search.data is not None
    wanted = [
        {name: chosen.split("+") for name, chosen in (part.split("=") for part in row["architecture"].split())}
        for row in rows
        if (row["study"], row["seed"]) == (study, seed) and row["strategy"] in ("auto", "tpe")
    ]
    tested = []
    for choices in wanted:
        for repeat in range(REPEATS):
            network = search.space.build(search.space.architecture(choices), seed=repeat)
            train(network, search.data, replace(recipe_of(search, LONGER), seed=repeat), task=search.task)
            tested.append(evaluate(network, search.data, TEST, search.task).metric)
    values = np.reshape(tested, (len(wanted), REPEATS))
    return {
        "study": study,
        "strategy": "noise",
        "seed": seed,
        "within a module": float(values.std(1, ddof=1).mean()),
        "winners": values.mean(1).round(4).tolist(),
    }


def show(rows: list[Row]) -> None:
    """Print means, intervals, paired tests and rank correlations."""
    for study in SECONDS:
        print(f"\n{study}: test metric after {SECONDS[study]:g} CPU seconds; mean [95 % interval], p against TPE")
        of = {
            name: {row["seed"]: row["test"] for row in rows if (row["study"], row["strategy"]) == (study, name)}
            for name in STRATEGIES
        }
        for name, by_seed in of.items():
            if not by_seed:
                continue
            values = np.array(list(by_seed.values()))
            draws = np.random.default_rng(0).choice(values, (2000, len(values))).mean(axis=1)
            low, high = np.quantile(draws, [0.025, 0.975])
            both = [(by_seed[seed], of["tpe"][seed]) for seed in by_seed if seed in of["tpe"]]
            p = math.nan
            if name != "tpe" and len(both) > 1 and any(one != other for one, other in both):
                p = float(wilcoxon(*zip(*both, strict=True)).pvalue)
            each = ", ".join(f"{value:.3f}" for value in values)
            print(f"  {name:20} {values.mean():.3f} [{low:.3f}, {high:.3f}]  p {p:.2f}   {each}")
        for row in rows:
            if row["study"] == study and row["strategy"] in ("ranks", "noise"):
                found = ", ".join(f"{name} {value}" for name, value in row.items() if isinstance(value, float | list))
                print(f"  {row['strategy']}, seed {row['seed']}: {found}")


def main() -> None:
    """Measure what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", default=list(SECONDS), choices=list(SECONDS))
    parser.add_argument("--strategies", nargs="+", default=[*STRATEGIES, "ranks"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("modules.json"))
    parser.add_argument("--show", action="store_true", help="print what was measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rows: list[Row] = json.loads(options.out.read_text()) if options.out.exists() else []
    done = {(row["study"], row["strategy"], row["seed"]) for row in rows}
    for seed in options.seeds if not options.show else ():
        for study in options.studies:
            for name in options.strategies:
                if (study, name, seed) not in done:
                    row = {"ranks": ranked, "noise": noise}.get(name, partial(searched, name=name))(study, seed=seed)
                    rows.append(row)
                    options.out.write_text(json.dumps(rows, indent=1))
                    print(row, flush=True)
    show(rows)


if __name__ == "__main__":
    main()
