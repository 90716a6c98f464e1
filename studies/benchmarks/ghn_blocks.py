"""How many parameters have random blocks of the GHN paper, under laws that its main text leaves open?

Command:   python studies/benchmarks/ghn_blocks.py
Cost:      three minutes on one thread; nothing is built or trained
Expected:  5.7 +- 2.3 M as `ghn_space` draws them; the paper reports 4.6 +- 0.6 M of ten random networks

Networks of 18 blocks and 32 channels for CIFAR-10, and networks for mobile devices of less than 600 M multiply-adds.
"""

import argparse
from collections.abc import Callable

import numpy as np

from optuna_nas import (
    Architecture,
    BlockSpace,
    NetworkSpace,
    ghn_mobile_skeleton,
    ghn_skeleton,
    ghn_space,
    widest_skeleton,
)

Law = Callable[[BlockSpace, np.random.Generator], Architecture]


def uniform(space: BlockSpace, random: np.random.Generator) -> Architecture:
    """Draw every choice uniformly, as samplers do."""
    return space.sample(random)


def half_of_two(space: BlockSpace, random: np.random.Generator) -> Architecture:
    """Draw one or two predecessors equally often."""
    return drawn(space, random, lambda node: random.choice(node, min(node, 1 + int(random.integers(2))), replace=False))


def chain(space: BlockSpace, random: np.random.Generator) -> Architecture:
    """Let every node read the one before it, and half of them another one."""

    def sources(node: int) -> np.ndarray:
        another = [int(random.integers(node - 1))] if node > 1 and random.random() < 0.5 else []
        return np.array([node - 1, *another])

    return drawn(space, random, sources)


def dealt(space: BlockSpace, random: np.random.Generator) -> Architecture:
    """Deal the ops out, so that none occurs twice more than another."""
    params = dict(space.encode(space.sample(random)))
    rounds = -(-space.nodes // len(space.ops))
    ops = np.concatenate([random.permutation(space.ops) for _ in range(rounds)])[: space.nodes]
    ops = random.permutation(ops)
    return space.decode({**params, **{space.path(space.kind, i): str(op) for i, op in enumerate(ops, 1)}})


def drawn(space: BlockSpace, random: np.random.Generator, sources: Callable[[int], np.ndarray]) -> Architecture:
    """Draw ops uniformly, and the predecessors of a node by a function of its number."""
    params = {}
    for node in range(1, space.nodes + 1):
        path = space.path(space.kind, node)
        params[path] = space.ops[int(random.integers(len(space.ops)))]
        params[f"{path}_inputs"] = "+".join(map(str, sorted(sources(node).tolist())))
    return space.decode(params)


def replaced(op: str, by: str | None) -> BlockSpace:
    """Return the space with another op, or none, in place of one."""
    names = [by if name == op else name for name in ghn_space().ops]
    return BlockSpace(tuple(name for name in names if name is not None))


def main() -> None:
    """Print mean and standard deviation of parameters, and the deviation of the mean of ten."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=300)
    parser.add_argument("--mobile-blocks", type=int, default=20)
    options = parser.parse_args()
    laws: dict[str, tuple[BlockSpace, Law]] = {
        "17 nodes, uniform": (ghn_space(), uniform),
        "one or two predecessors equally often": (ghn_space(), half_of_two),
        "a chain with skips": (ghn_space(), chain),
        **{f"{nodes} nodes, uniform": (ghn_space(nodes), uniform) for nodes in (16, 15, 14)},
        **{f"{nodes} nodes, ops dealt out": (ghn_space(nodes), dealt) for nodes in (17, 14)},
        "without 1 x 7 and 7 x 1": (replaced("conv_7x1_1x7", None), uniform),
        "separable 7 x 7 in its place": (replaced("conv_7x1_1x7", "sep_conv_7x7"), uniform),
    }
    for name, (space, law) in laws.items():
        network, random = NetworkSpace(space, ghn_skeleton()), np.random.default_rng(0)
        params = np.array([network.params(network.adopt(law(space, random))) for _ in range(options.blocks)]) / 1e6
        deviation = params.std(ddof=1)
        print(
            f"{name:40s} {params.mean():5.2f} +- {deviation:.2f} M, mean of ten +- {deviation / 10**0.5:.2f}",
            flush=True,
        )
    for stride in (2, 4):
        space, found = ghn_space(), []
        for seed in range(options.mobile_blocks):
            block = space.sample(np.random.default_rng(seed))
            skeleton = widest_skeleton(block, ghn_mobile_skeleton(stem_stride=stride))
            found.append((skeleton.channels, space.network_cost(block, skeleton).params / 1e6))
        channels, params = zip(*found, strict=True)
        print(
            f"mobile, stem of stride {stride}: {min(channels)} to {max(channels)} channels, {np.mean(params):.1f} M "
            f"({min(params):.1f} to {max(params):.1f})"
        )


if __name__ == "__main__":
    main()
