"""What do supernets, hypernetworks and trainings cost on a GPU, and does the host ever wait for it?

Command:   python studies/benchmarks/gpu.py --json gpu.json
           python studies/benchmarks/gpu.py --images CIFAR10_FOLDER --json gpu.json     # and search for five minutes
           python studies/benchmarks/gpu.py --device cpu --tiny                         # does it run? three minutes
Cost:      meant to stay under nine minutes on one GPU, a search included; it has not run on one yet
Expected:  bfloat16 and `channels_last` well ahead of plain float32; no step that waits; small trials side by side make
           more of the GPU than one

Needs PyTorch and NumPy only (with `--images`, Pillow): neither Optuna nor MLflow is imported. Milliseconds between CUDA
events, medians; each part is written as soon as it is known. A search writes its choice and its scores of 1,000 cells,
which `truth.py --gpu gpu.json` looks up where the table is.
"""

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from ghn_speed import pool
from supernet import subjects
from training import SETTINGS, images_per_second, random_images

from optuna_nas.networks import DiscreteNetwork
from optuna_nas.oneshot import GHN, SNAS, GHNRecipe, SNASRecipe
from optuna_nas.oneshot import model as one_shot_model
from optuna_nas.space import nasbench201_skeleton, nasbench201_space
from optuna_nas.training import Recipe, train

SPACE = nasbench201_space()
Figures = dict[str, Any]


def milliseconds(step: Callable[[], object], device: str, repeats: int) -> float:
    """Return the median time of a step after three to warm up."""
    for _ in range(3):
        step()
    taken = []
    for _ in range(repeats):
        if device == "cuda":
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()
            step()
            ended.record()
            ended.synchronize()
            taken.append(begun.elapsed_time(ended))
        else:
            started = time.process_time()
            step()
            taken.append(1000 * (time.process_time() - started))
    return median(taken)


def supernets(device: str, tiny: bool) -> Figures:
    """Time steps of supernets in several precisions, compiled too, with their peak memory."""
    found: Figures = {}
    ways = [("plain", "float32"), ("plain", "bfloat16"), ("ours", "float32"), ("ours", "bfloat16")]
    ways += [("compiled", "bfloat16"), ("floor", "float32"), ("plain path", "bfloat16"), ("path", "bfloat16")]
    for space in ("nasbench201", "darts"):
        for subject, precision in ways:
            if subject == "compiled" and (tiny or space == "darts"):
                continue  # two thousand ops take minutes to compile
            step = subjects(space, tiny, [subject], device, precision)[subject]
            started = time.monotonic()
            step()
            first = time.monotonic() - started
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            row = {"ms": milliseconds(step, device, 2 if tiny else 10), "first step, s": first}
            if device == "cuda":
                row["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
            found[f"{space}, {subject}, {precision}"] = row
            del step
    return found


def trainings(device: str, tiny: bool) -> Figures:
    """Compare the training loop with a bare one."""
    names = list(SETTINGS)[: 1 if tiny else None]
    return {
        name: images_per_second(*SETTINGS[name], 4 if tiny else 100, 1 if tiny else 3, torch.device(device))
        for name in names
    }


def pools(device: str, tiny: bool) -> Figures:
    """Score a pool of architectures, beside building and running each."""
    n_cells = 2 if tiny else 32
    ways = pool(n_cells, device, 8 if tiny else 32)
    return {
        name: {"cells/s": 1000 * n_cells / milliseconds(way, device, 1 if tiny else 5)} for name, way in ways.items()
    }


def waits(device: str, tiny: bool) -> Figures:
    """Count how often the host waits in the second half of a fit without records, by PyTorch's own warnings."""
    frame, found = nasbench201_skeleton(1, 4, (3, 16, 16), affine=False), {}
    data = random_images(640, 16, device)
    one_shot_model.RECORDS = 1
    learners: dict[str, Callable[[Callable[[float], None]], object]] = {
        "training": lambda on_step: train(
            DiscreteNetwork(SPACE.architecture(dict.fromkeys(SPACE.paths, "nor_conv_3x3")), frame),
            data,
            Recipe(epochs=1, batch_size=32),
            on_step=on_step,
        ),
        "SNAS": lambda on_step: SNAS(SPACE, frame, SNASRecipe(batch_size=32)).fit(data, 1.0, on_step=on_step),
        "SNAS, one path": lambda on_step: SNAS(SPACE, frame, SNASRecipe(batch_size=32, relaxation="one_path")).fit(
            data, 1.0, on_step=on_step
        ),
        "GHN": lambda on_step: GHN(SPACE, frame, GHNRecipe(batch_size=32, meta_batch=1)).fit(
            data, 1.0, on_step=on_step
        ),
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
        found[name] = {"waits a step": sum("synchroniz" in str(one.message) for one in seen) / steps}
    return found


def small_training(device: str, steps: int, begin: Any, done: Any) -> None:
    """Train a small network when told to begin; for a process of its own."""
    data = random_images(64 * steps, 32, device)
    cell = SPACE.architecture(dict.fromkeys(SPACE.paths, "nor_conv_3x3"))
    network = DiscreteNetwork(cell, nasbench201_skeleton(1, 16), seed=0)
    train(network, data, Recipe(epochs=1))  # warms up
    done.put(0.0)
    begin.wait()
    started = time.monotonic()
    train(network, data, Recipe(epochs=1))
    done.put(time.monotonic() - started)


def side_by_side(device: str, tiny: bool) -> Figures:
    """Let processes train small networks on one GPU at the same time."""
    steps, found = 3 if tiny else 200, {}
    context = torch.multiprocessing.get_context("spawn")
    for n_processes in (1, 2) if tiny else (1, 2, 4):
        begin, done = context.Event(), context.Queue()
        processes = [
            context.Process(target=small_training, args=(device, steps, begin, done)) for _ in range(n_processes)
        ]
        for process in processes:
            process.start()
        for _ in processes:
            done.get(timeout=120)
        begin.set()
        slowest = max(done.get(timeout=120) for _ in processes)
        for process in processes:
            process.join()
        found[f"{n_processes} processes"] = {"images/s": n_processes * 64 * steps / slowest}
    return found


def search(folder: str, minutes: float, device: str) -> Figures:
    """Let SNAS learn NAS-Bench-201's own network from CIFAR-10 for so long; return its choice and scores."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from nasbench201_on_cifar10 import whole_cifar10

    data = whole_cifar10(folder).to(device)
    frame = nasbench201_skeleton(5, 16, affine=False)
    recipe = SNASRecipe(batch_size=256, learning_rate=0.1, warmup_fraction=0.35, last_temperature=0.3)
    SNAS(SPACE, frame, recipe).fit(data, 0.05, show_progress=False)
    started = time.monotonic()
    SNAS(SPACE, frame, recipe).fit(data, 0.2, show_progress=False)
    epochs = (60 * minutes - 20) / ((time.monotonic() - started) / 0.2)
    snas, started = SNAS(SPACE, frame, recipe), time.monotonic()
    snas.fit(data, epochs, show_progress=False)
    seconds = time.monotonic() - started
    random = np.random.default_rng(1000)
    cells = [SPACE.sample(random) for _ in range(1000)]
    return {
        "seconds": seconds,
        "epochs": epochs,
        "cell": SPACE.encode(snas.most_likely()),
        "scores": [float(score) for score in snas.score(cells)],
        "seconds of scoring": time.monotonic() - started - seconds,
    }


def main() -> None:
    """Ask every question, print and write the answers."""
    parts: dict[str, Callable[[str, bool], Figures]] = {
        "supernet": supernets,
        "training": trainings,
        "pool": pools,
        "waits": waits,
        "side by side": side_by_side,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--images", default="", help="folder of CIFAR-10, see small_cifar10, for a search")
    parser.add_argument("--minutes", type=float, default=5.0, help="of the search")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    figures: Figures = {"device": name, "torch": torch.__version__, "python": platform.python_version()}
    if options.device == "cpu":
        torch.set_num_threads(1)
    wanted = {part: (lambda part=part: parts[part](options.device, options.tiny)) for part in options.parts}
    if options.images:
        wanted["search"] = lambda: search(options.images, options.minutes, options.device)
    print(f"{name}, torch {torch.__version__}", flush=True)
    for part, ask in wanted.items():
        started = time.monotonic()
        try:
            figures[part] = ask()
        except Exception as error:  # the other parts are worth as much
            figures[part] = {"error": f"{type(error).__name__}: {error}"}
        print(f"{part} ({time.monotonic() - started:.0f} s)")
        for subject, row in figures[part].items():
            if isinstance(row, dict):
                print(f"  {subject:44}" + "  ".join(f"{what} {value:.4g}" for what, value in row.items()), flush=True)
            elif not isinstance(row, list):
                print(f"  {subject:44}{row}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
