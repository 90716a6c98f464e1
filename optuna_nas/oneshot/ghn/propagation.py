"""Messages along the edges of a graph: what turns ops into embeddings that know the network around them.

Zhang, Ren and Urtasun 2019 (arXiv 1810.05749), sections 4.1, 4.4 and 5.1.1; virtual edges: Knyazev et al. 2021.

A phase is a long chain of small steps, in which a framework spends more time on bookkeeping than on numbers; so the
chain is one function to autograd, with its gradient written out, and what is linear in the weights is done once at the
end. N nodes, H the size of an embedding; in a level n nodes that m messages reach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from optuna_nas.oneshot.ghn.graph import all_at_once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna_nas.oneshot.ghn.graph import Level, ModuleBatch

PROPAGATIONS = ("forward_backward", "synchronous")
REMEMBERING = 1.0
"""Initial bias of the gate that keeps the old embedding."""


class Propagation(nn.Module):
    """`h_v <- GRU(h_v, sum of M(h_u) over the nodes u that v reads)`, level by level, there and back.

    The same weights serve both directions and all modules. M is an MLP of two layers.

    Args:
        hidden: Size of an embedding.
        phases: T: passes from the inputs to the output and back, or synchronous steps.
        kind: `forward_backward` (section 4.4) or `synchronous` (all nodes at once, T times).
        virtual_edges: Add messages of nodes near and far, `M'(h_u) / length of the shortest path`.
    """

    def __init__(self, hidden: int, phases: int, kind: str, virtual_edges: bool) -> None:
        super().__init__()
        self.phases, self.kind = phases, kind
        self.message = _two_layers(hidden)
        self.far_message = _two_layers(hidden) if virtual_edges else None
        self.update = nn.GRUCell(hidden, hidden)
        # With the default start, gates are about 1/2, and ten updates leave 2^-10 of what a node is.
        nn.init.orthogonal_(self.update.weight_ih)
        nn.init.orthogonal_(self.update.weight_hh)
        with torch.no_grad():
            self.update.bias_ih[hidden : 2 * hidden].fill_(REMEMBERING)

    def forward(self, embeddings_NH: Tensor, module: ModuleBatch) -> Tensor:
        """Return the embeddings after all phases, shape (N, H)."""
        levels = (*module.forward, *module.backward)
        if self.kind == "synchronous":
            levels = (all_at_once(module.forward),)
        # M's second layer and the GRU's layer for what it receives are one linear map of the sum after M's first layer.
        weights = []
        for message in (self.message, self.far_message):
            if message is not None:
                first, second = cast("nn.Linear", message[0]), cast("nn.Linear", message[2])
                joined = self.update.weight_ih @ second.weight
                weights += [first.weight, first.bias, joined, self.update.weight_ih @ second.bias]
        gru = (self.update.weight_hh, self.update.bias_hh, self.update.bias_ih)
        learning = torch.is_grad_enabled()
        return _Chain.apply(embeddings_NH, levels, self.phases, learning, *gru, *weights)  # type: ignore[no-any-return]

    def receive(self, embeddings_NH: Tensor, nodes: Tensor, messages_RH: Tensor) -> Tensor:
        """Return the embeddings after some nodes were sent embeddings of modules that they read (section 4.3)."""
        return embeddings_NH.index_copy(0, nodes, self.update(self.message(messages_RH), embeddings_NH[nodes]))


def _two_layers(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))


class _Messages(NamedTuple):
    """Messages of one kind that reach a level.

    Args:
        sources: Nodes they come from, shape (m,).
        targets: Places in the level that they go to, shape (m,).
        lengths: What they are multiplied with, shape (m, 1); None for ones.
        total: Sum of that for every node of the level, shape (n, 1).
    """

    sources: Tensor
    targets: Tensor
    lengths: Tensor | None
    total: Tensor


class _Done(NamedTuple):
    """What the gradient of one update needs; of every kind of message what was sent, after its first layer, summed."""

    level: int
    old: Tensor
    gates: Tensor
    remembered: Tensor
    candidate: Tensor
    messages: list[tuple[Tensor, Tensor, Tensor]]


class _Chain(torch.autograd.Function):
    """All updates of a module, one after another."""

    @staticmethod
    def forward(
        ctx: Any, start_NH: Tensor, levels: Sequence[Level], phases: int, learning: bool, *weights: Tensor
    ) -> Tensor:
        """Return the embeddings after the last update, shape (N, H).

        Args:
            ctx: For the gradient.
            start_NH: Embeddings before.
            levels: In the order of one phase.
            phases: How often they are gone through.
            learning: Keep what the gradient needs.
            weights: The GRU's map of the old embedding, the bias of this map, the bias of what it receives; then for
                each kind of message weight and bias of its first layer, and weight and bias of what follows.
        """
        recurrent, recurrent_bias, received_bias, *kinds = weights
        width = start_NH.shape[1]
        state = start_NH.clone()
        sent = [_messages_of(level, state, len(kinds) // 4) for level in levels]
        biases = []
        for level, messages in zip(levels, sent, strict=True):
            biases.append(received_bias.expand(len(level.nodes), -1))
            for k, message in enumerate(messages):
                biases[-1] = biases[-1] + message.total * kinds[4 * k + 3]
        done: list[_Done] = []
        for _ in range(phases):
            for number, level in enumerate(levels):
                kept, inner = [], biases[number]
                for k, message in enumerate(sent[number]):
                    first, bias, joined = kinds[4 * k : 4 * k + 3]
                    given = state.index_select(0, message.sources)
                    hidden = torch.addmm(bias, given, first.t()).relu_()
                    weighted = hidden if message.lengths is None else hidden * message.lengths
                    summed = state.new_zeros(len(level.nodes), width).index_add_(0, message.targets, weighted)
                    inner = torch.addmm(inner, summed, joined.t())
                    kept.append((given, hidden, summed))
                old = state.index_select(0, level.nodes)
                outer = torch.addmm(recurrent_bias, old, recurrent.t())
                gates = torch.sigmoid(inner[:, : 2 * width] + outer[:, : 2 * width])
                remembered = outer[:, 2 * width :]
                candidate = torch.addcmul(inner[:, 2 * width :], gates[:, :width], remembered).tanh_()
                state.index_copy_(0, level.nodes, torch.lerp(candidate, old, gates[:, width:]))
                if learning:
                    done.append(_Done(number, old, gates, remembered, candidate, kept))
        ctx.levels, ctx.sent, ctx.weights, ctx.done = levels, sent, weights, done
        return state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_NH: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the embeddings before and of the weights."""
        recurrent, *_ = ctx.weights
        kinds = ctx.weights[3:]
        width = gradient_NH.shape[1]
        gradient = gradient_NH.clone(memory_format=torch.contiguous_format)
        inners, outers = [], []
        hiddens: list[list[Tensor]] = [[] for _ in range(len(kinds) // 4)]
        for update in reversed(ctx.done):
            nodes = ctx.levels[update.level].nodes
            reset, stay = update.gates[:, :width], update.gates[:, width:]
            of_new = gradient.index_select(0, nodes)
            of_candidate = torch.ops.aten.tanh_backward(of_new * (1 - stay), update.candidate)
            of_gates = torch.cat([of_candidate * update.remembered, of_new * (update.old - update.candidate)], dim=1)
            of_gates = torch.ops.aten.sigmoid_backward(of_gates, update.gates)
            inner = torch.cat([of_gates, of_candidate], dim=1)
            outer = torch.cat([of_gates, of_candidate * reset], dim=1)
            gradient.index_copy_(0, nodes, torch.addmm(of_new * stay, outer, recurrent))
            for k, (message, (_, hidden, _)) in enumerate(zip(ctx.sent[update.level], update.messages, strict=True)):
                of_hidden = (inner @ kinds[4 * k + 2]).index_select(0, message.targets)
                if message.lengths is not None:
                    of_hidden *= message.lengths
                of_hidden = torch.ops.aten.threshold_backward(of_hidden, hidden, 0)
                gradient.index_add_(0, message.sources, of_hidden @ kinds[4 * k])
                hiddens[k].append(of_hidden)
            inners.append(inner)
            outers.append(outer)
        updates = ctx.done[::-1]
        of_inner, of_outer = torch.cat(inners), torch.cat(outers)
        of_weights = [
            of_outer.t() @ torch.cat([update.old for update in updates]),
            of_outer.sum(0),
            of_inner.sum(0),
        ]
        for k in range(len(kinds) // 4):
            used = [(inner, update) for inner, update in zip(inners, updates, strict=True) if len(update.messages) > k]
            if not used:
                of_weights += [torch.zeros_like(weight) for weight in kinds[4 * k : 4 * k + 4]]
                continue
            of_hidden = torch.cat(hiddens[k])
            of_joined = torch.cat([inner for inner, _ in used])
            totals = torch.cat([ctx.sent[update.level][k].total for _, update in used])
            of_weights += [
                of_hidden.t() @ torch.cat([update.messages[k][0] for _, update in used]),
                of_hidden.sum(0),
                of_joined.t() @ torch.cat([update.messages[k][2] for _, update in used]),
                (of_joined * totals).sum(0),
            ]
        return gradient, None, None, None, *of_weights


def _messages_of(level: Level, like: Tensor, n_kinds: int) -> list[_Messages]:
    """Return the messages that reach a level, of every kind; none where no node of the level reads another."""
    if not len(level.sources):
        return []
    none = like.new_zeros(len(level.nodes), 1)
    ones = like.new_ones(len(level.targets), 1)
    messages = [_Messages(level.sources, level.targets, None, none.index_add(0, level.targets, ones))]
    if n_kinds > 1:
        lengths = level.far_weights[:, None].to(like.dtype)
        total = none.index_add(0, level.far_targets, lengths)
        messages.append(_Messages(level.far_sources, level.far_targets, lengths, total))
    return messages
