"""Damaged, foreign and hostile files and attributes: the same result, one sentence, or one line; see `attacks.py`."""

import json
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from optuna_nas import Architecture, NetworkSpace, Space, load_network, nasbench201_skeleton, nasbench201_space
from optuna_nas.networks import save_network
from optuna_nas.results.page import Section, Table, Text, as_html, as_markdown
from optuna_nas.storage import attributes as keys
from optuna_nas.training.checkpoints import checksum

BENCHMARKS = Path(__file__).parents[1] / "studies" / "benchmarks"
SPACE = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, (1, 8, 8), 3))


@pytest.fixture
def attacks(monkeypatch):
    """The benchmark's attacks, of which some thousand are tried here."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    import attacks

    yield attacks
    for name in set(sys.modules) - before:
        if name.startswith(("attack", "mutations")):
            del sys.modules[name]


MUTATIONS = {
    **dict.fromkeys(("network", "checkpoint", "architecture", "skeleton"), 1000),
    **dict.fromkeys(("yaml", "snas", "ghn", "hmnas", "resume", "strategies"), 400),
    **dict.fromkeys(("report", "mirror"), 60),
}
"""Some two minutes of CPU time in all."""


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore")  # of letters that no font has, and of MLflow's use of its database
@pytest.mark.parametrize("kind", MUTATIONS)
def test_nothing_that_was_changed_ends_in_more_than_a_sentence(kind, attacks, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["mutations"], "SECONDS", 60.0)  # time decides nothing here
    ((_, door),) = attacks.doors(tmp_path, [kind])
    counts, notes = attacks.attacked(door, MUTATIONS[kind], seed=1)
    assert not notes, notes[0][:3000]
    assert counts["refused"] > 0.2 * counts.total()
    assert counts["same"] > 0


# -- what was found ---------------------------------------------------------------------------------------------------


@pytest.fixture
def network(tmp_path):
    file = tmp_path / "network.safetensors"
    save_network(file, SPACE.sample(np.random.default_rng(0)).build(seed=0))
    return file


def rewritten(file, change, forged=True):
    """Write a file again after a change of its tensors and description, perhaps with the right checksum."""
    with safe_open(file, "pt") as opened:
        header, names = opened.metadata(), list(opened.keys())
        tensors = {name: opened.get_tensor(name) for name in names}
    description = json.loads(header["optuna_nas"])
    change(tensors, description)
    text = json.dumps(description)
    save_file(
        tensors, file, {"optuna_nas": text, "checksum": checksum(tensors, text) if forged else header["checksum"]}
    )


def first(tensors):
    return next(name for name, tensor in sorted(tensors.items()) if tensor.ndim > 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t, d: t.pop(first(t)), "must be there but is not"),
        (lambda t, d: t.update({"parts.more": torch.ones(1)}), "must not be there"),
        (lambda t, d: t.update({first(t): t[first(t)].double()}), "must be float32 of shape .* but is float64"),
        (lambda t, d: t.update({first(t): t[first(t)][None]}), "must be float32 of shape"),
        (lambda t, d: t[first(t)].fill_(float("nan")), "must be finite"),
        (lambda t, d: d["architecture"]["space"]["skeleton"].update(channels=4096), "parameters but it holds"),
        (lambda t, d: d.update(mixing={"cell_0_1": 3}), "must be a dictionary"),
        (lambda t, d: d.pop("architecture"), "holds something else"),
        (
            lambda t, d: t.update({f"masks/{first(t)}": torch.ones_like(t[first(t)])}),
            "its masks must be of the weights",
        ),
        (
            lambda t, d: (
                d.update(masks=[first(t)]),
                t.update({f"masks/{first(t)}": 0.5 * torch.ones_like(t[first(t)])}),
            ),
            "must be zeros and ones",
        ),
    ],
)
def test_a_network_whose_tensors_are_not_those_of_its_architecture_is_refused_by_name(network, change, says):
    rewritten(network, change)
    with pytest.raises(ValueError, match=says) as refused:
        load_network(network)
    assert str(network) in str(refused.value)


def test_weights_that_changed_after_they_were_written_are_refused(network):
    rewritten(network, lambda t, d: t[first(t)].add_(1e-3), forged=False)
    with pytest.raises(ValueError, match="its checksum is another"):
        load_network(network)


def test_a_checksum_that_bears_another_name_is_no_checksum(network):
    network.write_bytes(network.read_bytes().replace(b"checksum", b"checksun"))
    with pytest.raises(ValueError, match="holds something else"):
        load_network(network)


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": 100},
        {
            "nodes": 50,
            "max_ops": 5,
            "ops": ["skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3", "sep_conv_3x3"],
        },
        {"nodes": 60, "cell_kinds": [[f"k{i}", 1, []] for i in range(9)]},
    ],
)
def test_a_space_of_cells_has_a_limit_in_all(change):
    with pytest.raises(ValueError, match="choices"):
        Space.from_dict({**SPACE.cells.to_dict(), **change})


@pytest.mark.parametrize("change", [{"nodes": 100, "max_inputs": 50}, {"nodes": 100, "max_inputs": 4}])
def test_a_space_of_blocks_has_a_limit_in_all(change):
    block = {"type": "BlockSpace", "ops": ["skip_connect"], "nodes": 3, "max_inputs": 2, "kind": "block"}
    with pytest.raises(ValueError, match="choices"):
        Space.from_dict({**block, **change})


def test_json_that_is_nested_too_deeply_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"nested too deeply|too large or deep"):
        Architecture.from_json("[" * 5000 + "]" * 5000)


def test_an_unreadable_attribute_is_named_with_its_trial():
    study = optuna.create_study()
    study.set_user_attr(keys.UID_ATTRIBUTE, "' or 1=1 --")
    study.add_trial(optuna.create_trial(value=1.0, user_attrs={keys.PARAMS: "many", "note": object}))
    study.add_trial(optuna.create_trial(value=1.0, system_attrs={"retry_history": "all"}))
    assert [(one.trial, one.key) for one in keys.unreadable(study)] == [
        (None, keys.UID_ATTRIBUTE),
        (0, keys.PARAMS),
        (1, "retry_history"),
    ]


HOSTILE = "<script>|[bold]\x1b[31m`$\\frac{` [a](javascript:b)\ud800\n# c"


def test_a_text_of_others_does_nothing_in_a_page_or_in_markdown():
    sections = [Section(HOSTILE, [Text(HOSTILE), Text(HOSTILE, code=True), Table((HOSTILE, "b"), [("c", HOSTILE)])])]
    page, markdown = as_html(HOSTILE, sections), as_markdown(HOSTILE, sections)
    for text in (page, markdown):
        text.encode()  # no half of a character
        assert "\x1b" not in text
    assert "<script>" not in page
    assert "<script>" not in markdown.replace("```", "").split("\n", 1)[0]
    (row,) = [line for line in markdown.splitlines() if line.startswith("| c |")]
    assert row.replace("\\|", "").count("|") == 3
    assert "](javascript" not in row.replace("\\]", "")
    assert len([line for line in markdown.splitlines() if line.startswith("#") and "c" not in line[:3]]) <= 2


def test_a_text_of_others_does_nothing_in_a_terminal(capsys):
    from rich.table import Table as RichTable

    from optuna_nas.cli.console import console, print_line
    from optuna_nas.cli.display import Display

    table = RichTable("a", title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    console.print(HOSTILE)
    print_line(HOSTILE, HOSTILE)
    with Display(3) as display:
        display.model_progress(HOSTILE, 0.5)
        columns = [column for column in display._bars.columns if hasattr(column, "text_format")]
        shown = [str(column.render(task)) for column in columns for task in display._bars.tasks]
    printed = capsys.readouterr().out + "".join(shown)
    assert "\x1b" not in printed
    assert "[bold]" in printed


def test_a_text_of_others_is_no_formula_in_a_plot():
    from optuna_nas.plots.importances import Importance, Importances, draw_importances

    hostile = dict.fromkeys((r"$\frac{1}{$", "$a$\x1b", "x" * 500), Importance(0.3, 0.2, 0.4))
    figure = draw_importances(Importances(hostile, 0.25, 30))
    figure.draw_without_rendering()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert max(map(len, names)) <= 50
    assert r"\$a\$\x1b" in names
