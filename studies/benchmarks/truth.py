"""Which strategy has found the best cell of NAS-Bench-201 after two, five and ten minutes on two CPU cores?

Command:   python studies/benchmarks/truth.py --table nb201_accuracy.csv.gz --images CIFAR10_FOLDER
           python studies/benchmarks/truth.py --table ... --plot-only   # what is in `--out`
Cost:      a run costs its budget; four methods, two budgets and eight seeds take eight hours on two cores. What is in
           `--out` is not measured again, and no cell is trained twice with the same seed. Two processes may share the
           work: `--seeds 0 2` in one and `--seeds 1` in the other, each with an `--out` of its own
Expected:  at two minutes every strategy ahead of TPE, `auto` within 0.8 points of the best cell

Budgets are CPU seconds: a minute on two cores is 120 of them, whichever way a strategy spends them, so that runs may
share a machine. Every strategy is the package's own by that name: a `Search` with `strategy=`, whose trials train a
cell for five epochs and are chosen by their validation loss. All see the same images (CIFAR-10 at 16 x 16), and none
reads the table, which judges.

Baselines are replayed: their values are the table's accuracies after 12 epochs, at the cost that a training of that
cell was measured to have here. That is generous to them: those are trainings on whole images, without our noise.
Halving stops two thirds of them after three of ten epochs, by that value and the noise that an accuracy after three
epochs has in the kept trainings.
They may be run, too (`--methods random TPE evolution`), to show that the replay is fair.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import optuna
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from optuna import Study, Trial
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from scipy.stats import kendalltau, spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bilevel import bilevel
from free_score import ranking
from nasbench201_on_cifar10 import SPACE, ops, read_truth, skeleton, small_cifar10
from replay import (
    BASELINES,
    REPLAYED_EPOCHS,
    RUNG,
    Training,
    bootstrap,
    pruner_of,
    replayed,
    summary,
    with_interval,
)

import optuna_nas.oneshot.base as oneshot_clock
import optuna_nas.samplers.ghn as pool_clock
from optuna_nas import (
    Architecture,
    GHNSampler,
    HMNASPruner,
    ImageData,
    NetworkSpace,
    Recipe,
    Search,
    nasbench201_skeleton,
    run,
    train,
)
from optuna_nas.data import CHOICES, REPORT, WEIGHTS
from optuna_nas.objective.suggestions import resolve
from optuna_nas.plots.comparison import COLOURS
from optuna_nas.plots.style import LEGEND_FONT, SLATE, label_axes, new_plot
from optuna_nas.search.strategy import STRATEGIES
from optuna_nas.training import EpochResult

Table = dict[tuple[str, ...], float]
Score = Callable[[list[Architecture]], NDArray[np.float64]]
Method = Callable[[ImageData, int, "Budget", "Trainings"], list["Choice"]]
CORES = 2
LINES = ("-", "--", (0, (5, 1, 1, 1, 1, 1)), ":", "-.", (0, (1, 4)))  # of baselines
CELLS = 1000
EPOCHS = 5  # of a cell that a strategy tries
LEARNING_RATE = 0.1
DATA = "CIFAR-10 at 16x16, 9000 + 0 + 1000"  # what `name_of` says of `small_cifar10`
SECONDS_A_TRIAL = {"snas": 46.0, "ghn": 53.0, "hmnas": 53.0}  # with its part of the one-shot model, to plan trials
POOL_SECONDS = {"ghn": 25.0}


class Choice(NamedTuple):
    """What a strategy chose after so many seconds, and how it ranks cells, if it does."""

    seconds: float
    cell: Architecture
    score: Score | None = None


class Budget:
    """CPU seconds of this process since it was made, and those of trainings that were looked up."""

    def __init__(self, seconds: float) -> None:
        self.total, self._begun = seconds, time.process_time()
        self._charged, self._before = 0.0, 0.0
        self._longest: dict[int | None, float] = {}  # CPU seconds of a trial, by its epochs

    def charge(self, seconds: float) -> None:
        """Count seconds that were spent in another run."""
        self._charged += seconds

    @property
    def spent(self) -> float:
        """Seconds until now."""
        return time.process_time() - self._begun + self._charged

    def used_up(self, study: Study) -> bool:
        """Return whether the longest trial so far of the next one's length, but the first, would not fit any more."""
        if len(study.trials) > 1:
            epochs = study.trials[-1].params.get("epochs")
            self._longest[epochs] = max(self._longest.get(epochs, 0.0), self.spent - self._before)
        self._before = self.spent
        longest, expected = self._longest, max(self._longest.values(), default=0.0)
        if (upcoming := getattr(study.sampler, "upcoming", None)) is not None:
            _, epochs = upcoming(study)
            expected = longest.get(epochs, max((s * epochs / e for e, s in longest.items() if e), default=0.0))
        return self.spent + expected > self.total


class CpuClock:
    """What models and pools read in place of the clock, since budgets are CPU seconds."""

    monotonic = staticmethod(time.process_time)


def name_of(data: ImageData) -> str:
    """Return the name of data, and how many images are for weights, choices and the report."""
    return f"{data.name}, {' + '.join(str(data.size([split])) for split in (WEIGHTS, CHOICES, REPORT))}"


class Key(NamedTuple):
    """What a short training depends on, besides this code."""

    digest: str
    epochs: int
    seed: int
    learning_rate: float = LEARNING_RATE
    data: str = DATA


class Kept(NamedTuple):
    """What is kept of a short training: validation losses and accuracies after every epoch, and CPU seconds."""

    losses: list[float]
    accuracies: list[float]
    seconds: float


class Trainings:
    """Short trainings with their losses and CPU seconds, in a file: none is made twice.

    Args:
        file: Lines of JSON; appended to. Lines of before name neither learning rate nor data: they are of the default
            ones.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self._known = {Key(*key): Kept(*values) for key, values in map(json.loads, lines)}

    def of(
        self, cell: Architecture, data: ImageData, recipe: Recipe, prune: Callable[[int, float], bool]
    ) -> tuple[list[float], float]:
        """Return validation losses after every epoch, and the CPU seconds of the training.

        Args:
            cell: Cell to train.
            data: Images of the seed.
            recipe: Recipe of the training.
            prune: Function of epoch and loss that ends the training. A training that was ended earlier than it says now
                is made again.
        """
        epochs = recipe.epochs
        key = Key(cell.canonical().digest, epochs, recipe.seed, recipe.learning_rate, name_of(data))
        if key in self._known:
            losses, _, seconds = self._known[key]
            end = next((e for e, loss in enumerate(losses, 1) if e < epochs and prune(e, loss)), len(losses))
            if end < len(losses) or len(losses) == epochs:
                return losses[:end], seconds * end / len(losses)
        results: list[EpochResult] = []
        begun = time.process_time()
        network = NetworkSpace(SPACE, skeleton(data)).build(cell, seed=recipe.seed)

        def after(result: EpochResult) -> None:
            results.append(result)
            if result.epoch < epochs and prune(result.epoch, result.validation_loss):
                raise optuna.TrialPruned

        with suppress(optuna.TrialPruned):
            train(network, data, recipe, on_epoch=after)
        losses = [round(result.validation_loss, 5) for result in results]
        accuracies = [result.validation_metric for result in results]
        self._known[key] = Kept(losses, accuracies, round(time.process_time() - begun, 2))
        with self._file.open("a") as file:
            file.write(json.dumps([key, self._known[key]]) + "\n")
        return losses, self._known[key].seconds

    def whole(self, epochs: int) -> list[tuple[Key, Kept]]:
        """Return the trainings of so many epochs that came to their end."""
        return [(key, kept) for key, kept in self._known.items() if key.epochs == epochs == len(kept.losses)]

    def costs(self) -> dict[str, float]:
        """Return the mean CPU seconds of an epoch by the digest of a cell."""
        seconds: dict[str, list[float]] = {}
        for key, kept in self._known.items():
            seconds.setdefault(key.digest, []).append(kept.seconds / len(kept.losses))
        return {digest: float(np.mean(several)) for digest, several in seconds.items()}


@dataclass
class ShortTraining:
    """Objective: the validation loss after a short training, looked up where it was made before.

    Its CPU seconds count as spent either way.
    """

    data: ImageData
    trainings: Trainings
    budget: Budget
    recipe: Recipe
    directions: tuple[str, ...] = ("minimize",)
    metric: str = "loss"

    def __call__(self, trial: optuna.Trial) -> float:
        cell = SPACE.suggest(trial)
        if not cell.connected or trial.should_prune():
            raise optuna.TrialPruned
        before = time.process_time()
        recipe = resolve(self.recipe, trial)

        def prune(epoch: int, loss: float) -> bool:
            trial.report(loss, epoch)
            return trial.should_prune()

        losses, seconds = self.trainings.of(cell, self.data, recipe, prune)
        self.budget.charge(seconds - (time.process_time() - before))
        trial.set_user_attr("spent", self.budget.spent)
        if len(losses) < recipe.epochs:
            raise optuna.TrialPruned
        return losses[-1]


def by_search(name: str) -> Method:
    """Return a method that runs the package's strategy, or the baseline, of a name until the budget is spent."""

    def search(data: ImageData, seed: int, budget: Budget, trainings: Trainings) -> list[Choice]:
        space = NetworkSpace(SPACE, skeleton(data))
        named: dict[str, Any] = {"strategy": name}
        if name not in STRATEGIES:
            named = {"sampler": BASELINES[name](SPACE, seed), "pruner": pruner_of(name)}
        trials = None
        if name in ONE_SHOT:  # which plans its model by the number of trials
            trials = max(3, round((budget.total - POOL_SECONDS.get(name, 0)) / SECONDS_A_TRIAL[name]))
        with TemporaryDirectory() as folder:
            wanted = Search(
                name="truth",
                space=space,
                data=data,
                recipe=Recipe(epochs=EPOCHS, learning_rate=LEARNING_RATE, seed=seed),
                seconds=budget.total,
                trials=trials,
                storage=InMemoryStorage(),
                tracking=None,
                pictures=False,
                folder=Path(folder),
                **named,
            )
            # The budget counts looked up trainings, too, which the search does not.
            objective = ShortTraining(data, trainings, budget, wanted.resolved_objective.recipe)
            parts = {"sampler": wanted.resolved_sampler, "pruner": wanted.resolved_pruner, "objective": objective}
            alike = replace(wanted, seconds=None, strategy=None, directions=None, trials=1000, **parts)
            result = run(alike, enough=budget.used_up)
        if result.interrupted:
            raise SystemExit("interrupted; the same command goes on with this run")
        choices, best = [], math.inf
        for trial in result.study.get_trials(states=(TrialState.COMPLETE,)):
            if trial.value is not None and trial.value < best:
                best = trial.value
                choices.append(Choice(trial.user_attrs["spent"], SPACE.decode(trial.params)))
        return [*choices[:-1], choices[-1]._replace(score=score_of(wanted))]

    return search


def score_of(search: Search) -> Score | None:
    """Return what ranks cells in a strategy, if anything does."""
    sampler = search.resolved_sampler
    while hasattr(sampler, "sampler"):
        sampler = sampler.sampler
    for part in (sampler, search.resolved_pruner):
        model = getattr(part, "model", None)
        if isinstance(part, HMNASPruner):
            return part.model.endurance
        if isinstance(part, GHNSampler) or model is not None:
            return getattr(part, "score", None) or model.score
    return None


METHODS: dict[str, Method] = {name: by_search(name) for name in (*STRATEGIES, *BASELINES)}
ONE_SHOT = tuple(SECONDS_A_TRIAL)  # plan for a budget, so that each budget is a run of its own


# -- baselines, replayed on the table ----------------------------------------------------------------------------------


def cost_model(trainings: Trainings) -> Callable[[Architecture], float]:
    """Return a function of a cell: the CPU seconds of a replayed training, fitted to those that were measured."""
    seconds = trainings.costs()
    space = NetworkSpace(SPACE, nasbench201_skeleton(1, 16, (3, 16, 16), 10))
    random = np.random.default_rng(0)
    measured = {}
    for cell in (SPACE.sample(random) for _ in range(20_000)):
        digest = cell.canonical().digest
        if digest in seconds:
            measured[digest] = (space.cost(cell).multiply_adds, seconds[digest])
    work, taken = np.array(list(measured.values())).T
    slope, start = np.polyfit(work, taken, 1)
    print(f"an epoch takes {start:.2f} + {slope * 1e6:.3f} s per million multiply-adds ({len(work)} cells measured)")
    return lambda cell: REPLAYED_EPOCHS * float(start + slope * space.cost(cell).multiply_adds)


def noise_of_rung(trainings: Trainings) -> float:
    """Return by how much an accuracy at the rung misses the last one, in points, as measured in the kept trainings.

    It is the standard deviation that is left when the last accuracy is fitted to that at the rung. The last epoch is
    the fifth there and the tenth in a replay, and accuracies spread more in the table than in short trainings, so that
    this is generous to halving.
    """
    pairs = [100 * np.array(values[1])[[RUNG - 1, -1]] for _, values in trainings.whole(EPOCHS)]
    early, last = np.transpose(pairs)
    slope, start = np.polyfit(early, last, 1)
    return float(np.std(last - start - slope * early, ddof=2))


def replay_all(options: argparse.Namespace, truth: Table, best: float) -> None:
    """Replay every baseline and print mean regrets with bootstrapped intervals."""
    trainings = Trainings(options.trainings)
    short, seconds_of, noise = (
        read_truth(options.table, options.short_column),
        cost_model(trainings),
        noise_of_rung(trainings),
    )
    print(f"an accuracy after {RUNG} epochs misses the last one by {noise:.2f} points (standard deviation)")
    budgets = [60 * CORES * minutes for minutes in sorted(options.budgets)]

    def looked_up(trial: Trial, random: np.random.Generator) -> Training:
        cell = SPACE.suggest(trial)
        value, cost = short[ops(cell)], seconds_of(cell) if cell.connected else 0.0
        return Training(value, truth[ops(cell)], cost, value + noise * random.standard_normal())

    largest = SPACE.architecture({path: ["nor_conv_3x3"] for path in SPACE.paths})
    found = {"most parameters": [[best - truth[ops(largest)]] * len(budgets)]}
    for name, make in BASELINES.items():
        found[name] = []
        for seed in range(options.replays):
            random = np.random.default_rng([seed, 1])
            training = partial(looked_up, random=random)
            reached = replayed(make(SPACE, seed), training, budgets, pruner_of(name))
            found[name].append([best - accuracy for accuracy in reached])
    for name, regrets in found.items():
        print(f"  {name:18}" + "   ".join(map(with_interval, np.transpose(regrets).tolist())))
    replays = {**summary(budgets, found), "noise of the rung": round(noise, 3)}
    options.out.with_suffix(".replayed.json").write_text(json.dumps({"replayed": replays}, indent=1))


# -- judged by the table ----------------------------------------------------------------------------------------------


def judged(choices: Sequence[Choice], truth: dict[tuple[str, ...], float], n_cells: int = CELLS) -> dict[str, Any]:
    """Look choices up, and compare a ranking of random cells with the table's."""
    points = [(round(choice.seconds, 1), truth[ops(choice.cell)]) for choice in choices]
    found: dict[str, Any] = {"points": points, "cell": choices[-1].cell.summary}
    if (score := choices[-1].score) is not None:
        random = np.random.default_rng(1000)
        cells = [SPACE.sample(random) for _ in range(n_cells)]
        scores, came = score(cells), np.array([truth[ops(cell)] for cell in cells])
        whole = NetworkSpace(SPACE, nasbench201_skeleton())
        params = np.array([whole.cost(cell).params for cell in cells])
        found |= {
            **ranking(scores, came),
            "spearman of parameters": float(spearmanr(params, came).statistic),
            "kendall": float(kendalltau(scores, came).statistic),
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


def read_in(rows: Sequence[dict[str, Any]], seen: Table, other: Table) -> list[dict[str, Any]]:
    """Return runs with the accuracies of another column; cells are found again by theirs, which few cells share."""
    of: dict[float, list[float]] = {}
    for cell, accuracy in seen.items():
        of.setdefault(round(accuracy, 6), []).append(other[cell])
    return [
        {**row, "points": [(seconds, float(np.mean(of[round(accuracy, 6)]))) for seconds, accuracy in row["points"]]}
        for row in rows
    ]


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


def runs_in(file: Path) -> list[dict[str, Any]]:
    """Return the runs in a file, whether it has replayed baselines beside them or not."""
    content = json.loads(file.read_text())
    runs: list[dict[str, Any]] = content["runs"] if isinstance(content, dict) else content
    return runs


def replayed_in(file: Path) -> dict[str, dict[float, float]]:
    """Return the mean regrets of replayed baselines in a file, by minutes on two cores."""
    content = json.loads(file.read_text())
    if not isinstance(content, dict):
        return {}
    minutes = [seconds / 60 / CORES for seconds in content["replayed"]["budgets"]]
    regrets = content["replayed"]["mean regrets"]
    return {name: dict(zip(minutes, values, strict=True)) for name, values in regrets.items()}


def print_table(rows: Sequence[dict[str, Any]], budgets: Sequence[float], best: float, where: str) -> None:
    """Print regrets at every budget."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for minutes in budgets:
        print(f"\n{minutes:g} minutes on {where}: regret [95 % interval, bootstrapped], true accuracy of each seed")
        for method in methods:
            if found := accuracy_at(rows, method, minutes):
                each = ", ".join(f"{accuracy:.2f}" for accuracy in found)
                print(f"  {method:8} {with_interval([best - accuracy for accuracy in found])}   {each}")
    ranked = [row for row in rows if row.get("kendall") is not None]
    if ranked:
        print("\nhow scores rank 1,000 cells: Spearman, Kendall, Kendall in the top fifth")
    for row in ranked:
        ranks = "  ".join(f"{row[name]:5.2f}" for name in ("spearman", "kendall", "kendall, top fifth"))
        print(f"  {row['method']:8} seed {row['seed']}, {row['minutes']:g} minutes  {ranks}")


def plot(
    rows: Sequence[dict[str, Any]], budgets: Sequence[float], best: float, replayed: dict[str, dict[float, float]]
) -> Figure:
    """Draw mean regrets against seconds with their 95 % intervals, side by side; baselines are dashed lines."""
    figure, axes = new_plot(7, 4.2)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for place, method in enumerate(methods):
        known = [(minutes, found) for minutes in budgets if (found := accuracy_at(rows, method, minutes))]
        if not known:
            continue
        aside = 1.03 ** (place - (len(methods) - 1) / 2)
        x = [60 * minutes * aside for minutes, _ in known]
        mean = [best - np.mean(found) for _, found in known]
        low, high = zip(*(bootstrap(best - np.array(found)) for _, found in known), strict=True)
        spread = [np.subtract(mean, low), np.subtract(high, mean)]
        n_seeds = list(dict.fromkeys(len(found) for _, found in known))  # of every budget, once where they are equal
        label = f"{method}, {' and '.join(map(str, n_seeds))} seed{'s' * (n_seeds != [1])}"
        colour, marker = COLOURS[place % len(COLOURS)], "osDv^P*"[place % 7]
        axes.errorbar(x, mean, spread, label=label, color=colour, marker=marker, markersize=5, capsize=3)
    for (name, regrets), style in zip(replayed.items(), LINES, strict=False):
        known_at = [minutes for minutes in budgets if minutes in regrets]
        y = [regrets[minutes] for minutes in known_at]
        axes.plot([60 * minutes for minutes in known_at], y, label=f"{name}, replayed", linestyle=style, color=SLATE)
    axes.set(xscale="log", ylim=(0, None))
    label_axes(axes, None, f"seconds on {CORES} cores", "regret, points of true accuracy")
    axes.set_xticks([60 * minutes for minutes in budgets], [f"{60 * minutes:g}" for minutes in budgets])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), prop=LEGEND_FONT)
    return figure


def main() -> None:
    """Search, look up, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help="CSV with op_1_0 ... op_3_2 and true accuracies")
    parser.add_argument("--column", default="cifar10_test_200ep")
    parser.add_argument("--images", default="", help="folder of CIFAR-10, see small_cifar10; downloaded by default")
    parser.add_argument("--methods", nargs="+", default=["auto", *ONE_SHOT], choices=list(METHODS))
    parser.add_argument("--trainings", type=Path, default=Path("trainings.jsonl"), help="short trainings, to look up")
    parser.add_argument("--budgets", type=float, nargs="+", default=[2, 5, 10], help="minutes on two cores")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cells", type=int, default=CELLS, help="random cells whose ranking is judged")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("truth.json"))
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="what other processes have measured")
    parser.add_argument("--plot-only", action="store_true")
    parser.add_argument("--read", metavar="COLUMN", help="print regrets of another column instead, such as CIFAR-100's")
    parser.add_argument("--replay", action="store_true", help="replay the baselines on the table, with many seeds")
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--short-column", default="cifar10_valid_12ep")
    parser.add_argument("--gpu", type=Path, nargs="+", help="what `gpu.py` has written; only looked up")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    oneshot_clock.time = pool_clock.time = CpuClock  # type: ignore[attr-defined, assignment]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    truth = read_truth(options.table, options.column)
    best = max(truth.values())
    if options.replay:
        replay_all(options, truth, best)
        return
    if options.gpu:
        rows = [row for file in options.gpu for row in searched_on_gpu(file, truth)]
        print_table(rows, sorted({row["minutes"] for row in rows}), best, "a GPU")
        return
    own = runs_in(options.out) if options.out.exists() else []
    others = [row for file in options.also for row in runs_in(file)]
    done = {(row["method"], row["seed"], row["minutes"]): row for row in [*own, *others]}  # each run counts once
    rows = [row for row in done.values() if row["method"] in options.methods]
    if options.read:
        other = read_truth(options.table, options.read)
        rows = [{**row, "kendall": None} for row in read_in(rows, truth, other)]
        print_table(rows, options.budgets, max(other.values()), f"{CORES} cores, {options.read}")
        return
    trainings = Trainings(options.trainings)
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
        if method == "hmnas":  # whose edges and ops learn from images of their own
            data = bilevel(data)
        choices = METHODS[method](data, seed, Budget(60 * CORES * minutes), trainings)
        row = {"method": method, "seed": seed, "minutes": minutes, **judged(choices, truth, options.cells)}
        own, rows = [*own, row], [*rows, row]
        options.out.write_text(json.dumps(own, indent=1))
        print(f"  after {row['points'][-1][0]:.0f} CPU s: {row['points'][-1][1]:.2f} ({row['cell']})", flush=True)
    print_table(rows, options.budgets, best, f"{CORES} cores")
    files = [file for file in (options.out, *options.also) if file.exists()]
    baselines = {name: regrets for file in files for name, regrets in replayed_in(file).items()}
    plot(rows, options.budgets, best, baselines).savefig(options.out.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
