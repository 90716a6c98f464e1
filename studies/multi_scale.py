"""Fixed networks for anytime prediction, to compare searches with: after MSDNet (Huang et al. 2018)."""

from optuna_nas import Architecture, NetworkSpace, Search
from optuna_nas.search.opening import open_study
from optuna_nas.storage.by_architecture import enqueue_architecture

DENSE_OP = "sep_conv_3x3"
EXITS_EVERY = (1, 2, 4)
"""Layers between two exits of the fixed networks."""


def enqueue_fixed(search: Search) -> None:
    """Let a search of an anytime space train the fixed networks; call it as often as the search is run."""
    study = open_study(search)
    for every in EXITS_EVERY:
        enqueue_architecture(study, multi_scale(search.space, every))


def multi_scale(space: NetworkSpace, every: int, op: str = DENSE_OP) -> Architecture:
    """Return a network of several scales side by side, with an exit of the coarsest one after every so many layers.

    As in MSDNet, a layer has a node at each scale, which reads the layer before at its own scale and at the finer one,
    and the finest scale of a cell is left behind by the next. Other than there, a node reads two others instead of
    all before it, since that is what a node of the space may read.

    Args:
        space: Anytime space whose cells have some number of layers times their number of scales, such as 24, 16 and 8
            nodes for eight layers of three, two and one scales.
        every: Layers between two exits.
        op: Op of all nodes.
    """
    choices: dict[str, list[str]] = {}
    cells = list(space.core.blocks.items())  # type: ignore[attr-defined]
    scales = space.core.scales  # type: ignore[attr-defined]
    for place, (cell, n_nodes) in enumerate(cells):
        width = min(len(scales), len(cells) - place)
        for number in range(1, n_nodes + 1):
            layer, scale = divmod(number - 1, width)
            if layer == 0:  # the first layer is a chain from fine to coarse
                reads = {number - 1}
            else:
                same = number - width
                reads = {same, same - 1} if scale else {same, max(0, same - width)}
            path = space.core.path(cell, number)  # type: ignore[attr-defined]
            choices[path] = [op]
            choices[f"{path}_inputs"] = sorted(map(str, reads), key=int)
            choices[f"{path}_scale"] = [str(scales[scale])]
            choices[f"{path}_exit"] = ["exit" if scale == width - 1 and (layer + 1) % every == 0 else "none"]
    return space.architecture(choices)
