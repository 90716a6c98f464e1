"""The report of a study: what it says, that it stands alone, that a browser shows it without asking anybody."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial
from strategies import few_digits

from optuna_nas import (
    CellKind,
    CellSpace,
    NetworkSpace,
    Recipe,
    Search,
    Skeleton,
    plot_importances,
    plot_pareto,
    plot_progress,
)
from optuna_nas.plots.progress import pareto, progress
from optuna_nas.results.report import Picture, Section, Table, Text, as_html, as_markdown, write_report
from optuna_nas.search.opening import open_study
from optuna_nas.storage.attributes import EPOCHS, MASKS, write_json

SPACE = CellSpace(("none", "skip_connect", "nor_conv_3x3", "avg_pool_3x3"), 2, 1, (CellKind("cell"),))


def trial(number, value=None, state=TrialState.COMPLETE, seconds=1.0, epochs=2, **attributes):
    architecture = SPACE.sample(np.random.default_rng(number))
    return create_trial(
        state=state,
        value=value if state == TrialState.COMPLETE else None,
        params=SPACE.encode(architecture),
        distributions=SPACE.distributions(),
        user_attrs={
            "train_seconds": seconds,
            EPOCHS: 4,
            "params": 100 + number,
            "multiply_adds": 1000 - number,
            **attributes,
        },
        intermediate_values={epoch: 0.1 * epoch for epoch in range(1, epochs + 1)},
    )


@pytest.fixture
def search(tmp_path):
    data = few_digits(96)
    wanted = Search(
        name="a <b> | study",
        space=NetworkSpace(SPACE, Skeleton(("cell",), 4, data.input_shape, data.classes)),
        data=data,
        recipe=Recipe(epochs=4),
        folder=tmp_path / "runs",
        description="Which cell is best & why?",
    )
    study = open_study(wanted)
    random = np.random.default_rng(0)
    study.add_trials([trial(n, 0.5 + 0.4 * random.random(), surrogate_score=random.random()) for n in range(12)])
    study.add_trial(trial(12, state=TrialState.PRUNED, reason="MedianPruner stopped it", epochs=1))
    study.add_trial(trial(13, state=TrialState.PRUNED, reason="the masks keep 10 %", epochs=0))
    study.add_trial(trial(14, state=TrialState.FAIL, reason="`batch_size` must fit", epochs=0))
    running = study.ask()
    value = {
        "step": 5,
        "kept": {path: ["skip_connect"] for path in SPACE.paths},
        "weights": dict.fromkeys(SPACE.paths, 0.5),
    }
    write_json(study, study._storage.get_trial(running._trial_id), MASKS, value)
    study.tell(running, state=TrialState.FAIL)
    return wanted


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.headings, self.sources, self.text, self._heading = [], [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._heading = tag == "h2"
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data
        if self._heading:
            self.headings.append(data)
            self._heading = False


SECTIONS = [
    "Question",
    "Result",
    "Leaderboard",
    "Best so far",
    "Importance of parameters",
    "What the masks keep",
    "Scores against values",
    "Cost and accuracy",
    "What was stopped",
    "How to reproduce",
]


def test_a_report_says_what_happened_in_html_and_markdown(search, tmp_path):
    written = write_report(search, command="optuna-nas run study.py")
    page = Page(written.page.read_text())
    study = open_study(search)
    assert page.headings == SECTIONS
    assert "Which cell is best & why?" in page.text
    assert f"{study.best_value:.4f} (trial {study.best_trial.number})" in page.text
    # 12 whole trials of two epochs, one of one; of four epochs each pruned trial saved three and four.
    assert "Of 16 trials, 2 were pruned (1 before the first step), 2 failed." in page.text
    assert "Pruning saved 7 of 32 epochs" in page.text
    assert "MedianPruner stopped it" in page.text
    assert "optuna-nas run study.py" in page.text
    assert all(source.startswith("data:") for source in page.sources)
    markdown = written.markdown.read_text()
    assert re.findall(r"^## (.*)$", markdown, re.MULTILINE) == SECTIONS
    pictures = re.findall(r"\]\((\S+\.png)\)", markdown)
    assert len(pictures) == 7
    for name in pictures:
        assert (written.markdown.parent / name).stat().st_size > 1000


def test_a_study_of_its_own_objective_and_few_trials_has_a_shorter_report(tmp_path):
    wanted = Search(name="own", space=SPACE, objective=lambda trial: 1.0, folder=tmp_path / "runs")
    study = open_study(wanted)
    page = Page(write_report(wanted).page.read_text())
    assert page.headings == ["Result", "How to reproduce"]
    assert "No trial has completed" in page.text
    study.add_trial(create_trial(value=0.5))
    page = Page(write_report(wanted, tmp_path / "there").page.read_text())
    assert page.headings == ["Result", "Leaderboard", "Best so far", "How to reproduce"]
    assert (tmp_path / "there" / "report.html").exists()
    with pytest.raises(ValueError, match="`study` must exist"):
        write_report(Search(name="none", space=SPACE, objective=lambda trial: 1.0, folder=tmp_path / "none"))


def test_text_cannot_break_out_of_the_page():
    sections = [
        Section(
            "<h1>",
            [Text("<script>alert(1)</script>"), Table(("a|b",), [("x|y\nz",)]), Picture("p", '"><b>', b"png", 10)],
        )
    ]
    page = as_html("<t>", sections)
    assert "<script>" not in page
    assert '"><b>' not in page
    markdown = as_markdown("t", sections)
    assert "x\\|y z" in markdown


@pytest.mark.browser
@pytest.mark.process
def test_a_browser_shows_it_without_errors_and_without_the_network(search, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("neither chromium nor google-chrome is installed; `apt-get install chromium` brings one")
    page = write_report(search).page
    log, picture = tmp_path / "net.json", tmp_path / "report.png"
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-component-update"]
    flags += ["--disable-background-networking", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--enable-logging=stderr", f"--log-net-log={log}", "--window-size=390,3000", f"--screenshot={picture}"]
    done = subprocess.run([browser, *flags, page.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr
    assert picture.stat().st_size > 20_000
    text = log.read_text()
    try:
        events = json.loads(text)["events"]
    except json.JSONDecodeError:  # the browser was quicker than its log
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    asked = {event["params"]["url"] for event in events if "url" in event.get("params", {})}
    assert not [url for url in asked if url.startswith(("http:", "https:")) and "google" not in url]


# -- the numbers behind the pictures ------------------------------------------------------------------------------


def test_progress_by_hand():
    trials = [
        trial(0, 0.5, seconds=2.0),
        trial(1, state=TrialState.PRUNED, seconds=1.0),
        trial(2, 0.4, seconds=4.0),
        trial(3, 0.7, seconds=8.0),
        trial(4, float("nan"), seconds=1.0, state=TrialState.FAIL),
    ]
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    found = progress(study.trials, study.direction)
    assert found.seconds == (2.0, 3.0, 7.0, 15.0, 16.0)
    assert found.values == (0.5, None, 0.4, 0.7, None)
    assert found.best == (0.5, 0.5, 0.5, 0.7, 0.7)
    falling = optuna.create_study(direction="minimize")
    falling.add_trials(trials)
    assert progress(falling.trials, falling.direction).best == (0.5, 0.5, 0.4, 0.4, 0.4)


def test_the_front_is_what_nothing_cheaper_is_as_good_as():
    study = optuna.create_study(direction="maximize")
    values = {30: 0.9, 10: 0.5, 20: 0.5, 40: 0.8, 50: 0.95}
    study.add_trials([trial(n, value, params=cost) for n, (cost, value) in enumerate(values.items())])
    points = pareto(study.trials, "params", study.direction)
    assert [point.cost for point in points] == [10, 20, 30, 40, 50]
    assert [point.cost for point in points if point.on_front] == [10, 30, 50]


def test_pictures_of_empty_studies_are_refused():
    study = optuna.create_study(direction="maximize")
    for plot in (plot_progress, plot_pareto, plot_importances):
        with pytest.raises(ValueError, match="`study` must have"):
            plot(study)
    with pytest.raises(ValueError, match="`cost` must be one of"):
        plot_pareto(study, "seconds")


def test_texts_of_others_are_neither_html_nor_orders_to_a_terminal():
    from optuna_nas.results.report import Section, Table, Text, as_html, as_markdown

    evil = "<script>alert(1)</script>\x1b[31m|"
    sections = [Section(evil, [Text(evil), Table((evil,), [(evil,)])])]
    for page in (as_html(evil, sections), as_markdown(evil, sections)):
        assert "<script>alert" not in page
    assert "\x1b" not in as_markdown(evil, sections)
