"""How many nodes should the blocks have that a hypernetwork learns from (figure 5a of Zhang, Ren and Urtasun 2019)?

Command:   python studies/benchmarks/ghn_nodes.py --json ghn_nodes.json      # goes on where it was stopped
Cost:      40 minutes on one thread for two hypernetworks of each size; the data come with scikit-learn
Expected:  in the paper, blocks of fewer nodes do better; here those of 17 do, and after eight epochs none ranks

Blocks of the paper's space on handwritten digits, three in a network of 8 channels. Judged are always blocks of 17
nodes, as in the paper: trained for five epochs each, their validation losses are compared with the hypernetwork's
scores. Hypernetworks learn for equal numbers of epochs, so that those of small blocks take less time.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from free_score import rank_correlations

from optuna_nas import GHN, Architecture, GHNRecipe, NetworkSpace, Recipe, digits, ghn_skeleton, ghn_space, train

JUDGED = 17


def depth(block: Architecture) -> int:
    """Return the largest number of convolutions on a way through a network."""
    depths: list[int] = []
    for node in block.graph():
        depths.append(max((depths[i] for i in node.inputs), default=0) + ("conv" in node.op))
    return max(depths)


def own_loss(space: NetworkSpace, ghn: GHN, n_blocks: int) -> float:
    """Return the mean loss, with generated weights, of random blocks as the hypernetwork has learned from."""
    random = np.random.default_rng(1)
    return -float(np.mean(ghn.scores_on(ghn.scoring_batch(), [space.sample(random) for _ in range(n_blocks)])))


def main() -> None:
    """Train blocks, train hypernetworks, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[3, 5, 7, 9, 17])
    parser.add_argument("--blocks", type=int, default=30, help="of 17 nodes, trained and scored")
    parser.add_argument("--truth-epochs", type=int, default=5, help="of the blocks that are trained")
    parser.add_argument("--epochs", type=float, default=40.0, help="of a hypernetwork")
    parser.add_argument("--seeds", type=int, default=2, help="hypernetworks of each size")
    parser.add_argument(
        "--freeze", type=float, default=0.0, help="1 keeps fixed kernels random; the paper generates all"
    )
    parser.add_argument("--json", type=Path, default=Path("ghn_nodes.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = digits()
    skeleton = ghn_skeleton(3, 8, data.input_shape, data.classes)
    space = NetworkSpace(ghn_space(JUDGED), skeleton)
    random = np.random.default_rng(0)
    blocks = [space.sample(random) for _ in range(options.blocks)]
    found = json.loads(options.json.read_text()) if options.json.exists() else {"losses": [], "rows": []}
    brief = Recipe(epochs=options.truth_epochs, learning_rate=0.05, warmup_fraction=0.1)
    while len(found["losses"]) < len(blocks):
        result = train(space.build(blocks[len(found["losses"])], seed=0), data, brief)
        found["losses"].append(result.last.validation_loss)
        options.json.write_text(json.dumps(found, indent=1))
    came = -np.array(found["losses"])
    known = {"parameters": [block.cost().params for block in blocks], "depth": list(map(depth, blocks))}
    told = ", ".join(f"{name} {rank_correlations(np.array(values), came)[0]:.2f}" for name, values in known.items())
    print(f"{len(blocks)} blocks: loss {-came.mean():.3f} +- {came.std():.3f}; Spearman of {told}", flush=True)
    done = {(row["nodes"], row["seed"], row["freeze"]) for row in found["rows"]}
    for seed in range(options.seeds):
        for nodes in options.nodes:
            if (nodes, seed, options.freeze) in done:
                continue
            learned = NetworkSpace(ghn_space(nodes), skeleton)
            recipe = GHNRecipe(meta_batch=2, freeze_fraction=options.freeze, seed=seed)
            ghn = GHN(space, recipe, training_space=learned)
            begun = time.process_time()
            ghn.fit(data, options.epochs, show_progress=False)
            row = {"nodes": nodes, "seed": seed, "freeze": options.freeze, "seconds": time.process_time() - begun}
            scores = ghn.score(blocks)
            row["spearman"], row["kendall"] = rank_correlations(scores, came)
            row["scores"] = scores.tolist()
            row["mean loss"] = -float(np.mean(scores))
            row["mean loss, own nodes"] = own_loss(learned, ghn, options.blocks)
            found["rows"].append(row)
            options.json.write_text(json.dumps(found, indent=1))
            told = (f"{name} {value:.3g}" for name, value in row.items() if name != "scores")
            print("  ".join(told), flush=True)


if __name__ == "__main__":
    main()
