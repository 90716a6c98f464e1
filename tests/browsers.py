"""Pages in a real browser."""

import re
import shutil
import subprocess
from typing import NamedTuple

import pytest

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


HOST = "mlflow.example"
"""A host that stands for this machine in `seen_in`: at its own address MLflow opens an assistant over the page."""


def find_browser():
    """Return the path of a browser; skip the test where there is none."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("neither chromium nor google-chrome is installed; `apt-get install chromium` brings one")
    return browser


def seen_in(browser, address, place, size=(1600, 2300), seconds=100):
    """Return what a browser makes of a page, and leave a picture of it at `place` with the suffix `.png`."""
    flags = [
        *FLAGS,
        f"--host-resolver-rules=MAP {HOST} 127.0.0.1",
        f"--window-size={size[0]},{size[1]}",
        "--virtual-time-budget=90000",
        f"--user-data-dir={place}.profile",
        f"--screenshot={place}.png",
        "--dump-dom",
    ]
    done = subprocess.run([browser, *flags, address], capture_output=True, text=True, timeout=seconds, check=True)
    return done.stdout


class Chart(NamedTuple):
    """A chart of MLflow's page of runs: its points or bars, pictures, and marks of the horizontal axis.

    Points of scatter plots are on a canvas, and not counted.
    """

    points: int
    pictures: int
    marks: frozenset[str]


def charts_of(shown):
    """Return the charts of a page of MLflow, by section and title."""
    found, section = {}, ""
    for part in re.split('data-testid="experiment-view-compare-runs-(?=section-header"|card")', shown)[1:]:
        if part.startswith("section"):
            section = re.search(r'white-space: pre;">([^<]*)<', part)[1]
            continue
        title = re.search('<h4[^>]* title="([^"]*)"', part)[1]
        pictures = part.count("+compressed.webp") + part.count("%2Bcompressed.webp")
        marks = frozenset(re.findall(r'class="xtick"><text[^>]*>([^<]*)<', part))
        found[section[:1], title] = Chart(part.count('class="point"'), pictures, marks)
    return found
