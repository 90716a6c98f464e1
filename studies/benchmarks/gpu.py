"""What do supernets, hypernetworks and trainings cost on a GPU, and does the host ever wait for it?

Command:   python studies/benchmarks/gpu.py --json gpu.json
           python studies/benchmarks/gpu.py --images CIFAR10_FOLDER --json gpu.json     # and search for four minutes
           python studies/benchmarks/gpu.py --parts search --images ... --methods snas ghn --minutes 2 --seeds 0 1
           python studies/benchmarks/gpu.py --device cpu --tiny                         # does it run? three minutes
Cost:      meant to stay under nine minutes on one GPU, a search included; it has not run on one yet
Expected:  bfloat16 and `channels_last` well ahead of plain float32; no step that waits; small trials side by side make
           more of the GPU than one

Needs PyTorch and NumPy only (with `--images`, Pillow): neither Optuna nor MLflow is imported. Milliseconds between CUDA
events, medians of turns; each row is written as soon as it is known. A search writes its choice and its scores of 1,000
cells, which `truth.py --gpu gpu.json ...` looks up where the table is.
"""

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from ghn_speed import pool
from supernet import subjects
from timing import race
from training import SETTINGS, images_per_second, random_images

from optuna_nas.networks import NetworkSpace
from optuna_nas.oneshot import GHN, SNAS, GHNRecipe, SNASRecipe
from optuna_nas.oneshot import base as one_shot_model
from optuna_nas.space import Skeleton, nasbench201_skeleton, nasbench201_space
from optuna_nas.training import Recipe, train

SPACE = nasbench201_space()
Rows = Iterator[tuple[str, Any]]


def supernets(device: str, tiny: bool) -> Rows:
    """Time steps of supernets in several precisions, with their peak memory."""
    ways = [("plain", "float32"), ("plain", "bfloat16"), ("ours", "float32"), ("ours", "bfloat16")]
    ways += [("floor", "float32"), ("plain path", "bfloat16"), ("path", "bfloat16")]
    for space in ("nasbench201", "darts"):
        steps, peaks = {}, {}
        for subject, precision in ways:
            name = f"{space}, {subject}, {precision}"
            steps[name] = subjects(space, tiny, [subject], device, precision)[subject]
            peaks[name] = peak(steps[name], device)
        for name, times in race(steps, 2 if tiny else 10, device).items():
            yield name, {"ms": 1000 * median(times), **peaks[name]}


def compiled(device: str, tiny: bool) -> Rows:
    """Time a compiled step of the smaller supernet, and how long it takes to compile."""
    (step,) = subjects("nasbench201", tiny, ["compiled"], device, "bfloat16").values()
    started = time.monotonic()
    most = peak(step, device)
    first = time.monotonic() - started
    times = race({"": step}, 2 if tiny else 10, device)[""]
    yield "nasbench201, bfloat16", {"ms": 1000 * median(times), **most, "first step, s": first}


def peak(step: Callable[[], object], device: str) -> dict[str, float]:
    """Make a first step, and return what it takes at most of a GPU above what is there already."""
    if device != "cuda":
        step()
        return {}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return {"peak GB": (torch.cuda.max_memory_allocated() - before) / 1e9}


def trainings(device: str, tiny: bool) -> Rows:
    """Compare the training loop with a bare one."""
    for name in list(SETTINGS)[: 1 if tiny else None]:
        yield (
            name,
            images_per_second(SETTINGS[name], 4 if tiny else 100, 1 if tiny else 3, torch.device(device)),
        )


def pools(device: str, tiny: bool) -> Rows:
    """Score a pool of architectures, beside building and running each."""
    n_cells = 2 if tiny else 32
    for name, times in race(pool(n_cells, device, 8 if tiny else 32), 1 if tiny else 5, device).items():
        yield name, {"cells/s": n_cells / median(times)}


def waits(device: str, tiny: bool) -> Rows:
    """Count how often the host waits in the second half of a fit without records, by PyTorch's own warnings."""
    space = NetworkSpace(SPACE, nasbench201_skeleton(1, 4, (3, 16, 16), affine=False))
    data = random_images(640, 16, device)
    one_shot_model.MAX_RECORDS = 1
    learners: dict[str, Callable[[Callable[[float], None]], object]] = {
        "training": lambda on_step: train(
            space.build(space.architecture(dict.fromkeys(SPACE.paths, "nor_conv_3x3"))),
            data,
            Recipe(epochs=1, batch_size=32),
            on_step=on_step,
        ),
        "SNAS": lambda on_step: SNAS(space, SNASRecipe(batch_size=32)).fit(data, 1.0, on_step=on_step),
        "SNAS, one path": lambda on_step: SNAS(space, SNASRecipe(batch_size=32, relaxation="one_path")).fit(
            data, 1.0, on_step=on_step
        ),
        "GHN": lambda on_step: GHN(space, GHNRecipe(batch_size=32, meta_batch=1)).fit(data, 1.0, on_step=on_step),
    }
    for name, learn in learners.items():
        steps = 0

        def on_step(fraction: float) -> None:
            nonlocal steps
            counted = 0.5 <= fraction < 0.95
            steps += counted
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("warn" if counted else "default")

        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            learn(on_step)
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        yield name, {"waits a step": sum("synchroniz" in str(one.message) for one in seen) / steps}


def small_training(device: str, steps: int, begin: Any, done: Any) -> None:
    """Train a small network when told to begin; for a process of its own."""
    data = random_images(64 * steps, 32, device)
    space = NetworkSpace(SPACE, nasbench201_skeleton(1, 16))
    network = space.build(space.architecture(dict.fromkeys(SPACE.paths, "nor_conv_3x3")), seed=0)
    train(network, data, Recipe(epochs=1))  # warms up
    done.put(0.0)
    begin.wait()
    started = time.monotonic()
    train(network, data, Recipe(epochs=1))
    done.put(time.monotonic() - started)


def side_by_side(device: str, tiny: bool) -> Rows:
    """Let processes train small networks on one GPU at the same time."""
    steps = 3 if tiny else 200
    context = torch.multiprocessing.get_context("spawn")
    for n_processes in (1, 2) if tiny else (1, 2, 4):
        begin, done = context.Event(), context.Queue()
        arguments = (device, steps, begin, done)
        processes = [context.Process(target=small_training, args=arguments, daemon=True) for _ in range(n_processes)]
        for process in processes:
            process.start()
        try:
            for _ in processes:
                done.get(timeout=120)
            begin.set()
            slowest = max(done.get(timeout=120) for _ in processes)
        finally:
            for process in processes:
                process.terminate()
                process.join()
        yield f"{n_processes} processes", {"images/s": n_processes * 64 * steps / slowest}


def snas_of(frame: Skeleton, seed: int) -> SNAS:
    """Return an SNAS for NAS-Bench-201."""
    recipe = SNASRecipe(batch_size=256, learning_rate=0.1, warmup_fraction=0.35, last_temperature=0.3, seed=seed)
    return SNAS(NetworkSpace(SPACE, frame), recipe)


def ghn_of(frame: Skeleton, seed: int) -> GHN:
    """Return a GHN for NAS-Bench-201."""
    return GHN(NetworkSpace(SPACE, frame), GHNRecipe(batch_size=256, meta_batch=4, scoring_images=1000, seed=seed))


SEARCHES: dict[str, Callable[[Skeleton, int], SNAS | GHN]] = {"snas": snas_of, "ghn": ghn_of}


def searches(options: argparse.Namespace) -> Rows:
    """Let methods learn NAS-Bench-201's own network from CIFAR-10, each for so long; their choices and scores."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from nasbench201_on_cifar10 import small_cifar10, whole_cifar10

    data = (small_cifar10(options.images, 0) if options.tiny else whole_cifar10(options.images)).to(options.device)
    frame = nasbench201_skeleton(1 if options.tiny else 5, 16, data.input_shape, affine=False)
    random = np.random.default_rng(1000)
    cells = [SPACE.sample(random) for _ in range(1000)]
    for method, minutes, seed in product(options.methods, options.minutes, options.seeds):
        make = SEARCHES[method]
        make(frame, seed).fit(data, 0.05, show_progress=False)  # what only the first steps cost
        started = time.monotonic()
        make(frame, seed).fit(data, 0.2, show_progress=False)
        pace = (time.monotonic() - started) / 0.2
        model, started = make(frame, seed), time.monotonic()
        model.fit(data, max(0.1, 0.93 * 60 * minutes / pace), show_progress=False)
        learned = time.monotonic() - started
        scores = model.score(cells)
        scored = time.monotonic() - started - learned
        chosen = model.most_likely() if isinstance(model, SNAS) else cells[int(np.argmax(scores))]
        yield (
            f"{method}, {minutes:g} minutes, seed {seed}",
            {
                "method": method,
                "minutes": minutes,
                "seed": seed,
                "seconds": learned if isinstance(model, SNAS) else learned + scored,
                "seconds of scoring": scored,
                "cell": SPACE.encode(chosen),
                "scores": [float(score) for score in scores],
            },
        )


PARTS: dict[str, Callable[[argparse.Namespace], Rows]] = {
    "supernet": lambda options: supernets(options.device, options.tiny),
    "training": lambda options: trainings(options.device, options.tiny),
    "pool": lambda options: pools(options.device, options.tiny),
    "waits": lambda options: waits(options.device, options.tiny),
    "side by side": lambda options: side_by_side(options.device, options.tiny),
    "search": searches,
    "compiled": lambda options: compiled(options.device, options.tiny),  # last: it may take all the time there is
}


def main() -> None:
    """Ask every question, print and write the answers, each as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="all by default, search with --images only")
    parser.add_argument("--images", default="", help="folder of CIFAR-10, see small_cifar10, for searches")
    parser.add_argument("--methods", nargs="+", choices=list(SEARCHES), default=["snas"], help="of searches")
    parser.add_argument("--minutes", type=float, nargs="+", default=[4.0], help="of each search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of searches")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    figures: dict[str, Any] = {"device": name, "torch": torch.__version__, "python": platform.python_version()}
    if options.device == "cpu":
        torch.set_num_threads(1)
    print(f"{name}, torch {torch.__version__}", flush=True)
    for part in options.parts or [part for part in PARTS if part != "search" or options.images]:
        print(part, flush=True)
        figures[part] = {}
        started = time.monotonic()
        try:
            for subject, row in PARTS[part](options):
                figures[part][subject] = row
                shown = (f"{what} {value:.4g}" for what, value in row.items() if isinstance(value, int | float))
                print(f"  {subject:44}" + "  ".join(shown), flush=True)
                if options.json:
                    options.json.write_text(json.dumps(figures, indent=1))
        except Exception as error:  # the other parts are worth as much
            figures[part]["error"] = f"{type(error).__name__}: {error}"
            print(f"  error: {figures[part]['error']}", flush=True)
        print(f"  ({time.monotonic() - started:.0f} s)", flush=True)
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
