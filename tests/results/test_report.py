"""The report of a study: what it says, that it stands alone, that a browser shows it without asking anybody."""

import base64
import html
import json
import math
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import optuna
import pypdf
import pytest
from browsers import FLAGS, find_browser
from markdown_it import MarkdownIt
from optuna.trial import TrialState, create_trial
from PIL import Image
from strategies import few_digits

from optuna_nas import (
    CellKind,
    CellSpace,
    NetworkSpace,
    Recipe,
    Search,
    Skeleton,
    TrainObjective,
    nasbench201_space,
    plot_importances,
    plot_pareto,
    plot_progress,
)
from optuna_nas.plots.progress import pareto, progress
from optuna_nas.results.page import Picture, Section, Table, Text, as_html, as_markdown
from optuna_nas.results.report import _amount, write_report
from optuna_nas.search.opening import open_study
from optuna_nas.storage.attributes import EPOCHS, MASKS, PARAMS, TRAIN_SECONDS, VALIDATION_LOSS, write_json

SPACE = CellSpace(("none", "skip_connect", "nor_conv_3x3", "avg_pool_3x3"), 2, 1, (CellKind("cell"),))


def trial(number, value=None, state=TrialState.COMPLETE, seconds=1.0, epochs=2, **attributes):
    architecture = SPACE.sample(np.random.default_rng(number))
    return create_trial(
        state=state,
        value=value if state == TrialState.COMPLETE else None,
        params=SPACE.encode(architecture),
        distributions=SPACE.distributions(),
        user_attrs={
            TRAIN_SECONDS: seconds,
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
    "Names",
    "Best so far",
    "What mattered",
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
    assert "12 trials have completed, and 20 are needed to tell anything from chance." in page.text
    assert "optuna-nas run study.py" in page.text
    assert all(source.startswith("data:") for source in page.sources)
    markdown = written.markdown.read_text()
    assert re.findall(r"^## (.*)$", markdown, re.MULTILINE) == SECTIONS
    pictures = re.findall(r"\]\((\S+\.png)\)", markdown)
    assert len(pictures) == 6
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
    assert page.headings == ["Result", "Leaderboard", "Names", "Best so far", "How to reproduce"]
    assert (tmp_path / "there" / "report.html").exists()
    with pytest.raises(ValueError, match="`study` must exist"):
        write_report(Search(name="none", space=SPACE, objective=lambda trial: 1.0, folder=tmp_path / "none"))


def with_values(search, values):
    """Return the text of the report of a study with these values."""
    wanted = replace(search, name="values", folder=search.folder / "values")
    open_study(wanted).add_trials([trial(number, value) for number, value in enumerate(values)])
    return Page(write_report(wanted).page.read_text()).text


def test_differences_within_noise_are_said_to_be_and_names_are_explained_once(search):
    n_examples = search.data.size(["report"])
    error = (0.9 * 0.1 / n_examples) ** 0.5
    noise = np.random.default_rng(0).uniform(0.1, 0.9 - 1.5 * error, size=24)
    text = with_values(search, [0.9, 0.9 - 0.5 * error, 0.9 - 0.9 * error, 0.9 - 1.3 * error, *noise])
    assert f"Ranks 1 to 3 differ by less than one standard error: {100 * error:.0f}" in text
    assert f"points on {n_examples} examples. This study can't tell which of them is best." in text
    assert "nothing is told from chance" in text
    assert text.count("A cell is written node by node, as a | b c: node 0 is its input") == 1
    for label, name in (
        ("skip", "skip_connect"),
        ("conv3", "nor_conv_3x3"),
        ("avg3", "avg_pool_3x3"),
        ("none", "none"),
    ):
        assert text.count(f"{label}{name}") == 1


def test_losses_within_noise_are_said_to_be_in_the_report(search):
    by_loss = replace(search, name="losses", strategy="random", directions=None, folder=search.folder / "losses")
    noted = {VALIDATION_LOSS: [0.3, 0.02, 360]}
    open_study(by_loss).add_trials([trial(number, value, **noted) for number, value in enumerate((0.30, 0.31, 0.5))])
    text = Page(write_report(by_loss).page.read_text()).text
    assert "Ranks 1 and 2 differ by less than one standard error: 0.02 of loss on 360 examples." in text


def test_what_is_beyond_noise_is_said_to_be_with_an_interval(search):
    good = [0.8 if trial(number, 0.0).params["cell_0_1"] == "nor_conv_3x3" else 0.4 for number in range(40)]
    values = [value + 0.02 * (number % 7) for number, value in enumerate(good)]
    text = with_values(search, [*values, 1.0])
    assert re.search(
        r"cell_0_1 explains [89]\d% of the variance of values by itself, with a 90 % interval of \d\d%", text
    )
    assert "1 of 3 parameters explain more than the" in text
    assert "Ranks 1 and 2 differ by 10.0 points, more than one standard error: 0.7 points on 96 examples." in text


@pytest.fixture
def several(search):
    """Return a search of three objectives with the trials of `SEVERAL`."""
    objectives = ("accuracy", "params", PredictedSeconds())
    objective = TrainObjective(search.space, search.data, search.recipe, objectives=objectives)
    wanted = replace(search, name="several", folder=search.folder / "several", objective=objective, directions=None)
    study = open_study(wanted)
    for number, (values, excess) in enumerate(SEVERAL):
        one = trial(number, 0.0, params=values[1], latency=values[2])
        asked = study.ask({name: one.distributions[name] for name in one.params})
        for name, value in one.user_attrs.items():
            asked.set_user_attr(name, value)
        asked.set_constraint("latency", excess)
        study.tell(asked, values)
    return wanted


SEVERAL = [
    ((0.9, 12345, 0.0021), -1.0),
    ((0.8, 12345, 0.0025), -1.0),  # beaten by the first one
    ((0.7, 500, 0.0031), 0.0),
    ((0.95, 400, 0.0001), 1.0),  # beats all, and breaks its constraint
    ((0.6, 900, 0.0012), -1.0),
]


class PredictedSeconds:
    """A cost that is known without a network."""

    name, space = "latency", SPACE

    def of(self, architecture):
        return 0.001


def test_a_study_of_several_objectives_shows_all_of_them_and_their_front(several):
    written = write_report(several)
    page = Page(written.page.read_text())
    assert page.headings.index("Pareto front") == page.headings.index("Leaderboard") + 1
    assert "Of 4 completed trials, no other is better in all objectives than these 3." in page.text
    assert "Ranked by accuracy, the first of 3 objectives." in page.text
    markdown = written.markdown.read_text()
    front, leaders, result = (section_of(markdown, name) for name in ("Pareto front", "Leaderboard", "Result"))
    assert rows_of(front) == [
        ["trial", "accuracy", "parameters", "latency"],
        ["0", "0.9000", "12,345", "0.0021"],
        ["2", "0.7000", "500", "0.0031"],
        ["4", "0.6000", "900", "0.0012"],
    ]
    assert "![Trials and their Pareto front](pareto_front.png)" in front
    headings, *rows = rows_of(leaders)
    assert headings == [
        *("rank", "trial", "accuracy", "parameters", "latency", "multiply-adds", "seconds", "architecture")
    ]
    assert [row[:5] for row in rows] == [
        ["1", "0", "0.9000", "12,345", "0.0021"],
        ["2", "1", "0.8000", "12,345", "0.0025"],
        ["3", "2", "0.7000", "500", "0.0031"],
        ["4", "4", "0.6000", "900", "0.0012"],
        ["breaks a constraint", "3", "0.9500", "400", "0.0001"],
    ]
    assert ["its parameters", "12,345"] in rows_of(result)
    assert ["its latency", "0.0021"] in rows_of(result)
    assert "accuracy against parameters" not in page.text  # the front shows it


def test_a_front_of_trials_that_all_break_a_constraint_is_not_shown(search):
    objective = TrainObjective(search.space, search.data, search.recipe, objectives=("accuracy", "params"))
    wanted = replace(search, name="none", folder=search.folder / "none", objective=objective, directions=None)
    study = open_study(wanted)
    asked = study.ask()
    asked.set_constraint("params", 1.0)
    study.tell(asked, (0.5, 100))
    assert "Pareto front" not in Page(write_report(wanted).page.read_text()).headings


def section_of(markdown, title):
    return markdown.split(f"## {title}\n")[1].split("\n## ")[0]


def rows_of(markdown):
    """Return the cells of a table, without the rule below its headings."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [line.strip("| ").split(" | ") for place, line in enumerate(lines) if place != 1]


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


# -- in a browser ---------------------------------------------------------------------------------------------------

MEASURE = """<body><iframe width="400" height="800"></iframe><pre></pre><script>
const frame = document.querySelector("iframe"), bytes = Uint8Array.from(atob("%s"), letter => letter.charCodeAt(0));
frame.onload = () => {
  const page = frame.contentDocument, style = element => frame.contentWindow.getComputedStyle(element);
  document.querySelector("pre").textContent = JSON.stringify({
    sideways: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    pictures: [...page.images].map(image => [image.width, Number(image.getAttribute("width"))]),
    papers: [...page.images].map(image => style(image).backgroundColor),
    paper: style(page.body).backgroundColor, ink: style(page.body).color,
    cells: [...page.querySelectorAll(".wide :is(th, td)")].map(cell => cell.scrollWidth - cell.clientWidth),
  });
};
frame.srcdoc = new TextDecoder().decode(bytes);
</script>"""
"""A page that shows a report in a frame as wide as a phone, and measures it."""


@pytest.fixture
def browse(tmp_path):
    flags = [*FLAGS, "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    browser, log = find_browser(), tmp_path / "net.json"

    def run(page, *more):
        log.unlink(missing_ok=True)
        command = [browser, *flags, f"--log-net-log={log}", *more, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
        assert "CONSOLE" not in done.stderr
        assert not asked_by(log)
        return done.stdout

    return run


def asked_by(log):
    """Return the addresses outside of this machine that a browser has asked, by its log."""
    text = log.read_text()
    try:
        events = json.loads(text)["events"]
    except json.JSONDecodeError:  # the browser was quicker than its log
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    asked = {event["params"]["url"] for event in events if "url" in event.get("params", {})}
    return [url for url in asked if url.startswith(("http:", "https:")) and "google" not in url]


@pytest.mark.browser
@pytest.mark.process
@pytest.mark.parametrize("dark", [False, True])
def test_on_a_desktop_it_is_legible_in_grey_light_and_dark(search, tmp_path, browse, dark):
    """As every form of the page, without errors in the console and without the network; see `browse`."""
    picture = tmp_path / "report.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] * dark
    browse(write_report(search).page, *scheme, "--window-size=1200,3000", f"--screenshot={picture}")
    with Image.open(picture) as shown:
        greys = np.asarray(shown.convert("L")).astype(int)
    paper = np.bincount(greys.ravel()).argmax()
    assert paper < 60 if dark else paper > 240
    written = abs(greys[:, :600] - paper) > 120  # in grey, letters stand out from the paper
    assert written.mean() > 0.01


@pytest.mark.browser
@pytest.mark.process
def test_on_a_phone_in_the_dark_it_is_as_wide_as_the_phone_and_pictures_keep_size_and_paper(search, tmp_path, browse):
    report = base64.b64encode(write_report(search).page.read_bytes()).decode()
    page = tmp_path / "phone.html"
    page.write_text(MEASURE % report)
    shown = browse(page, "--blink-settings=preferredColorScheme=0", "--dump-dom", "--virtual-time-budget=5000")
    found = json.loads(html.unescape(re.search(r"<pre>(\{.*?)</pre>", shown)[1]))
    assert found["sideways"] == 0
    assert len(found["pictures"]) == 6
    assert all(width == own for width, own in found["pictures"])
    assert set(found["papers"]) == {"rgb(255, 255, 255)"}
    paper, ink = (sum(map(int, re.findall(r"\d+", found[what])[:3])) / 3 for what in ("paper", "ink"))
    assert paper < 60 < 200 < ink
    assert len(found["cells"]) > 7 * 12
    assert max(found["cells"]) == 0  # no word reaches into the next cell


@pytest.mark.browser
@pytest.mark.process
@pytest.mark.parametrize("lines", [0, 14])
def test_printed_no_heading_is_parted_from_its_picture_and_no_page_has_the_last_row_alone(
    search, tmp_path, browse, lines
):
    paper = tmp_path / "report.pdf"
    longer = replace(search, description="A line.\n" * lines)  # moves what follows to other places on their pages
    browse(write_report(longer).page, "--no-pdf-header-footer", f"--print-to-pdf={paper}")
    pages = [page.extract_text() for page in pypdf.PdfReader(paper).pages]
    assert len(pages) > 2

    def page_of(text):
        (number,) = [
            number for number, page in enumerate(pages) if re.search(f"^{re.escape(text)}", page, re.MULTILINE)
        ]
        return number

    for heading, below in {
        "Result": "best accuracy",
        "Leaderboard": "1 ",
        "Best so far": "Best value so far",
        "What the masks keep": "Ops that masks keep",
        "Scores against values": "Kendall's tau between",
        "Cost and accuracy": "accuracy against parameters",
        "What was stopped": "trials reason",
    }.items():
        assert re.search(rf"^{heading}$.*?^{re.escape(below)}", pages[page_of(heading)], re.MULTILINE | re.DOTALL), (
            heading
        )
    for page in pages[1:]:
        assert len(page.strip().splitlines()) >= 4


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


def test_a_trial_that_breaks_a_constraint_is_on_no_front():
    study = optuna.create_study(direction="maximize")
    for cost, value, excess in ((10, 0.5, -1.0), (20, 0.9, 1.0), (30, 0.8, 0.0)):
        asked = study.ask()
        asked.set_user_attr(PARAMS, cost)
        asked.set_constraint("multiply_adds", excess)
        study.tell(asked, value)
    points = pareto(study.trials, "params", study.direction)
    assert [(point.number, point.on_front) for point in points] == [(0, True), (2, True)]


def test_pictures_of_empty_studies_are_refused():
    study = optuna.create_study(direction="maximize")
    for plot in (plot_progress, plot_pareto, plot_importances):
        with pytest.raises(ValueError, match="`study` must have"):
            plot(study)
    with pytest.raises(ValueError, match="`cost` must be one of"):
        plot_pareto(study, "seconds")


def test_a_study_of_infinite_values_has_pictures_and_a_report_without_them(tmp_path):
    study = optuna.create_study(direction="maximize")
    for _ in range(3):
        study.add_trial(optuna.trial.create_trial(value=math.inf))
    assert plot_progress(study) is not None
    space = nasbench201_space()

    def objective(trial):
        return math.inf * space.suggest(trial).connected

    search = Search("inf", space, objective=objective, folder=tmp_path, tracking=None, pictures=False, trials=2)
    search.run()
    assert "inf" in write_report(search).markdown.read_text()


def test_texts_of_others_are_neither_links_nor_pictures_nor_code_in_markdown():
    evil = "](x) ![i](http://evil/x.png) [free](http://evil) `code` <http://evil> ~~gone~~ [r]\n\n[r]: http://evil"
    blocks = [Text(evil), Text(f"~~~\n{evil}"), Table((evil,), [(evil,)]), Picture("p", evil, b"png", 10)]
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    page = markdown.render(as_markdown(evil, [Section(evil, blocks)]))
    assert set(re.findall("<[a-z][^>]*?(?= alt|>)", page)) == {
        *("<h1", "<h2", "<p", "<table", "<thead", "<tbody", "<tr", "<th", "<td"),
        '<img src="p.png"',
    }
    assert page.count("![i](http://evil/x.png) [free](http://evil) `code`") == 7


def test_trials_of_infinite_values_have_completed_and_tell_nothing(search):
    text = with_values(search, [0.5, math.inf, -math.inf, 0.7])
    assert "4 trials have completed, 2 of them with an infinite value, which does not count, and 20 are needed" in text


def test_texts_of_others_are_neither_html_nor_orders_to_a_terminal():
    evil = "<script>alert(1)</script>\x1b[31m|"
    sections = [Section(evil, [Text(evil), Table((evil,), [(evil,)])])]
    for page in (as_html(evil, sections), as_markdown(evil, sections)):
        assert "<script>alert" not in page
    assert "\x1b" not in as_markdown(evil, sections)


def test_amounts_of_any_size_are_short():
    shown = [_amount(value) for value in (123456.0, 1234.5, 1e14, 1e300, math.inf, math.nan)]
    assert shown == ["123,456", "1,234", "100,000,000,000,000", "1e+300", "inf", "nan"]
