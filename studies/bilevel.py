"""The split of HM-NAS's and DARTS' papers: weights learn from some images, ops and edges from others."""

from dataclasses import replace

from optuna_nas import ImageData


def bilevel(data: ImageData, share: float = 0.2) -> ImageData:
    """Return the data with a share of what weights would learn from for edges and ops."""
    images = data.splits["weights"]
    cut = len(images) - round(share * len(images))
    return replace(data, splits={**data.splits, "weights": images[:cut], "choices": images[cut:]})
