"""Data sets: batches from arrays, folders and PyTorch datasets; splits; augmentation."""

from typing import TYPE_CHECKING

from optuna_nas.data.arrays import ImageData
from optuna_nas.data.augmentation import Augmentation
from optuna_nas.data.batches import Batch
from optuna_nas.data.catalog import cifar10, cifar100, digits, fashion_mnist, mnist
from optuna_nas.data.datasets import DatasetData
from optuna_nas.data.folder import ImageFolderData
from optuna_nas.data.loaders import LoaderData
from optuna_nas.data.splits import CHOICES, REPORT, SPLITS, TEST, TRAIN, WEIGHTS, Data, seeded_generator
from optuna_nas.data.tensors import TensorData

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
    "DatasetData",
    "ImageData",
    "ImageFolderData",
    "LoaderData",
    "TensorData",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "mnist",
    "seeded_generator",
]

if TYPE_CHECKING:

    def _provide(
        images: ImageData, folder: ImageFolderData, tensors: TensorData, dataset: DatasetData, loaders: LoaderData
    ) -> tuple[Data, ...]:
        return images, folder, tensors, dataset, loaders  # checked by mypy: all of them implement the protocol
