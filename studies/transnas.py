"""TransNAS-Bench-101's cells (Duan et al. 2021), and the table of their trainings on seven tasks."""

import csv
import gzip

from optuna_nas import CellSpace
from optuna_nas.space import CellKind

OPS = {"none": "none", "skip": "skip_connect", "conv1x1": "nor_conv_1x1", "conv3x3": "nor_conv_3x3"}
TRANSNAS = CellSpace(tuple(OPS.values()), nodes=3, inputs=1, cell_kinds=(CellKind("cell", outputs=(3,)),))
TASKS = ("class_object", "class_scene", "jigsaw", "room_layout", "segmentsemantic", "normal", "autoencoder")
Row = dict[str, float]


def read_transnas(path: str) -> dict[tuple[str, ...], Row]:
    """Read the validation score of every cell on every task, larger is better; ops in the order of `TRANSNAS.paths`."""
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", newline="") as file:
        return {
            tuple(OPS[row[f"edge_{i}_{j}"]] for j, i in TRANSNAS.edges): {t: float(row[f"{t}_valid"]) for t in TASKS}
            for row in csv.DictReader(file)
        }
