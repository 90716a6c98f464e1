"""Which black-box strategy finds good cells in tables of other data and spaces, TransNAS-Bench-101 and EC-NAS?

Command:   python studies/benchmarks/tables.py --transnas transnas_micro.csv.gz --images CIFAR10_FOLDER
               --ecnas ecnas_nb101_cells.csv.gz
Cost:      about eight CPU minutes with 100 seeds
Expected:  `SNASSampler` without a supernet and TPE ahead of random search; a pool by `FreeScore` ahead on the tasks
           that its score ranks, and last on room_layout and the autoencoder

TransNAS: 4,096 cells on seven tasks of Taskonomy, of which only the validation score at the end is known. A trial sees
that, and what is found is judged by the share of all cells that are better, in %. `FreeScore` reads images of CIFAR-10
at 16 x 16, none of the tasks'.

EC-NAS: the 91 cells of up to four nodes of NAS-Bench-101. A trial sees the validation accuracy after 12 epochs of one
of three repeats, at the seconds that it took, and is judged by the mean test accuracy after 108 epochs, in points below
the best. A graph that does not reach its output costs nothing.
"""

import argparse
import csv
import gzip
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import permutations, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import optuna
import torch
from optuna import Trial
from optuna.artifacts import FileSystemArtifactStore
from optuna.samplers import BaseSampler

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from nasbench201_on_cifar10 import skeleton, small_cifar10
from replay import BASELINES, HALVING, Training, replayed, summary, with_interval
from transnas import TASKS, TRANSNAS, read_transnas

from optuna_nas import Architecture, ChoiceSpace, FreeScore, GHNSampler, NetworkSpace, SNASSampler, Space

TRIALS = (10, 25, 50)
SECONDS = (2_000, 5_000, 10_000)  # on EC-NAS's GPU; a training of 12 epochs takes some 200
POOL = 1000
Lookup = Callable[[Trial], Training]
SAMPLERS: dict[str, Callable[[Space, int], BaseSampler]] = {
    **{name: make for name, make in BASELINES.items() if name != HALVING},  # nothing is known of early epochs
    "`SNASSampler`": lambda space, seed: SNASSampler(space, seed=seed),
}


# -- TransNAS-Bench-101 ------------------------------------------------------------------------------------------------


def key_of(cell: Architecture) -> tuple[str, ...]:
    """Return the ops of a cell, as the table names them."""
    return tuple((cell[path] or ("none",))[0] for path in TRANSNAS.paths)


def free_scores(images: str) -> Callable[[Sequence[Architecture]], Any]:
    """Return `FreeScore`, which scores every function once."""
    data = small_cifar10(images, 0)
    score, known = FreeScore(NetworkSpace(TRANSNAS, skeleton(data)), data), dict[str, float]()

    def scores(cells: Sequence[Architecture]) -> Any:
        digests = [cell.canonical().digest for cell in cells]
        missing = {digest: cell for digest, cell in zip(digests, cells, strict=True) if digest not in known}
        known.update(zip(missing, score(list(missing.values())).tolist(), strict=True))
        return np.array([known[digest] for digest in digests])

    return scores


def proposed(sampler: BaseSampler, number: int) -> list[Architecture]:
    """Return the first proposals of a sampler that does not learn from values."""
    study = optuna.create_study(direction="maximize", sampler=sampler)
    cells = []
    for _ in range(number):
        trial = study.ask()
        cells.append(TRANSNAS.suggest(trial))
        study.tell(trial, 0.0)
    return cells


def on_transnas(options: argparse.Namespace) -> dict[str, Any]:
    """Return for every strategy, seed and task the share of better cells after some trials, in %."""
    table = read_transnas(options.transnas)
    by_task = {task: {key: row[task] for key, row in table.items()} for task in TASKS}
    better = {task: np.sort(list(values.values())) for task, values in by_task.items()}

    def looked_up(trial: Trial, task: str) -> Training:
        value = by_task[task][key_of(TRANSNAS.suggest(trial))]
        return Training(value, share(task, value), 1.0)

    def share(task: str, value: float) -> float:
        return 100 * (1 - np.searchsorted(better[task], value, "right") / len(better[task]))

    found: dict[str, list[list[list[float]]]] = {}  # by strategy: seeds, tasks, numbers of trials
    for name, make in SAMPLERS.items():
        found[name] = [
            [replayed(make(TRANSNAS, seed), partial(looked_up, task=task), TRIALS) for task in TASKS]
            for seed in range(options.seeds)
        ]
        print_means(name, found[name])
    name, scores = "pool by `FreeScore`", free_scores(options.images)
    found[name] = []
    for seed in range(options.seeds):
        with TemporaryDirectory() as folder:
            sampler = GHNSampler(
                TRANSNAS, score=scores, pool_size=POOL, exploration=0.0, artifact_store=FileSystemArtifactStore(folder),
                seed=seed,
            )  # fmt: skip
            cells = proposed(sampler, max(TRIALS))
        values = {task: [by_task[task][key_of(cell)] for cell in cells] for task in TASKS}
        found[name].append([[share(task, max(values[task][:n])) for n in TRIALS] for task in TASKS])
    print_means(name, found[name])
    means = {name: np.mean(each, axis=1).tolist() for name, each in found.items()}
    tasks = {
        task: summary(TRIALS, {name: [seed[place] for seed in each] for name, each in found.items()})
        for place, task in enumerate(TASKS)
    }
    return {"all tasks": summary(TRIALS, means), **tasks}


def print_means(name: str, found: list[list[list[float]]]) -> None:
    """Print the mean over tasks after some trials, and each task's after the second number of them."""
    whole = np.array(found)
    each = ", ".join(f"{mean:.1f}" for mean in whole[:, :, 1].mean(axis=0))
    print(f"  {name:20}{'   '.join(map(with_interval, whole.mean(axis=1).T.tolist()))}   {each}", flush=True)


# -- EC-NAS ------------------------------------------------------------------------------------------------------------

NODES = 4
OPS = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")
EDGES = [(i, j) for i in range(NODES) for j in range(i + 1, NODES)]
ECNAS = ChoiceSpace((*((f"edge_{i}_{j}", (0, 1)) for i, j in EDGES), ("op_1", OPS), ("op_2", OPS)))
Graph = tuple[tuple[str, ...], tuple[tuple[int, int], ...]]


def canonical(ops: Sequence[str], edges: set[tuple[int, int]]) -> Graph | None:
    """Return a graph without nodes on no way from input to output, the first of its equals; None if there is no way.

    Args:
        ops: Op of every node, the input first and the output last.
        edges: Edges from a node to a later one.
    """
    last = len(ops) - 1
    ahead, behind = {0}, {last}
    for _ in ops:
        ahead |= {j for i, j in edges if i in ahead}
        behind |= {i for i, j in edges if j in behind}
    inner = sorted((ahead & behind) - {0, last})
    if last not in ahead:
        return None
    graphs = []
    for order in permutations(inner):
        place = {0: 0, last: len(inner) + 1, **{node: n for n, node in enumerate(order, 1)}}
        kept = sorted((place[i], place[j]) for i, j in edges if i in place and j in place)
        graphs.append((tuple(ops[node] for node in order), tuple(kept)))
    return min(graphs)


def read_ecnas(path: str) -> dict[Graph, dict[int, list[dict[str, str]]]]:
    """Read the trainings of every cell of up to four nodes, by epochs."""
    table: dict[Graph, dict[int, list[dict[str, str]]]] = {}
    with gzip.open(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            if row["space"] != "4V":
                continue
            ops, n = row["ops"].split(), len(row["ops"].split())
            edges = {(i, j) for i, j in product(range(n), repeat=2) if row["adjacency"][i * n + j] == "1"}
            graph = canonical(ops, edges)
            assert graph is not None
            table.setdefault(graph, {}).setdefault(int(row["epochs"]), []).append(row)
    return table


def on_ecnas(options: argparse.Namespace) -> dict[str, Any]:
    """Return for every strategy and seed the regret after some seconds, in points of test accuracy."""
    table = read_ecnas(options.ecnas)
    truth = {graph: 100 * np.mean([float(row["test_acc"]) for row in rows[108]]) for graph, rows in table.items()}
    best = max(truth.values())
    print(f"EC-NAS: {len(table)} cells")

    def looked_up(trial: Trial, random: np.random.Generator) -> Training:
        params = {name: trial.suggest_categorical(name, values) for name, values in ECNAS.choices}
        ops = ("input", params["op_1"], params["op_2"], "output")
        graph = canonical(ops, {(i, j) for i, j in EDGES if params[f"edge_{i}_{j}"]})
        if graph is None:
            return Training(0.0, 0.0, 0.0)
        row = table[graph][12][random.integers(3)]
        return Training(100 * float(row["valid_acc"]), truth[graph], float(row["time_s"]))

    found: dict[str, list[list[float]]] = {}
    for name, make in SAMPLERS.items():
        found[name] = []
        for seed in range(options.seeds):
            training = partial(looked_up, random=np.random.default_rng([seed, 1]))
            found[name].append([best - truth for truth in replayed(make(ECNAS, seed), training, SECONDS)])
        print(f"  {name:20}" + "   ".join(map(with_interval, np.transpose(found[name]).tolist())), flush=True)
    return summary(SECONDS, found)


def main() -> None:
    """Replay, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transnas", help="CSV of TransNAS-Bench-101's cells")
    parser.add_argument("--ecnas", help="CSV of EC-NAS's cells")
    parser.add_argument("--images", default="", help="folder of CIFAR-10, see small_cifar10; downloaded by default")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("tables.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = {}
    if options.ecnas:
        found["EC-NAS"] = on_ecnas(options)
    if options.transnas:
        found["TransNAS-Bench-101"] = on_transnas(options)
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
