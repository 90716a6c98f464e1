"""Graph of a whole network: cells placed in a skeleton."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna_nas.space.cost import Shape, Site
from optuna_nas.space.graph import AUXILIARY, EXIT, ComputationGraph, Node
from optuna_nas.space.skeleton import FIXED_CELLS, STRIDED_STEMS, Skeleton

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna_nas.space.cellular import CellKind, CellularSpace


def _half(shape: Shape) -> Shape:
    return (shape[0], -(-shape[1] // 2), -(-shape[2] // 2))


class NetworkBuilder:
    """Builder of the graph of one network. `graph` may be called once."""

    def __init__(
        self, space: CellularSpace, choices: Mapping[str, tuple[str, ...]], skeleton: Skeleton, mixed: bool = False
    ) -> None:
        self._space, self._choices, self._skeleton, self._mixed = space, choices, skeleton, mixed
        self._nodes: list[Node] = []

    def graph(self) -> ComputationGraph:
        skeleton, space = self._skeleton, self._space
        kinds = {kind.name: kind for kind in space.kinds}
        unknown = sorted(set(skeleton.cells) - set(kinds) - set(FIXED_CELLS))
        if unknown:
            raise ValueError(
                f"`skeleton.cells` must name the space's cells {sorted(kinds)} or {list(FIXED_CELLS)} "
                f"but got {unknown[0]!r}."
            )
        image = self._add("image", "input", (), skeleton.input_shape)
        reads = self._stem(image)  # outputs of the previous cells, oldest first
        channels = skeleton.channels
        last_reduction = -1
        for position, name in enumerate(skeleton.cells):
            reducing = name in FIXED_CELLS or kinds[name].stride > 1
            if reducing:
                height, width = self._shape(reads[-1])[1:]
                if min(height, width) < 2:
                    raise ValueError(
                        f"`skeleton` must not reduce an image below one pixel but cell {position} ({name}) gets "
                        f"{height} x {width} pixels from an input of {skeleton.input_shape}; use fewer reductions or "
                        "larger images."
                    )
                channels *= 2
            if name in FIXED_CELLS:
                out = self._fixed_cell(position, name, reads[-1], channels)
            else:
                out = self._cell(position, kinds[name], reads, channels)
            reads = [*reads[1:], out] if len(reads) > 1 else [out]
            if reducing:
                last_reduction = out
        outputs = [self._head(reads[-1])]
        if skeleton.auxiliary:
            outputs.append(self._auxiliary_head(last_reduction))
        exits = [position for position, node in enumerate(self._nodes) if node.op == EXIT]
        if exits and skeleton.auxiliary:
            raise ValueError(
                "`skeleton.auxiliary` must be False for a space with early exits, which replace it; unset it."
            )
        if exits and not skeleton.budget:
            raise ValueError(
                "`skeleton.budget` must be the maximum number of multiply-adds of a prediction for a space with early "
                "exits but is 0; use `anytime_skeleton(budget=...)`."
            )
        return ComputationGraph(tuple(self._nodes), (*outputs, *exits))

    def _add(
        self,
        name: str,
        op: str,
        inputs: Sequence[int],
        out_shape: Shape,
        *,
        stride: int = 1,
        path: str = "",
        cell: int = -1,
        scale: int = 1,
    ) -> int:
        in_shape = self._shape(inputs[0]) if inputs else out_shape
        site = Site(in_shape, out_shape, stride, self._skeleton.affine, self._skeleton.pool_norm)
        self._nodes.append(Node(name, op, tuple(inputs), path, cell, site, scale))
        return len(self._nodes) - 1

    def _shape(self, position: int) -> Shape:
        return self._nodes[position].site.out_shape

    def _stem(self, image: int) -> list[int]:
        skeleton = self._skeleton
        _, height, width = skeleton.input_shape
        if skeleton.stem == "conv":
            channels = skeleton.stem_multiplier * skeleton.channels
            return [self._add("stem", "stem", [image], (channels, height, width))] * self._space.n_inputs
        if skeleton.stem in STRIDED_STEMS:
            stride = STRIDED_STEMS[skeleton.stem]
            if min(height, width) < stride:
                raise ValueError(
                    f"`stem={skeleton.stem!r}` must get images of at least {stride} x {stride} but got {height} x "
                    f"{width}; use stem='conv'."
                )
            shape, op = _half((skeleton.channels, height, width)), "stem"
            if stride > 2:
                shape, op = _half(shape), "stem_stride4"
            return [self._add("stem", op, [image], shape, stride=stride)] * self._space.n_inputs
        first = _half(_half((skeleton.channels, height, width)))
        second = _half(first)
        if min(height, width) < 8:
            raise ValueError(
                f"`stem='imagenet'` must get images of at least 8 x 8 but got {height} x {width}; use stem='conv'."
            )
        stem0 = self._add("stem0", "stem_stride4", [image], first, stride=4)
        stem1 = self._add("stem1", "stem_stride8", [stem0], second, stride=2)
        return [stem0, stem1][-self._space.n_inputs :]

    def _fixed_cell(self, position: int, op: str, source: int, channels: int) -> int:
        shape = _half((channels, *self._shape(source)[1:]))
        return self._add(f"cell{position}/{op}", op, [source], shape, stride=2, cell=position)

    def _cell(self, position: int, kind: CellKind, reads: Sequence[int], channels: int) -> int:
        height, width = self._shape(reads[-1])[1:]
        inside = (channels, height, width)
        outside = _half(inside) if kind.stride > 1 else inside
        places = {f"in{i}": self._preprocess(position, i, source, inside) for i, source in enumerate(reads)}
        for node in self._space.cell_nodes(kind, self._choices, self._mixed):
            sources = [places[name] for name in node.inputs]
            joined = sum(self._shape(i)[0] for i in sources) if node.op == "concat" else channels
            height, width = (-(-size // node.scale) for size in outside[1:])
            places[node.name] = self._add(
                f"cell{position}/{node.name}",
                node.op,
                sources,
                (self._skeleton.classes, 1, 1) if node.op == EXIT else (joined, height, width),
                stride=kind.stride if node.strided else node.stride,
                path=node.path,
                cell=position,
                scale=node.scale,
            )
        return len(self._nodes) - 1

    def _preprocess(self, position: int, number: int, source: int, inside: Shape) -> int:
        """Bring a cell's input to the cell's shape; where cells read two others, always by a convolution (DARTS)."""
        shape, name = self._shape(source), f"cell{position}/preprocess{number}"
        if shape[1:] != inside[1:]:
            return self._add(name, "factorized_reduction", [source], inside, stride=2, cell=position)
        if self._space.n_inputs > 1 or shape != inside:
            return self._add(name, "preprocess", [source], inside, cell=position)
        return source

    def _head(self, source: int) -> int:
        if self._skeleton.norm_before_head:
            source = self._add("norm", "norm_relu", [source], self._shape(source))
        return self._add("classifier", "classifier", [source], (self._skeleton.classes, 1, 1))

    def _auxiliary_head(self, source: int) -> int:
        if source < 0:
            raise ValueError(
                "`skeleton.auxiliary` must have a reduction to stand after but `cells` has none; "
                "set auxiliary=False or add a reduction."
            )
        op = "auxiliary_head_imagenet" if self._skeleton.stem == "imagenet" else "auxiliary_head"
        return self._add(AUXILIARY, op, [source], (self._skeleton.classes, 1, 1))
