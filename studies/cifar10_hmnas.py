"""What survives HM-NAS's masks on CIFAR-10, in the paper's own setting, and how well does it do when fine-tuned?

Command:   python studies/cifar10_hmnas.py                      # supernet and masks, then fine-tuning as a trial
           python studies/cifar10_hmnas.py --second-order       # the paper's better result, four times as long
           python studies/cifar10_hmnas.py --smoke              # the same steps on a few digits, seconds on a CPU
           python studies/cifar10_hmnas.py --until 600          # ten minutes of it; the same command goes on
Cost:      11 hours for supernet and masks, 10 for fine-tuning on one V100 (the paper's figures)
Expected:  a test error of about 2.8 %, 2.4 % with second order, 1.8 M parameters (HM-NAS, Yan et al. 2019, table 2);
           not run here, for want of a GPU

The same command goes on where it was interrupted. Beside what survived, `--random` cells are trained from scratch.

As in the paper: seven ops without `none`; three cells of 36 channels, the last two reduce; all kernels learn; 100
epochs for the supernet, four fifths of the images for weights, a fifth for ops and edges, which wait for ten epochs and
then learn in a share of the steps that falls from 1; batches of 128, SGD from 0.1 along a cosine with momentum 0.9 and
weight decay 3e-4, Adam at 3e-4 with weight decay 1e-3; 20 epochs for the masks on all of these images, from 0.01 with
a threshold of 0.005, Adam at 1e-4 for weights and 1e-5 for ops and edges, a tenth in the second half, no penalty; 200
epochs of fine-tuning with cutout.

Chosen where the paper is silent: the share of steps falls to 0 along half a cosine; the edges into a node share a
softmax, as in equation 2, though the figures print weights that fit one of a whole cell (`edge_softmax`); the step
ahead of the second order has momentum, as in DARTS' code; masks learn in batches of 128; gradients are clipped at 5;
norms learn no scale and shift; fine-tuning by SGD from 0.025 along a cosine in batches of 96, without drop-path and
auxiliary head.

Other than in the paper: 1,000 of the 50,000 training images are kept to report on; `--random` cells are trained for as
long as the fine-tuning, not for 600 epochs; bfloat16 on a GPU that has it.
"""

import argparse

import optuna
import torch
from bilevel import bilevel
from paper_settings import GOES_ON, ends_after, hand_over, search_data, with_cutout

from optuna_nas import (
    HMNAS,
    HMNASRecipe,
    ImageData,
    NetworkSpace,
    Recipe,
    Search,
    Skeleton,
    TrainObjective,
    hmnas_space,
    load_network,
    plot_family,
    plot_masks,
    run,
)
from optuna_nas.search.opening import open_study
from optuna_nas.search.results import network_of
from optuna_nas.storage.by_architecture import enqueue_architecture, trial_of
from optuna_nas.training import TrainingStopped, evaluate

REPORTING = 1000  # images; of all others a fifth is for ops and edges, as in the paper


def make_hmnas(smoke: bool, second_order: bool, data: ImageData, seed: int) -> HMNAS:
    """Return the paper's supernet: three cells of 36 channels, the last two reduce."""
    cells = ("normal", "reduction") if smoke else ("normal", "reduction", "reduction")
    frame = Skeleton(cells, 4 if smoke else 36, data.input_shape, data.classes, affine=False)
    unrolled = "momentum" if second_order else False  # as DARTS' code, which HM-NAS follows
    recipe = HMNASRecipe(second_order=unrolled, freeze_fraction=0.0, batch_size=32 if smoke else 128, seed=seed)
    return HMNAS(NetworkSpace(hmnas_space(), frame), recipe)


def fine_tuning(smoke: bool, data: ImageData, hmnas: HMNAS, random: int, seed: int) -> Search:
    """Return the study of which the first trial is what survived; 200 epochs with cutout as in the paper."""
    recipe = Recipe(epochs=1 if smoke else 200, batch_size=32 if smoke else 96, learning_rate=0.025, seed=seed)
    final = data if smoke else with_cutout(data)
    return Search(
        name="cifar10-hmnas-smoke" if smoke else "cifar10-hmnas",
        space=hmnas.space,
        objective=TrainObjective(hmnas.space, final, recipe, initial_weights=hmnas.inherited, reuse_duplicates=False),
        data=final,
        sampler=optuna.samplers.RandomSampler(seed),
        trials=1 + random,
        keep_networks=1 + random,
        description=__doc__ or "",
    )


def main() -> None:
    """Train supernet and masks, fine-tune what survives, judge it on the test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny digits instead of CIFAR-10")
    parser.add_argument("--second-order", action="store_true")
    parser.add_argument("--random", type=int, default=0, help="random cells to compare with")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", type=float, metavar="SECONDS", help="end cleanly then; the same command goes on")
    options = parser.parse_args()
    over = ends_after(options.until)
    data = bilevel(search_data(options.smoke, options.seed, REPORTING)).to(torch.device(options.device))
    hmnas = make_hmnas(options.smoke, options.second_order, data, options.seed)
    study = fine_tuning(options.smoke, data, hmnas, options.random, options.seed)
    folder = study.resolved_folder()
    try:
        hmnas.fit(
            data,
            2 if options.smoke else 120,
            checkpoint=folder / "hmnas.safetensors",
            checkpoint_seconds=0.0 if options.smoke else 30.0,
            on_record=lambda record: print(record.step, record.metrics, flush=True),
            should_stop=over,
        )
    except TrainingStopped:
        print(GOES_ON)
        return
    derived = hmnas.derive()
    plot_masks(hmnas).savefig(folder / "masks.png")
    plot_family(hmnas).savefig(folder / "family.png")
    (folder / "surviving_cell.json").write_text(derived.architecture.to_json())
    print(f"survives, {derived.params / 1e6:.3f} M parameters: {derived.architecture.summary}\npictures in {folder}")
    enqueue_architecture(open_study(study), derived.architecture)
    result = run(study)
    if result.interrupted:
        print(f"interrupted with {result.missing} of {study.trials} trials to go; the same command goes on")
        return
    trial = trial_of(result.study, derived.architecture)
    file = None if trial is None else network_of(study, result.study, trial)
    if file is None:
        print("the fine-tuning has failed; the same command tries it again")
        return
    hand_over(file, folder, evaluate(load_network(file, options.device), data, "test").metric)


if __name__ == "__main__":
    main()
