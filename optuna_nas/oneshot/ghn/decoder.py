"""From an embedding to the tensors of a module: fixed-size chunks, joined over channels and sliced in space.

Zhang, Ren and Urtasun 2019, sections 3 and 4.2, after Ha et al. 2017. The paper leaves open how the chunks of one
tensor come to differ; here each multiplies the features of its node by a code of its own, a sum of learned vectors for
the tensor's place in its op and the chunk's row and column. (Codes that are added instead drown the node: the weights
of all architectures are then the same.) Scale and shift of norms: Knyazev et al. 2021 (GHN-2).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

SCALE, SHIFT, WEIGHT = "scale", "shift", "weight"


class Slot(NamedTuple):
    """One tensor to be generated.

    Args:
        shape: As the module wants it.
        number: Its place among the tensors of its op.
        role: `weight`, or `scale` or `shift` of a norm.
    """

    shape: tuple[int, ...]
    number: int
    role: str

    @property
    def kernel(self) -> tuple[int, int, int, int]:
        """(out, in, height, width), with ones where the tensor has fewer dimensions."""
        return (*self.shape, *(1,) * (4 - len(self.shape)))  # type: ignore[return-value]


def slots_of(module: nn.Module) -> dict[str, Slot]:
    """Return the tensors of an op by name."""
    slots: dict[str, Slot] = {}
    for path, part in module.named_modules():
        norm = isinstance(part, nn.modules.batchnorm._NormBase)
        for name, parameter in part.named_parameters(recurse=False):
            role = (SCALE if name == "weight" else SHIFT) if norm else WEIGHT
            slots[f"{path}.{name}" if path else name] = Slot(tuple(parameter.shape), len(slots), role)
    return slots


class Decoder(nn.Module):
    """One MLP of two layers, shared by all nodes and all their tensors.

    Args:
        embedding: Size of a node's embedding.
        hidden: Size of the hidden layer; 64 in the paper.
        chunk: Channels of a chunk, out and in.
        kernel: Largest height or width of a kernel.
        slots: Most tensors of an op.
        rows: Most chunks along the output channels.
        columns: Most chunks along the input channels.
        fan_in_normalization: Divide weights by the root of half their fan-in.
    """

    def __init__(
        self,
        embedding: int,
        hidden: int,
        chunk: int,
        kernel: int,
        slots: int,
        rows: int,
        columns: int,
        fan_in_normalization: bool,
    ) -> None:
        super().__init__()
        self.chunk, self.kernel, self.fan_in_normalization = chunk, kernel, fan_in_normalization
        self.first = nn.Linear(embedding, hidden)
        self.slot = nn.Embedding(slots, hidden)
        self.row = nn.Embedding(rows, hidden)
        self.column = nn.Embedding(columns, hidden)
        self.second = nn.Linear(hidden, chunk * chunk * kernel * kernel)
        nn.init.zeros_(self.second.bias)

    def forward(self, embeddings_NH: Tensor, rows: Sequence[int], slots: Sequence[Slot]) -> list[Tensor]:
        """Return one tensor for every (row of the embeddings, slot); equal shapes are decoded at once.

        Args:
            embeddings_NH: Shape (N, H).
            rows: For every tensor the node it is of.
            slots: What to generate.
        """
        groups: dict[tuple[int, int, int, int, str], list[int]] = {}
        for i, slot in enumerate(slots):
            groups.setdefault((*slot.kernel, slot.role), []).append(i)
        heads: dict[tuple[bool, int, int], tuple[Tensor, Tensor]] = {}
        node_ND = F.relu(self.first(embeddings_NH))
        tensors: list[Tensor | None] = [None] * len(slots)
        device = embeddings_NH.device
        for (n_out, n_in, height, width, role), members in groups.items():
            index = torch.tensor([[rows[i] for i in members], [slots[i].number for i in members]]).to(device)
            narrow = n_in == 1
            if (narrow, height, width) not in heads:
                heads[narrow, height, width] = self._head(1 if narrow else self.chunk, height, width)
            head = heads[narrow, height, width]
            generated = self._decode(node_ND[index[0]], self.slot(index[1]), n_out, n_in, head)
            generated = generated.reshape(len(members), n_out, n_in, height, width)
            if role == SCALE:
                generated = 2 * torch.sigmoid(0.5 * generated)
            elif role == SHIFT:
                generated = torch.tanh(0.2 * generated)
            elif self.fan_in_normalization:
                generated = generated * math.sqrt(2 / (n_in * height * width))
            for i, tensor in zip(members, generated.unbind(), strict=True):
                tensors[i] = tensor.reshape(slots[i].shape)
        return tensors  # type: ignore[return-value]

    def _head(self, n_in: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return the rows of the last layer that make a chunk of this size: the centre of the kernel."""
        chunk, kernel = self.chunk, self.kernel
        top, left = (kernel - height) // 2, (kernel - width) // 2
        where = (slice(None), slice(n_in), slice(top, top + height), slice(left, left + width))
        weight = self.second.weight.view(chunk, chunk, kernel, kernel, -1)[where].flatten(0, 3)
        return weight, self.second.bias.view(chunk, chunk, kernel, kernel)[where].flatten()

    def _decode(self, nodes_MD: Tensor, codes_MD: Tensor, n_out: int, n_in: int, head: tuple[Tensor, Tensor]) -> Tensor:
        """Return tensors of one shape, (M, n_out, n_in, height * width)."""
        chunk = self.chunk
        in_chunk = 1 if n_in == 1 else chunk
        n_rows, n_columns = -(-n_out // chunk), -(-n_in // in_chunk)
        grid = self.row.weight[:n_rows, None] + self.column.weight[None, :n_columns]
        hidden = nodes_MD[:, None, None] * (codes_MD[:, None, None] + grid)  # (M, rows, columns, D)
        chunks = F.linear(hidden, *head).view(len(codes_MD), n_rows, n_columns, chunk, in_chunk, -1)
        joined = chunks.permute(0, 1, 3, 2, 4, 5).reshape(len(codes_MD), n_rows * chunk, n_columns * in_chunk, -1)
        return joined[:, :n_out, :n_in]
