"""Which strategy has found the best cell of NAS-Bench-201 after two, five and ten minutes on two CPU cores?

Command:   python studies/benchmarks/truth.py --table nb201_accuracy.csv.gz --images CIFAR10_FOLDER
           python studies/benchmarks/truth.py --table ... --plot-only          # from what has been measured
Cost:      three and a half hours on two cores for three seeds; what is in `--out` is not measured again. Two processes
           may share the work: `--seeds 0 2` in one and `--seeds 1` in the other, each with an `--out` of its own
Expected:  SNAS within a point of the best cell at ten minutes, beside random search and TPE; GHN and HM-NAS behind

Budgets are CPU seconds: a minute on two cores is 120 of them, whichever way a strategy spends them, so that runs may
share a machine. Random search and TPE train every cell for ten epochs and take the best by its accuracy; their runs
are looked up at every budget. One-shot strategies plan for a budget, so that each budget is a run of its own; their
pace is measured first, at their own cost. All see the same images (CIFAR-10 at 16 x 16), and none reads the table,
which judges.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from scipy.stats import kendalltau, spearmanr, t

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bilevel import bilevel
from nasbench201_ghn import make_ghn
from nasbench201_on_cifar10 import SPACE, ops, read_truth, skeleton, small_cifar10
from nasbench201_snas import make_snas

from optuna_nas import HMNAS, Architecture, HMNASRecipe, ImageData, NetworkSpace, Recipe, nasbench201_skeleton, train

Score = Callable[[list[Architecture]], NDArray[np.float64]]
CORES = 2
CELLS = 1000
EPOCHS = 10  # of a cell that random search or TPE tries
TOP_EPOCHS = 5  # of a cell that a hypernetwork has put on top


class Choice(NamedTuple):
    """What a strategy chose after so many seconds, and how it ranks cells, if it does."""

    seconds: float
    cell: Architecture
    score: Score | None = None


class Budget:
    """CPU seconds of this process since it was made."""

    def __init__(self, seconds: float) -> None:
        self.total, self._begun = seconds, time.process_time()

    @property
    def spent(self) -> float:
        """Seconds until now."""
        return time.process_time() - self._begun

    def epochs(self, fit: Callable[[float], Any], share: float = 1.0) -> float:
        """Return how many epochs fit into what is left of a share of the budget, measured by `fit(epochs)`."""
        fit(0.05)  # what only the first steps cost
        before = self.spent
        fit(0.2)
        pace = (self.spent - before) / 0.2
        return max(0.1, (share * self.total - self.spent) / pace)


def by_snas(data: ImageData, seed: int, budget: Budget) -> list[Choice]:
    """Return the most likely cell."""
    snas = make_snas(data, seed)
    snas.fit(data, budget.epochs(lambda epochs: make_snas(data, seed).fit(data, epochs)))
    return [Choice(budget.spent, snas.most_likely(), snas.score)]


def by_snas_trials(data: ImageData, seed: int, budget: Budget) -> list[Choice]:
    """Spend half on an SNAS, the rest on training what it samples, as a study with a `SNASSampler` does; the best."""
    snas = make_snas(data, seed)
    snas.fit(data, budget.epochs(lambda epochs: make_snas(data, seed).fit(data, epochs), share=0.5))
    random, seen = np.random.default_rng(seed), {snas.most_likely()}

    def sampled() -> Iterator[Architecture]:
        yield snas.most_likely()
        while True:
            cell = snas.sample(random)
            if cell not in seen:
                seen.add(cell)
                yield cell

    best = best_trained(sampled(), data, EPOCHS, seed, budget)
    return [Choice(budget.spent, best, snas.score)]


def best_trained(
    cells: Iterator[Architecture], data: ImageData, epochs: int, seed: int, budget: Budget
) -> Architecture:
    """Train one after another, as many as the budget allows, and return the best."""
    found: list[tuple[float, Architecture]] = []
    begun = budget.spent
    for cell in cells:
        found.append((accuracy_of(cell, data, epochs, seed), cell))
        if budget.spent + (budget.spent - begun) / len(found) > budget.total:
            break
    return max(found, key=lambda pair: pair[0])[1]


def by_ghn(data: ImageData, seed: int, budget: Budget) -> list[Choice]:
    """Return the best of the cells that a hypernetwork put on top of 1,000 or less, trained briefly."""
    ghn = make_ghn(data, seed)
    ghn.fit(data, budget.epochs(lambda epochs: make_ghn(data, seed).fit(data, epochs), share=0.7))
    random = np.random.default_rng(seed)
    before = budget.spent
    ghn.score([SPACE.sample(random) for _ in range(4)])
    pace = (budget.spent - before) / 4
    pool = [SPACE.sample(random) for _ in range(min(CELLS, max(20, round(0.15 * budget.total / pace))))]
    ranked = [pool[place] for place in np.argsort(-ghn.score(pool))]
    best = best_trained(iter(ranked), data, TOP_EPOCHS, seed, budget)
    return [Choice(budget.spent, best, ghn.score)]


def by_hmnas(data: ImageData, seed: int, budget: Budget) -> list[Choice]:
    """Return the cell of the op on each edge that weighs most after a supernet and its masks have learned."""
    data = bilevel(data)

    def make() -> HMNAS:
        recipe = HMNASRecipe(batch_size=64, mask_fraction=0.25, seed=seed)
        return HMNAS(NetworkSpace(SPACE, skeleton(data, affine=False)), recipe)

    hmnas = make()
    hmnas.fit(data, budget.epochs(lambda epochs: make().fit(data, max(epochs, 0.1))))
    heaviest = {path: (max(row, key=row.__getitem__),) for path, row in hmnas.op_weights.items()}
    return [Choice(budget.spent, SPACE.architecture(heaviest), hmnas.endurance)]


def by_study(sampler: Callable[[int], BaseSampler]) -> Callable[[ImageData, int, Budget], list[Choice]]:
    """Return a strategy that trains what a sampler asks for and takes the best."""

    def search(data: ImageData, seed: int, budget: Budget) -> list[Choice]:
        study = optuna.create_study(direction="maximize", sampler=sampler(seed))
        choices = []
        longest = 0.0
        while budget.spent + longest < budget.total:
            begun = budget.spent
            trial = study.ask()
            cell = SPACE.suggest(trial)
            study.tell(trial, accuracy_of(cell, data, EPOCHS, seed) if cell.connected else 0.0)
            longest = max(longest, budget.spent - begun)
            choices.append(Choice(budget.spent, SPACE.decode(study.best_params)))
        return choices

    return search


def accuracy_of(cell: Architecture, data: ImageData, epochs: int, seed: int) -> float:
    """Train a cell and return its accuracy on images that it did not see."""
    network = NetworkSpace(SPACE, skeleton(data)).build(cell, seed=seed)
    return train(network, data, Recipe(epochs=epochs, learning_rate=0.1, seed=seed)).last.validation_metric


ONE_SHOT = {"snas": by_snas, "snas-trials": by_snas_trials, "ghn": by_ghn, "hmnas": by_hmnas}
STUDIES = {
    "random": by_study(lambda seed: RandomSampler(seed=seed)),
    "tpe": by_study(lambda seed: TPESampler(seed=seed)),
}
METHODS = {**ONE_SHOT, **STUDIES}


# -- judged by the table ----------------------------------------------------------------------------------------------


def judged(choices: Sequence[Choice], truth: dict[tuple[str, ...], float]) -> dict[str, Any]:
    """Look choices up, and compare a ranking of 1,000 random cells with the table's."""
    points = [(round(choice.seconds, 1), truth[ops(choice.cell)]) for choice in choices]
    found: dict[str, Any] = {"points": points, "cell": choices[-1].cell.summary}
    if (score := choices[-1].score) is not None:
        random = np.random.default_rng(1000)
        cells = [SPACE.sample(random) for _ in range(CELLS)]
        scores, came = score(cells), np.array([truth[ops(cell)] for cell in cells])
        top = came >= np.quantile(came, 0.8)
        whole = NetworkSpace(SPACE, nasbench201_skeleton())
        params = np.array([whole.cost(cell).params for cell in cells])
        found |= {
            "spearman": float(spearmanr(scores, came).statistic),
            "spearman of parameters": float(spearmanr(params, came).statistic),
            "kendall": float(kendalltau(scores, came).statistic),
            "kendall, top fifth": float(kendalltau(scores[top], came[top]).statistic),
        }
    return found


def accuracy_at(rows: Sequence[dict[str, Any]], method: str, minutes: float) -> list[float]:
    """Return the true accuracy of what each seed had chosen by then."""
    if method in ONE_SHOT:
        return [row["points"][-1][1] for row in rows if (row["method"], row["minutes"]) == (method, minutes)]
    runs: dict[int, dict[str, Any]] = {}  # the longest of each seed: a run of five minutes says nothing about ten
    for row in rows:
        if row["method"] == method and row["minutes"] >= max(minutes, runs.get(row["seed"], row)["minutes"]):
            runs[row["seed"]] = row
    by_then = [
        [accuracy for seconds, accuracy in row["points"] if seconds <= minutes * 60 * CORES] for row in runs.values()
    ]
    return [accuracies[-1] for accuracies in by_then if accuracies]


def interval(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean (Student's t)."""
    if len(values) < 2:
        return float("nan")
    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def searched_on_gpu(file: Path, truth: dict[tuple[str, ...], float]) -> list[dict[str, Any]]:
    """Return what `gpu.py` found, judged."""
    rows = []
    for name, row in json.loads(file.read_text()).get("search", {}).items():
        if name == "error":
            print(f"{file}: a search ended with {row}")
            continue
        choice = Choice(row["seconds"], SPACE.decode(row["cell"]), lambda cells, r=row: np.array(r["scores"]))
        rows.append({key: row[key] for key in ("method", "minutes", "seed")} | judged([choice], truth))
    return rows


def print_table(rows: Sequence[dict[str, Any]], budgets: Sequence[float], best: float, where: str) -> None:
    """Print regrets at every budget."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for minutes in budgets:
        print(f"\n{minutes:g} minutes on {where}: regret (95 % interval), true accuracy of each seed")
        for method in methods:
            if found := accuracy_at(rows, method, minutes):
                each = ", ".join(f"{accuracy:.2f}" for accuracy in found)
                print(f"  {method:8} {best - np.mean(found):5.2f} +- {interval(found):4.2f}   {each}")
    print("\nhow scores rank 1,000 cells: Spearman, Kendall, Kendall in the top fifth")
    for row in rows:
        if "kendall" in row:
            ranks = "  ".join(f"{row[name]:5.2f}" for name in ("spearman", "kendall", "kendall, top fifth"))
            print(f"  {row['method']:8} seed {row['seed']}, {row['minutes']:g} minutes  {ranks}")


def plot(rows: Sequence[dict[str, Any]], budgets: Sequence[float], best: float) -> Figure:
    """Draw mean regret against seconds with the range of the seeds; methods side by side at each budget."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for place, method in enumerate(methods):
        known = [(minutes, found) for minutes in budgets if (found := accuracy_at(rows, method, minutes))]
        aside = 1.03 ** (place - (len(methods) - 1) / 2)
        x = [60 * minutes * aside for minutes, _ in known]
        mean, low, high = ([of(best - np.array(found)) for _, found in known] for of in (np.mean, np.min, np.max))
        spread = [np.subtract(mean, low), np.subtract(high, mean)]
        style = "-" if method in ONE_SHOT else "--"
        axes.errorbar(x, mean, spread, label=method, marker="o", markersize=4, capsize=3, linestyle=style)
    axes.set(xscale="log", xlabel=f"seconds on {CORES} cores", ylabel="regret, points of true accuracy", ylim=(0, None))
    axes.set_xticks([60 * minutes for minutes in budgets], [f"{60 * minutes:g}" for minutes in budgets])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Search, look up, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help="CSV with op_1_0 ... op_3_2 and true accuracies")
    parser.add_argument("--column", default="cifar10_test_200ep")
    parser.add_argument("--images", default="", help="folder of CIFAR-10, see small_cifar10; downloaded by default")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--budgets", type=float, nargs="+", default=[2, 5, 10], help="minutes on two cores")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("truth.json"))
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="what other processes have measured")
    parser.add_argument("--plot-only", action="store_true")
    parser.add_argument("--gpu", type=Path, nargs="+", help="what `gpu.py` has written; only looked up")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    truth = read_truth(options.table, options.column)
    best = max(truth.values())
    if options.gpu:
        rows = [row for file in options.gpu for row in searched_on_gpu(file, truth)]
        print_table(rows, sorted({row["minutes"] for row in rows}), best, "a GPU")
        return
    own = json.loads(options.out.read_text()) if options.out.exists() else []
    others = [row for file in options.also for row in json.loads(file.read_text())]
    done = {(row["method"], row["seed"], row["minutes"]): row for row in [*own, *others]}  # each run counts once
    rows = list(done.values())
    longest = max(options.budgets)
    wanted = [
        (method, seed, minutes)
        for minutes in sorted(options.budgets, reverse=True)
        for method in options.methods
        for seed in options.seeds
        if (method in ONE_SHOT or minutes == longest) and (method, seed, minutes) not in done
    ]
    for place, (method, seed, minutes) in enumerate([] if options.plot_only else wanted, 1):
        print(f"[{place}/{len(wanted)}] {method}, seed {seed}, {minutes:g} minutes", flush=True)
        data = small_cifar10(options.images, seed)
        choices = METHODS[method](data, seed, Budget(60 * CORES * minutes))
        row = {"method": method, "seed": seed, "minutes": minutes, **judged(choices, truth)}
        own, rows = [*own, row], [*rows, row]
        options.out.write_text(json.dumps(own, indent=1))
        print(f"  after {row['points'][-1][0]:.0f} CPU s: {row['points'][-1][1]:.2f} ({row['cell']})", flush=True)
    print_table(rows, options.budgets, best, f"{CORES} cores")
    plot(rows, options.budgets, best).savefig(options.out.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
