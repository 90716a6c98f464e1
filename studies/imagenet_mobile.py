"""How well does a published cell do on ImageNet in a network for mobile devices, in SNAS' setting?

Command:   python studies/imagenet_mobile.py --images FOLDER      # with train/CLASS/*.jpg and val/CLASS/*.jpg
           python studies/imagenet_mobile.py --images FOLDER --cell best_block.json  # a block of `cifar10_ghn.py`
           python studies/imagenet_mobile.py --images FOLDER --until 600  # ten minutes; the same command goes on
           python studies/imagenet_mobile.py --smoke              # the same steps on pictures of digits, seconds
Cost:      12 days on one GPU of 2018 (SNAS, Xie et al. 2019, appendix G)
Expected:  27.3 % test error with 4.3 M parameters and 522 million multiply-adds (SNAS mild, table 3); 27.0 % with 6.1 M
           of a block (GHN, Zhang et al. 2019, table 3); not run here, for want of a GPU

`--cell` names a published cell, such as DARTS_V2, or the JSON file of an architecture. `--channels 0` gives it as many
channels as stay below 600 million multiply-adds, which is the default of blocks.

As in the paper: 14 cells; 250 epochs in batches of 128, a learning rate of 0.1 that an epoch multiplies by 0.97, weight
decay 3e-5, an auxiliary head of weight 0.4. For blocks, as in that of GHN: a stem of stride 2 (`--stem-stride 4` for
another one), 14 blocks, reductions after blocks 1, 2, 6 and 10, channels below 600 million multiply-adds.

Chosen where the paper is silent: 52 channels and DARTS' stem of stride 4, whose 4.5 M parameters and 512 million
multiply-adds are nearest to the paper's; label smoothing 0.1 and crops as DARTS' (Liu et al. 2019), momentum 0.9,
gradients clipped at 5. Blocks are trained by the same recipe, without auxiliary head.

Other than in the paper: 1 % of the training images is kept to report on; bfloat16 on a GPU that has it.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from paper_settings import ends_after, train_in_full
from PIL import Image
from sklearn.datasets import load_digits

from optuna_nas import (
    Architecture,
    BlockSpace,
    ImageClassification,
    ImageFolderData,
    NetworkSpace,
    Recipe,
    Skeleton,
    darts_imagenet_skeleton,
    ghn_mobile_skeleton,
    widest_skeleton,
)
from optuna_nas.results.final_training import read_architecture


def stand_in(folder: Path, per_class: int = 12) -> Path:
    """Write digits as pictures into folders, as ImageNet's are; return the folder."""
    digits = load_digits()
    for label in range(10):
        images = digits.images[digits.target == label][:per_class]
        for number, image in enumerate(images):
            part = "val" if number % 4 == 0 else "train"
            file = folder / part / f"digit_{label}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.kron(image * 255 / 16, np.ones((8, 8))).astype(np.uint8)
            Image.fromarray(pixels).convert("RGB").save(file)
    return folder


def frame_of(
    cell: Architecture, data: ImageFolderData, smoke: bool, channels: int | None, stem_stride: int | None
) -> Skeleton:
    """Return the network for mobile devices that an architecture is for: GHN's of blocks, DARTS' of cells.

    Args:
        cell: Cells or block.
        data: Images.
        smoke: Whether the network is to be small.
        channels: Channels of the first cell; 0 for the most below 600 million multiply-adds, None for the default.
        stem_stride: Stride of the stem of blocks, None for the default.
    """
    if channels is None:
        channels = 4 if smoke else 0 if isinstance(cell.space.core, BlockSpace) else 52
    if isinstance(cell.space.core, BlockSpace):
        blocks, stride = 11 if smoke else 14, stem_stride or 2
        frame = ghn_mobile_skeleton(channels or 2, data.input_shape, data.classes, blocks=blocks, stem_stride=stride)
    elif stem_stride in (None, 4):
        frame = darts_imagenet_skeleton(2 if smoke else 14, channels or 2, data.input_shape, data.classes)
    else:
        raise ValueError(
            f"`stem_stride` must be 4 for cells, whose stem is DARTS', but is {stem_stride}; leave it out."
        )
    return frame if channels else widest_skeleton(cell, frame)


def main() -> None:
    """Train the cell in full, and judge it on the validation images, which are ImageNet's test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder with train/CLASS/IMAGE and val/CLASS/IMAGE")
    parser.add_argument("--cell", default="SNAS_mild", help="name of a published cell, or a JSON file")
    parser.add_argument("--channels", type=int, help="of the first cell; 0 for the most that are allowed")
    parser.add_argument("--stem-stride", type=int, choices=(2, 4), help="of blocks; 2 by default")
    parser.add_argument("--smoke", action="store_true", help="pictures of digits instead of ImageNet")
    parser.add_argument("--workers", type=int, default=8, help="processes that decode images")
    parser.add_argument("--folder", type=Path, default=Path("runs/imagenet-mobile"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", type=float, metavar="SECONDS", help="end cleanly then; the same command goes on")
    options = parser.parse_args()
    over = ends_after(options.until)
    folder = options.folder.with_name(f"{options.folder.name}-smoke") if options.smoke else options.folder
    folder.mkdir(parents=True, exist_ok=True)
    cell = read_architecture(options.cell)
    if options.smoke:  # networks of blocks reduce an image more often
        size = 128 if isinstance(cell.space.core, BlockSpace) else 32
        root, workers, reporting = stand_in(folder / "images"), 0, 0.2
    elif options.images is None:
        parser.error("--images must name the folder of ImageNet, or give --smoke")
    else:
        root, size, workers, reporting = options.images, 224, options.workers, 0.01
    data = ImageFolderData(root, size, workers, options.device, {"report": reporting}, options.seed)
    frame = frame_of(cell, data, options.smoke, options.channels, options.stem_stride)
    space = NetworkSpace(cell.space.core, frame)
    network = space.build(space.adopt(cell), seed=options.seed)
    recipe = Recipe(
        epochs=2 if options.smoke else 250,
        batch_size=32 if options.smoke else 128,
        learning_rate=0.1,
        schedule="exponential",
        decay_per_epoch=0.97,
        weight_decay=3e-5,
        seed=options.seed,
    )
    task = ImageClassification(label_smoothing=0.1)
    train_in_full(network, recipe, data, folder, over, task, checkpoint_seconds=0.0 if options.smoke else 30.0)


if __name__ == "__main__":
    main()
