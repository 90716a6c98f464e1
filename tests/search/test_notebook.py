"""What a notebook shows: a bar while a search runs, results, architectures, spaces; nothing of others has an effect."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import optuna
import pytest

from optuna_nas import ChoiceSpace, NetworkSpace, Search, SearchResult, nasbench201_skeleton, nasbench201_space
from optuna_nas.search import notebook

CELLS = nasbench201_space()
HOSTILE = "<script>alert(1)</script>\u202e\x1b[31m"


@pytest.fixture
def kernel(monkeypatch):
    """A stand-in for IPython in a kernel; the list of what a cell has shown."""
    shown = []

    def display(html, display_id):
        shown.append(html)
        return SimpleNamespace(update=shown.append)

    ipython = pytest.importorskip("IPython")
    monkeypatch.setattr(ipython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr("IPython.display.HTML", str)
    return shown


def check(html):
    """Check that a text is HTML whose tags are closed in their order and run nothing; return the tags."""
    opened, seen = [], []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attributes):
            seen.append(tag)
            assert not [name for name, _ in attributes if name.startswith("on")]
            if tag != "img":
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Parser().feed(html)
    assert opened == []
    assert not set(seen) & {"script", "style", "iframe", "link"}
    return seen


def search_of(folder, **changes):
    sampler = optuna.samplers.RandomSampler(seed=0)
    search = Search("mine", CELLS, objective=lambda trial: CELLS.suggest(trial).connected + 0.0, sampler=sampler)
    return replace(search, trials=3, folder=folder, tracking=None, pictures=False, **changes)


def test_a_search_in_a_notebook_has_a_bar(tmp_path, kernel):
    before = optuna.logging.get_verbosity()
    result = search_of(tmp_path).run()
    assert len(result.study.trials) == 3
    assert "opening the study" in kernel[0]
    assert "trial 3 of 3" in kernel[-1]
    assert "best 1.0000 (trial 0)" in kernel[-1]
    assert "value='3'" in kernel[-1]
    assert all(check(html) for html in kernel)
    assert optuna.logging.get_verbosity() == before


def test_elsewhere_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook.NotebookBar, "__init__", lambda *unused: pytest.fail("a bar"))
    assert len(search_of(tmp_path).run().study.trials) == 3


def test_a_result_shows_leaderboard_picture_and_files(tmp_path):
    html = search_of(tmp_path).run()._repr_html_()
    assert check(html).count("tr") == 4
    assert "mine: the best of 3 trials" in html
    assert re.search(r"src='data:image/png;base64,[\w+/]{100}", html)


def test_a_result_without_trials_says_so():
    result = SearchResult(optuna.create_study(), None, interrupted=True, missing=4)
    assert "No trial has finished yet" in result._repr_html_()
    assert "4 trials to go" in result._repr_html_()


def test_spaces_and_architectures_are_tables():
    network = NetworkSpace(CELLS, nasbench201_skeleton(1, 4, (1, 8, 8), 10))
    html = network._repr_html_()
    assert "NetworkSpace of CellSpace: 15,625 architectures" in html
    assert check(html).count("tr") == 7
    architecture = network.sample(np.random.default_rng(0))
    assert f"{architecture.cost().params:,} parameters" in architecture._repr_html_()
    assert check(architecture._repr_html_()).count("tr") == 6
    assert "parameters" not in CELLS.sample(np.random.default_rng(0))._repr_html_()


def test_names_of_others_are_text():
    study = optuna.create_study(study_name=HOSTILE)
    study.optimize(lambda trial: 0.5, n_trials=1)
    space = ChoiceSpace(((HOSTILE, (HOSTILE, "b")),))
    shown = [
        SearchResult(study, study.best_trial, ended=HOSTILE)._repr_html_(),
        space._repr_html_(),
        space.sample(np.random.default_rng(1))._repr_html_(),
        space.sample(np.random.default_rng(0))._repr_html_(),
    ]
    assert sum("&lt;script&gt;" in html for html in shown) >= 3
    for html in shown:
        check(html)
        assert "\u202e" not in html
        assert "\x1b" not in html


def test_colours_are_those_of_the_page():
    """A table takes them from the page, light or dark; only pictures, which are dark on light, bring their ground."""
    html = CELLS._repr_html_()
    assert set(re.findall(r"(?<![\w-])color:([^;']+)", html)) == {"inherit"}
    assert set(re.findall(r"background:([^;']+)", html)) == {"none"}
