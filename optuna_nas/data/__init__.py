"""Batches out of arrays, folders and data sets; splits; augmentation."""

from typing import TYPE_CHECKING

from optuna_nas.data.arrays import ImageData
from optuna_nas.data.augmentation import Augmentation
from optuna_nas.data.catalog import cifar10, cifar100, digits, fashion_mnist, mnist
from optuna_nas.data.folder import ImageFolderData
from optuna_nas.data.splits import CHOICES, REPORT, SPLITS, TEST, TRAIN, WEIGHTS, Batch, Data, seeded_generator

__all__ = [
    "CHOICES",
    "REPORT",
    "SPLITS",
    "TEST",
    "TRAIN",
    "WEIGHTS",
    "Augmentation",
    "Batch",
    "Data",
    "ImageData",
    "ImageFolderData",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "mnist",
    "seeded_generator",
]

if TYPE_CHECKING:

    def _provide(images: ImageData, folder: ImageFolderData) -> tuple[Data, Data]:
        return images, folder  # a type checker says so where one of them does not
