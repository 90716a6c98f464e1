"""Do damaged, foreign and hostile files and attributes end in the same result, or in one sentence?

Command:   python studies/benchmarks/attacks.py
Cost:      an hour on one thread with 2,000 mutations of each kind; `--mutations 200` takes six minutes
Expected:  no raw error, hang, gigabyte, wrong weight or executed code in any row

A mutation is a bit that flipped, a file cut short, a tensor of another type or shape, a JSON value of another type, a
number too large, a nest too deep, a foreign file, the file of another study, a text that means something to a terminal
or a page. `mutations.py` makes them, `attacked_files.py` and `attacked_studies.py` say what is read and how. Files of
tensors are written with the old checksum, as damage would, and with a new one, as somebody would who knows how.

Columns: `same` ended as the unmutated one does, or as a whole file of other content should; `refused` in one sentence,
a `ValueError` that names the file, or for attributes a line that names the attribute and its trial; `raw` in another
error; `hangs` took more than two seconds of CPU time beyond that of the unmutated one; `memory` more than 1 GiB;
`wrong` was accepted with other weights; `executed` ran something that a file held.
"""

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mutations import Attempt, Door, Hang, limited

BYTES = 2**30
HEADROOM = 3 * 2**30
"""Bytes beyond those in use that the operating system gives; more is a MemoryError, not the end of the machine."""
COLUMNS = ("same", "refused", "raw", "hangs", "memory", "wrong", "executed")
BAD = COLUMNS[2:]
DANGEROUS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "ctypes.dlopen")
"""Events of Python's audit that reading data never needs."""
_events: list[str] = []


def watch() -> None:
    """Note the events of `DANGEROUS` from now on, in this process."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in DANGEROUS:
            _events.append(f"{event} {arguments!r}"[:200])

    sys.addaudithook(hook)


def peak_bytes(reset: bool = False) -> int:
    """Return the largest memory in use since the last reset."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):  # not Linux: the peak since the start
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def tried(door: Door, draw: random.Random) -> Attempt:
    """Try one mutation under limits of time and memory."""
    before, _ = peak_bytes(reset=True), _events.clear()
    began = time.process_time()
    try:
        with limited(door.seconds):
            attempt = door.attack(draw)
    except Hang:
        return Attempt(("hangs",), "".join(traceback.format_exc(limit=-6)))
    except MemoryError:
        return Attempt(("memory",), "".join(traceback.format_exc(limit=-6)))
    except Exception:
        return Attempt(("raw",), "".join(traceback.format_exc(limit=-6)))
    if door.marker.exists() or _events:
        door.marker.unlink(missing_ok=True)
        return Attempt(("executed",), f"{_events[:3]}")
    if time.process_time() - began > door.seconds:
        return Attempt(("hangs",), f"{time.process_time() - began:.1f} s; {attempt.note}")
    if peak_bytes() - before > BYTES:
        return Attempt(("memory",), f"{(peak_bytes() - before) / 2**20:.0f} MiB; {attempt.note}")
    return attempt


def attacked(door: Door, mutations: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Return how so many mutations ended, and what the bad ones said."""
    counts: Counter[str] = Counter()
    notes = []
    number = 0
    while counts.total() < mutations:
        attempt = tried(door, random.Random(f"{seed}/{number}"))
        counts.update(attempt.outcomes)
        if set(attempt.outcomes) & set(BAD):
            notes.append(f"mutation {number}: {attempt.outcomes}\n{attempt.note}")
        number += 1
    return counts, notes


def doors(folder: Path, kinds: list[str] | None) -> Iterator[tuple[str, Door]]:
    """Make the doors of some kinds, of all by default, one after the other."""
    from attacked_files import FILES
    from attacked_studies import STUDIES

    makers: dict[str, Callable[[Path], Door]] = {**FILES, **STUDIES}
    unknown = set(kinds or ()) - makers.keys()
    if unknown:
        raise SystemExit(f"--kinds must be some of {', '.join(makers)} but got {', '.join(sorted(unknown))}")
    for kind, make in makers.items():
        if kinds is None or kind in kinds:
            (folder / kind).mkdir()
            yield kind, make(folder / kind)


def main() -> None:
    """Attack, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=2000, help="mutations of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", help="kinds to attack; all by default")
    parser.add_argument("--json", type=Path, help="file to write the counts to")
    parser.add_argument("--notes", type=Path, help="file to write what bad mutations said to")
    given = parser.parse_args()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    watch()
    print(f"{'kind':<16}{'mutations':>10}" + "".join(f"{column:>10}" for column in COLUMNS) + f"{'seconds':>10}")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, door in doors(Path(folder), given.kinds):
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + HEADROOM, resource.RLIM_INFINITY))
            began = time.process_time()
            counts, notes = attacked(door, given.mutations, given.seed)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            row = {column: counts[column] for column in COLUMNS}
            seconds = round(time.process_time() - began, 1)
            print(f"{kind:<16}{counts.total():>10}" + "".join(f"{row[c]:>10}" for c in COLUMNS) + f"{seconds:>10}")
            sys.stdout.flush()
            found[kind] = {"mutations": counts.total(), **row, "seconds": seconds}
            if given.notes and notes:
                with open(given.notes, "a", encoding="utf-8", errors="replace") as file:
                    file.write(f"== {kind} ==\n" + "\n".join(notes) + "\n")
            if given.json:
                given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
